"""Static priority: the workload's own number, lower is more urgent (as vLLM V1 sorts it)."""

from __future__ import annotations

from policy.orders.base import Key, Order
from policy.views import RequestView


class StaticPriority(Order):
    """Never changes, so it can starve the low; that is its meaning (trap T4)."""

    name = "priority"

    def key(self, request: RequestView, now_ns: int) -> Key:  # noqa: ARG002
        """The request's priority."""
        return (request.priority,)
