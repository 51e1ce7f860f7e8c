"""Pages with names in runs of neighbours: which blocks are handed out, and nothing else, is changed.

As many names are lost as in `named`, and the same ones, since what is evicted is decided there: so
whoever serves from this pool decides what it would decide without it. Free blocks without a name are
kept as runs. A table goes on in place where the blocks behind it are among them; else it gets the
run that fits best, or the longest (docs/sources.md#fastswitch-groups). No tail is reserved, since
a reserved block would have to lose its name before it is needed.
"""

from __future__ import annotations

from policy.errors import OutOfBlocks
from policy.pools.free_runs import FreeRuns
from policy.pools.named import NamedPool


class NamedRuns(NamedPool):
    """See the module."""

    def __init__(self, name: str, num_blocks: int) -> None:
        super().__init__(name, num_blocks)
        self._space = FreeRuns(num_blocks)

    @property
    def num_free(self) -> int:
        """See NamedPool."""
        return self._space.total + len(self._named)

    @property
    def nameless(self) -> list[int]:
        """See NamedPool, but in no order that means anything."""
        return list(self._space)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """See NamedPool: the same names are lost, and then the blocks are chosen."""
        if count > self.num_free:
            raise OutOfBlocks(f"{self.name}: {count} blocks wanted, {self.num_free} free")
        space = self._space
        for _ in range(count - space.total):
            block, _none = self._named.popitem(last=False)
            self._forget(block)
            space.release(block, 1)
        taken: list[int] = []
        if after is not None:
            taken += range(after + 1, after + 1 + space.take_at(after + 1, count))
        while len(taken) < count:
            start, length = space.take(count - len(taken), 1)
            taken += range(start, start + length)
        for block in taken:
            self._holders[block] = 1
        return taken

    def _put_back(self, nameless: list[int]) -> None:
        for block in nameless:
            self._space.release(block, 1)
