"""Which chunk of the host tier gives way, by hand."""

from __future__ import annotations

from policy.pools.chunk_eviction import Arc, Lru, Visit
from policy.pools.chunks import ChunkPool


def store(pool: ChunkPool, names: str, visit: Visit) -> list[str] | None:
    """Offer chunks named by letters, in order; what gave way."""
    found = pool.begin_store(list(names), range(len(names)), visit)
    if found is None:
        return None
    pool.end_store(found.names, ok=True)
    pool.check()
    return [str(name) for name in found.evicted]


def whole(pool: ChunkPool, names: str) -> list[str] | None:
    """A request that stores these and ends."""
    visit = Visit()
    found = store(pool, names, visit)
    pool.end_visit(visit)
    return found


def test_lru_gives_up_the_request_that_ended_longest_ago_from_its_tail() -> None:
    pool = ChunkPool(5, Lru())
    assert whole(pool, "abc") == []
    assert whole(pool, "xy") == []
    assert whole(pool, "k") == ["c"]
    assert whole(pool, "ab") == []  # used again: ranked anew
    assert whole(pool, "mn") == ["y", "x"]


def test_lru_keeps_what_is_offered_and_what_is_read() -> None:
    pool = ChunkPool(3, Lru())
    whole(pool, "ab")
    reader = Visit()
    assert pool.begin_load(["b"], [1], reader) == [1]
    assert whole(pool, "axy") is None  # "a" is offered, "b" is read, and there is one slot
    assert whole(pool, "xy") == ["a"]
    pool.end_load(["b"])
    assert whole(pool, "z") == ["b"]


def test_lru_does_not_grow_with_stale_entries() -> None:
    eviction = Lru()
    pool = ChunkPool(4, eviction)
    whole(pool, "abcd")
    for _ in range(100):
        whole(pool, "abcd")
    assert len(eviction._heap) <= 64 + 2 * 4 + 4
    assert whole(pool, "e") == ["d"]


def test_lru_puts_back_what_it_chose_if_there_is_not_enough() -> None:
    eviction = Lru()
    pool = ChunkPool(3, eviction)
    whole(pool, "abc")
    assert eviction.evict(3, {"a": None}) is None
    assert eviction.evict(2, {"a": None}) == ["c", "b"]
    assert eviction.state() == ("a",)


def test_a_provisional_rank_is_given_at_the_first_access() -> None:
    pool = ChunkPool(4, Lru())
    first, second = Visit(), Visit()
    store(pool, "a", first)
    store(pool, "x", second)
    pool.begin_store(["a", "b"], [0, 1], first)
    pool.end_store(["b"], ok=True)
    assert store(pool, "pq", Visit()) == ["b"]  # of the older request the tail


def test_arc_moves_what_is_used_again_and_learns_from_what_it_lost() -> None:
    eviction = Arc(3)
    pool = ChunkPool(3, eviction)
    whole(pool, "ab")
    whole(pool, "ax")  # "a" was reused
    assert list(eviction._again) == ["a"]
    assert whole(pool, "y") == ["b"]
    assert eviction._share == 0
    assert whole(pool, "b") == ["x"]  # it was lost from the first list: that gets more
    assert eviction._share == 1
    visit = Visit()
    store(pool, "a", visit)
    store(pool, "a", visit)
    pool.end_visit(visit)
    assert list(eviction._again) == ["a"]


def test_arc_takes_from_the_second_list_what_the_first_has_no_share_of() -> None:
    eviction = Arc(2)
    pool = ChunkPool(2, eviction)
    whole(pool, "ab")
    whole(pool, "ab")
    assert list(eviction._again) == ["b", "a"]
    assert whole(pool, "x") == ["b"]
    eviction._share = 2.0
    assert whole(pool, "y") == ["a"]
    assert list(eviction._lost_again) == ["b", "a"]
    whole(pool, "b")  # lost from the second list: the first gets less
    assert eviction._share == 1.0
    assert eviction.state()[0] == 1.0  # type: ignore[index]


def test_arc_gives_up_nothing_if_there_is_not_enough() -> None:
    eviction = Arc(2)
    pool = ChunkPool(2, eviction)
    whole(pool, "ab")
    reader = Visit()
    pool.begin_load(["a"], [0], reader)
    pool.begin_load(["a"], [0], reader)
    assert eviction.evict(2, {}) is None
    pool.end_load(["a"])
    pool.end_load(["a"])
    assert eviction.evict(2, {}) is not None


def test_arc_forgets_what_failed_and_the_oldest_of_what_it_lost() -> None:
    eviction = Arc(1)
    pool = ChunkPool(1, eviction)
    found = pool.begin_store(["a"], [0], Visit())
    assert found is not None
    pool.end_store(["a"], ok=False)
    assert pool.num_free == 1
    for name in "bcd":
        whole(pool, name)
    assert list(eviction._lost_once) == ["c"]


def test_arc_keeps_places_of_what_was_only_stored() -> None:
    eviction = Arc(4)
    pool = ChunkPool(4, eviction)
    first, second = Visit(), Visit()
    store(pool, "ab", first)
    store(pool, "x", second)
    pool.end_visit(first)
    assert list(eviction._once) == ["x", "b", "a"]
    third = Visit()
    store(pool, "a", third)
    pool.end_visit(third)
    pool.end_visit(first)  # "a" has moved on since
    assert list(eviction._again) == ["a"]


def test_arc_passes_over_what_is_gone_when_a_request_ends() -> None:
    eviction = Arc(2)
    pool = ChunkPool(2, eviction)
    stored, reused = Visit(), Visit()
    store(pool, "ab", stored)
    store(pool, "ab", reused)
    whole(pool, "xy")
    pool.end_visit(stored)
    pool.end_visit(reused)
    assert list(eviction._once) == ["y", "x"]
    assert list(eviction._again) == []


def test_arc_passes_over_what_found_no_room() -> None:
    eviction = Arc(1)
    pool = ChunkPool(1, eviction)
    visit = Visit()
    assert store(pool, "ab", visit) is None
    pool.end_visit(visit)
    assert eviction.state() == (0.0, (), (), (), ())
