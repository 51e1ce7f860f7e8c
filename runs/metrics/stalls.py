"""Time that waits for copies: of the machine, and of each request's life.

The machine waits at the beginning of a step that names copies it must wait for, and before a step
when nothing can run but for a copy under way. A request waits for a copy while its own KV is being
loaded, and while the machine waits in or before a step in which it computes or would compute: from
its first token on until it is taken off the device or ends, and again from where it is back. A
request that queues waits for its turn, not for a copy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from runs.metrics.columns import Columns, codes_of, is_one, positions_of
from runs.metrics.intervals import Stretches
from runs.metrics.latency import accepted, left_ns


def stalls_of(steps: Columns, waits: Columns) -> Stretches:
    """When the machine waited for copies."""
    begins = np.concatenate([waits["start_ns"], steps["start_ns"]])
    ends = np.concatenate([waits["end_ns"], steps["start_ns"] + steps["stall_ns"]])
    return Stretches(begins, ends)


def live_of(requests: Columns) -> Stretches:
    """When some turn had come and the engine had not let go of it."""
    return Stretches(requests["arrival_ns"], requests["end_ns"])


class _Load(NamedTuple):
    begin: int
    end: int
    is_waited: bool


class _Story(NamedTuple):
    """Of one request, in order of steps: (row of steps, is a prefill, last row), rows of steps in
    which it lost the device, loads of its KV."""

    spans: list[tuple[int, bool, int]]
    losses: list[int]
    loads: list[_Load]


def waiting_ns(
    requests: Columns,
    steps: Columns,
    spans: Columns,
    preemptions: Columns,
    copies: Columns,
    stalls: Stretches,
) -> tuple[int, int]:
    """(time waited for copies, time lived) of all turns that were not rejected, together."""
    arrival, left = requests["arrival_ns"], left_ns(requests)
    stories = _stories(requests, steps, spans, preemptions, copies)
    clock = _clock(steps)
    begins: list[int] = []
    until: list[int] = []
    loading = lived = 0
    for index in np.flatnonzero(accepted(requests)).tolist():
        begin, end = int(arrival[index]), int(left[index])
        lived += end - begin
        story = stories[index]
        loads = list(_clipped(((one.begin, one.end) for one in story.loads), begin, end))
        loading += sum(b - a for a, b in loads)
        marks = _clipped(_marks(story, clock, end), begin, end)
        for a, b in _without(marks, loads):
            begins.append(a)
            until.append(b)
    stalled = stalls.within(np.array(begins, dtype=np.int64), np.array(until, dtype=np.int64))
    return loading + int(stalled.sum()), lived


def _stories(
    requests: Columns, steps: Columns, spans: Columns, preemptions: Columns, copies: Columns
) -> list[_Story]:
    codes: dict[str | None, int] = {}
    codes_of(requests["request_id"], codes)
    stories = [_Story([], [], []) for _ in codes]
    prefill = is_one(spans["kind"], "prefill")
    first = positions_of(steps, spans["first_step"])
    last = positions_of(steps, spans["last_step"])
    order = np.lexsort((~prefill, first))  # a prefill before the token that came with it
    for index in order.tolist():
        code = codes.get(spans["request_id"][index])
        if code is not None:
            stories[code].spans.append((int(first[index]), bool(prefill[index]), int(last[index])))
    at = positions_of(steps, preemptions["step"]).tolist()
    for name, position in zip(preemptions["request_id"], at, strict=True):
        if name in codes:
            stories[codes[name]].losses.append(position)
    for index in np.argsort(copies["submit_ns"], kind="stable").tolist():
        code = codes.get(copies["request_id"][index])
        if copies["direction"][index] == "h2d" and code is not None:
            load = _Load(
                int(copies["submit_ns"][index]),
                int(copies["end_ns"][index]),
                bool(copies["waited_for"][index]),
            )
            stories[code].loads.append(load)
    return stories


class _Steps(NamedTuple):
    """Times of each step. `free`: since when the machine computed nothing before it."""

    starts: list[int]
    ends: list[int]
    free: list[int]


def _clock(steps: Columns) -> _Steps:
    starts, ends = steps["start_ns"], steps["end_ns"]
    computes = (steps["batch"] > 0) | (steps["prefill_tokens"] > 0)
    latest = np.maximum.accumulate(np.where(computes, ends, 0))
    free = np.append(0, latest)[:-1]
    return _Steps(starts.tolist(), ends.tolist(), free.tolist())


def _marks(story: _Story, steps: _Steps, end: int) -> Iterator[tuple[int, int]]:
    """Stretches in which it computes or would compute, with what the machine waits before each."""
    losses, starts, ends = story.losses, steps.starts, steps.ends
    ready: int | None = None  # since when it would compute in every step
    before = -1  # the last step in which it computed
    for first, is_prefill, last in story.spans:
        if ready is not None:
            k = bisect_right(losses, before)
            if k < len(losses) and losses[k] <= first:
                yield ready, starts[losses[k]]
                ready = None
        begun = steps.free[first]
        if is_prefill:
            if ready is not None:  # its KV was lost with a copy
                yield ready, begun
            yield begun, ends[first]
            ready = None
        elif ready is None:
            if before == first:
                ready = ends[first]  # its prefill's own token
            else:
                *brief, (ready, _) = _returns(story, steps, before, first)
                yield from brief
        before = last
    if ready is None:
        return
    k = bisect_right(losses, before)
    if k == len(losses):
        yield ready, end
        return
    yield ready, starts[losses[k]]


def _returns(story: _Story, steps: _Steps, before: int, first: int) -> list[tuple[int, int]]:
    """When it was on the device again, ready to decode, between its tokens of steps `before` and
    `first`: from each time it was loaded (from the step that waited for the load, or from the load's
    end) until it was lost again; at last for good, from before step `first` at the latest."""
    starts = steps.starts
    lost = [starts[at] for at in story.losses if before < at <= first]
    found: list[tuple[int, int]] = []
    for load in story.loads:
        if lost and lost[0] <= load.begin < steps.ends[first]:
            back = starts[bisect_right(starts, load.begin) - 1] if load.is_waited else load.end
            again = next((at for at in lost if at > load.begin), None)
            if again is None:
                return [*found, (max(lost[-1], min(back, steps.free[first])), 0)]
            found.append((back, again))
    return [*found, (max([steps.free[first], *lost]), 0)]


def _clipped(
    stretches: Iterator[tuple[int, int]], begin: int, end: int
) -> Iterator[tuple[int, int]]:
    """Within a life, and no moment twice."""
    for left, right in stretches:
        low, high = max(left, begin), min(right, end)
        if high > low:
            yield low, high
            begin = high


def _without(
    stretches: Iterator[tuple[int, int]], holes: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    for begin, end in stretches:
        cursor = begin
        for hole, after in holes:
            if after > cursor and hole < end:
                if hole > cursor:
                    yield cursor, hole
                cursor = after
        if end > cursor:
            yield cursor, end
