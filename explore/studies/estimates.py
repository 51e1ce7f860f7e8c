"""Means, ratios and differences over replications, paired by run.

Every number is a mean over runs with its 95 % t interval; every ratio is the geometric mean of ratios
paired by run. Metrics are amounts that cannot be negative, so their intervals are made on the
logarithm (the delta method) and reach further up than down; those of differences reach equally far.
Runs of one trace between which nothing is drawn are one run and tell no spread: no interval. Runs over sessions that were drawn
anew from one trace (`traces.shaping.resample`) spread as traces would, and their mean is as far off as
that trace is: their interval is that of one trace, sqrt(1 + n) times as wide as the mean's. The `p` of a ratio is that of the
paired t test on logarithms; where several ratios are told together it is corrected by Holm over
their family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runs.metrics.stats import holm, mean_and_half_width, p_of_zero_mean, ratio_and_factor

#: Metrics of which less is better; `throughput_tok_s` is the one of which more is.
SPEEDUPS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_p999_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "tbt_in_batch_p999_s",
    "throughput_tok_s",
)
MORE_IS_BETTER = frozenset(
    {
        "throughput_tok_s",
        "io_utilisation",
        "gpu_utilisation",
        "token_efficiency_p99_tok_s",
        "token_efficiency_p999_tok_s",
    }
)

#: A ratio nearer to one than this is called no difference, however narrow its interval.
NOTABLE = 1.02
#: A difference is told as one if it would come by chance less often than this.
LEVEL = 0.05
#: A larger relative half width says nothing that this one does not.
_MOST = 50.0

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. `half` is t times its standard error, None without an interval. `value` None:
    some run had too few samples; or `above` is known, which the mean is larger than, since in some
    run the percentile fell among turns whose clients had left. `signed`: a difference."""

    value: float | None
    half: float | None = None
    above: float | None = None
    signed: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, if there is one."""
        if self.value is None or self.half is None:
            return None
        if self.signed or self.value <= 0:
            return self.value - self.half, self.value + self.half
        factor = math.exp(min(self.half / self.value, _MOST))
        return self.value / factor, self.value * factor

    def as_json(self) -> dict[str, float | None]:
        """For files."""
        low, high = self.interval or (None, None)
        told = {"value": self.value, "half": self.half, "low": low, "high": high}
        return told if self.above is None else {**told, "above": self.above}


@dataclass(frozen=True)
class Ratio:
    """How many times better, and the factor its 95 % interval spans up and down. `p`: of the paired
    t test that there is no difference, corrected for the family it is told in; both None without an
    interval. `value` None: n too small; or `above` or `below` is known, since a percentile of theirs
    or of ours fell among turns whose clients had left."""

    value: float | None
    factor: float | None = None
    p: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def is_sure(self) -> bool:
        """Better or worse, and worth naming."""
        return self.is_better or self.is_worse

    @property
    def is_better(self) -> bool:
        """The whole interval says better, also beside its family, and it is worth naming."""
        return bool(
            self.value
            and self.factor
            and self.value / self.factor > 1
            and self.value >= NOTABLE
            and self._is_shown
        )

    @property
    def is_worse(self) -> bool:
        """The whole interval says worse, also beside its family, and it is worth naming."""
        return bool(
            self.value
            and self.factor
            and self.value * self.factor < 1
            and self.value <= 1 / NOTABLE
            and self._is_shown
        )

    @property
    def _is_shown(self) -> bool:
        return self.p is None or self.p < LEVEL


def estimate_of(results: Results, metric: str) -> Estimate:
    """Mean of a metric over the runs of one system."""
    values = [result["metrics"].get(metric) for result in results]
    if any(value is None for value in values):
        bounds = [_bound(result, metric) for result in results]
        known = [bound for bound in bounds if bound is not None]
        return Estimate(
            None, above=math.fsum(known) / len(known) if len(known) == len(bounds) else None
        )
    mean, half = mean_and_half_width([float(value) for value in values])
    if half is None or are_one(results):
        return Estimate(mean)
    return Estimate(mean, half * wider_of(results))


def wider_of(results: Results) -> float:
    """By how much the intervals of these runs are wider than that of a mean of independent ones."""
    return math.sqrt(1 + len(results)) if _drawn(results) == "sessions" else 1.0


def ratio_of(ours: Sequence[float], theirs: Sequence[float], wider: float = 1.0) -> Ratio:
    """Geometric mean of ours over theirs, paired."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    value, factor = ratio_and_factor(ratios)
    if factor is None:
        return Ratio(value)
    logs = [math.log(ratio) for ratio in ratios]
    return Ratio(value, factor**wider, p_of_zero_mean(logs, wider))


def are_one(results: Results) -> bool:
    """Several runs that agree in everything, or between which nothing was drawn that matters, are one."""
    if len(results) < 2:
        return False
    first = results[0]["metrics"]
    return _drawn(results) == "nothing" or all(r["metrics"] == first for r in results[1:])


def _drawn(results: Results) -> str | None:
    """What differs between runs (`runs.scenario.Scenario.drawn`)."""
    return (results[0].get("workload") or {}).get("drawn") if results else None


def _bound(result: Mapping[str, Any], metric: str) -> float | None:
    """A run's value, or what it is above."""
    value = result["metrics"].get(metric)
    if value is None and metric.endswith("_s"):
        value = result["metrics"].get(f"{metric.removesuffix('_s')}_above_s")
    return None if value is None else float(value)


def speedup_of(ours: Results, theirs: Results, metric: str) -> Ratio:
    """How many times better our runs are than theirs, paired in their order; its `p` stands alone."""
    both = list(zip(ours, theirs, strict=True))
    mine = [_bound(our, metric) for our, _ in both]
    other = [_bound(their, metric) for _, their in both]
    first = [value for value in mine if value]
    second = [value for value in other if value]
    if len(first) < len(both) or len(second) < len(both):
        return Ratio(None)
    pair = (first, second) if metric in MORE_IS_BETTER else (second, first)
    found = ratio_of(*pair, wider_of(ours))
    if are_one(ours) and are_one(theirs):
        found = Ratio(found.value)
    are_known = [all(r["metrics"].get(metric) is not None for r in side) for side in (ours, theirs)]
    if all(are_known):
        return found
    if any(are_known):
        return Ratio(None, **{"below" if are_known[1] else "above": found.value})
    return Ratio(None)


def family_of(ratios: Sequence[Ratio]) -> list[Ratio]:
    """The same ratios, told together: their `p` corrected by Holm."""
    corrected = iter(holm([ratio.p for ratio in ratios if ratio.p is not None]))
    return [ratio if ratio.p is None else replace(ratio, p=next(corrected)) for ratio in ratios]


def difference_of(ours: Results, theirs: Results, metric: str) -> Estimate:
    """Mean of our runs minus theirs, paired in their order, in the metric's unit."""
    pairs = [
        (our["metrics"].get(metric), their["metrics"].get(metric))
        for our, their in zip(ours, theirs, strict=True)
    ]
    if any(mine is None or other is None for mine, other in pairs):
        return Estimate(None)
    mean, half = mean_and_half_width([float(mine - other) for mine, other in pairs])
    if half is None or (are_one(ours) and are_one(theirs)):
        return Estimate(mean, signed=True)
    return Estimate(mean, half * wider_of(ours), signed=True)
