"""Fairness over 60 s windows, among clients that had work throughout the window.

Service is weighted tokens: 1 per prompt token of a first prefill, 2 per output token (the weights
of Sheng et al., 2401.00588); recomputed tokens are the engine's fault and count for nobody. A
session is a client when none is named.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from runs.metrics.stats import Ints

WINDOW_NS = 60_000_000_000
PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2


class Window(NamedTuple):
    """From `number` windows after zero on: Jain of the clients that had work throughout (None: nobody
    was served), and the largest difference of their service in weighted tokens."""

    number: int
    jain: float | None
    gap: int


def windows(requests: dict[str, Any], steps: dict[str, Any], spans: dict[str, Any]) -> list[Window]:
    """Every window throughout which at least two clients had work."""
    if not steps["step"].size or not requests["turn"].size:
        return []
    clients = _client_codes(requests)
    service = _service(requests, steps, spans, clients)
    found = []
    for number, members in sorted(_backlogged(requests, clients).items()):
        if len(members) < 2:
            continue
        served = [service.get((client, number), 0) for client in sorted(members)]
        squares = sum(value * value for value in served)
        jain = sum(served) ** 2 / (len(served) * squares) if squares else None
        found.append(Window(number, jain, max(served) - min(served)))
    return found


def summarise(
    requests: dict[str, Any], steps: dict[str, Any], spans: dict[str, Any]
) -> dict[str, Any]:
    """Mean Jain index, largest and mean service gap, and over how many windows."""
    result: dict[str, Any] = {
        "jain": None,
        "service_gap_max": None,
        "service_gap_mean": None,
        "fairness_windows": 0,
        "starvation_age_s": None,
    }
    if not steps["step"].size or not requests["turn"].size:
        return result
    found = windows(requests, steps, spans)
    jains = [window.jain for window in found if window.jain is not None]
    gaps = [window.gap for window in found]
    if gaps:
        result["service_gap_max"] = max(gaps)
        result["service_gap_mean"] = round(sum(gaps) / len(gaps), 3)
        result["fairness_windows"] = len(gaps)
    if jains:
        result["jain"] = round(math.fsum(jains) / len(jains), 6)
    result["starvation_age_s"] = _starvation_age(requests, steps, spans)
    return result


def _client_codes(requests: dict[str, Any]) -> Ints:
    codes: dict[str, int] = {}
    names = [
        session if client is None else client
        for client, session in zip(requests["client_id"], requests["session_id"], strict=True)
    ]
    return np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))


def _backlogged(requests: dict[str, Any], clients: Ints) -> dict[int, set[int]]:
    """Window -> clients with a live request at every moment of it."""
    end = np.maximum(requests["finish_ns"], requests["cancel_ns"])
    order = np.lexsort((requests["arrival_ns"], clients))
    found: dict[int, set[int]] = {}
    client, begin, until = -1, 0, -1

    def close() -> None:
        for window in range(-(-begin // WINDOW_NS), until // WINDOW_NS):
            found.setdefault(window, set()).add(client)

    for index in order:
        if end[index] < 0:
            continue
        arrival = int(requests["arrival_ns"][index])
        if int(clients[index]) != client or arrival > until:
            close()
            client, begin, until = int(clients[index]), arrival, int(end[index])
        else:
            until = max(until, int(end[index]))
    close()
    return found


def _service(
    requests: dict[str, Any], steps: dict[str, Any], spans: dict[str, Any], clients: Ints
) -> dict[tuple[int, int], int]:
    """(client, window) -> weighted tokens."""
    client_of = dict(zip(requests["request_id"], clients.tolist(), strict=True))
    ids, ends = steps["step"], steps["end_ns"]
    first = np.searchsorted(ids, spans["first_step"])
    last = np.searchsorted(ids, spans["last_step"])
    first_window = (ends[first] // WINDOW_NS).tolist()
    last_window = (ends[last] // WINDOW_NS).tolist()
    edges: dict[int, int] = {}
    served: dict[tuple[int, int], int] = {}
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
            if window == until:
                after = int(last[index]) + 1
            else:
                if window not in edges:
                    edges[window] = int(np.searchsorted(ends, (window + 1) * WINDOW_NS))
                after = edges[window]
            key = (client, window)
            served[key] = served.get(key, 0) + OUTPUT_WEIGHT * (after - position)
            position = after
            window += 1
    return served


def _uncached(requests: dict[str, Any]) -> dict[str, int]:
    """Prompt tokens of each request that had to be computed, in one prefill or in chunks of it; more
    of them were recomputed, which is nobody's service."""
    uncached = (requests["input_tokens"] - requests["cached_tokens"]).tolist()
    return dict(zip(requests["request_id"], uncached, strict=True))


def _starvation_age(
    requests: dict[str, Any], steps: dict[str, Any], spans: dict[str, Any]
) -> float:
    """Longest time any request spent without a token: to its first one, or between two."""
    answered = requests["first_token_ns"] >= 0
    waits = (requests["first_token_ns"] - requests["arrival_ns"])[answered]
    longest = int(waits.max(initial=0))
    ends = steps["end_ns"]
    before, tail = "", 0
    first = np.searchsorted(steps["step"], spans["first_step"])
    last = np.searchsorted(steps["step"], spans["last_step"])
    for index, name in enumerate(spans["request_id"]):
        if spans["kind"][index] != "token":
            continue
        if name == before:
            longest = max(longest, int(ends[first[index]]) - tail)
        before, tail = name, int(ends[last[index]])
    return round(longest / 1e9, 9)
