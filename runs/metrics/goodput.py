"""Goodput: turns per second that kept every limit of an SLO, and how many of all turns did.

As in vLLM's `--goodput` a turn counts if all limits hold for it. Attainment is over all turns that
came, so one that was rejected, cancelled or never finished has kept nothing.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from runs.metrics.columns import NS, Columns, is_one
from runs.metrics.stats import Ints
from traces.workload_spec import Section

Limit = Annotated[float, Field(gt=0, le=1e6)]


class Slo(Section):
    """Limits of one turn, in seconds: to the first token, per token after it, to the last one."""

    ttft_s: Limit | None = None
    tpot_s: Limit | None = None
    e2e_s: Limit | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> Slo:
        if self.ttft_s is None and self.tpot_s is None and self.e2e_s is None:
            raise ValueError("give at least one of ttft_s, tpot_s, e2e_s")
        return self


def summarise(requests: Columns, slo: Slo, length_ns: int) -> dict[str, float | None]:
    """Goodput of the turns in `requests` (columns), which came or were served
    within `length_ns`. A turn of one token has no TPOT, so no limit on it is broken. A session is a
    client when none is named; `slo_attainment_min` is that of the client served worst."""
    kept = _kept(requests, slo)
    total = int(kept.size)
    clients: dict[str, list[int]] = {}
    for client, session, good in zip(
        requests["client_id"], requests["session_id"], kept.tolist(), strict=True
    ):
        counts = clients.setdefault(session if client is None else client, [0, 0])
        counts[0] += good
        counts[1] += 1
    good = int(kept.sum())
    return {
        "goodput_per_s": round(good * NS / length_ns, 6) if length_ns > 0 else None,
        "slo_attainment": round(good / total, 6) if total else None,
        "slo_attainment_min": round(min(g / n for g, n in clients.values()), 6) if total else None,
    }


def _kept(requests: Columns, slo: Slo) -> Ints:
    """1 for every turn that finished within all limits, else 0."""
    arrival, tokens = requests["arrival_ns"], requests["output_tokens"]
    ttft = requests["first_token_ns"] - arrival
    e2e = requests["finish_ns"] - arrival
    kept = is_one(requests["status"], "finished")
    if slo.ttft_s is not None:
        kept &= ttft <= round(slo.ttft_s * NS)
    if slo.e2e_s is not None:
        kept &= e2e <= round(slo.e2e_s * NS)
    if slo.tpot_s is not None:
        kept &= (e2e - ttft) <= round(slo.tpot_s * NS) * np.maximum(tokens - 1, 0)
    found: Ints = kept.astype(np.int64)
    return found
