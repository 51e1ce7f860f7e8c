"""Least squares without negative coefficients: the active-set method of Lawson and Hanson (1974,
chapter 23), on the normal equations. Problems here have at most eight columns of unit length, which
the normal equations bear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Added to the diagonal of unit columns, so that two equal ones share instead of failing.
_RIDGE = 1e-12
_TOLERANCE = 1e-11


def nnls(matrix: Floats, target: Floats, weights: Floats | None = None) -> Floats:
    """`x >= 0` that minimises `sum(weights * (matrix @ x - target) ** 2)`; weights 1 if not given."""
    weighted = matrix if weights is None else matrix * weights[:, None]
    gram = weighted.T @ matrix
    scale = np.sqrt(np.diag(gram))
    scale[scale == 0] = 1.0
    solution = _active_set(gram / np.outer(scale, scale), (weighted.T @ target) / scale)
    return solution / scale


def _active_set(gram: Floats, moment: Floats) -> Floats:
    size = len(moment)
    gram = gram + _RIDGE * np.eye(size)
    solution = np.zeros(size)
    free = np.zeros(size, dtype=bool)
    limit = _TOLERANCE * max(1.0, float(np.abs(moment).max(initial=0.0)))
    for _ in range(3 * size):
        gradient = moment - gram @ solution
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= limit:
            break
        free[best] = True
        solution = _step_to_feasible(gram, moment, solution, free)
    return solution


def _step_to_feasible(gram: Floats, moment: Floats, solution: Floats, free: Mask) -> Floats:
    """Solve for the free ones; whoever would turn negative on the way is held at zero."""
    while free.any():
        wanted = np.zeros_like(solution)
        wanted[free] = np.linalg.solve(gram[np.ix_(free, free)], moment[free])
        falls = free & (wanted <= 0)
        if not falls.any():
            return wanted
        share = float(np.min(solution[falls] / (solution[falls] - wanted[falls] + 1e-300)))
        solution = solution + share * (wanted - solution)
        free &= ~(falls & (solution <= 1e-15))
        solution[~free] = 0.0
    return np.zeros_like(solution)
