"""What the formulas of a cost model leave over, by one quantity: a curve of factors.

Kernels come in tiles and libraries switch algorithms, so a step of three may take longer than one of
four; no sum of terms says that. The logarithm of measured over predicted is taken for a Gaussian process
over the logarithm of that quantity (Rasmussen and Williams 2006, chapter 2), mean zero, with the
exponential kernel: it follows jumps without ringing and fades to a factor of one away from points.
Its mean is kept as a table of whole numbers (`calibrate.profile.Curve`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from calibrate.nnls import Floats
from calibrate.profile import ONE, Curve

#: Hyperparameters that are tried: deviations of the process and of what it leaves, and lengths over
#: which it forgets, as logarithms of the quantity (0.7: a doubling).
_DEVIATIONS = (0.02, 0.05, 0.1, 0.2, 0.4)
_NOISES = (0.005, 0.01, 0.02, 0.05, 0.1)
_LENGTHS = (0.2, 0.7, 2.0)
#: A curve is made from at least so many different values of its quantity.
MIN_KNOTS = 3


class Left(NamedTuple):
    """What is left over at some points. `sorts`: whose curve a point is on, None for no curve's;
    `at`: the value of the quantity there."""

    sorts: Sequence[str | None]
    at: Floats

    def factors(self, curves: Mapping[str, Curve]) -> Floats:
        """What each point's prediction is multiplied by."""
        found = np.ones(len(self.at))
        for index, sort in enumerate(self.sorts):
            if sort is not None and sort in curves:
                found[index] = curves[sort].at(int(self.at[index])) / ONE
        return found


def curves_of(left: Left, ratios: Floats, used: Floats) -> dict[str, Curve]:
    """A curve for every sort with enough points. `ratios`: measured over predicted; a point whose
    `used` is 0 is not looked at."""
    found = {}
    for sort in sorted({sort for sort in left.sorts if sort is not None}):
        chosen = np.array([s == sort for s in left.sorts]) & (used > 0) & (ratios > 0)
        knots = np.unique(left.at[chosen])
        if len(knots) >= MIN_KNOTS:
            mean = _posterior(np.log(left.at[chosen]), np.log(ratios[chosen]))
            factors = [max(1, round(ONE * math.exp(value))) for value in mean(np.log(knots))]
            found[sort] = Curve(knots=tuple(int(knot) for knot in knots), factors=tuple(factors))
    return found


def _posterior(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """The mean of the process that makes `y` at `x` likeliest."""
    gaps = np.abs(x[:, None] - x[None, :])
    best, weights, scale, length = -math.inf, y, 0.0, 1.0
    for reach in _LENGTHS:
        # one decomposition serves every pair of deviations: both change eigenvalues alone
        values, vectors = np.linalg.eigh(np.exp(-gaps / reach))
        turned = vectors.T @ y
        for deviation, noise in product(_DEVIATIONS, _NOISES):
            spread = deviation**2 * np.maximum(values, 0.0) + noise**2
            likelihood = -0.5 * float((turned**2 / spread).sum() + np.log(spread).sum())
            if likelihood > best:
                best, scale, length = likelihood, deviation**2, reach
                weights = vectors @ (turned / spread)

    def mean(at: Floats) -> Floats:
        found: Floats = scale * np.exp(-np.abs(at[:, None] - x[None, :]) / length) @ weights
        return found

    return mean
