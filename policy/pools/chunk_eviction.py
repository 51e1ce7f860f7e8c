"""Which idle chunk of the host tier gives way: LRU (the default) and ARC, as in vLLM 0.33.0."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

from policy.pools.named import Name


class Visit:
    """What one request saw of the tier. `rank`: its place among the requests, once it has one;
    `seen`: names and where in the request they stand; of these what it stored (`inserted`), read or
    offered while ready (`reused`), and offered while absent (`missed`)."""

    __slots__ = ("inserted", "missed", "rank", "reused", "seen")

    def __init__(self) -> None:
        self.rank: int | None = None
        self.seen: dict[Name, int] = {}
        self.inserted: dict[Name, None] = {}
        self.reused: dict[Name, None] = {}
        self.missed: dict[Name, None] = {}

    def tail_first(self) -> list[Name]:
        """All it saw, the last in the request first."""
        return sorted(self.seen, key=self.seen.__getitem__, reverse=True)


class Eviction(Protocol):
    """A choice of chunks; the pool says what happens."""

    def insert(self, name: Name, visit: Visit) -> None:
        """A chunk is being stored."""

    def remove(self, name: Name) -> None:
        """Its store failed."""

    def idle(self, name: Name) -> None:
        """It is ready and nobody reads it."""

    def pinned(self, name: Name) -> None:
        """Somebody reads it now."""

    def visited(self, names: Iterable[Name], visit: Visit) -> None:
        """A request saw these for the first time; some may not be here."""

    def missed(self, names: Iterable[Name]) -> None:
        """A request offered these for the first time, and they were absent."""

    def ended(self, visit: Visit) -> None:
        """A request has ended."""

    def evict(self, count: int, protected: Mapping[Name, None]) -> list[Name] | None:
        """So many idle chunks, none of the protected; None, and nothing changed, if there are fewer."""

    def state(self) -> Hashable:
        """What decides what it does from now on."""


class Lru:
    """O8: a request has one provisional rank from its first access on; of one request the tail goes
    first. Ranks are kept while chunks are read; the heap holds stale entries until they come up."""

    def __init__(self) -> None:
        self._ranks: dict[Name, tuple[int, int]] = {}
        self._idle: dict[Name, None] = {}
        self._heap: list[tuple[tuple[int, int], int, Name]] = []
        self._last = 0
        self._pushes = 0

    def insert(self, name: Name, visit: Visit) -> None:
        """See Eviction."""
        self._ranks[name] = (self._rank(visit), -visit.seen[name])

    def remove(self, name: Name) -> None:
        """See Eviction."""
        del self._ranks[name]

    def idle(self, name: Name) -> None:
        """See Eviction."""
        self._idle[name] = None
        self._push(name)

    def pinned(self, name: Name) -> None:
        """See Eviction."""
        del self._idle[name]

    def visited(self, names: Iterable[Name], visit: Visit) -> None:
        """See Eviction."""
        own = self._rank(visit)
        for name in names:
            rank = (own, -visit.seen[name])
            if name in self._ranks and self._ranks[name] < rank:
                self._ranks[name] = rank
                self._push(name)

    def missed(self, names: Iterable[Name]) -> None:
        """See Eviction."""

    def ended(self, visit: Visit) -> None:
        """See Eviction."""
        for name in visit.tail_first():
            if name in self._ranks:
                self._last += 1
                self._ranks[name] = (self._last, 0)
                self._push(name)

    def evict(self, count: int, protected: Mapping[Name, None]) -> list[Name] | None:
        """See Eviction."""
        chosen: dict[Name, None] = {}
        put_back = []
        while self._heap and len(chosen) < count:
            entry = heappop(self._heap)
            rank, _, name = entry
            if name not in self._idle or self._ranks[name] != rank or name in chosen:
                continue
            if name in protected:
                put_back.append(entry)
            else:
                chosen[name] = None
        for entry in put_back:
            heappush(self._heap, entry)
        if len(chosen) < count:
            for name in chosen:
                self._push(name)
            return None
        for name in chosen:
            del self._idle[name], self._ranks[name]
        return list(chosen)

    def state(self) -> Hashable:
        """See Eviction."""
        return tuple(sorted(self._ranks, key=self._ranks.__getitem__))

    def _rank(self, visit: Visit) -> int:
        if visit.rank is None:
            self._last += 1
            visit.rank = self._last
        return visit.rank

    def _push(self, name: Name) -> None:
        if name not in self._idle:
            return
        self._pushes += 1
        heappush(self._heap, (self._ranks[name], self._pushes, name))
        if len(self._heap) > 64 + 2 * len(self._idle):
            self._heap = [(self._ranks[idle], n, idle) for n, idle in enumerate(self._idle)]
            heapify(self._heap)


class Arc:
    """Two lists, of chunks stored and of chunks used again, with the names of what each lost lately.
    A name offered again while it is among those shifts the share of the lists. A chunk moves to the
    second list when a request that reused it ends."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._share = 0.0  # of the first list, in chunks
        self._once: OrderedDict[Name, None] = OrderedDict()
        self._again: OrderedDict[Name, None] = OrderedDict()
        self._lost_once: OrderedDict[Name, None] = OrderedDict()
        self._lost_again: OrderedDict[Name, None] = OrderedDict()
        self._idle: dict[Name, None] = {}

    def insert(self, name: Name, visit: Visit) -> None:  # noqa: ARG002
        """See Eviction."""
        self._once[name] = None
        self._lost_once.pop(name, None)
        self._lost_again.pop(name, None)

    def remove(self, name: Name) -> None:
        """See Eviction. What is being stored is in the first list."""
        del self._once[name]

    def idle(self, name: Name) -> None:
        """See Eviction."""
        self._idle[name] = None

    def pinned(self, name: Name) -> None:
        """See Eviction."""
        del self._idle[name]

    def visited(self, names: Iterable[Name], visit: Visit) -> None:
        """See Eviction."""

    def missed(self, names: Iterable[Name]) -> None:
        """See Eviction."""
        once, again = self._lost_once, self._lost_again
        for name in reversed(list(names)):
            if name in once:
                self._share = min(self._share + max(1, len(again) / len(once)), self._capacity)
                once.move_to_end(name)
            elif name in again:
                self._share = max(self._share - max(1, len(once) / len(again)), 0)
                again.move_to_end(name)

    def ended(self, visit: Visit) -> None:
        """See Eviction."""
        once, again = self._once, self._again
        for name in visit.tail_first():
            if name in visit.reused:
                if name in once:
                    del once[name]
                    again[name] = None
                elif name in again:
                    again.move_to_end(name)
            elif name in visit.inserted:
                for kept in (once, again):
                    if name in kept:
                        kept.move_to_end(name)

    def evict(self, count: int, protected: Mapping[Name, None]) -> list[Name] | None:
        """See Eviction."""
        free = [name for name in self._once if name in self._idle and name not in protected]
        used = [name for name in self._again if name in self._idle and name not in protected]
        if len(free) + len(used) < count:
            return None
        size = len(self._once)
        chosen: list[Name] = []
        first = second = 0
        while len(chosen) < count:
            from_once = first < len(free) and (size >= int(self._share) or second == len(used))
            if from_once:
                chosen.append(free[first])
                first += 1
                size -= 1
            else:
                chosen.append(used[second])
                second += 1
        for name in chosen:
            del self._idle[name]
            if name in self._once:
                del self._once[name]
                self._lost_once[name] = None
            else:
                del self._again[name]
                self._lost_again[name] = None
        for lost in (self._lost_once, self._lost_again):
            while len(lost) > self._capacity:
                lost.popitem(last=False)
        return chosen

    def state(self) -> Hashable:
        """See Eviction."""
        lists = (self._once, self._again, self._lost_once, self._lost_again)
        return (self._share, *[tuple(names) for names in lists])
