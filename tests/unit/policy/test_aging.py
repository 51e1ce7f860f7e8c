"""Pools used before time zero: scattered, empty again, and the same for the same draws."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count, pairwise

import pytest

from policy.pools.aging import churn, shuffle
from policy.pools.allocation import Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.pools.prefix import PrefixPool

SIZE = 64


def make(kind: str) -> Pool:
    if kind == "paged":
        return PagedPool("pool", SIZE)
    space = FreeRuns(SIZE) if kind == "groups" else BuddyRuns(SIZE)
    return GroupPool("pool", space, lambda _n: 0)


def picks(seed: int) -> Callable[[int], int]:
    return random.Random(seed).randrange


def contexts(seed: int, number: int = 200) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(0, 12), rng.randrange(0, 9)) for _ in range(number)]


def neighbours(pool: PagedPool) -> int:
    """Pairs of pages that would be handed out one after the other and lie side by side."""
    return sum(abs(a - b) == 1 for a, b in pairwise(pool.free_list))


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy"])
@pytest.mark.parametrize("seed", range(5))
def test_an_aged_pool_is_empty_again_and_whole(kind: str, seed: int) -> None:
    pool = make(kind)
    churn(pool, contexts(seed), picks(seed), reserve=4)
    pool.check([])
    assert (pool.num_free, pool.num_reserved) == (SIZE, 0)


def test_churn_scatters_a_page_list() -> None:
    pool = PagedPool("pool", SIZE)
    assert neighbours(pool) == SIZE - 1
    churn(pool, contexts(1), picks(1), reserve=0)
    assert neighbours(pool) < SIZE // 2


@pytest.mark.parametrize("kind", ["groups", "buddy"])
def test_churn_cannot_scatter_runs_since_they_merge(kind: str) -> None:
    pool = make(kind)
    assert isinstance(pool, GroupPool)
    churn(pool, contexts(2), picks(2), reserve=4)
    assert pool.num_free_runs == 1


def test_the_same_draws_age_alike_and_others_differently() -> None:
    lists = []
    for seed in (3, 3, 4):
        pool = PagedPool("pool", SIZE)
        churn(pool, contexts(0), picks(seed), reserve=0)
        lists.append(pool.free_list)
    assert lists[0] == lists[1] != lists[2]


def test_a_context_that_could_never_fit_is_passed_over() -> None:
    pool = PagedPool("pool", SIZE)
    churn(pool, [(SIZE + 1, 0), (SIZE, 1), (1, SIZE)], picks(1), reserve=0)
    assert pool.free_list == list(range(SIZE))


def test_somebody_leaves_only_when_there_is_no_room_and_in_the_end() -> None:
    """Three hold 60 of 64 blocks when one of 20 comes: one of three leaves, and all in the end."""
    asked: list[int] = []

    def first(n: int) -> int:
        asked.append(n)
        return 0

    churn(PagedPool("pool", SIZE), [(20, 2), (20, 2), (16, 0), (20, 0)], first, reserve=0)
    assert asked == [3, 3, 2, 1]


class Counting(PagedPool):
    """Writes down how many blocks are asked for at a time."""

    def __init__(self) -> None:
        super().__init__("pool", SIZE)
        self.asked: list[int] = []

    def allocate(self, holder: object, count: int, reserve: int = 0) -> None:
        self.asked.append(count)
        super().allocate(holder, count, reserve)  # type: ignore[arg-type]


def test_replies_grow_block_by_block_while_others_arrive() -> None:
    pool = Counting()
    churn(pool, [(5, 2), (6, 1), (7, 0)], picks(1), reserve=0)
    assert pool.asked == [5, 1, 6, 1, 1, 7]


def test_shuffle_is_fisher_and_yates() -> None:
    pool = PagedPool("pool", 4)
    script = iter([0, 1, 1])
    shuffle(pool, lambda _n: next(script))
    # 0123: exchange 3 and 0, then 2 and 1, then 1 and 1.
    assert pool.free_list == [3, 2, 1, 0]


def test_shuffle_keeps_every_page_and_can_reach_every_order() -> None:
    seen = set()
    for seed in range(200):
        pool = PagedPool("pool", 3)
        shuffle(pool, picks(seed))
        seen.add(tuple(pool.free_list))
    assert len(seen) == 6 and all(sorted(order) == [0, 1, 2] for order in seen)


def test_runs_have_no_order_to_lose() -> None:
    pool = make("groups")

    def never(_n: int) -> int:
        raise AssertionError("nothing to draw")

    shuffle(pool, never)
    pool.check([])


def test_a_page_list_that_prefixes_share_is_shuffled_too() -> None:
    plain, shared = PagedPool("device", 32), PagedPool("device", 32)
    shuffle(plain, lambda n: n // 2)
    shuffle(PrefixPool(shared, 2), lambda n: n // 2)
    assert shared.free_list == plain.free_list != list(range(32))


@pytest.mark.parametrize("kind", ["paged", "groups", "buddy", "prefixes"])
def test_a_pool_that_takes_over_anothers_use_goes_on_like_it(kind: str) -> None:
    def fresh() -> Pool:
        if kind in ("paged", "prefixes"):
            pool = make("paged")
            return PrefixPool(pool, 2) if kind == "prefixes" else pool
        space = FreeRuns(SIZE) if kind == "groups" else BuddyRuns(SIZE)
        calls = count(1)
        return GroupPool("pool", space, lambda n: next(calls) * 7919 % n)

    def tables(pool: Pool) -> list[list[int]]:
        """Of holders that take each other's tails."""
        holders = [pool.new() for _ in range(12)]
        for step in range(48):
            pool.allocate(holders[step * 7 % 12], 1, 6)
        return [list(holder.blocks) for holder in holders]

    aged = fresh()
    churn(aged, contexts(5), picks(5), reserve=4)
    use = aged.worn()
    others = [fresh(), fresh()]
    for other in others:
        other.wear(use)
    expected = tables(aged)
    assert [tables(other) for other in others] == [expected, expected]
    assert tables(fresh()) != expected
