"""Least squares without negative coefficients, held to trying every set of free ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.nnls import Floats, nnls


def loss(matrix: Floats, target: Floats, solution: Floats) -> float:
    return float(((matrix @ solution - target) ** 2).sum())


def by_brute_force(matrix: Floats, target: Floats) -> float:
    """The least loss over all sets of coefficients that may differ from zero."""
    size = matrix.shape[1]
    best = loss(matrix, target, np.zeros(size))
    for count in range(1, size + 1):
        for chosen in combinations(range(size), count):
            solution = np.zeros(size)
            solution[list(chosen)] = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            if (solution >= 0).all():
                best = min(best, loss(matrix, target, solution))
    return best


@given(
    st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0])
)
def test_no_set_of_free_coefficients_does_better(
    columns: int, rows: int, seed: int, positive: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(positive, 1, (rows, columns)) * 10.0 ** rng.integers(-3, 4, columns)
    target = rng.normal(positive, 1, rows)
    solution = nnls(matrix, target)
    assert (solution >= 0).all()
    assert loss(matrix, target, solution) <= by_brute_force(matrix, target) + 1e-7


def test_a_negative_answer_becomes_zero_and_the_others_are_solved_without_it() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    falling = np.array([3.0, 2.0, 1.0])
    assert nnls(matrix, falling) == pytest.approx([2.0, 0.0])
    assert nnls(matrix, falling[::-1]) == pytest.approx([0.0, 1.0])


def test_a_weight_is_as_good_as_so_many_equal_rows() -> None:
    rng = np.random.default_rng(3)
    matrix, target = rng.random((6, 3)), rng.random(6)
    weights = np.array([0.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    rows = np.repeat(np.arange(6), weights.astype(int))
    assert nnls(matrix, target, weights) == pytest.approx(nnls(matrix[rows], target[rows]))


def test_a_column_of_zeros_gets_nothing_and_equal_columns_share() -> None:
    matrix = np.array([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]])
    solution = nnls(matrix, np.array([3.0, 6.0]))
    assert solution[1] == 0.0
    assert solution.sum() == pytest.approx(3.0)
