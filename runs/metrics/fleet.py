"""Metrics of a fleet: those of one engine over all turns, pooled exactly, and those only a fleet has.

Percentiles are of all turns and gaps of all replicas together, never of replicas' percentiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from runs.fleet_recording import FleetRecording
from runs.metrics import gaps, goodput, latency
from runs.metrics.columns import NS, Columns, columns_of, label, rows_of, rows_where, seconds
from runs.metrics.goodput import Slo
from runs.metrics.stats import Ints, percentile
from runs.metrics.throughput import (
    WINDOW_STEPS,
    Window,
    between,
    makespan_ns,
    steady_window,
    tokens_per_step,
    window_of,
)

_STATUSES = ("finished", "rejected", "cancelled", "unfinished")


class _Tables(NamedTuple):
    requests: Columns
    steps: Columns
    spans: Columns
    preemptions: Columns


def summarise_fleet(
    fleet: FleetRecording, slo: Slo | None = None, warm_up_s: float | None = None
) -> dict[str, Any]:
    """Every metric of a fleet, as a flat mapping; names as in `runs.metrics.summary` where they mean the
    same. `slo`, `warm_up_s`: as there. Raises ConfigError if no session begins after the warm-up."""
    parts = [
        _Tables(*(columns_of(one, name) for name in ("requests", "steps", "spans", "preemptions")))
        for one in fleet.members
    ]
    every = _joined([part.requests for part in parts])
    steady = None if warm_up_s is None else steady_window(every, warm_up_s)
    window = steady or window_of(every)
    status = np.array(every["status"], dtype=object)
    result: dict[str, Any] = {
        "rows": len(status),
        "steps": sum(int(part.steps["step"].size) for part in parts),
        **{name: int((status == name).sum()) for name in _STATUSES},
    }
    counted = [
        part.requests
        if steady is None
        else rows_where(part.requests, between(part.requests["arrival_ns"], steady))
        for part in parts
    ]
    last = [
        gaps.last_token_ns(requests, part.steps, part.spans)
        for requests, part in zip(counted, parts, strict=True)
    ]
    together = _joined(counted)
    result.update(latency.summarise(together, np.concatenate(last)))
    result.update(_gaps(parts, counted))
    result.update(_throughput(parts, every, window))
    if slo is not None:
        length = makespan_ns(every) if steady is None else steady[1] - steady[0]
        result.update(goodput.summarise(together, slo, length))
    result.update(_reuse(fleet, together))
    result.update(_balance(parts, every))
    result.update(_cost(fleet, makespan_ns(every), result["output_tokens"]))
    return result


def _joined(tables: list[Columns]) -> Columns:
    """Rows of all of them, one table after the other."""
    first = tables[0]
    found: Columns = {}
    for name, column in first.items():
        if isinstance(column, list):
            found[name] = [cell for table in tables for cell in table[name]]
        else:
            found[name] = np.concatenate([table[name] for table in tables])
    return found


def _gaps(parts: list[_Tables], counted: list[Columns]) -> dict[str, Any]:
    """TBT of all replicas together."""
    values: list[Ints] = []
    weights: list[Ints] = []
    for part, requests in zip(parts, counted, strict=True):
        names = set(rows_where(requests, latency.accepted(requests))["request_id"])
        spans = rows_of(part.spans, names)
        every, repeats = gaps.pooled(gaps.token_gaps(part.steps, spans, part.preemptions))
        values.append(every)
        weights.append(repeats)
    pooled, repeats = np.concatenate(values), np.concatenate(weights)
    told = {
        f"tbt_{label(q)}_s": seconds(percentile(pooled, q, repeats)) for q in latency.PERCENTILES
    }
    return {**told, "tbt_samples": int(repeats.sum())}


def _throughput(parts: list[_Tables], every: Columns, window: Window | None) -> dict[str, Any]:
    total = inside = steps = 0
    for part in parts:
        tokens = tokens_per_step(part.steps, part.spans)
        total += int(tokens.sum())
        if window is not None:
            here = between(part.steps["end_ns"], window)
            inside += int(tokens[here].sum())
            steps += int(here.sum())
    found: dict[str, Any] = {
        "output_tokens": total,
        "makespan_s": seconds(makespan_ns(every)),
        "throughput_tok_s": None,
        "turns_per_s": None,
        "window_s": None,
    }
    if window is not None:
        length = window[1] - window[0]
        found["window_s"] = seconds(length)
        if steps >= WINDOW_STEPS:
            found["throughput_tok_s"] = round(inside * NS / length, 6)
        turns = int(between(every["finish_ns"], window).sum())
        found["turns_per_s"] = round(turns * NS / length, 6)
    return found


def _reuse(fleet: FleetRecording, requests: Columns) -> dict[str, Any]:
    """Prompt tokens found cached; and those that were lost because a turn went to another replica."""
    prompts, cached = int(requests["input_tokens"].sum()), int(requests["cached_tokens"].sum())
    routing = fleet.table("routing")
    lost = int(np.asarray(routing["lost_tokens"].to_numpy()).sum())
    return {
        "cached_share": round(cached / prompts, 6) if prompts else None,
        "lost_by_routing_tokens": lost,
        "retries": int((np.asarray(routing["attempt"].to_numpy()) > 0).sum()),
    }


def _balance(parts: list[_Tables], every: Columns) -> dict[str, Any]:
    """How unevenly work is spread: tokens of the busiest replica over the mean, and over time the
    spread of turns under way over their mean; `idle_while_others_wait`: share of the run in which some
    replica has nobody while another has turns that wait for their first token."""
    work = [int((p.requests["input_tokens"] + p.requests["output_tokens"]).sum()) for p in parts]
    mean = sum(work) / len(work)
    found = {"imbalance": round(max(work) / mean, 6) if mean else None}
    begin = int(every["arrival_ns"].min(initial=0)) if every["arrival_ns"].size else 0
    end = int(every["end_ns"].max(initial=0)) if every["end_ns"].size else 0
    times = np.linspace(begin, end, 2001)[:-1].astype(np.int64)
    live = np.array([_under_way(p.requests, "end_ns", times) for p in parts])
    waits = np.array([_under_way(p.requests, "first_token_ns", times) for p in parts])
    means = live.mean(axis=0)
    busy = means > 0
    spread = live.std(axis=0)[busy] / means[busy]
    found["outstanding_cv"] = round(float(spread.mean()), 6) if spread.size else None
    idle = (live == 0).any(axis=0) & (waits > 0).any(axis=0)
    found["idle_while_others_wait"] = round(float(idle.mean()), 6) if len(parts) > 1 else 0.0
    return found


def _under_way(requests: Columns, until: str, times: Ints) -> Ints:
    """Turns that had arrived by each time and not yet come so far."""
    ends = np.where(requests[until] >= 0, requests[until], requests["end_ns"])
    came = np.searchsorted(np.sort(requests["arrival_ns"]), times, side="right")
    gone: Ints = came - np.searchsorted(np.sort(ends), times, side="right")
    return gone


def _cost(fleet: FleetRecording, length_ns: int, tokens: int) -> dict[str, Any]:
    """GPU hours of the whole run, and what a million output tokens cost where all prices are known."""
    hours = length_ns / NS / 3600
    replicas = fleet.summary["replicas"]
    found: dict[str, Any] = {"gpu_hours": round(hours * sum(one["gpus"] for one in replicas), 6)}
    prices = [one["price_per_hour"] for one in replicas]
    found["cost_per_million_tokens"] = None
    if tokens and None not in prices:
        found["cost_per_million_tokens"] = round(hours * sum(prices) / tokens * 1e6, 6)
    return found
