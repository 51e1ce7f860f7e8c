"""Means, ratios and differences over replications, paired by run.

Every number is a mean over runs with the half width of its 95 % t interval; every ratio is the
geometric mean of ratios paired by run. The `p` of a ratio is that of the paired t test on logarithms;
where several ratios are told together it is corrected by Holm over their family.
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

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. `half` is half of its 95 % interval, None for one run; `value` None: some
    run had too few samples."""

    value: float | None
    half: float | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times better, and the factor its 95 % interval spans up and down. `p`: of the paired
    t test that there is no difference, corrected for the family it is told in; None for one run."""

    value: float | None
    factor: float | None = None
    p: float | None = None

    @property
    def is_better(self) -> bool:
        """The whole interval says better, also beside its family, and it is worth naming."""
        return bool(
            self.value
            and self.factor
            and self.value / self.factor > 1
            and self.value >= NOTABLE
            and self._is_sure
        )

    @property
    def is_worse(self) -> bool:
        """The whole interval says worse, also beside its family, and it is worth naming."""
        return bool(
            self.value
            and self.factor
            and self.value * self.factor < 1
            and self.value <= 1 / NOTABLE
            and self._is_sure
        )

    @property
    def _is_sure(self) -> bool:
        return self.p is None or self.p < LEVEL


def estimate_of(results: Results, metric: str) -> Estimate:
    """Mean of a metric over the runs of one system."""
    values = [result["metrics"].get(metric) for result in results]
    if any(value is None for value in values):
        return Estimate(None)
    return Estimate(*mean_and_half_width([float(value) for value in values]))


def speedup_of(ours: Results, theirs: Results, metric: str) -> Ratio:
    """How many times better our runs are than theirs, paired in their order; its `p` stands alone."""
    ratios = []
    for our, their in zip(ours, theirs, strict=True):
        mine, other = our["metrics"].get(metric), their["metrics"].get(metric)
        if not mine or not other:
            return Ratio(None)
        ratios.append(mine / other if metric in MORE_IS_BETTER else other / mine)
    p = p_of_zero_mean([math.log(ratio) for ratio in ratios])
    return Ratio(*ratio_and_factor(ratios), p)


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
    return Estimate(*mean_and_half_width([float(mine - other) for mine, other in pairs]))
