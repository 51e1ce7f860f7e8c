"""The pools of an allocator by name. Both tiers use the same, since one side alone gives nothing."""

from __future__ import annotations

from collections.abc import Callable

from policy.pools.allocation import Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.views import Draw


def make_pool(allocator: str, name: str, num_blocks: int, draw: Draw) -> Pool:
    """A pool of the kind, `name` being its tier. `draw`: which tail it takes back."""
    if allocator == "paged":
        return PagedPool(name, num_blocks)
    space = BuddyRuns(num_blocks) if allocator == "buddy" else FreeRuns(num_blocks)
    return GroupPool(name, space, picker(draw, f"reclaim-{name}"))


def picker(draw: Draw, purpose: str) -> Callable[[int], int]:
    """`pick(n)`: the next of a pure sequence of draws, in 0..n-1."""
    calls = 0

    def pick(n: int) -> int:
        nonlocal calls
        calls += 1
        return draw(purpose, "", calls) % n

    return pick
