"""Use a pool before time zero, so that a fresh free list flatters nobody (trap S6).

A fresh LIFO list hands out perfect runs; after a few thousand requests it hands out scattered
blocks. `churn` serves requests of the workload's own lengths and lets them leave in random order;
`shuffle` is the worst case for a page list. Afterwards the pool is empty again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policy.pools.allocation import Allocation, Pool
from policy.pools.paged import PagedPool
from policy.pools.prefix import PrefixPool

CHURN_REQUESTS = 2000


def churn(
    pool: Pool, contexts: Sequence[tuple[int, int]], pick: Callable[[int], int], reserve: int
) -> None:
    """Serve `contexts`, each (blocks at once, blocks grown later one by one), then free them all.

    `pick(n)` is seeded and chooses who leaves when room is short, and the final order. Contexts
    larger than the pool are skipped. Costs about 0.1 s for 2,000 chat requests.
    """
    live: list[Allocation] = []
    growing: list[list[int]] = []  # [index into live's holder, blocks left], parallel to live

    def leave() -> None:
        index = pick(len(live))
        live[index], live[-1] = live[-1], live[index]
        growing[index], growing[-1] = growing[-1], growing[index]
        pool.truncate(live.pop(), 0)
        growing.pop()

    for at_once, later in contexts:
        if at_once + later > pool.num_blocks:
            continue
        while pool.num_available < at_once:
            leave()
        holder = pool.new()
        pool.allocate(holder, at_once, reserve)
        live.append(holder)
        growing.append([later])
        for other, left in zip(list(live), list(growing), strict=True):
            if left[0] and pool.num_available:
                pool.allocate(other, 1, reserve)
                left[0] -= 1
    while live:
        leave()


def shuffle(pool: Pool, pick: Callable[[int], int]) -> None:
    """Put a page list in random order (Fisher-Yates); pools of merged runs have no order to lose."""
    if isinstance(pool, PrefixPool):
        pool = pool.inner
    if isinstance(pool, PagedPool):
        free = pool.free_list
        for index in range(len(free) - 1, 0, -1):
            other = pick(index + 1)
            free[index], free[other] = free[other], free[index]
