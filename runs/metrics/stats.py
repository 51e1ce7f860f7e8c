"""Percentiles and intervals, defined once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: Fewest samples for a two-sided 95 % order-statistic bound of a percentile.
MIN_SAMPLES = {50.0: 6, 90.0: 36, 95.0: 72, 99.0: 368, 99.9: 3688}

#: Two-sided 95 % quantiles of Student's t by degrees of freedom, from standard tables.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def percentile(values: Ints, q: float, weights: Ints | None = None) -> float | None:
    """The q-th percentile (0 to 100) with linear interpolation, as numpy's default.

    `weights` are whole repetition counts: the result is that of the repeated values. None if there
    are fewer samples than MIN_SAMPLES asks for.
    """
    count = int(values.size if weights is None else weights.sum())
    if count < MIN_SAMPLES.get(q, 1):
        return None
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    position = (count - 1) * q / 100
    low = math.floor(position)
    if weights is None:
        left, right = ordered[low], ordered[min(low + 1, count - 1)]
    else:
        ends = np.cumsum(weights[order])
        left = ordered[np.searchsorted(ends, low, side="right")]
        right = ordered[np.searchsorted(ends, min(low + 1, count - 1), side="right")]
    return float(left) + (float(right) - float(left)) * (position - low)


def t95(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval; beyond 30 degrees, an expansion in 1/n."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    return 1.95996 + 2.37227 / degrees + 2.82 / degrees**2


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % t interval over replications; None for a single one."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, t95(count - 1) * math.sqrt(variance / count)


def p_of_t(t: float, degrees: int) -> float:
    """How often |T| is larger, of Student's t: the finite series for whole degrees of freedom
    (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    terms = [] if degrees == 1 else [term]
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        terms.append(term)
    total = sine * math.fsum(terms)
    inside = (angle + total) * 2 / math.pi if is_odd else total
    return max(0.0, 1 - inside)


def p_of_zero_mean(values: Sequence[float], wider: float = 1.0) -> float | None:
    """Two-sided p of the t test that the mean is zero; None for fewer than two values. `wider`: times
    the standard error of a mean of independent values."""
    if len(values) < 2:
        return None
    mean, half = mean_and_half_width(values)
    if not half:
        return 0.0 if mean else 1.0
    return p_of_t(mean / (half * wider) * t95(len(values) - 1), len(values) - 1)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for being one of a family (Holm 1979): with those below a level called
    differences, the chance of any false one is below that level."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: (ps[i], i))):
        largest = max(largest, min(1.0, ps[index] * (len(ps) - rank)))
        corrected[index] = largest
    return corrected


def ratio_and_factor(ratios: Sequence[float]) -> tuple[float, float | None]:
    """Geometric mean of paired ratios, and the factor by which its 95 % interval reaches up and
    down (the t interval of their logarithms). Ratios must be positive."""
    mean, half = mean_and_half_width([math.log(ratio) for ratio in ratios])
    return math.exp(mean), None if half is None else math.exp(half)
