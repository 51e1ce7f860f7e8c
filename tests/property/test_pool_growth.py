"""`grow` is `allocate` of one block to each holder, in order, and all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import OutOfBlocks
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool

POOLS: dict[str, Callable[[], Pool]] = {
    "paged": lambda: PagedPool("pool", 24),
    "groups": lambda: GroupPool("pool", FreeRuns(24), lambda n: n - 1),
    "buddy": lambda: GroupPool("pool", BuddyRuns(24), lambda n: n - 1),
}
MOVES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), max_size=30)


def tables(pool: Pool, holders: list[Allocation]) -> list[Any]:
    held = [(list(h.blocks), repr(h.runs), h.reserved) for h in holders]
    return [held, pool.num_free, pool.num_reserved]


def grown_by(
    moves: list[tuple[int, int, int]], make: Callable[[], Pool], *, one: bool
) -> list[Any]:
    """What every move left behind, growing one holder at a time or all at once."""
    pool = make()
    holders = [pool.new() for _ in range(4)]
    seen: list[Any] = []
    for place, count, reserve in moves:
        if count:
            pool.truncate(holders[place], count)
        growing = holders[place:]
        try:
            if one and len(growing) <= pool.num_available:
                for holder in growing:
                    pool.allocate(holder, 1, reserve)
            else:
                pool.grow(growing, reserve)
        except OutOfBlocks:
            seen.append("full")
        seen.append(tables(pool, holders))
        pool.check(holders)
    return seen


@pytest.mark.parametrize("kind", POOLS)
@given(moves=MOVES)
def test_growing_a_batch_is_growing_each_of_it_in_order(
    kind: str, moves: list[tuple[int, int, int]]
) -> None:
    assert grown_by(moves, POOLS[kind], one=False) == grown_by(moves, POOLS[kind], one=True)


@pytest.mark.parametrize("kind", POOLS)
def test_a_batch_that_does_not_fit_leaves_the_pool_as_it_was(kind: str) -> None:
    pool = POOLS[kind]()
    holders = [pool.new() for _ in range(3)]
    pool.allocate(holders[0], 22)
    before = tables(pool, holders)
    with pytest.raises(OutOfBlocks, match="3 blocks wanted, 2"):
        pool.grow(holders, 4)
    assert tables(pool, holders) == before
