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
#: Up to so many rows every number is timed: below a kernel's tile five may cost more than six, and most
#: steps under memory pressure are there.
_EACH = 16
_FEW = 8
#: (prompts of a step, their length as a multiple of a short one).
_PROMPTS = ((2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (3, 4), (4, 1), (4, 2), (8, 1), (8, 2))

#: The systems whose copies are timed: how they submit and lay out is all that matters.
COPY_SYSTEMS = ("vllm-0.3.3-keep", "+groups", "fastswitch", "+block-major", "+batched")


def decode_points(limits: Limits) -> list[Point]:
    """Batches by half doublings with short and long contexts, even, the smallest also with middling ones;
    up to _EACH those in between too, with one of them, since a library may take another way for three than
    for four; and batches with one long context among short ones, which tell what unevenness costs."""
    found = []
    middle = math.isqrt(_SHORT * limits.max_context)
    contexts = sorted({_SHORT, middle, limits.max_context})
    main = set(_steps(1, limits.max_batch))
    for batch in sorted(main | set(range(1, min(_EACH, limits.max_batch)))):
        fitting = [context for context in contexts if batch * context <= limits.max_tokens]
        if batch not in main:
            fitting = fitting[1:2] or fitting
        elif 4 < batch < _EACH and batch & (batch - 1):
            fitting = fitting[:1]
        elif batch > 4:
            fitting = sorted({fitting[0], fitting[-1]})
        found += [Point("decode", (batch, batch * context, context)) for context in fitting]
    for batch in _doubling(4, limits.max_batch, factor=4):
        longest = limits.max_context
        if (batch - 1) * _SHORT + longest <= limits.max_tokens:
            found.append(Point("decode", (batch, (batch - 1) * _SHORT + longest, longest)))
    return found


def prefill_points(limits: Limits) -> list[Point]:
    """Prompts by half doublings, the shortest one by one; and behind a prefix by fourfolds, the very shortest
    one by one again, since what is said by one point alone cannot be told from chance."""
    half = limits.max_context // 2
    each = range(1, min(_FEW, limits.max_prefill))
    found = [Point("prefill", (n, 0)) for n in sorted({*_steps(1, limits.max_prefill), *each})]
    longest = min(limits.max_prefill * 2 // 3, limits.max_context - half)
    behind = {*_doubling(1, longest, factor=4), *range(1, min(_FEW, longest) + 1)}
    return found + [Point("prefill", (tokens, half)) for tokens in sorted(behind)]


def prompts_points(limits: Limits) -> list[Point]:
    """Several prompts in one step, of each number several shapes: what a number of them costs beyond their
    tokens is no line through others, since as many rows go through the output head."""
    short, half = max(1, limits.max_prefill // 32), limits.max_context // 2
    shapes = [(prompts, short * times, 0) for prompts, times in _PROMPTS]
    shapes += [(prompts, short, half) for prompts in (2, 3, 4, 8)]
    return [
        Point("prompts", (prompts, tokens, past))
        for prompts, tokens, past in shapes
        if prompts * tokens <= limits.max_prefill
        and past + tokens <= limits.max_context
        and prompts * (past + tokens) <= limits.max_tokens
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
