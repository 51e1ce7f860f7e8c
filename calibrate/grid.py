"""Which points are timed: space-filling, with even and skewed lengths, within what the pools hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from calibrate.points import Point
from policy.plan import Direction

DIRECTIONS = tuple(way.value for way in Direction)


class Limits(NamedTuple):
    """What a calibration may use. `copy_blocks`: the largest copy job."""

    max_batch: int
    max_context: int
    max_tokens: int  # of KV in all, and so of one step
    max_prefill: int
    copy_blocks: int


_SHORT = 16

#: The systems whose copies are timed: how they submit and lay out is all that matters.
COPY_SYSTEMS = ("vllm-0.3.3-keep", "+groups", "fastswitch", "+block-major", "+batched")


def decode_points(limits: Limits) -> list[Point]:
    """Batches by half doublings with short and long contexts, even, the smallest also with middling
    ones, since a library may take another way for three than for four; and batches with one long context
    among short ones, which tell what unevenness costs."""
    found = []
    middle = math.isqrt(_SHORT * limits.max_context)
    contexts = sorted({_SHORT, middle, limits.max_context})
    for batch in _steps(1, limits.max_batch):
        fitting = [context for context in contexts if batch * context <= limits.max_tokens]
        if batch > 4:
            fitting = sorted({fitting[0], fitting[-1]})
        found += [Point("decode", (batch, batch * context, context)) for context in fitting]
    for batch in _doubling(4, limits.max_batch, factor=4):
        longest = limits.max_context
        if (batch - 1) * _SHORT + longest <= limits.max_tokens:
            found.append(Point("decode", (batch, (batch - 1) * _SHORT + longest, longest)))
    return found


def prefill_points(limits: Limits) -> list[Point]:
    """Prompts by half doublings, some also behind a prefix."""
    half = limits.max_context // 2
    found = [Point("prefill", (tokens, 0)) for tokens in _steps(1, limits.max_prefill)]
    for tokens in _doubling(1, min(limits.max_prefill, limits.max_context - half), factor=4):
        found.append(Point("prefill", (tokens, half)))
    return found


def prompts_points(limits: Limits) -> list[Point]:
    """Several prompts in one step."""
    short, long, half = limits.max_prefill // 16, limits.max_prefill // 4, limits.max_context // 2
    shapes = ((2, short, 0), (2, short, half), (2, long, 0), (4, short, 0), (8, short, 0))
    return [
        Point("prompts", (prompts, tokens, past))
        for prompts, tokens, past in shapes
        if prompts * tokens <= limits.max_prefill and past + tokens <= limits.max_context
    ]


def mixed_points(limits: Limits) -> list[Point]:
    """Decoding requests and a prompt in one step, as engines with chunked prefill run them."""
    context = min(64, limits.max_context)
    short, long = limits.max_prefill // 16, limits.max_prefill // 4
    return [
        Point("mixed", (batch, batch * context, tokens, 0))
        for batch, tokens in ((2, short), (limits.max_batch // 2, long), (limits.max_batch, short))
        if batch * context + tokens <= limits.max_tokens
    ]


def overhead_points(limits: Limits) -> list[Point]:
    """Whole engine steps, to see what comes on top of the model's."""
    return [Point("overhead", (batch,)) for batch in _doubling(1, limits.max_batch, factor=4)]


def copy_shapes(limits: Limits) -> Iterator[tuple[int, int]]:
    """(blocks, runs) of jobs."""
    for blocks in _doubling(1, limits.copy_blocks, factor=2):
        for runs in sorted({1, max(1, blocks // 4), blocks}):
            yield blocks, runs


def _steps(first: int, last: int) -> Iterator[int]:
    """By half doublings: 1, 2, 3, 4, 6, 8, 12, ..."""
    for value in _doubling(first, last):
        yield value
        if value > 1 and value + value // 2 < last:
            yield value + value // 2


def _doubling(first: int, last: int, factor: int = 2) -> Iterator[int]:
    value = first
    while value < last:
        yield value
        value *= factor
    if last >= first:
        yield last
