"""V1's host tier: chunks of KV by name, and who gives way (O6 to O8 of docs/vllm_v1.md).

The manager of vLLM 0.33.0's native offloading connector. A chunk is `blocks_per_chunk` blocks in one
slot; it is absent, being written (nobody may read it), or ready, with any number of readers. Idle
chunks, ready and unread, may be evicted; which, `chunk_eviction` says.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from policy.errors import InvariantError
from policy.pools.chunk_eviction import Eviction, Visit
from policy.pools.named import Name

WRITING = -1


class Chunk:
    """`readers`: copies that read it; WRITING until it is ready."""

    __slots__ = ("readers", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.readers = WRITING


class Stored(NamedTuple):
    """What is to be copied: names, the slots they go to, and the names that gave way."""

    names: list[Name]
    slots: list[int]
    evicted: list[Name]


class ChunkPool:
    """`num_chunks` slots."""

    def __init__(self, num_chunks: int, eviction: Eviction) -> None:
        self.num_chunks = num_chunks
        self.num_evicted = 0
        self._eviction = eviction
        self._chunks: dict[Name, Chunk] = {}
        self._num_fresh = num_chunks
        self._free: list[int] = []
        self._num_idle = 0

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return self._num_fresh + len(self._free)

    def is_ready(self, name: Name) -> bool | None:
        """Whether it can be read; None if it is not here. Looking does not touch (O8)."""
        chunk = self._chunks.get(name)
        return None if chunk is None else chunk.readers != WRITING

    def begin_load(
        self, names: Sequence[Name], positions: Sequence[int], visit: Visit
    ) -> list[int]:
        """The slots of ready chunks, which stay until `end_load`."""
        slots = []
        for name in names:
            chunk = self._chunks[name]
            if not chunk.readers:
                self._eviction.pinned(name)
                self._num_idle -= 1
            chunk.readers += 1
            slots.append(chunk.slot)
        self._visited(names, positions, visit, reused=names)
        return slots

    def end_load(self, names: Iterable[Name]) -> None:
        """A reader less for each."""
        for name in names:
            chunk = self._chunks[name]
            chunk.readers -= 1
            if not chunk.readers:
                self._num_idle += 1
                self._eviction.idle(name)

    def begin_store(
        self, names: Sequence[Name], positions: Sequence[int], visit: Visit
    ) -> Stored | None:
        """O7: of what is offered, what is absent: all of it or, if there is no room, None. Idle chunks
        give way, but none that was offered."""
        chunks = self._chunks
        absent = [name for name in names if name not in chunks]
        ready = [name for name in names if name in chunks and chunks[name].readers != WRITING]
        missed = [name for name in absent if name not in visit.missed]
        if missed:
            self._eviction.missed(missed)
            visit.missed.update(dict.fromkeys(missed))
        known = dict.fromkeys([*absent, *ready])
        pairs = [pair for pair in zip(names, positions, strict=True) if pair[0] in known]
        self._visited([n for n, _ in pairs], [p for _, p in pairs], visit, reused=ready)
        short = len(absent) - self.num_free
        evicted: list[Name] = []
        if short > 0:
            if short > self._num_idle:
                return None
            found = self._eviction.evict(short, dict.fromkeys(names))
            if found is None:
                return None
            evicted = found
            self._num_idle -= len(found)
            self.num_evicted += len(found)
            self._free += [chunks.pop(name).slot for name in found]
        slots = []
        for name in absent:
            if self._num_fresh:
                slot = self.num_chunks - self._num_fresh
                self._num_fresh -= 1
            else:
                slot = self._free.pop()
            chunks[name] = Chunk(slot)
            slots.append(slot)
            self._eviction.insert(name, visit)
        visit.inserted.update(dict.fromkeys(absent))
        return Stored(absent, slots, evicted)

    def end_store(self, names: Iterable[Name], *, ok: bool) -> None:
        """They are ready; or, if the copy failed, gone."""
        for name in names:
            chunk = self._chunks[name]
            if ok:
                chunk.readers = 0
                self._num_idle += 1
                self._eviction.idle(name)
            else:
                self._free.append(self._chunks.pop(name).slot)
                self._eviction.remove(name)

    def end_visit(self, visit: Visit) -> None:
        """O8: a request has ended; all that it saw is ranked anew, the tail first."""
        self._eviction.ended(visit)

    def _visited(
        self,
        names: Sequence[Name],
        positions: Sequence[int],
        visit: Visit,
        *,
        reused: Iterable[Name],
    ) -> None:
        new = []
        for name, position in zip(names, positions, strict=True):
            if name not in visit.seen:
                visit.seen[name] = position
                new.append(name)
        if new:
            self._eviction.visited(new, visit)
        visit.reused.update(dict.fromkeys([n for n in reused if n not in visit.inserted]))

    def state(self) -> Hashable:
        """What decides all that it does from now on."""
        return (self.num_free, self._eviction.state())

    def check(self) -> None:
        """Each slot is free or one chunk's; idle ones are counted. Raises InvariantError."""
        used = [chunk.slot for chunk in self._chunks.values()]
        limit = self.num_chunks - self._num_fresh
        if limit < 0 or sorted([*used, *self._free]) != list(range(limit)):
            raise InvariantError("host: slots are not free or used, once each")
        idle = [name for name, chunk in self._chunks.items() if not chunk.readers]
        if len(idle) != self._num_idle:
            raise InvariantError(f"host: {len(idle)} chunks are idle, {self._num_idle} counted")
