"""Fairness over windows of 60 s that the workload alone decides.

Windows are counted from the first turn that is due. In each, those clients are compared of which a
turn would be due in it if every reply were there at once (`runs.metrics.demand`): the same windows
and clients for every system, whatever it serves when. Service is weighted tokens: 1 per prompt token
of a first prefill, 2 per output token (the weights of Sheng et al., 2401.00588); recomputed tokens
are the engine's fault and count for nobody. A session is a client when none is named.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from runs.metrics import demand
from runs.metrics.columns import Columns, is_one, positions_of, seconds
from runs.metrics.latency import left_ns

WINDOW_NS = 60_000_000_000
PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2


class Window(NamedTuple):
    """From `begin_ns` on: Jain of the clients that ask for something (None: nobody was served), and
    the largest difference of their service in weighted tokens."""

    begin_ns: int
    jain: float | None
    gap: int


def windows(workload: Columns, requests: Columns, steps: Columns, spans: Columns) -> list[Window]:
    """Every window in which at least two clients ask for something."""
    due = demand.due_ns(workload)[demand.can_be_served(workload)]
    if not due.size:
        return []
    origin = int(due.min())
    client_of = _clients(workload)
    asking: dict[int, dict[str, None]] = {}
    rows = np.flatnonzero(demand.can_be_served(workload)).tolist()
    for index, at in zip(rows, due.tolist(), strict=True):
        client = client_of[workload["request_id"][index]]
        asking.setdefault((at - origin) // WINDOW_NS, {})[client] = None
    service = _service(requests, steps, spans, client_of, origin)
    found = []
    for number in sorted(asking):
        if len(asking[number]) < 2:
            continue
        served = [service.get((client, number), 0) for client in asking[number]]
        squares = sum(value * value for value in served)
        jain = sum(served) ** 2 / (len(served) * squares) if squares else None
        begin = origin + number * WINDOW_NS
        found.append(Window(begin, jain, max(served) - min(served)))
    return found


def summarise(
    workload: Columns, requests: Columns, steps: Columns, spans: Columns
) -> dict[str, Any]:
    """Mean Jain index, largest and mean service gap, over how many windows; the longest wait for a
    token."""
    found = windows(workload, requests, steps, spans)
    jains = [window.jain for window in found if window.jain is not None]
    gaps = [window.gap for window in found]
    return {
        "jain": round(math.fsum(jains) / len(jains), 6) if jains else None,
        "service_gap_max": max(gaps, default=None),
        "service_gap_mean": round(sum(gaps) / len(gaps), 3) if gaps else None,
        "fairness_windows": len(gaps),
        "starvation_age_s": seconds(_starvation_ns(requests, steps, spans)),
    }


def _clients(workload: Columns) -> dict[str, str]:
    """Request -> its client."""
    return {
        name: session if client is None else client
        for name, client, session in zip(
            workload["request_id"], workload["client_id"], workload["session_id"], strict=True
        )
    }


def _service(
    requests: Columns,
    steps: Columns,
    spans: Columns,
    client_of: dict[str, str],
    origin: int,
) -> dict[tuple[str, int], int]:
    """(client, window) -> weighted tokens."""
    ends = steps["end_ns"] - origin
    first = positions_of(steps, spans["first_step"])
    last = positions_of(steps, spans["last_step"])
    first_window = (ends[first] // WINDOW_NS).tolist() if first.size else []
    last_window = (ends[last] // WINDOW_NS).tolist() if last.size else []
    edges: dict[int, int] = {}
    served: dict[tuple[str, int], int] = {}
    left = _uncached(requests)
    for index, name in enumerate(spans["request_id"]):
        client = client_of[name]
        window, until = first_window[index], last_window[index]
        if spans["kind"][index] == "prefill":
            first_time = min(left[name], int(spans["tokens"][index]))
            if first_time:
                left[name] -= first_time
                key = (client, window)
                served[key] = served.get(key, 0) + PROMPT_WEIGHT * first_time
            continue
        position = int(first[index])
        while window <= until:
            key = (client, window)
            if window == until:
                after = int(last[index]) + 1
                served[key] = served.get(key, 0) + OUTPUT_WEIGHT * (after - position)
                break
            if window not in edges:
                edges[window] = int(np.searchsorted(ends, (window + 1) * WINDOW_NS))
            after = edges[window]
            served[key] = served.get(key, 0) + OUTPUT_WEIGHT * (after - position)
            position = after
            window = int(ends[position]) // WINDOW_NS  # those without a step are passed over
    return served


def _uncached(requests: Columns) -> dict[str, int]:
    """Prompt tokens of each request that had to be computed, in one prefill or in chunks of it; more
    of them were recomputed, which is nobody's service."""
    uncached = (requests["input_tokens"] - requests["cached_tokens"]).tolist()
    return dict(zip(requests["request_id"], uncached, strict=True))


def _starvation_ns(requests: Columns, steps: Columns, spans: Columns) -> int | None:
    """Longest time any turn spent without a token: to its first one, between two, or from its last one
    to its end where that is not the last one. Who never got one waited until its end. None without
    turns."""
    if not requests["arrival_ns"].size:
        return None
    since = dict(zip(requests["request_id"], requests["arrival_ns"].tolist(), strict=True))
    longest = 0
    ends = steps["end_ns"]
    first = positions_of(steps, spans["first_step"])
    last = positions_of(steps, spans["last_step"])
    for index in np.flatnonzero(is_one(spans["kind"], "token")).tolist():
        name = spans["request_id"][index]
        longest = max(longest, int(ends[first[index]]) - since[name])
        since[name] = int(ends[last[index]])
    for name, end in zip(requests["request_id"], left_ns(requests).tolist(), strict=True):
        longest = max(longest, end - since[name])
    return longest
