"""What a workload asks for, whoever serves it: when each turn would be due were every reply there at
once. The same for every system, so windows and loads that are read from it are too."""

from __future__ import annotations

import numpy as np

from runs.metrics.columns import NS, Columns
from runs.metrics.stats import Ints


def due_ns(workload: Columns) -> Ints:
    """When each turn would be due if every reply took no time: at its arrival where it has one of its
    own, else when its user has thought after the turn before. Nanoseconds, in the table's order."""
    due: dict[str, int] = {}
    latest: dict[str, str] = {}  # session -> its turn before
    found = []
    for name, session, turn, arrival, think, gap, parent in zip(
        workload["request_id"],
        workload["session_id"],
        workload["turn"].tolist(),
        workload["arrival_s"],
        workload["think_s"],
        workload["gap_s"],
        workload["parent_id"],
        strict=True,
    ):
        before = parent or (latest.get(session) if turn > 1 else None)
        later = think if think is not None else gap
        if before is not None and before in due and (later is not None or arrival is None):
            at = due[before] + round((later or 0) * NS)
        else:
            at = round((arrival or 0) * NS)
        due[name] = at
        latest[session] = name
        found.append(at)
    return np.array(found, dtype=np.int64)


def can_be_served(workload: Columns) -> Ints:
    """Turns that some system could serve: they have a prompt and ask for output."""
    found: Ints = (workload["input_tokens"] > 0) & (workload["output_tokens"] > 0)
    return found


def offered(requests: Columns, workload: Columns, window: tuple[int, int]) -> float:
    """Output tokens asked for per second of the window. Rejected turns ask for none, so systems that
    reject different turns are offered different loads."""
    rejected = {
        name
        for name, status in zip(requests["request_id"], requests["status"], strict=True)
        if status == "rejected"
    }
    due = due_ns(workload)
    inside = (due > window[0]) & (due <= window[1])
    tokens: int = sum(
        output
        for name, output, is_inside in zip(
            workload["request_id"], workload["output_tokens"].tolist(), inside.tolist(), strict=True
        )
        if is_inside and name not in rejected
    )
    return float(round(tokens * NS / (window[1] - window[0]), 6))
