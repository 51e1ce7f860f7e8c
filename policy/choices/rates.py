"""Rates that policies read, learnt from outcomes. Start values are scenario fields."""

from __future__ import annotations

from policy.memory.transfers import Transfer
from policy.plan import Outcome, Plan

_SHIFT = 3  # an exponentially weighted mean with weight 1/8, in integers


_LINE_SHIFT = 5  # a line forgets more slowly: it needs prompts of several lengths
_UNIT = 1 << 20
#: The start value is a line through two points, at nothing and at so many tokens. Each counts as some
#: steps at first, which fade, and as a very small part of one for ever.
_START_TOKENS = 512
_START_WEIGHT = 4 * _UNIT
_STAYING_WEIGHT = _UNIT >> 8


class PrefillTime:
    """What a step that prefills so many tokens takes: a base and a slope, by least squares over the steps
    seen, older ones counting less.

    One rate would spread the base over the few tokens of a next turn and then charge it to every token
    of a whole context. Something of the start value stays, so that prompts of one length have a line.
    """

    __slots__ = ("_staying", "_sums")

    def __init__(self, ns_per_token: int) -> None:
        #: Sums of 1, tokens, tokens squared, time, tokens times time.
        self._sums = [0] * 5
        self._add_line(_STAYING_WEIGHT, ns_per_token)
        self._staying = tuple(self._sums)
        self._add_line(_START_WEIGHT, ns_per_token)

    def saw(self, tokens: int, duration_ns: int) -> None:
        """A step prefilled so many tokens in so long."""
        for index, staying in enumerate(self._staying):
            self._sums[index] -= (self._sums[index] - staying) >> _LINE_SHIFT
        self._add(_UNIT, tokens, duration_ns)

    def ns(self, tokens: int) -> int:
        """What the line says."""
        weight, x, xx, y, xy = self._sums
        rise = max(0, weight * xy - x * y)
        run = weight * xx - x * x
        return max(0, (y * run + rise * (tokens * weight - x)) // (weight * run))

    def _add_line(self, weight: int, ns_per_token: int) -> None:
        self._add(weight, 0, 0)
        self._add(weight, _START_TOKENS, _START_TOKENS * ns_per_token)

    def _add(self, weight: int, tokens: int, duration_ns: int) -> None:
        for index, value in enumerate(
            (1, tokens, tokens * tokens, duration_ns, tokens * duration_ns)
        ):
            self._sums[index] += weight * value


class Rates:
    """Smoothed nanoseconds per decode step and per copied block, each direction on its own, and the
    line of prefills.

    Integers only, so that both machines learn the same from the same times. Who reads the times of
    steps says so: `reads_steps` of those that decode, `reads_prefills` of those that only prefill.
    """

    __slots__ = (
        "_last_done",
        "load_ns_per_block",
        "prefill",
        "reads_prefills",
        "reads_steps",
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
        self.prefill = PrefillTime(prefill_ns_per_token)
        self.reads_steps = self.reads_prefills = False
        self._last_done = {True: 0, False: 0}

    def saw(self, plan: Plan, outcome: Outcome) -> None:
        """A step was run. One that waited for copies says nothing of computing."""
        if plan.batch is not None:
            if self.reads_steps and not plan.wait_for:
                self.step_ns += (outcome.end_ns - outcome.start_ns - self.step_ns) >> _SHIFT
        elif self.reads_prefills and not plan.wait_for:
            tokens = sum(count for _, count in plan.prefill)
            self.prefill.saw(tokens, outcome.end_ns - outcome.start_ns)

    def saw_copy(self, flight: Transfer, done_ns: int, *, ok: bool) -> None:
        """A copy ended; its service began when it was planned or when the one before it ended. One that
        failed or was cancelled took its time too, and says nothing of how long a block takes."""
        began = max(flight.planned_ns, self._last_done[flight.to_host])
        self._last_done[flight.to_host] = done_ns
        if not ok:
            return
        sample = max(0, done_ns - began) // flight.copy.num_blocks
        if flight.to_host:
            self.store_ns_per_block += (sample - self.store_ns_per_block) >> _SHIFT
        else:
            self.load_ns_per_block += (sample - self.load_ns_per_block) >> _SHIFT
