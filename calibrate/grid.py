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
    """Batches by doubling times context lengths by fours, even; and batches with one long context
    among short ones, which tell what unevenness costs."""
    found = []
    for batch in _doubling(1, limits.max_batch):
        for context in _doubling(16, limits.max_context, factor=4):
            if batch * context <= limits.max_tokens:
                found.append(Point("decode", (batch, batch * context, context)))
    for batch in _doubling(4, limits.max_batch, factor=2):
        short, long = 16, limits.max_context
        if (batch - 1) * short + long <= limits.max_tokens:
            found.append(Point("decode", (batch, (batch - 1) * short + long, long)))
    return found


def prefill_points(limits: Limits) -> list[Point]:
    """Prompts by doubling, alone and behind a prefix."""
    found = []
    for tokens in _doubling(8, limits.max_prefill):
        for past in (0, limits.max_context // 4, limits.max_context // 2):
            if past + tokens <= limits.max_context:
                found.append(Point("prefill", (tokens, past)))
    return found


def overhead_points(limits: Limits) -> list[Point]:
    """Whole engine steps, to see what comes on top of the model's."""
    return [Point("overhead", (batch,)) for batch in _doubling(1, limits.max_batch, factor=4)]


def copy_shapes(limits: Limits) -> Iterator[tuple[int, int]]:
    """(blocks, runs) of jobs."""
    for blocks in _doubling(1, limits.copy_blocks, factor=2):
        for runs in sorted({1, max(1, blocks // 4), blocks}):
            yield blocks, runs


def _doubling(first: int, last: int, factor: int = 2) -> Iterator[int]:
    value = first
    while value < last:
        yield value
        value *= factor
    if last >= first:
        yield last
