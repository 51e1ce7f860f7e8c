"""A pool's own law: free, reserved or held, every block exactly once. Each breach is named."""

from __future__ import annotations

import pytest

from policy.errors import InvariantError, OutOfBlocks
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool


def paged(*counts: int) -> tuple[PagedPool, list[Allocation]]:
    pool = PagedPool("pages", 10)
    return pool, held(pool, counts, 0)


def groups(*counts: int, reserve: int = 2) -> tuple[GroupPool, list[Allocation]]:
    pool = GroupPool("groups", FreeRuns(20), lambda _n: 0)
    return pool, held(pool, counts, reserve)


def held(pool: Pool, counts: tuple[int, ...], reserve: int) -> list[Allocation]:
    holders = []
    for count in counts:
        holders.append(pool.new())
        pool.allocate(holders[-1], count, reserve)
    pool.check(holders)
    return holders


def breaks(pool: Pool, holders: list[Allocation], says: str) -> None:
    with pytest.raises(InvariantError, match=f"^{says}$"):
        pool.check(holders)


def test_a_block_beyond_the_pool_is_nobodys() -> None:
    pool, holders = paged(2, 3)
    holders[0].blocks[1] = 10
    breaks(pool, holders, r"pages: block 10 is outside 0\.\.9")


def test_a_block_below_zero_is_nobodys() -> None:
    pool, holders = paged(2)
    pool.free_list[0] = -1
    breaks(pool, holders, r"pages: block -1 is outside 0\.\.9")


def test_a_block_freed_twice_is_found() -> None:
    pool, holders = paged(2)
    pool.free_list.append(pool.free_list[0])
    breaks(pool, holders, "pages: block 0 is both free and free")


def test_a_block_freed_while_it_is_held_is_found() -> None:
    pool, holders = paged(2)
    pool.free_list.append(holders[0].blocks[0])
    breaks(pool, holders, "pages: block 9 is both free and held by #0")


def test_a_block_with_two_holders_is_found() -> None:
    pool, holders = paged(2, 3)
    holders[1].blocks[0] = holders[0].blocks[1]
    breaks(pool, holders, "pages: block 8 is both held by #0 and held by #1")


def test_a_block_that_leaked_is_found() -> None:
    pool, holders = paged(2, 3)
    breaks(pool, holders[1:], "pages: block 8 is neither free, reserved nor held")


def test_a_tail_reaching_into_another_holders_blocks_is_found() -> None:
    pool, holders = groups(3, 4)
    holders[0].reserved += 1
    breaks(pool, holders, "groups: block 5 is both reserved by #0 and held by #1")


def test_a_free_count_that_is_not_the_free_list_is_found() -> None:
    pool, holders = groups(3)
    pool._space.total -= 1
    breaks(pool, holders, "groups: 15 blocks are free, 14 counted")


def test_a_count_of_reserved_blocks_that_is_not_the_tails_is_found() -> None:
    pool, holders = groups(3)
    pool.num_reserved += 1
    breaks(pool, holders, "groups: 2 blocks reserved, 3 counted")


def test_runs_that_say_something_else_than_the_table_are_found() -> None:
    pool, holders = groups(3)
    holders[0].blocks.reverse()
    breaks(pool, holders, r"groups: runs \[\[0, 3\]\] are not the table \[2, 1, 0\]")


def test_a_tail_after_no_run_is_found() -> None:
    pool, holders = groups(3)
    nothing = pool.new()
    nothing.reserved = 1
    breaks(pool, [*holders, nothing], "groups: 1 blocks reserved after no run")


# ---------------------------------------------------------------------- what pools do


def make(kind: str, size: int) -> Pool:
    if kind == "paged":
        return PagedPool("pool", size)
    space = FreeRuns(size) if kind == "groups" else BuddyRuns(size)
    return GroupPool("pool", space, lambda _n: 0)


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
def test_more_than_there_is_is_refused_and_changes_nothing(kind: str) -> None:
    pool = make(kind, 8)
    first, second = pool.new(), pool.new()
    pool.allocate(first, 5, 2)
    with pytest.raises(OutOfBlocks, match="pool: 4 blocks wanted, 3"):
        pool.allocate(second, 4)
    pool.check([first, second])
    assert (len(first.blocks), second.blocks, pool.num_available) == (5, [], 3)


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
@pytest.mark.parametrize("reserve", [0, 1, 3])
def test_growing_a_batch_is_allocating_one_block_each_in_order(kind: str, reserve: int) -> None:
    """Twice over, so that tails are used up and found anew."""
    tables = []
    for grows in (True, False):
        pool = make(kind, 32)
        holders = held(pool, (3, 1, 4), reserve)
        for _ in range(6):
            if grows:
                pool.grow(holders, reserve)
            else:
                for holder in holders:
                    pool.allocate(holder, 1, reserve)
            pool.check(holders)
        tables.append([holder.blocks for holder in holders])
    assert tables[0] == tables[1]


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
def test_a_batch_grows_as_a_whole_or_not_at_all(kind: str) -> None:
    pool = make(kind, 8)
    holders = held(pool, (3, 2, 2), 1)
    with pytest.raises(OutOfBlocks, match="pool: 3 blocks wanted, 1 "):
        pool.grow(holders, 1)
    pool.check(holders)
    assert [len(holder.blocks) for holder in holders] == [3, 2, 2]


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
@pytest.mark.parametrize("at", range(10))
def test_a_table_cut_in_two_and_joined_again_is_the_same_table(kind: str, at: int) -> None:
    """In three runs, with a stranger's blocks between them."""
    pool = make(kind, 32)
    holder, stranger = pool.new(), pool.new()
    for count in (3, 4, 2):
        pool.allocate(holder, count)
        pool.allocate(stranger, 1)
    table = list(holder.blocks)
    suffix = pool.split(holder, at)
    assert (holder.blocks, suffix.blocks) == (table[:at], table[at:])
    pool.check([holder, suffix, stranger])
    pool.join(holder, suffix)
    assert (holder.blocks, suffix.blocks) == (table, [])
    pool.check([holder, suffix, stranger])


def test_the_tail_goes_with_the_end_of_the_table() -> None:
    pool, (holder,) = groups(6, reserve=3)
    suffix = pool.split(holder, 4)
    assert (holder.reserved, suffix.reserved) == (0, 3)
    pool.allocate(suffix, 2)
    assert suffix.blocks == [4, 5, 6, 7]
    pool.check([holder, suffix])


@pytest.mark.parametrize(("kind", "longest"), [(FreeRuns, 6), (BuddyRuns, 4)])
def test_a_space_knows_its_longest_run(kind: type[FreeRuns | BuddyRuns], longest: int) -> None:
    """Of ten blocks four at the front are taken; buddies have runs of powers of two alone."""
    space = kind(10)
    assert space.take(4, 4) == (0, 4)
    assert space.longest() == longest
    while space.total:
        space.take(1, 1)
    assert space.longest() == 0
