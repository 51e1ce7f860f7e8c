"""The step-cost form `tokens/1`: a table over all new tokens of a step, and what decoding requests,
prompts and the host add (docs/decisions, the step-cost form). Standard library and pydantic only."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from calibrate.quantity import Quantity, Strict

MAX_KNOTS = 200
Whole = Annotated[int, Field(gt=0, lt=1 << 50)]


class TokenCost(Strict):
    """Time of one iteration, nanoseconds. With B decoding requests that read K tokens of KV, the longest
    of L, U = L * B - K; c chunks of prompts of `new` tokens behind `past` ones; T = B + sum of new:

        decode alone   table(B) + decode + (per_output + sequence_decode) * B + kv_decode * K
                       + uneven_decode * U + longest_decode * L
        with prompts   table(T) + per_output * (B + c) + sequence_mixed * B + kv_mixed * K
                       + uneven_mixed * U + longest_mixed * L
                       + square * sum of new * (past + new / 2) + past * sum of past + chunk * c
        both           + host_base + host_per_token * T

    `table` is straight between `tokens`, and has its last slope beyond them; all of it is multiplied by
    `scale`, whose range says how sure it is. `first_token`: what a client waits for beyond the engine,
    for its first token. A term that is not there costs nothing.
    """

    form: Literal["tokens/1"]
    tokens: Annotated[tuple[Whole, ...], Field(min_length=1, max_length=MAX_KNOTS)]
    ns: Annotated[tuple[Whole, ...], Field(min_length=1, max_length=MAX_KNOTS)]
    scale: Quantity
    decode: Quantity | None = None
    per_output: Quantity | None = None
    sequence_decode: Quantity | None = None
    kv_decode: Quantity
    uneven_decode: Quantity | None = None
    longest_decode: Quantity | None = None
    sequence_mixed: Quantity | None = None
    kv_mixed: Quantity
    uneven_mixed: Quantity | None = None
    longest_mixed: Quantity | None = None
    square: Quantity
    past: Quantity | None = None
    chunk: Quantity | None = None
    host_base: Quantity
    host_per_token: Quantity
    first_token: Quantity

    @model_validator(mode="after")
    def _is_a_rising_table(self) -> TokenCost:
        if len(self.tokens) != len(self.ns):
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.ns)} ns")
        if any(a >= b for a, b in itertools.pairwise(self.tokens)):
            raise ValueError("tokens do not rise")
        if any(a > b for a, b in itertools.pairwise(self.ns)):
            raise ValueError("ns falls: more tokens never cost less")
        return self

    def table(self, upto: int, shift: int) -> list[int]:
        """`scale` times the table at 0 to `upto` tokens, in 2**-shift ns; at none what one costs."""
        scale = round(self.scale.value * (1 << shift))
        found: list[int] = [self.ns[0] * scale] * min(self.tokens[0], upto + 1)
        rise, run = 0, 1
        for (left, low), (right, high) in itertools.pairwise(
            zip(self.tokens, self.ns, strict=True)
        ):
            rise, run = high - low, right - left
            end = min(right, upto + 1)
            found += [scale * (low * run + rise * (at - left)) // run for at in range(left, end)]
        last, low = self.tokens[-1], self.ns[-1]
        found += [scale * (low * run + rise * (at - last)) // run for at in range(last, upto + 1)]
        return found
