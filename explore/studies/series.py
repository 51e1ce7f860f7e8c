"""Small series for figures: quantile curves of a run, and its pools and link over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from explore.studies.measure import Keeps
from runs.metrics.columns import columns_of, rows_of, rows_where
from runs.metrics.gaps import pooled, token_gaps
from runs.metrics.latency import accepted, answered
from runs.metrics.stats import Ints
from runs.recording import Recording

#: Shares of samples at which quantile curves are drawn: 0 to 99.99 %, dense in the tail.
TAIL = tuple(round(1 - 10 ** (-i / 20), 8) for i in range(81))
BINS = 240


def series_of(recording: Recording, keeps: Keeps) -> dict[str, Any]:
    """Quantiles of TTFT and TBT in seconds, and the timeline; or what a warm-up is found from."""
    if keeps == "waits":
        return {"waits": waits_of(recording)}
    requests = columns_of(recording, "requests")
    steps = columns_of(recording, "steps")
    got = answered(requests)
    ttft = (requests["first_token_ns"] - requests["arrival_ns"])[got]
    left = int((accepted(requests) & ~got).sum())
    spans = rows_where(requests, got)["request_id"]
    theirs = rows_of(columns_of(recording, "spans"), set(spans))
    gaps, repeats = pooled(token_gaps(steps, theirs, columns_of(recording, "preemptions")))
    origin = int(requests["arrival_ns"].min(initial=_LATE))
    copies = columns_of(recording, "copies")
    return {
        "ttft_s": _quantiles(ttft, np.ones(ttft.size, dtype=np.int64), left),
        "tbt_s": _quantiles(gaps, repeats),
        "timeline": _timeline(steps, copies, recording.summary, origin),
    }


def waits_of(recording: Recording) -> dict[str, list[int]]:
    """When each answered turn came after the first arrival and its TTFT, in nanoseconds and in order
    of arrival, up to the last session's: what comes after it finds the machine running empty."""
    requests = columns_of(recording, "requests")
    last = requests["arrival_ns"][requests["turn"] == 1].max(initial=0)
    got = answered(requests) & (requests["arrival_ns"] <= last)
    arrival = requests["arrival_ns"][got]
    order = np.argsort(arrival, kind="stable")
    ttft = (requests["first_token_ns"][got] - arrival)[order]
    since = arrival[order] - requests["arrival_ns"].min(initial=_LATE)
    return {"arrival_ns": since.tolist(), "ttft_ns": ttft.tolist()}


_LATE = 1 << 62


def _quantiles(values: Ints, weights: Ints, left: int = 0) -> list[float]:
    """Nearest-rank quantiles at TAIL, in seconds; as many as the samples can tell apart, and as are not
    of the `left` ones, who rank last and whose values nobody knows."""
    known = int(weights.sum())
    total = known + left
    if not known:
        return []
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order])
    ranks = [min(int(share * total), total - 1) for share in TAIL if (1 - share) * total >= 1]
    ranks = [rank for rank in ranks if rank < known]
    found = values[order][np.searchsorted(ends, np.array(ranks), side="right")]
    return [round(float(value) / 1e9, 9) for value in found]


def _timeline(
    steps: dict[str, Any], copies: dict[str, Any], facts: dict[str, Any], origin: int
) -> dict[str, Any]:
    """Means over BINS equal bins of time since the first arrival: pool occupancy, batch, share of time a direction moves."""
    starts, ends = steps["start_ns"], steps["end_ns"]
    if not starts.size:
        return {}
    edges = np.linspace(int(starts[0]), int(ends[-1]), BINS + 1).astype(np.int64)
    index = np.clip(np.searchsorted(edges, starts, side="right") - 1, 0, BINS - 1)
    weight = np.maximum(ends - starts, 1)
    total = np.bincount(index, weights=weight, minlength=BINS)

    def mean(values: Ints) -> list[float]:
        sums = np.bincount(index, weights=values * weight, minlength=BINS)
        shares = np.divide(sums, total, out=np.zeros(BINS), where=total > 0)
        return [round(float(value), 4) for value in shares]

    timeline = {
        "time_s": [round(float(edge - origin) / 1e9, 3) for edge in edges[:-1]],
        "device": mean(1 - steps["free_blocks"] / facts["device_blocks"]),
        "host": mean(1 - steps["free_host_blocks"] / max(1, facts["host_blocks"])),
        "batch": mean(steps["batch"]),
    }
    for way in ("h2d", "d2h"):
        mask = np.array([direction == way for direction in copies["direction"]], dtype=bool)
        timeline[way] = _busy_share(copies["start_ns"][mask], copies["end_ns"][mask], edges)
    return timeline


def _busy_share(starts: Ints, ends: Ints, edges: Ints) -> list[float]:
    """Share of each bin in which a copy moves; copies of one direction do not overlap."""
    moved = np.concatenate([[0], np.cumsum(ends - starts)])
    if not starts.size:
        return [0.0] * (edges.size - 1)
    index = np.searchsorted(starts, edges, side="right")
    until = moved[index].astype(float)
    inside = index > 0
    running = np.maximum(ends[np.maximum(index, 1) - 1] - edges, 0)
    until -= np.where(inside, running, 0)
    width = np.maximum(np.diff(edges), 1)
    return [round(float(value), 4) for value in np.clip(np.diff(until) / width, 0, 1)]
