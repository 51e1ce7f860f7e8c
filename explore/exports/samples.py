"""Latencies and lengths of a recording's finished requests, as other tools' reports need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runs.metrics.columns import columns_of, rows_of, rows_where
from runs.metrics.gaps import pooled, token_gaps
from runs.metrics.stats import MIN_SAMPLES, Ints, percentile
from runs.metrics.throughput import makespan_ns
from runs.recording import Recording


@dataclass(frozen=True)
class Samples:
    """Whole numbers (nanoseconds, or tokens), each repeated `weights` times."""

    values: Ints
    weights: Ints

    @property
    def count(self) -> int:
        """How many, repeats counted."""
        return int(self.weights.sum())

    @property
    def mean(self) -> float | None:
        """None of nothing."""
        return int((self.values * self.weights).sum()) / self.count if self.count else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the population, as numpy's default and vLLM's."""
        mean = self.mean
        if mean is None:
            return None
        pairs = zip(self.values.tolist(), self.weights.tolist(), strict=True)
        return math.sqrt(math.fsum(n * (value - mean) ** 2 for value, n in pairs) / self.count)

    def percentile(self, q: float) -> float | None:
        """As `runs.metrics.stats.percentile`, None with too few samples, on the low side too."""
        if self.count < MIN_SAMPLES.get(max(q, 100 - q), 1):
            return None
        return percentile(self.values, q, self.weights)

    @property
    def least(self) -> int | None:
        """None of nothing."""
        return int(self.values.min()) if self.count else None

    @property
    def most(self) -> int | None:
        """None of nothing."""
        return int(self.values.max()) if self.count else None


def _samples(values: Ints, weights: Ints | None = None) -> Samples:
    return Samples(values, np.ones_like(values) if weights is None else weights)


@dataclass(frozen=True)
class Finished:
    """Of the requests that finished, as those reports count: times in nanoseconds, lengths in tokens.

    `itl`: every gap between consecutive tokens of a request (vLLM's `itl`). Our own metrics are of all
    turns that were not rejected, so the two differ where clients left (`runs.metrics.summary`).
    `tpot`: (E2E - TTFT) / (tokens - 1) of those with several. `ntpot`: E2E / tokens.
    """

    total: int
    rejected: int
    incomplete: int
    ttft: Samples
    e2e: Samples
    tpot: Samples
    ntpot: Samples
    itl: Samples
    input_tokens: Samples
    output_tokens: Samples
    makespan_ns: int

    @property
    def seconds(self) -> float | None:
        """First arrival to the end of the last turn; None if nothing ran."""
        return self.makespan_ns / 1e9 if self.makespan_ns else None

    def rate(self, amount: int) -> float | None:
        """So much per second of the whole run."""
        return amount / self.seconds if self.seconds else None


def finished_of(recording: Recording) -> Finished:
    """Everything that reports sum up. Definitions are those of `runs.metrics.summary`."""
    requests, steps = columns_of(recording, "requests"), columns_of(recording, "steps")
    status: Sequence[str] = requests["status"]
    done = np.array([name == "finished" for name in status], dtype=bool)
    arrival = requests["arrival_ns"][done]
    ttft = requests["first_token_ns"][done] - arrival
    e2e = requests["finish_ns"][done] - arrival
    tokens = requests["output_tokens"][done]
    several = tokens > 1
    theirs = set(rows_where(requests, done)["request_id"])
    spans = rows_of(columns_of(recording, "spans"), theirs)
    gaps, repeats = pooled(token_gaps(steps, spans, columns_of(recording, "preemptions")))
    return Finished(
        total=len(status),
        rejected=sum(name == "rejected" for name in status),
        incomplete=sum(name in ("cancelled", "unfinished") for name in status),
        ttft=_samples(ttft),
        e2e=_samples(e2e),
        tpot=_samples((e2e - ttft)[several] // (tokens[several] - 1)),
        ntpot=_samples(e2e // np.maximum(tokens, 1)),
        itl=_samples(gaps, repeats),
        input_tokens=_samples(requests["input_tokens"][done]),
        output_tokens=_samples(tokens),
        makespan_ns=makespan_ns(requests),
    )
