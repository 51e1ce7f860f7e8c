"""What a cache of prefix blocks would hit: unlimited, or of so many blocks with LRU eviction.

Requests are taken in the workload's order, and a request's blocks from first to last; a block is a
hit if it is there. Ids of a session's own scope are told apart by session.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import numpy as np

#: Ids below this are kept in a table of one byte each, larger ones in a set of some 100 bytes each.
DENSE = 1 << 27
_LEAST = 1 << 10


class Unlimited:
    """Never forgets. Exact."""

    def __init__(self) -> None:
        self.hits = 0
        self._table = np.zeros(_LEAST, dtype=np.bool_)
        self._others: set[int] = set()

    def see(self, ids: Sequence[int]) -> None:
        """A request's blocks."""
        if not ids or max(ids) >= DENSE:
            self._one_by_one(ids)
            return
        blocks = np.array(ids, dtype=np.int64)
        largest = int(blocks.max())
        if largest >= self._table.size:
            grown = np.zeros(min(DENSE, max(2 * self._table.size, largest + 1)), dtype=np.bool_)
            grown[: self._table.size] = self._table
            self._table = grown
        fresh = blocks[~self._table[blocks]]
        self._table[fresh] = True
        self.hits += len(ids) - np.unique(fresh).size

    def _one_by_one(self, ids: Sequence[int]) -> None:
        for block in ids:
            if block < DENSE:
                if block < self._table.size and self._table[block]:
                    self.hits += 1
                    continue
                self.see((block,))
            elif block in self._others:
                self.hits += 1
            else:
                self._others.add(block)

    def forget(self) -> None:
        """Start with nothing, hits kept."""
        self._table = np.zeros(_LEAST, dtype=np.bool_)
        self._others.clear()


class Lru:
    """Holds `size` blocks; the one that was used longest ago goes first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hits = 0
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def see(self, ids: Sequence[int]) -> None:
        """A request's blocks."""
        blocks = self._blocks
        for block in ids:
            if block in blocks:
                self.hits += 1
                blocks.move_to_end(block)
            else:
                blocks[block] = None
                if len(blocks) > self.size:
                    blocks.popitem(last=False)


class PrefixCaches:
    """An unlimited cache and some limited ones beside each other.

    Blocks of a session's own scope come with the session's turns together in closed workloads, so
    the unlimited cache may forget them with it; in an interleaved one they are told apart by number.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (),
        scope: Literal["global", "session"] | None = "global",
        *,
        is_interleaved: bool = True,
    ) -> None:
        self.references = 0
        self.unlimited = Unlimited()
        self.limited = [Lru(size) for size in sizes]
        self._is_own = scope == "session"
        self._forgets = self._is_own and not is_interleaved
        self._session: str | None = None
        self._numbers: dict[str, int] = {}

    def see(self, session_id: str, ids: tuple[int, ...]) -> None:
        """A request's blocks."""
        self.references += len(ids)
        if self._forgets and session_id != self._session:
            self.unlimited.forget()
            self._session = session_id
        own: Sequence[int] = ids
        if self._is_own and (self.limited or not self._forgets):
            number = self._numbers.setdefault(session_id, len(self._numbers))
            own = [number << 64 | block for block in ids]
        self.unlimited.see(ids if self._forgets else own)
        for cache in self.limited:
            cache.see(own)

    def shares(self) -> dict[str, float | int | None] | None:
        """Hits of all block references; None if there were none."""
        if not self.references:
            return None
        found: dict[str, float | int | None] = {
            "references": self.references,
            "unlimited_hits": self.unlimited.hits,
            "unlimited_share": round(self.unlimited.hits / self.references, 4),
        }
        for cache in self.limited:
            found[f"lru_{cache.size}_share"] = round(cache.hits / self.references, 4)
        return found
