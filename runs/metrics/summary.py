"""The one definition of every metric, from the tables of a recording.

The population of all latencies is the same: every turn that was not rejected. TTFT (a turn's start to
its first token) and TBT (every gap between its tokens, vLLM's `itl`) are of those that got a token,
TPOT of those that got several, E2E of those that finished; who left before ranks after all of them
(`runs.metrics.latency`). Rejected turns are counted apart.

Times in the result are seconds; a percentile with too few samples is null ("n too small"). Arrivals
that are all later by the same time change nothing. docs/glossary.md has every word.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runs.metrics import fairness, gaps, goodput, latency, swapping, throughput, utilisation
from runs.metrics.columns import columns_of, rows_of, rows_where
from runs.metrics.goodput import Slo
from runs.metrics.stalls import live_of, stalls_of
from runs.metrics.throughput import between, makespan_ns, steady_window, window_of
from runs.recording import SCHEMAS, Recording

_STATUSES = ("finished", "rejected", "cancelled", "unfinished")


def summarise(
    recording: Recording, slo: Slo | None = None, warm_up_s: float | None = None
) -> dict[str, Any]:
    """Every metric of a run, as a flat mapping.

    `slo`: goodput and attainment too. `warm_up_s` (steady state): latencies, gaps and goodput are of
    turns that came later than that after the first, up to the last session's arrival; throughput is
    that of this window. What is counted over the run (turns by status, swapping, utilisation,
    fairness) stays so. Raises ConfigError if no session begins after it.
    """
    tables = {name: columns_of(recording, name) for name in SCHEMAS}
    requests, steps, waits = tables["requests"], tables["steps"], tables["waits"]
    spans, copies, preemptions = tables["spans"], tables["copies"], tables["preemptions"]
    workload = tables["workload"]
    stalls, live = stalls_of(steps, waits), live_of(requests)
    steady = None if warm_up_s is None else steady_window(requests, warm_up_s)
    counted = requests
    if steady is not None:
        counted = rows_where(requests, between(requests["arrival_ns"], steady))
    theirs = spans
    refused = (requests["output_tokens"] > 0) & ~latency.accepted(requests)
    if steady is not None or refused.any():
        here = rows_where(counted, latency.accepted(counted))
        theirs = rows_of(spans, set(here["request_id"]))
    status = np.array(requests["status"], dtype=object)
    result: dict[str, Any] = {
        "rows": len(status),
        "steps": int(steps["step"].size),
        **{name: int((status == name).sum()) for name in _STATUSES},
    }
    last_tokens = gaps.last_token_ns(counted, steps, spans)
    result.update(latency.summarise(counted, last_tokens))
    result.update(gaps.summarise(steps, theirs, preemptions, stalls))
    window = steady or window_of(requests)
    result.update(throughput.summarise(requests, steps, spans, waits, workload, live, window))
    rates = recording.summary["link_bytes_per_s"]
    result.update(
        utilisation.summarise(requests, steps, spans, preemptions, copies, stalls, live, rates)
    )
    result.update(swapping.summarise(requests, spans, copies, preemptions))
    result.update(fairness.summarise(workload, requests, steps, spans))
    if slo is not None:
        length = makespan_ns(requests) if steady is None else steady[1] - steady[0]
        result.update(goodput.summarise(counted, slo, length))
    return result
