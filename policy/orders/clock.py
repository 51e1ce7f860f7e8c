"""When the keys of an order are asked for again: every so many steps, or nanoseconds.

Between two updates there may be a fraction of steps: the n-th comes at the first step that is not
before n times as many.
"""

from __future__ import annotations

from math import ceil

from policy.orders.base import Order
from policy.settings import Settings


class UpdateClock:
    """`count`: priority updates so far. Never due for an order that does not refresh. Periods are
    counted from the first arrival, so it does not matter when a workload begins."""

    def __init__(self, settings: Settings, order: Order) -> None:
        self.count = 0
        self._order = order
        self._every = settings.update_every or 1
        self._period_ns = settings.update_every_ns or 1
        self._next_step = None
        if order.refreshes and settings.update_every is not None:
            self._next_step = ceil(settings.update_every)
        self._by_time = settings.update_every_ns is not None and order.refreshes
        self._next_ns: int | None = None

    def arrived(self, now_ns: int) -> None:
        """A turn has come."""
        if self._by_time and self._next_ns is None:
            self._next_ns = now_ns + self._period_ns

    def is_due(self, step: int, now_ns: int) -> bool:
        """Whether an update begins before this step is decided; if so the order is told of it. By the
        clock, periods that nobody saw are counted and skipped."""
        if self._next_step is not None:
            if step < self._next_step:
                return False
            self._next_step = max(step + 1, ceil(self._every * (self.count + 2)))
        elif self._next_ns is not None:
            if now_ns < self._next_ns:
                return False
            skipped = (now_ns - self._next_ns) // self._period_ns
            self._next_ns += (skipped + 1) * self._period_ns
            self.count += skipped
        else:
            return False
        self._order.update(self.count, now_ns)
        self.count += 1
        return True
