"""The pool whose blocks prompts share: lookups, order of eviction, counts, laws, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policy.errors import InvariantError, OutOfBlocks
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.pools.prefix import PrefixPool, SharedBlock, runs_of

KINDS: dict[str, Callable[[], Pool]] = {
    "paged": lambda: PagedPool("device", 16),
    "groups": lambda: GroupPool("device", FreeRuns(16), lambda n: n - 1),
}


@pytest.fixture(params=KINDS)
def pool(request: pytest.FixtureRequest) -> PrefixPool:
    """16 blocks, two to a shared one."""
    return PrefixPool(KINDS[request.param](), 2)


def holder_of(pool: PrefixPool, keys: str, own: int = 0) -> Allocation:
    """Somebody whose prompt has these names, all computed, and `own` blocks behind them."""
    holder = pool.new()
    pool.share(holder, pool.match(keys, len(keys)))
    pool.allocate(holder, 2 * len(keys) + own - len(holder.blocks))
    pool.publish(holder, keys, len(keys))
    return holder


def names(chain: list[SharedBlock] | tuple[SharedBlock, ...]) -> str:
    return "".join(str(shared.key) for shared in chain)


def test_what_one_has_published_another_begins_with(pool: PrefixPool) -> None:
    first = holder_of(pool, "abc", 1)
    second = holder_of(pool, "abd", 1)
    assert first.blocks[:4] == second.blocks[:4]
    assert not set(first.blocks[4:]) & set(second.blocks[4:])
    assert (pool.num_shared, pool.num_free) == (8, 16 - 8 - 2)
    pool.check([first, second])


def test_a_lookup_stops_at_the_first_miss_and_at_its_limit(pool: PrefixPool) -> None:
    holder_of(pool, "abc")
    assert names(pool.match("abc", 9)) == "abc"
    assert names(pool.match("abc", 2)) == "ab"
    assert names(pool.match("axc", 3)) == "a"
    assert names(pool.match("bc", 3)) == ""  # the same names behind another chain


def test_whoever_computed_the_same_meanwhile_takes_the_published_blocks(pool: PrefixPool) -> None:
    slow, quick = pool.new(), pool.new()
    pool.allocate(slow, 7)
    pool.allocate(quick, 4)
    pool.publish(quick, "ab", 2)
    tail = slow.blocks[4:]
    free = pool.num_free
    pool.publish(slow, "abc", 3)
    assert slow.blocks == [*quick.blocks, *tail]
    assert names(slow.shared) == "abc"
    assert pool.num_free == free + 4
    pool.check([slow, quick])


def test_nobody_frees_what_another_still_holds(pool: PrefixPool) -> None:
    first, second = holder_of(pool, "ab", 1), holder_of(pool, "ac", 1)
    free = pool.num_free
    pool.truncate(first, 0)
    assert pool.num_free == free + 1 + 2  # its own block and `b`; `a` stays
    assert names(pool.match("ab", 2)) == "ab"
    pool.check([second])


def test_what_nobody_holds_is_free_and_found_until_its_room_is_wanted(pool: PrefixPool) -> None:
    pool.truncate(holder_of(pool, "abc"), 0)
    assert pool.num_free == pool.num_available == 16
    pool.allocate(other := pool.new(), 11)
    assert names(pool.match("abc", 3)) == "ab"  # suffixes go before prefixes
    pool.allocate(other, 4)
    assert names(pool.match("abc", 3)) == ""
    assert pool.num_evicted == 3
    pool.check([other])


def test_the_one_unused_for_longest_goes_first(pool: PrefixPool) -> None:
    for name in "abc":
        pool.truncate(holder_of(pool, name), 0)
    pool.truncate(holder_of(pool, "a"), 0)  # used again
    pool.allocate(pool.new(), 11)
    assert [names(pool.match(name, 1)) for name in "abc"] == ["a", "", "c"]


def test_what_is_spared_outlives_those_used_later(pool: PrefixPool) -> None:
    for name in ("ab", "c", "d"):
        pool.truncate(holder_of(pool, name), 0)
    chain = pool.match("ab", 2)
    pool.spare(chain, dict.fromkeys(chain))
    pool.allocate(holder := pool.new(), 12)
    assert [names(pool.match(name, 2)) for name in ("ab", "c", "d")] == ["ab", "", ""]
    with pytest.raises(OutOfBlocks):
        pool.allocate(holder, 1)
    pool.spare((), {})
    pool.allocate(holder, 1)
    assert names(pool.match("ab", 2)) == "a"


def test_prefixes_that_nobody_holds_give_way_before_a_reserved_tail() -> None:
    pool = PrefixPool(KINDS["groups"](), 2)
    pool.truncate(holder_of(pool, "a"), 0)
    tailed = pool.new()
    pool.allocate(tailed, 1, reserve=8)
    assert (pool.num_reserved, pool.num_free) == (8, 7)
    pool.allocate(other := pool.new(), 7)
    assert (pool.num_evicted, pool.num_reserved) == (1, 8)
    pool.grow([tailed], 0)
    assert (pool.num_reserved, len(tailed.blocks)) == (7, 2)
    pool.check([tailed, other])


def test_copies_in_flight_and_others_are_told_apart(pool: PrefixPool) -> None:
    first = holder_of(pool, "ab")
    pool.start_leaving(first)
    assert pool.num_leaving == 4
    second = holder_of(pool, "a")
    assert pool.num_leaving == 2
    pool.truncate(second, 0)
    assert pool.num_leaving == 4
    pool.stop_leaving(first)
    assert (pool.num_leaving, pool.num_shared) == (0, 4)
    pool.truncate(first, 0)
    assert (pool.num_leaving, pool.num_shared) == (0, 0)


def test_too_much_is_refused_with_nothing_changed(pool: PrefixPool) -> None:
    pool.truncate(holder_of(pool, "abc"), 0)
    with pytest.raises(OutOfBlocks):
        pool.allocate(pool.new(), 17)
    with pytest.raises(OutOfBlocks):
        pool.grow([pool.new() for _ in range(17)], 0)
    assert names(pool.match("abc", 3)) == "abc"


def test_a_shared_block_is_never_cut_nor_moved(pool: PrefixPool) -> None:
    holder = holder_of(pool, "ab", 1)
    with pytest.raises(InvariantError, match="3 blocks kept cut a shared block in two"):
        pool.truncate(holder, 3)
    with pytest.raises(InvariantError, match="split at 2 of 4 shared blocks"):
        pool.split(holder, 2)
    with pytest.raises(InvariantError, match="4 shared blocks joined on"):
        pool.join(pool.new(), holder)
    pool.check([holder])


def forget_a_user(pool: PrefixPool, holder: Allocation) -> None:
    holder.shared[0].users -= 1


def cache_what_is_used(pool: PrefixPool, holder: Allocation) -> None:
    pool._idle[holder.shared[-1]] = None


def hold_without_its_chain(pool: PrefixPool, holder: Allocation) -> None:
    holder.shared[0].users = 0
    holder.shared = holder.shared[1:]
    holder.blocks = holder.blocks[2:]
    holder.num_shared -= 2
    if holder.runs is not None:
        holder.runs = runs_of(holder.blocks)
    pool._idle[next(iter(pool))] = None


def miscount_the_held(pool: PrefixPool, _holder: Allocation) -> None:
    pool._num_held += 1


def miscount_the_leaving(pool: PrefixPool, _holder: Allocation) -> None:
    pool._num_leaving += 1


def miscount_its_own(_pool: PrefixPool, holder: Allocation) -> None:
    holder.num_shared -= 1
    del holder.blocks[-1:]
    if holder.runs is not None:
        holder.runs = runs_of(holder.blocks)


def name_other_blocks(_pool: PrefixPool, holder: Allocation) -> None:
    holder.blocks[0], holder.blocks[1] = holder.blocks[1], holder.blocks[0]
    if holder.runs is not None:
        holder.runs = runs_of(holder.blocks)


def prune_a_held_block(pool: PrefixPool, _holder: Allocation) -> None:
    (first,) = pool._root.children.values()
    pool.inner.truncate(pool._as_allocation(first.children.pop("b")), 0)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (forget_a_user, "'a': 0 users, 0 leaving> is held by 1"),
        (cache_what_is_used, "'b'.* is both cached and used, or neither"),
        (hold_without_its_chain, "'b'.* is held without <shared block 'a'"),
        (miscount_the_held, "3 shared blocks counted as held"),
        (miscount_the_leaving, "1 shared blocks counted leaving"),
        (miscount_its_own, "counts 3 shared blocks"),
        (name_other_blocks, "the table of #0 is not <shared block 'a'.* at 0"),
        (prune_a_held_block, "#0 holds <shared block 'b'.*, not in the tree"),
    ],
)
def test_a_seeded_bug_is_named_by_the_law_it_breaks(
    pool: PrefixPool, broken: Callable[[PrefixPool, Allocation], None], says: str
) -> None:
    holder = holder_of(pool, "ab")
    pool.check([holder])
    broken(pool, holder)
    with pytest.raises(InvariantError, match=says):
        pool.check([holder])


def test_a_shared_block_that_is_free_too_is_found(pool: PrefixPool) -> None:
    holder = holder_of(pool, "ab")
    pool.inner.truncate(pool._as_allocation(holder.shared[1]), 0)
    with pytest.raises(InvariantError, match=r"block \d+ is both free and held"):
        pool.check([holder])
