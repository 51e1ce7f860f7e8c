"""Fit a law to numbers: a log-normal mixture by expectation-maximisation, with a share of zeros.

The numbers of a fit are rounded to four digits, which hides what array exponentials differ by
between processors; the last of them may still differ between machines.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from traces.generators.laws import Mixture, Values

Floats = npt.NDArray[np.float64]

MAX_PARTS = 6
#: A mixture this near to the data needs no further part.
NEAR = 0.012
_STEPS = 200
_POINTS = 4000
_ERF = np.vectorize(math.erf, otypes=[np.float64])
_NORMAL = NormalDist()


def two_sample_ks(one: Floats, other: Floats) -> float:
    """Kolmogorov and Smirnov's distance: the largest between two shares of values up to x."""
    one, other = np.sort(one), np.sort(other)
    at = np.concatenate([one, other])
    left = np.searchsorted(one, at, side="right") / one.size
    right = np.searchsorted(other, at, side="right") / other.size
    return float(np.abs(left - right).max())


def fit_values(values: Floats, *, grid: float | None = None) -> Values:
    """The law of these numbers, all >= 0: the fewest parts, at most six, within NEAR of them, else
    the nearest. Numbers on a coarser grid than `grid` (whole or tenth units) are put on theirs.
    """
    positive = values[values > 0]
    zero = 1 - positive.size / values.size
    if not positive.size:
        return Values((), zero=1.0)
    grid = grid or _grid_of(positive)
    low, high = float(positive.min()), float(positive.max())
    mixture = fit_mixture(positive, grid)
    return Values(mixture, round(zero, 6), low, high, grid)


def _grid_of(values: Floats) -> float | None:
    """The grid that nearly all values are on; None if there is none that could be seen."""
    for grid in (1.0, 0.1):
        steps = values / grid
        if np.mean(np.abs(steps - np.round(steps)) < 1e-6) > 0.95:
            return grid
    return None


def fit_mixture(values: Floats, grid: float | None) -> Mixture:
    """Log-normal parts of positive values, heaviest first."""
    points, weights = _points(values)
    best: Mixture = ()
    best_distance = math.inf
    for parts in range(1, MAX_PARTS + 1):
        mixture = _rounded(_expectation_maximisation(np.log(points), weights, parts))
        distance = _distance(mixture, points, weights, grid)
        if distance < best_distance:
            best, best_distance = mixture, distance
        if best_distance <= NEAR:
            break
    return best


def _points(values: Floats) -> tuple[Floats, Floats]:
    """Distinct values and their shares; beyond 4,000 of them, quantiles."""
    points, counts = np.unique(values, return_counts=True)
    if points.size > _POINTS:
        shares = (np.arange(_POINTS) + 0.5) / _POINTS
        points, counts = np.unique(np.quantile(values, shares), return_counts=True)
    return points, counts / counts.sum()


def _expectation_maximisation(
    logs: Floats, weights: Floats, parts: int
) -> tuple[Floats, Floats, Floats]:
    """Weights, means and deviations. Starts from equal slices of the data."""
    ends = np.cumsum(weights)
    shares = np.full(parts, 1 / parts)
    means = np.interp((np.arange(parts) + 0.5) / parts, ends, logs)
    mean = float(np.average(logs, weights=weights))
    spread = math.sqrt(float(np.average((logs - mean) ** 2, weights=weights)))
    floor = max(0.02, spread / 200)
    deviations = np.full(parts, max(spread / parts, floor))
    for _ in range(_STEPS):
        z = (logs[:, None] - means) / deviations
        scores = np.log(shares) - np.log(deviations) - z * z / 2
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances *= (weights / chances.sum(axis=1))[:, None]
        mass = np.maximum(chances.sum(axis=0), 1e-9)
        moved = chances.T @ logs / mass
        around = (chances * (logs[:, None] - moved) ** 2).sum(axis=0) / mass
        settled = float(np.abs(moved - means).max()) < 1e-5
        shares, means = mass / mass.sum(), moved
        deviations = np.maximum(np.sqrt(around), floor)
        if settled:
            break
    return shares, means, deviations


def _rounded(found: tuple[Floats, Floats, Floats]) -> Mixture:
    """Four digits, heaviest part first; the first takes what rounding left of the weights."""
    rows = sorted(zip(*(column.tolist() for column in found), strict=True), reverse=True)
    rows = [(round(w, 4), round(m, 4), round(d, 4)) for w, m, d in rows]
    rows = [row for row in rows if row[0] > 0]
    rest = round(1 - math.fsum(row[0] for row in rows[1:]), 4)
    return ((rest, *rows[0][1:]), *rows[1:])


def mixture_cdf(mixture: Mixture, values: Floats) -> Floats:
    """Share of the mixture up to each value."""
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    total = np.zeros(values.size)
    for weight, mean, deviation in mixture:
        total += weight * (1 + _ERF((logs - mean) / (deviation * math.sqrt(2)))) / 2
    return total


def _distance(mixture: Mixture, points: Floats, weights: Floats, grid: float | None) -> float:
    """The largest distance between the shares of data and mixture up to x."""
    ends = np.cumsum(weights)
    up_to = mixture_cdf(mixture, points + (grid or 0) / 2)
    up_to[-1] = 1  # drawn values are cut to the largest
    after = np.abs(up_to - ends).max()
    below = mixture_cdf(mixture, np.maximum(points - (grid or 0) / 2, 0))
    below[0] = 0
    return float(max(after, np.abs(below - (ends - weights)).max()))


def normal_scores(values: Floats) -> Floats:
    """Ranks as normal scores, ties in order of appearance."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return np.array([_NORMAL.inv_cdf((rank + 0.5) / values.size) for rank in order.tolist()])
