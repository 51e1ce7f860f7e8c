"""How long turns waited. One population: every turn that was not rejected.

Those that got a first token have a TTFT, those that finished an E2E time. The others left before (or
the run ended): their latency is longer than any that was answered, by how much nobody knows. So they
rank last, and a percentile that falls among them is null; what it is above, the shortest wait of
those who left, is told beside it (`ttft_p95_above_s`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from runs.metrics.columns import Columns, is_one, label, seconds
from runs.metrics.stats import MIN_SAMPLES, Ints, percentile

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
#: Percentiles of TTFT counted from when a turn was due.
DUE_PERCENTILES = (50.0, 95.0, 99.0)


def left_ns(requests: Columns) -> Ints:
    """When each turn's client had its last token or went away; where neither, when the run let go of
    it."""
    found: Ints = np.asarray(
        np.where(requests["cancel_ns"] >= 0, requests["cancel_ns"], requests["end_ns"])
    )
    return np.maximum(found, requests["arrival_ns"])


def accepted(requests: Columns) -> Any:
    """Turns that were not rejected."""
    return ~is_one(requests["status"], "rejected")


def answered(requests: Columns) -> Any:
    """Of them, those that got a token."""
    return accepted(requests) & (requests["first_token_ns"] >= 0)


def censored(values: Ints, waits: Ints, q: float) -> tuple[float | None, float | None]:
    """The q-th percentile of `values` and of others that are longer than all of them, of which only
    `waits` are known that they exceed. Where it falls among the others: None, and what it is above.
    (None, None): too few samples.
    """
    count = values.size + waits.size
    if not waits.size or count < MIN_SAMPLES[q]:
        return percentile(values, q) if not waits.size else None, None
    position = (count - 1) * q / 100
    if position > values.size - 1:
        above = int(waits.min())
        if math.floor(position) < values.size:  # between the longest answered and the first left
            above = min(above, int(values.max()))
        return None, float(above)
    ordered = np.sort(values)
    low = math.floor(position)
    left, right = ordered[low], ordered[min(low + 1, values.size - 1)]
    return float(left) + (float(right) - float(left)) * (position - low), None


def summarise(requests: Columns, last_token_ns: Ints) -> dict[str, Any]:
    """TTFT from a turn's start and from when it was due, E2E, TPOT, and how many each is of.
    `last_token_ns`: of each turn, -1 without tokens."""
    arrival, first = requests["arrival_ns"], requests["first_token_ns"]
    here, got = accepted(requests), answered(requests)
    done = here & (requests["finish_ns"] >= 0)
    waited = left_ns(requests) - arrival
    unanswered = here & ~got
    result: dict[str, Any] = {}

    def tell(name: str, values: Ints, waits: Ints, q: float) -> None:
        value, above = censored(values, waits, q)
        result[f"{name}_{label(q)}_s"] = seconds(value)
        result[f"{name}_{label(q)}_above_s"] = seconds(above)

    ttft = first - arrival
    for q in PERCENTILES:
        tell("ttft", ttft[got], waited[unanswered], q)
    for name, turns in (("first", requests["turn"] == 1), ("later", requests["turn"] > 1)):
        tell(f"ttft_{name}_turn", ttft[got & turns], waited[unanswered & turns], 95.0)
    due = requests["due_ns"]
    for q in DUE_PERCENTILES:
        tell("ttft_due", (first - due)[got], (left_ns(requests) - due)[unanswered], q)
    for q in (50.0, 99.0):
        tell("e2e", (requests["finish_ns"] - arrival)[done], waited[here & ~done], q)
    several = got & (requests["output_tokens"] > 1)
    tpot = (last_token_ns - first)[several] // (requests["output_tokens"][several] - 1)
    for q in (50.0, 99.0):
        result[f"tpot_{label(q)}_s"] = seconds(percentile(tpot, q))
    held = here & (arrival > due)
    return {
        **result,
        "ttft_samples": int(here.sum()),
        "ttft_censored": int(unanswered.sum()),
        "e2e_censored": int((here & ~done).sum()),
        "waited_for_parent": int(held.sum()),
        "waited_for_parent_s": seconds(int((arrival - due)[held].sum())),
        "waited_for_parent_longest_s": seconds(int((arrival - due)[held].max(initial=0))),
    }
