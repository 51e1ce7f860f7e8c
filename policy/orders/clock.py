"""When the keys of an order are asked for again: every so many steps, or nanoseconds."""

from __future__ import annotations

from policy.orders.base import Order
from policy.settings import Settings


class UpdateClock:
    """`count`: priority updates so far. Never due for an order that does not refresh."""

    def __init__(self, settings: Settings, order: Order) -> None:
        self.count = 0
        self._order = order
        self._steps = settings.update_every or 1
        self._period_ns = settings.update_every_ns or 1
        self._next_step = settings.update_every if order.refreshes else None
        self._next_ns = settings.update_every_ns if order.refreshes else None

    def is_due(self, step: int, now_ns: int) -> bool:
        """Whether an update begins before this step is decided; if so the order is told of it. By the
        clock, periods that nobody saw are counted and skipped."""
        if self._next_step is not None:
            if step < self._next_step:
                return False
            self._next_step = step + self._steps
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
