"""The step-cost form of earlier profiles, linear, and what it leaves over. Standard library and pydantic only."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from typing import Annotated

from pydantic import Field, model_validator

from calibrate.quantity import Quantity, Strict


class StepCost(Strict):
    """Time of one iteration, linear: base + per_kv_token * K + per_sequence * B
    + per_sequence_beyond * max(0, B - 64) + per_prefill_token * P + per_prefill_square * Q,
    with Q = sum of L * (past + L / 2). All in nanoseconds. `per_uneven_token`, where a machine pays
    for batches of uneven lengths, times longest * B - K; `per_further_prompt`, where it pays for them,
    times the prompts of a prefill step but one (and times a curve of their number, see Corrections).
    """

    base: Quantity
    per_kv_token: Quantity
    per_sequence: Quantity
    per_sequence_beyond: Quantity
    per_prefill_token: Quantity
    per_prefill_square: Quantity
    per_uneven_token: Quantity | None = None
    per_further_prompt: Quantity | None = None


#: A factor of one in a curve.
ONE = 1 << 10


class Curve(Strict):
    """Factors, in 1/1024, by one quantity: straight between the knots, the last one's beyond them."""

    knots: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    factors: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_factor_for_each_knot(self) -> Curve:
        if len(self.knots) != len(self.factors):
            raise ValueError(f"{len(self.knots)} knots and {len(self.factors)} factors")
        if any(a >= b for a, b in itertools.pairwise(self.knots)):
            raise ValueError("knots do not rise")
        return self

    def at(self, value: int) -> int:
        """The factor there, in 1/1024."""
        knots, factors = self.knots, self.factors
        index = bisect_right(knots, value)
        if index == 0 or index == len(knots):
            return factors[index - (index > 0)]
        left, right = knots[index - 1], knots[index]
        rise = (factors[index] - factors[index - 1]) * (value - left)
        return factors[index - 1] + rise // (right - left)


class Corrections(Strict):
    """What the formulas leave over on a measured machine, where it lowers the error on points that
    were left out: a decode step times `decode` by its batch, a prefill step times `prefill` by its new
    tokens, a copy job times `copy_piece` by the bytes of a piece; and of the formulas themselves
    `per_further_prompt` times `further_prompts` by the number of prompts."""

    decode: Curve | None = None
    prefill: Curve | None = None
    copy_piece: Curve | None = None
    further_prompts: Curve | None = None
