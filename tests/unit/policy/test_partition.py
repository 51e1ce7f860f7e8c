"""The law of a pool, checked by what has changed: it says what looking at every block says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from policy.errors import InvariantError
from policy.pools.allocation import Allocation
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.pools.partition import Partition, check_partition

BLOCKS = 60


def pool_of(kind: str) -> Any:
    if kind == "paged":
        return PagedPool("device", BLOCKS)
    space = FreeRuns(BLOCKS) if kind == "groups" else BuddyRuns(BLOCKS)
    return GroupPool("device", space, lambda n: n - 1)


def use(pool: Any, holders: list[Allocation], rng: random.Random) -> None:
    """One thing that a pool is used for."""
    match rng.randrange(6):
        case 0:
            holders.append(pool.new())
        case 1 if holders:
            gone = holders.pop(rng.randrange(len(holders)))
            pool.truncate(gone, 0)
        case 2 if holders:
            holder = rng.choice(holders)
            pool.truncate(holder, rng.randrange(len(holder.blocks) + 1))
        case 3 if holders:
            holder = rng.choice(holders)
            holders.append(pool.split(holder, rng.randrange(len(holder.blocks) + 1)))
        case _ if holders and pool.num_available:
            count = min(pool.num_available, rng.choice([1, 1, 2, 9]))
            pool.allocate(rng.choice(holders), count, rng.choice([0, 3]))


def harm(pool: Any, holders: list[Allocation], rng: random.Random) -> None:
    """One thing that no pool does."""
    full = [holder for holder in holders if holder.blocks]
    if not full:
        return
    holder, other = rng.choice(full), rng.choice(full)
    match rng.randrange(9):
        case 0:
            holder.blocks.pop(rng.randrange(len(holder.blocks)))
        case 1:
            holder.blocks[-1] = other.blocks[0]
        case 2:
            holder.blocks[0] = rng.choice([-1, BLOCKS, BLOCKS + 5])
        case 3 if holder.runs:
            holder.runs[-1][1] += 1
        case 4 if holder.runs:
            holder.reserved += 1
        case 5:
            holders.remove(holder)
        case 6:
            holders.append(holder)
        case 7 if isinstance(pool, PagedPool):
            pool.free_list += rng.choice([[0], [BLOCKS], [-1]])
        case 7:
            pool._space.total += 1
        case 8 if not isinstance(pool, PagedPool) and isinstance(pool._space, FreeRuns):
            at = pool._space._length_at
            for start in list(at)[:1]:
                at[start] += rng.choice([-1, 1, BLOCKS])
        case _:
            holder.blocks.reverse()


def says(check: Callable[..., None], *about: Any) -> str | None:
    try:
        check(*about)
    except InvariantError as error:
        return str(error)
    return None


def whole(pool: Any, holders: list[Allocation]) -> None:
    free = pool.free_list if isinstance(pool, PagedPool) else pool._space
    check_partition(pool, free, holders, pool.num_reserved)


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
def test_what_differs_tells_what_every_block_tells(kind: str) -> None:
    """100 runs, each until something is broken; the same words, and once more when asked again."""
    broken = 0
    for seed in range(100):
        rng = random.Random(seed)
        pool, holders = pool_of(kind), list[Allocation]()
        for step in range(60):
            use(pool, holders, rng)
            if step > 20 and rng.random() < 0.1:
                harm(pool, holders, rng)
            wrong = says(whole, pool, holders)
            assert says(type(pool).check, pool, holders) == wrong, (kind, seed, step)
            if wrong is not None:
                assert says(type(pool).check, pool, holders) == wrong
                broken += 1
                break
    assert broken > 66


def test_blocks_that_change_hands_are_counted_where_they_are() -> None:
    pool = PagedPool("host", 8)
    first, second = pool.new(), pool.new()
    pool.allocate(first, 5)
    pool.check([first, second])
    pool.join(second, pool.split(first, 2))
    pool.check([first, second])
    first.blocks[0], second.blocks[0] = second.blocks[0], first.blocks[0]
    pool.check([first, second])
    pool.check([second, first])


def test_shared_blocks_are_somebody_elses_to_count() -> None:
    pool = PagedPool("device", 8)
    shared, holder = pool.new(), pool.new()
    pool.allocate(shared, 2)
    holder.blocks, holder.num_shared = list(shared.blocks), 2
    pool.check([shared, holder])
    pool.allocate(holder, 2)
    pool.check([shared, holder])
    holder.num_shared = 1
    with pytest.raises(InvariantError, match="block 6 is both held by #0 and held by #1"):
        pool.check([shared, holder])
    holder.blocks, holder.num_shared = holder.blocks[2:], 0
    pool.check([shared, holder])


def test_free_runs_of_no_length_are_never_taken_for_known() -> None:
    """They break no law of blocks, so every block is looked at again."""
    pool = PagedPool("device", 3)
    law = Partition()
    for _ in range(2):
        law.check(pool, {0: 3, 2: 0}, [], 0)
    with pytest.raises(InvariantError, match="block 2 is neither"):
        law.check(pool, {0: 2, 2: 0}, [], 0)
