"""Rates that policies read, learnt from outcomes. Start values are scenario fields."""

from __future__ import annotations

from policy.context import InFlight
from policy.plan import Plan

_SHIFT = 3  # an exponentially weighted mean with weight 1/8, in integers


class Rates:
    """Smoothed nanoseconds per decode step, per prefilled token and per copied block, each direction
    on its own.

    Integers only, so that both engines learn the same from the same times.
    """

    __slots__ = (
        "_last_done",
        "load_ns_per_block",
        "prefill_ns_per_token",
        "step_ns",
        "store_ns_per_block",
    )

    def __init__(
        self,
        *,
        step_ns: int = 30_000_000,
        load_ns_per_block: int = 100_000,
        store_ns_per_block: int = 100_000,
        prefill_ns_per_token: int = 100_000,
    ) -> None:
        self.step_ns = step_ns
        self.load_ns_per_block = load_ns_per_block
        self.store_ns_per_block = store_ns_per_block
        self.prefill_ns_per_token = prefill_ns_per_token
        self._last_done = {True: 0, False: 0}

    def saw_step(self, duration_ns: int) -> None:
        """A step that waited for no copy took this long."""
        self.step_ns += (duration_ns - self.step_ns) >> _SHIFT

    def saw_prefill(self, plan: Plan, duration_ns: int) -> None:
        """A step that prefilled, decoded nobody and waited for no copy took this long."""
        sample = duration_ns // sum(tokens for _, tokens in plan.prefill)
        self.prefill_ns_per_token += (sample - self.prefill_ns_per_token) >> _SHIFT

    def saw_copy(self, flight: InFlight, done_ns: int) -> None:
        """A copy ended; its service began when it was planned or when the one before it ended."""
        began = max(flight.planned_ns, self._last_done[flight.to_host])
        self._last_done[flight.to_host] = done_ns
        sample = max(0, done_ns - began) // flight.copy.num_blocks
        if flight.to_host:
            self.store_ns_per_block += (sample - self.store_ns_per_block) >> _SHIFT
        else:
            self.load_ns_per_block += (sample - self.load_ns_per_block) >> _SHIFT
