"""Gaps between tokens, of every turn that got one: in the batch, and with a preemption inside."""

from __future__ import annotations

from typing import Any

import numpy as np

from runs.metrics import breakdown
from runs.metrics.columns import Columns, codes_of, is_one, label, positions_of, seconds
from runs.metrics.intervals import Stretches
from runs.metrics.latency import PERCENTILES
from runs.metrics.stats import Ints, percentile


def token_gaps(
    steps: Columns, spans: Columns, preemptions: Columns
) -> tuple[tuple[Ints, Ints], Ints]:
    """((in-batch gaps, how often each), gaps with a preemption inside), in nanoseconds.

    Inside a span every step's gap is shared by all requests in it, so gaps are counted per step and
    never per token; between two spans of a request the gap is its own.
    """
    step_ids, ends = steps["step"], steps["end_ns"]
    if not step_ids.size:
        empty = np.zeros(0, dtype=np.int64)
        return (empty, empty), empty
    token = is_one(spans["kind"], "token")
    first = spans["first_step"][token]
    last = spans["last_step"][token]
    base = int(step_ids[0])
    position = np.zeros(int(step_ids[-1]) - base + 1, dtype=np.int64)
    position[step_ids - base] = np.arange(step_ids.size)
    lead, tail = position[first - base], position[last - base]
    depth = np.zeros(step_ids.size + 1, dtype=np.int64)
    np.add.at(depth, lead + 1, 1)
    np.add.at(depth, tail + 1, -1)
    sharing = np.cumsum(depth)[:-1]
    step_gaps = np.diff(ends, prepend=ends[:1])
    within = sharing > 0
    codes: dict[str | None, int] = {}
    owner = codes_of(spans["request_id"], codes)[token]
    same = owner[1:] == owner[:-1]
    between = (ends[lead[1:]] - ends[tail[:-1]])[same]
    lost = _lost_between(owner[1:][same], last[:-1][same], first[1:][same], codes, preemptions)
    values = np.concatenate([step_gaps[within], between[~lost]])
    weights = np.concatenate([sharing[within], np.ones(int((~lost).sum()), dtype=np.int64)])
    return (values, weights), between[lost]


def _lost_between(
    owner: Ints, last: Ints, first: Ints, codes: dict[str | None, int], preemptions: Columns
) -> Any:
    """For each gap of `owner` after step `last` and up to step `first`: was it preempted inside?"""
    width = int(max(first.max(initial=0), preemptions["step"].max(initial=0))) + 2
    marks = np.sort(
        np.array(
            [
                codes[name] * width + int(step)
                for name, step in zip(preemptions["request_id"], preemptions["step"], strict=True)
                if name in codes
            ],
            dtype=np.int64,
        )
    )
    low = np.searchsorted(marks, owner * width + last, side="right")
    high = np.searchsorted(marks, owner * width + first, side="right")
    return high > low


def pooled(gaps: tuple[tuple[Ints, Ints], Ints]) -> tuple[Ints, Ints]:
    """Both kinds together: values, and how often each."""
    (values, weights), preempted = gaps
    ones = np.ones(preempted.size, dtype=np.int64)
    return np.concatenate([values, preempted]), np.concatenate([weights, ones])


def last_token_ns(requests: Columns, steps: Columns, spans: Columns) -> Ints:
    """When each turn's last token was there, -1 without tokens: its end if it finished."""
    token = is_one(spans["kind"], "token")
    ends: dict[str | None, int] = {}
    at = steps["end_ns"][positions_of(steps, spans["last_step"][token])] if token.any() else []
    names = [name for name, has in zip(spans["request_id"], token.tolist(), strict=True) if has]
    for name, end in zip(names, at, strict=True):
        ends[name] = max(int(end), ends.get(name, -1))
    found = np.fromiter((ends.get(name, -1) for name in requests["request_id"]), np.int64)
    return np.where(requests["finish_ns"] >= 0, requests["finish_ns"], found)


def summarise(
    steps: Columns, spans: Columns, preemptions: Columns, stalls: Stretches
) -> dict[str, Any]:
    """TBT, pooled and apart, and how much of the long gaps was waiting for copies."""
    gaps = token_gaps(steps, spans, preemptions)
    (values, weights), preempted = gaps
    every, repeats = pooled(gaps)
    result: dict[str, Any] = {}
    for q in PERCENTILES:
        result[f"tbt_{label(q)}_s"] = seconds(percentile(every, q, repeats))
    for q in (99.0, 99.9):
        result[f"tbt_in_batch_{label(q)}_s"] = seconds(percentile(values, q, weights))
    for q in (50.0, 99.0):
        result[f"tbt_preempted_{label(q)}_s"] = seconds(percentile(preempted, q))
    # The same gaps on a clock that runs only while the machine waits for copies.
    waiting = {**steps, "end_ns": stalls.before(steps["end_ns"])}
    stalled, _ = pooled(token_gaps(waiting, spans, preemptions))
    result["stall_share_p99_gaps"] = breakdown.stall_share(every, stalled, repeats)
    result["tbt_samples"] = int(repeats.sum())
    result["tbt_preempted_samples"] = int(preempted.size)
    return result
