"""Which points are timed: space-filling, with even and skewed lengths, within what the pools hold."""

from __future__ import annotations

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


#: The systems whose copies are timed: how they submit and lay out is all that matters.
COPY_SYSTEMS = ("vllm-0.3.3-keep", "+groups", "fastswitch", "+block-major", "+batched")


def decode_points(limits: Limits) -> list[Point]:
    """Every batch up to eight and some beyond, times context lengths by sixteens, even; and batches
    with one long context among short ones, which tell what unevenness costs. Small batches one by
    one: a library may take another way for three than for four."""
    found = []
    for batch in sorted({*range(1, min(8, limits.max_batch) + 1), *_steps(8, limits.max_batch)}):
        for context in _doubling(16, limits.max_context, factor=16):
            if batch * context <= limits.max_tokens:
                found.append(Point("decode", (batch, batch * context, context)))
    for batch in _doubling(4, limits.max_batch, factor=2):
        short, long = 16, limits.max_context
        if (batch - 1) * short + long <= limits.max_tokens:
            found.append(Point("decode", (batch, (batch - 1) * short + long, long)))
    return found


def prefill_points(limits: Limits) -> list[Point]:
    """Prompts by half doublings, the doublings also behind a prefix."""
    half = limits.max_context // 2
    lengths = sorted({1, 2, 4, *_steps(8, limits.max_prefill)})
    found = [Point("prefill", (tokens, 0)) for tokens in lengths]
    for tokens in _doubling(1, min(limits.max_prefill, limits.max_context - half)):
        found.append(Point("prefill", (tokens, half)))
    return found


def prompts_points(limits: Limits) -> list[Point]:
    """Several prompts in one step."""
    return [
        Point("prompts", (prompts, tokens, past))
        for prompts in _doubling(2, min(limits.max_batch, 16), factor=4)
        for tokens in (8, 64)
        for past in (0, 64)
        if prompts * tokens <= limits.max_prefill and past + tokens <= limits.max_context
    ]


def mixed_points(limits: Limits) -> list[Point]:
    """Decoding requests and a prompt in one step, as engines with chunked prefill run them."""
    context = min(64, limits.max_context)
    return [
        Point("mixed", (batch, batch * context, tokens, 0))
        for batch in _doubling(2, limits.max_batch // 2, factor=4)
        for tokens in (16, min(128, limits.max_prefill))
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
    """By half doublings: 8, 12, 16, 24, ..."""
    for value in _doubling(first, last):
        yield value
        if value + value // 2 < last:
            yield value + value // 2


def _doubling(first: int, last: int, factor: int = 2) -> Iterator[int]:
    value = first
    while value < last:
        yield value
        value *= factor
    if last >= first:
        yield last
