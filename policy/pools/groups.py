"""Dynamic block groups: runs of any length with a reserved tail (docs/sources.md#fastswitch-groups).

A holder's last run may own unused blocks after it. Growth takes them without asking the free
space; under shortage the pool takes them back. The order in which room is looked for:

1. the holder's own reserved tail;
2. the free blocks directly behind its last run (in-place extension);
3. the best-fitting free run for everything wanted, the reserve included;
4. the longest free runs, one after another;
5. the unused tail of another holder, chosen by `pick` (the paper, as recalled: at random).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from policy.errors import OutOfBlocks
from policy.pools.allocation import Allocation
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.partition import Holder, Partition


class GroupPool:
    """A pool that hands out runs. `space` decides which runs exist (any length, or buddies).

    `pick(n)` chooses one of n tails to take back; it must be a pure function of its own call count
    and n, or replay breaks.
    """

    def __init__(self, name: str, space: FreeRuns | BuddyRuns, pick: Callable[[int], int]) -> None:
        self.name = name
        self.num_blocks = space.total
        self.kind = type(space).__name__
        self._space = space
        self._pick = pick
        self._tails: dict[Allocation, None] = {}  # holders with a reserved tail, oldest first
        self.num_reserved = 0
        self._num_picks = 0
        self._partition = Partition()

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now, reserved tails excluded."""
        return self._space.total

    @property
    def num_available(self) -> int:
        """Free blocks plus reclaimable tails."""
        return self._space.total + self.num_reserved

    @property
    def num_shared(self) -> int:
        """Always 0: see PrefixPool."""
        return 0

    @property
    def num_leaving(self) -> int:
        """Always 0: see PrefixPool."""
        return 0

    @property
    def num_free_runs(self) -> int:
        """How many runs the free space is in: 1 when it is whole."""
        return self._space.num_runs

    def worn(self) -> tuple[FreeRuns | BuddyRuns, int]:
        """The free runs, and how often `pick` was asked."""
        return copy.deepcopy(self._space), self._num_picks

    def wear(self, use: tuple[FreeRuns | BuddyRuns, int]) -> None:
        """Take over such runs; `pick` goes on where it was."""
        space, picks = use
        self._space = copy.deepcopy(space)
        while self._num_picks < picks:
            self._num_picks += 1
            self._pick(1)

    def new(self) -> Allocation:
        """An empty allocation with runs."""
        return Allocation(with_runs=True)

    def allocate(self, holder: Allocation, count: int, reserve: int = 0) -> None:
        """Give `count` blocks and up to `reserve` more as the tail. See the module for the order."""
        if count <= holder.reserved:
            self._use_tail(holder, count)
            return
        if count > self._space.total + self.num_reserved:
            raise OutOfBlocks(f"{self.name}: {count} blocks wanted, {self.num_available} available")
        if holder.reserved:
            count -= holder.reserved
            self._use_tail(holder, holder.reserved)
        runs, blocks, take = holder.runs, holder.blocks, self._space.take
        assert runs is not None
        if runs:
            count = self._extend_in_place(holder, count, reserve)
        while count:
            if not self._space.total:
                self._reclaim_a_tail()
            start, length = take(count + reserve, count)
            if length <= count and not (runs and runs[-1][0] + runs[-1][1] == start):
                blocks.extend(range(start, start + length))
                runs.append([start, length])
                count -= length
            else:
                count = self._attach(holder, start, length, count)

    def grow(self, holders: Sequence[Allocation], reserve: int) -> None:
        """One block for each, mostly from its tail."""
        if len(holders) > self.num_available:
            raise OutOfBlocks(
                f"{self.name}: {len(holders)} blocks wanted, {self.num_available} available"
            )
        for holder in holders:
            if holder.reserved > 1:
                runs = holder.runs
                assert runs is not None
                last = runs[-1]
                holder.blocks.append(last[0] + last[1])
                last[1] += 1
                holder.reserved -= 1
                self.num_reserved -= 1
            else:
                self.allocate(holder, 1, reserve)

    def truncate(self, holder: Allocation, keep: int) -> None:
        """Free the blocks from index `keep` on, and the reserved tail."""
        self.drop_tail(holder)
        excess = len(holder.blocks) - keep
        if excess <= 0:
            return
        del holder.blocks[keep:]
        runs = holder.runs
        assert runs is not None
        while excess:
            start, length = runs[-1]
            if length <= excess:
                runs.pop()
                self._space.release(start, length)
                excess -= length
            else:
                runs[-1][1] = length - excess
                self._space.release(start + length - excess, excess)
                excess = 0

    def split(self, holder: Allocation, at: int) -> Allocation:
        """Move the blocks from index `at` on, and the tail, to a new allocation."""
        suffix = self.new()
        runs = holder.runs
        assert runs is not None
        if at < len(holder.blocks):
            suffix.blocks = holder.blocks[at:]
            del holder.blocks[at:]
            index, head = 0, at
            while head >= runs[index][1]:
                head -= runs[index][1]
                index += 1
            start, length = runs[index]
            suffix.runs = [[start + head, length - head], *runs[index + 1 :]]
            del runs[index:]
            if head:
                runs.append([start, head])
            self._move_tail(holder, suffix)
        return suffix

    def join(self, holder: Allocation, suffix: Allocation) -> None:
        """Append `suffix` and its tail; the holder's own tail is given back first."""
        if not suffix.blocks:
            return
        assert holder.runs is not None and suffix.runs is not None
        self.drop_tail(holder)
        first_start, first_length = suffix.runs[0]
        if holder.runs and sum(holder.runs[-1]) == first_start:
            holder.runs[-1][1] += first_length
            holder.runs.extend(suffix.runs[1:])
        else:
            holder.runs.extend(suffix.runs)
        holder.blocks.extend(suffix.blocks)
        self._move_tail(suffix, holder)
        suffix.blocks, suffix.runs = [], []

    def drop_tail(self, holder: Allocation) -> None:
        """Give a holder's unused tail back to the free space."""
        tail = holder.reserved
        if tail:
            assert holder.runs is not None
            start, length = holder.runs[-1]
            holder.reserved = 0
            self.num_reserved -= tail
            del self._tails[holder]
            self._space.release(start + length, tail)

    def check(self, holders: Sequence[Holder]) -> None:
        """Raise InvariantError unless free runs, tails and `holders` partition the pool."""
        self._partition.check(self, self._space.runs(), holders, self.num_reserved)

    # ------------------------------------------------------------------ how room is found

    def _use_tail(self, holder: Allocation, count: int) -> None:
        if not count:
            return
        assert holder.runs is not None
        last = holder.runs[-1]
        end = last[0] + last[1]
        if count == 1:
            holder.blocks.append(end)
        else:
            holder.blocks.extend(range(end, end + count))
        last[1] += count
        holder.reserved -= count
        self.num_reserved -= count
        if not holder.reserved:
            del self._tails[holder]

    def _extend_in_place(self, holder: Allocation, count: int, reserve: int) -> int:
        """Absorb free blocks behind the last run; how many are still wanted."""
        assert holder.runs is not None
        start, length = holder.runs[-1]
        taken = self._space.take_at(start + length, count + reserve)
        return self._attach(holder, start + length, taken, count) if taken else count

    def _attach(self, holder: Allocation, start: int, length: int, count: int) -> int:
        """Give a taken run to the holder: first what it wants, the rest as its tail."""
        used = min(length, count)
        holder.blocks.extend(range(start, start + used))
        runs = holder.runs
        assert runs is not None
        if runs and runs[-1][0] + runs[-1][1] == start:
            runs[-1][1] += used
        else:
            runs.append([start, used])
        tail = length - used
        if tail:
            holder.reserved = tail
            self.num_reserved += tail
            self._tails[holder] = None
        return count - used

    def _reclaim_a_tail(self) -> None:
        tails = list(self._tails)
        self._num_picks += 1
        self.drop_tail(tails[self._pick(len(tails))])

    def _move_tail(self, source: Allocation, target: Allocation) -> None:
        if source.reserved:
            target.reserved, source.reserved = source.reserved, 0
            del self._tails[source]
            self._tails[target] = None
