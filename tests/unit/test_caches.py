"""Prefix caches: what is remembered is hit, and a limited cache with room for all is unlimited."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from traces.describing.caches import DENSE, Lru, PrefixCaches, Unlimited

#: Small ids that collide, ids at the edge of the table, and ids like hashes.
IDS = st.one_of(st.integers(0, 40), st.integers(DENSE - 2, DENSE + 2), st.integers(0, 1 << 62))
REQUESTS = st.lists(st.lists(IDS, max_size=12), max_size=20)


@given(REQUESTS)
def test_an_unlimited_cache_hits_every_block_that_came_before(requests: list[list[int]]) -> None:
    cache = Unlimited()
    for ids in requests:
        cache.see(ids)
    blocks = [block for ids in requests for block in ids]
    assert cache.hits == len(blocks) - len(set(blocks))


@given(REQUESTS)
def test_an_lru_cache_with_room_for_all_is_unlimited(requests: list[list[int]]) -> None:
    lru, unlimited = Lru(1 << 20), Unlimited()
    for ids in requests:
        lru.see(ids)
        unlimited.see(ids)
    assert lru.hits == unlimited.hits


@given(st.lists(st.lists(st.integers(0, 12), max_size=12), max_size=20), st.integers(1, 12))
def test_an_lru_cache_is_the_list_of_what_was_used_last(
    requests: list[list[int]], size: int
) -> None:
    """Against a list searched from the end: a larger cache never hits less."""
    lru, larger = Lru(size), Lru(size + 1)
    used: list[int] = []
    hits = 0
    for ids in requests:
        lru.see(ids)
        larger.see(ids)
        for block in ids:
            if block in used:
                hits += 1
                used.remove(block)
            used.append(block)
            del used[:-size]
    assert lru.hits == hits <= larger.hits


@given(REQUESTS, st.sampled_from(["global", "session"]), st.booleans())
def test_ids_of_a_sessions_own_scope_are_told_apart(
    requests: list[list[int]], scope: Literal["global", "session"], interleaved: bool
) -> None:
    """Two sessions with the same ids: shared if the scope is global, twice as much if it is not."""
    if interleaved:
        rows = [(name, ids) for ids in requests for name in ("a", "b")]
    else:
        rows = [(name, ids) for name in ("a", "b") for ids in requests]
    caches = PrefixCaches((1 << 20,), scope, is_interleaved=interleaved)
    for name, ids in rows:
        caches.see(name, tuple(ids))
    blocks = [block for ids in requests for block in ids]
    distinct = len(set(blocks)) * (1 if scope == "global" else 2)
    assert caches.references == 2 * len(blocks)
    assert caches.unlimited.hits == caches.limited[0].hits == 2 * len(blocks) - distinct


def test_a_workload_without_ids_has_no_shares() -> None:
    assert PrefixCaches((5,)).shares() is None
