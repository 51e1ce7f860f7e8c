"""What is in a workload: lengths, turns, gaps, arrivals, context. One pass over the turns."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.workload import Turn, Workload

NS = 1_000_000_000
_SHARES = (50, 90, 95, 99)
Floats = npt.NDArray[np.float64]


class _Collector:
    """Compact columns of a workload: 8 bytes a number, so ten million turns fit."""

    def __init__(self) -> None:
        self.inputs = array("q")
        self.outputs = array("q")
        self.new = array("q")
        self.gaps = array("q")
        self.arrivals = array("q")
        self.first_inputs = array("q")
        self._turns: dict[str, int] = {}
        self._clients: dict[str, int] = {}

    def add(self, turn: Turn) -> None:
        self.inputs.append(turn.input_tokens)
        self.outputs.append(turn.output_tokens)
        if turn.new_input_tokens is not None:
            self.new.append(turn.new_input_tokens)
        if turn.turn == 1:
            self.first_inputs.append(turn.input_tokens)
        for gap in (turn.think_ns, turn.gap_ns):
            if gap is not None:
                self.gaps.append(gap)
        if turn.arrival_ns is not None:
            self.arrivals.append(turn.arrival_ns)
        self._turns[turn.session_id] = self._turns.get(turn.session_id, 0) + 1
        if turn.client_id is not None:
            self._clients[turn.client_id] = self._clients.get(turn.client_id, 0) + 1

    @property
    def turns(self) -> list[int]:
        """Turns per session."""
        return list(self._turns.values())

    @property
    def clients(self) -> list[int]:
        """Requests per client, most first."""
        return sorted(self._clients.values(), reverse=True)


def describe(workload: Workload) -> dict[str, Any]:
    """Every statistic, as a flat mapping of sections. Gaps and arrivals in seconds."""
    found = _Collector()
    for turn in workload:
        found.add(turn)
    turns = np.array(found.turns, dtype=np.float64)
    outputs = np.array(found.outputs, dtype=np.float64)
    several = turns[turns > 1]
    result: dict[str, Any] = {
        "source": workload.header.source,
        "composed_from": list(workload.header.composed_from),
        "timing": workload.header.timing,
        "requests": len(found.inputs),
        "sessions": len(turns),
        "sum_input_tokens": int(np.sum(np.array(found.inputs, dtype=np.int64))),
        "sum_output_tokens": int(np.sum(np.array(found.outputs, dtype=np.int64))),
        "input_tokens": _summary(np.array(found.inputs, dtype=np.float64)),
        "first_input_tokens": _summary(np.array(found.first_inputs, dtype=np.float64)),
        "new_input_tokens": _summary(np.array(found.new, dtype=np.float64)),
        "output_tokens": _summary(outputs),
        "turns_per_session": _summary(turns),
        "multi_turn_sessions": round(float(several.size / turns.size), 4) if turns.size else None,
        "multi_turn_requests": round(float(several.sum() / turns.sum()), 4) if turns.size else None,
        "gap_s": _summary(np.array(found.gaps, dtype=np.float64) / NS),
        "arrivals": _arrivals(np.sort(np.array(found.arrivals, dtype=np.int64))),
        "top_client_share": round(found.clients[0] / sum(found.clients), 4)
        if found.clients
        else None,
    }
    return result


def _summary(values: Floats) -> dict[str, float] | None:
    """Mean, quantiles and maximum, or None if nothing is known."""
    if not values.size:
        return None
    result = {"mean": round(float(values.mean()), 3)}
    for share, value in zip(_SHARES, np.percentile(values, _SHARES), strict=True):
        result[f"p{share}"] = round(float(value), 3)
    result["max"] = round(float(values.max()), 3)
    return result


def _arrivals(arrivals: npt.NDArray[np.int64]) -> dict[str, float | None] | None:
    """Rate, CV of the gaps, and variance over mean of counts in windows of 1, 10 and 60 s."""
    if arrivals.size < 2 or arrivals[-1] == arrivals[0]:
        return None
    gaps = np.diff(arrivals).astype(np.float64)
    span = int(arrivals[-1] - arrivals[0])
    result: dict[str, float | None] = {
        "rate_per_s": round((arrivals.size - 1) * NS / span, 6),
        "span_s": round(span / NS, 3),
        "cv": round(float(gaps.std() / gaps.mean()), 4),
    }
    for window in (1, 10, 60):
        counts = np.bincount((arrivals - arrivals[0]) // (window * NS))[:-1]
        enough = counts.size >= 10 and counts.mean() > 0
        result[f"idc_{window}s"] = round(float(counts.var() / counts.mean()), 3) if enough else None
    return result


def as_text(found: dict[str, Any]) -> str:
    """The statistics as lines."""
    lines = [
        f"{found['source']}: {found['requests']} requests in {found['sessions']} sessions,"
        f" {found['timing']} loop",
        *(f"  {part}" for part in found["composed_from"]),
        f"  tokens: {found['sum_input_tokens']} in, {found['sum_output_tokens']} out",
    ]
    for name in (
        "input_tokens",
        "first_input_tokens",
        "new_input_tokens",
        "output_tokens",
        "turns_per_session",
        "gap_s",
        "arrivals",
    ):
        section = found[name]
        if section is not None:
            values = ", ".join(
                f"{key} {'not known' if value is None else f'{value:g}'}"
                for key, value in section.items()
            )
            lines.append(f"  {name.replace('_', ' ')}: {values}")
    if found["multi_turn_sessions"] is not None:
        lines.append(
            f"  multi-turn: {found['multi_turn_sessions']:.1%} of sessions,"
            f" {found['multi_turn_requests']:.1%} of requests"
        )
    if found["top_client_share"] is not None:
        lines.append(f"  top client: {found['top_client_share']:.1%} of requests")
    return "\n".join(lines)
