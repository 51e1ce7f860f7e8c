"""Fixed pages with a LIFO free list, as vLLM 0.3.3's `BlockAllocator`."""

from __future__ import annotations

from collections.abc import Sequence

from policy.errors import OutOfBlocks
from policy.pools.allocation import Allocation
from policy.pools.partition import Holder, Partition


class PagedPool:
    """Blocks are popped from, and pushed to, the end of one list.

    A fresh list hands out descending neighbours and so flatters this pool; age it before measuring
    (`policy.pools.aging`). Source: vLLM 0.3.3 `vllm/core/block_manager.py`.
    """

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self.kind = "paged"
        self.free_list = list(range(num_blocks))
        self._partition = Partition()

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now."""
        return len(self.free_list)

    @property
    def num_reserved(self) -> int:
        """Always 0: pages reserve nothing."""
        return 0

    @property
    def num_available(self) -> int:
        """Free blocks plus reclaimable tails."""
        return len(self.free_list)

    @property
    def num_shared(self) -> int:
        """Always 0: see PrefixPool."""
        return 0

    @property
    def num_leaving(self) -> int:
        """Always 0: see PrefixPool."""
        return 0

    def worn(self) -> list[int]:
        """The order of the free list."""
        return list(self.free_list)

    def wear(self, use: list[int]) -> None:
        """Take over such an order."""
        self.free_list[:] = use

    def new(self) -> Allocation:
        """An empty allocation without runs."""
        return Allocation(with_runs=False)

    def allocate(self, holder: Allocation, count: int, reserve: int = 0) -> None:  # noqa: ARG002
        """Pop `count` blocks; pages never reserve."""
        free = self.free_list
        if count > len(free):
            raise OutOfBlocks(f"{self.name}: {count} blocks wanted, {len(free)} free")
        if count == 1:
            holder.blocks.append(free.pop())
        elif count:
            taken = free[-count:]
            del free[-count:]
            taken.reverse()
            holder.blocks.extend(taken)

    def grow(self, holders: Sequence[Allocation], reserve: int) -> None:  # noqa: ARG002
        """Pop a block for each."""
        free = self.free_list
        if len(holders) > len(free):
            raise OutOfBlocks(f"{self.name}: {len(holders)} blocks wanted, {len(free)} free")
        for holder in holders:
            holder.blocks.append(free.pop())

    def truncate(self, holder: Allocation, keep: int) -> None:
        """Push the blocks from index `keep` on, in table order."""
        self.free_list.extend(holder.blocks[keep:])
        del holder.blocks[keep:]

    def split(self, holder: Allocation, at: int) -> Allocation:
        """Move the blocks from index `at` on to a new allocation."""
        suffix = self.new()
        suffix.blocks = holder.blocks[at:]
        del holder.blocks[at:]
        return suffix

    def join(self, holder: Allocation, suffix: Allocation) -> None:
        """Append `suffix`, emptying it."""
        holder.blocks.extend(suffix.blocks)
        suffix.blocks.clear()

    def check(self, holders: Sequence[Holder]) -> None:
        """Raise InvariantError unless free list and `holders` partition the pool."""
        self._partition.check(self, self.free_list, holders, 0)
