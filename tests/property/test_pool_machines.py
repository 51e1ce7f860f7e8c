"""Every pool against a naive model of it, over random allocate, truncate, split, join and drop.

The model holds each holder's table, the free blocks, and the reserved tails. For pages it predicts
every id (a list popped and pushed at its end). For groups it follows what the pool took, and checks
each piece against the rules of `policy.pools.groups`: own tail, in place, best fit, longest, the
tail that `pick` names.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from policy.errors import OutOfBlocks
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool

STEPS = {"ci": 5_000, "full": 90_000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 2_000)
STEPS_PER_RUN = 200

COUNTS = st.integers(0, 9)
RESERVES = st.integers(0, 6)
PLACES = st.integers(0, 1 << 16)


def aligned_runs(free: set[int]) -> list[tuple[int, int]]:
    """The largest aligned powers of two that a set of blocks consists of."""
    found = []
    left = set(free)
    for order in range(8, -1, -1):
        size = 1 << order
        for start in sorted(block for block in left if block % size == 0):
            run = set(range(start, start + size))
            if run <= left:
                left -= run
                found.append((start, size))
    return found


def maximal_runs(free: set[int]) -> list[tuple[int, int]]:
    """The runs of consecutive blocks that a set of blocks consists of."""
    found: list[tuple[int, int]] = []
    for block in sorted(free):
        if found and sum(found[-1]) == block:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


class PoolMachine(RuleBasedStateMachine):
    """The rules; subclasses say what an allocation must give."""

    steps = 0
    pool: Pool

    def make(self, num_blocks: int) -> Pool:
        raise NotImplementedError

    def expect_allocated(self, place: int, count: int, reserve: int) -> None:
        """Compare what the pool has just given with the model, and bring the model up to date."""
        raise NotImplementedError

    def freed(self, blocks: list[int]) -> None:
        """The model's holders have given these up, in table order."""
        raise NotImplementedError

    def moved(self, source: int, target: int) -> None:
        """The end of one holder's table, tail included, is another's now."""

    @initialize(num_blocks=st.integers(8, 48))
    def start(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.pool = self.make(num_blocks)
        self.holders: list[Allocation] = [self.pool.new()]
        self.tables: list[list[int]] = [[]]

    # ------------------------------------------------------------------ rules

    @rule(count=COUNTS, reserve=RESERVES)
    def open(self, count: int, reserve: int) -> None:
        while sum(map(len, self.tables)) > self.num_blocks * 3 // 4 or len(self.holders) > 7:
            self._drop(len(self.holders) // 2)
        self.holders.append(self.pool.new())
        self.tables.append([])
        self._allocate(len(self.holders) - 1, count, reserve)

    @rule(place=PLACES, count=COUNTS, reserve=RESERVES)
    def extend(self, place: int, count: int, reserve: int) -> None:
        self._allocate(place % len(self.holders), count, reserve)

    @rule(place=PLACES)
    def grow_by_one(self, place: int) -> None:
        self._allocate(place % len(self.holders), 1, 3)

    @rule(place=PLACES, keep=st.integers(0, 12))
    def truncate(self, place: int, keep: int) -> None:
        self._truncate(place % len(self.holders), keep)

    @rule(place=PLACES)
    def drop(self, place: int) -> None:
        self._drop(place % len(self.holders))

    @rule(place=PLACES, at=st.integers(0, 12))
    def split(self, place: int, at: int) -> None:
        index = place % len(self.holders)
        self.holders.append(self.pool.split(self.holders[index], at))
        self.tables.append(self.tables[index][at:])
        del self.tables[index][at:]
        if self.tables[-1]:
            self.moved(index, len(self.holders) - 1)
        self._check()

    @rule(place=PLACES, other=PLACES)
    def join(self, place: int, other: int) -> None:
        index, suffix = place % len(self.holders), other % len(self.holders)
        if index == suffix:
            index, suffix = 0, len(self.holders) - 1
        if index == suffix:
            return
        self.pool.join(self.holders[index], self.holders[suffix])
        assert self.holders[suffix].blocks == []
        if self.tables[suffix]:
            self.moved(suffix, index)
        self.tables[index] += self.tables[suffix]
        del self.holders[suffix], self.tables[suffix]
        self._check()

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.truncate(holder, 0)
        self.pool.check([])
        assert self.pool.num_free == self.pool.num_available == self.num_blocks

    # ------------------------------------------------------------------ pieces

    def _allocate(self, index: int, count: int, reserve: int) -> None:
        holder = self.holders[index]
        available = self.num_blocks - sum(map(len, self.tables))
        assert self.pool.num_available == available
        if count > available:
            before = self._picture()
            with pytest.raises(OutOfBlocks, match=f"pool: {count} blocks wanted, {available} "):
                self.pool.allocate(holder, count, reserve)
            assert self._picture() == before
        else:
            self.pool.allocate(holder, count, reserve)
            assert len(holder.blocks) == len(self.tables[index]) + count
            self.expect_allocated(index, count, reserve)
            self.tables[index] = list(holder.blocks)
        self._check()

    def _drop(self, index: int) -> None:
        self._truncate(index, 0)
        if len(self.holders) > 1:
            del self.holders[index], self.tables[index]

    def _truncate(self, index: int, keep: int) -> None:
        self.pool.truncate(self.holders[index], keep)
        self.freed(self.tables[index][keep:])
        del self.tables[index][keep:]
        self._check()

    def _check(self) -> None:
        type(self).steps += 1
        self.pool.check(self.holders)
        assert [holder.blocks for holder in self.holders] == self.tables

    def _picture(self) -> object:
        raise NotImplementedError


class PagedMachine(PoolMachine):
    """Pages: the model is vLLM 0.3.3's free list."""

    pool: PagedPool

    def make(self, num_blocks: int) -> PagedPool:
        self.free = list(range(num_blocks))
        return PagedPool("pool", num_blocks)

    def expect_allocated(self, place: int, count: int, reserve: int) -> None:
        popped = [self.free.pop() for _ in range(count)]
        assert self.holders[place].blocks == self.tables[place] + popped

    def freed(self, blocks: list[int]) -> None:
        self.free += blocks

    def _check(self) -> None:
        super()._check()
        assert self.pool.free_list == self.free
        assert self.pool.num_reserved == 0

    def _picture(self) -> object:
        return list(self.pool.free_list), [list(holder.blocks) for holder in self.holders]


class GroupMachine(PoolMachine):
    """Runs of any length. `tails` are the holders with a reserved tail, oldest first."""

    pool: GroupPool
    extends = True
    space_type: type[FreeRuns] | type[BuddyRuns] = FreeRuns

    def make(self, num_blocks: int) -> GroupPool:
        self.free = set(range(num_blocks))
        self.tails: dict[Allocation, list[int]] = {}
        self.picked: list[tuple[int, int]] = []
        self.calls = 0
        self.space = self.space_type(num_blocks)
        return GroupPool("pool", self.space, self._pick)

    def _pick(self, n: int) -> int:
        self.calls += 1
        self.picked.append((n, self.calls * 7 % n))
        return self.picked[-1][1]

    def runs_of(self, free: set[int]) -> list[tuple[int, int]]:
        return maximal_runs(free)

    def fitting(self, runs: list[tuple[int, int]], want: int, need: int) -> set[int]:
        """Starts of the runs that may be taken: the shortest that hold `want`, else the longest."""
        lengths = [length for _, length in runs]
        best = min((n for n in lengths if n >= want), default=max(lengths))
        return {start for start, length in runs if length == best}

    def expect_allocated(self, place: int, count: int, reserve: int) -> None:
        """Follow the pool piece by piece through the five places where room is looked for."""
        holder = self.holders[place]
        given = holder.blocks[len(self.tables[place]) :]
        tail = self.tails.get(holder, [])
        assert given[: len(tail)] == tail[:count]
        if count <= len(tail):
            self._set_tail(holder, tail[count:])
            return
        self._set_tail(holder, [])
        table = self.tables[place] + tail
        left = count - len(tail)
        if table and self.extends:
            left -= self._follow_run(holder, given, table[-1] + 1, left, reserve)
        while left:
            if not self.free:
                self._reclaim()
            runs = self.runs_of(self.free)
            start = given[count - left]
            assert start in self.fitting(runs, left + reserve, left)
            left -= self._follow_run(holder, given, start, left, reserve)
        assert not self.picked

    def _follow_run(
        self, holder: Allocation, given: list[int], start: int, left: int, reserve: int
    ) -> int:
        """The model takes what one free run from `start` offers; how many blocks the holder got."""
        run = next((length for begin, length in self.runs_of(self.free) if begin == start), 0)
        used = min(run, left)
        spare = min(run, left + reserve) - used
        at = len(given) - left
        assert given[at : at + used] == list(range(start, start + used))
        self.free -= set(range(start, start + used + spare))
        self._set_tail(holder, list(range(start + used, start + used + spare)))
        return used

    def _reclaim(self) -> None:
        n, chosen = self.picked.pop(0)
        assert n == len(self.tails)
        victim = list(self.tails)[chosen]
        self.free |= set(self.tails.pop(victim))

    def _set_tail(self, holder: Allocation, tail: list[int]) -> None:
        if not tail:
            self.tails.pop(holder, None)
        else:
            self.tails[holder] = tail

    def _truncate(self, index: int, keep: int) -> None:
        self.free |= set(self.tails.pop(self.holders[index], ()))
        super()._truncate(index, keep)

    def freed(self, blocks: list[int]) -> None:
        self.free |= set(blocks)

    def moved(self, source: int, target: int) -> None:
        giver, taker = self.holders[source], self.holders[target]
        self.free |= set(self.tails.pop(taker, ()))
        if giver in self.tails:
            self.tails[taker] = self.tails.pop(giver)

    def _check(self) -> None:
        super()._check()
        pool, space = self.pool, self.space
        assert {holder: holder.reserved for holder in self.holders if holder.reserved} == {
            holder: len(tail) for holder, tail in self.tails.items()
        }
        assert pool.num_reserved == sum(map(len, self.tails.values()))
        assert pool.num_free == len(self.free)
        assert set(space) == self.free
        runs = self.runs_of(self.free)
        assert pool.num_free_runs == len(runs)
        assert space.longest() == max((length for _, length in runs), default=0)

    def teardown(self) -> None:
        super().teardown()
        assert self.pool.num_free_runs == len(self.runs_of(set(range(self.num_blocks))))

    def _picture(self) -> object:
        return (
            list(self.space),
            [
                (list(holder.blocks), [list(run) for run in holder.runs or ()], holder.reserved)
                for holder in self.holders
            ],
            self.calls,
        )


class BuddyMachine(GroupMachine):
    """Aligned powers of two. Nothing is extended in place, and twins merge only with each other."""

    extends = False
    space_type = BuddyRuns

    def runs_of(self, free: set[int]) -> list[tuple[int, int]]:
        return aligned_runs(free)

    def fitting(self, runs: list[tuple[int, int]], want: int, need: int) -> set[int]:
        lengths = [length for _, length in runs]
        longest = max(lengths)
        best = min(
            (n for n in lengths if n >= want),
            default=min((n for n in lengths if n >= need), default=longest),
        )
        return {start for start, length in runs if length == best}


@pytest.mark.counted
@pytest.mark.parametrize("machine", [PagedMachine, GroupMachine, BuddyMachine])
def test_a_pool_does_what_its_naive_model_does(machine: type[PoolMachine]) -> None:
    machine.steps = 0
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=STEPS // STEPS_PER_RUN * 3 // 2 + 4,
            stateful_step_count=STEPS_PER_RUN,
        ),
    )
    assert machine.steps >= STEPS
