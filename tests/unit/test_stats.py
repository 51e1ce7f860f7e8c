"""Percentiles and intervals against the textbook and against brute force."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.metrics.stats import (
    MIN_SAMPLES,
    mean_and_half_width,
    percentile,
    ratio_and_factor,
    t95,
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# ---------------------------------------------------------------------- percentiles


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, 10), (25.0, 20), (50.0, 30), (60.0, 34), (100.0, 50)]
)
def test_a_percentile_lies_between_its_neighbours(q: float, expected: float) -> None:
    enough = ints(30, 10, 50, 20, 40) if q != 50.0 else ints(30, 10, 50, 20, 40, 30, 30)
    assert percentile(enough, q) == expected


@given(
    st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=60),
    st.floats(0, 100).filter(lambda q: q not in MIN_SAMPLES),
)
def test_percentiles_are_those_of_numpy(values: list[int], q: float) -> None:
    expected = float(np.percentile(np.array(values), q))
    assert percentile(ints(*values), q) == pytest.approx(expected, abs=1e-2)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 9)), min_size=1, max_size=40),
    st.sampled_from([0.0, 1.0, 10.0, 33.3, 75.0, 100.0]),
)
def test_a_weight_is_so_many_repetitions(pairs: list[tuple[int, int]], q: float) -> None:
    values, weights = (ints(*column) for column in zip(*pairs, strict=True))
    repeated = np.repeat(values, weights)
    expected = percentile(repeated, q) if repeated.size else None
    assert percentile(values, q, weights) == expected


@pytest.mark.parametrize("q", MIN_SAMPLES)
def test_one_sample_too_few_and_there_is_no_percentile(q: float) -> None:
    enough = MIN_SAMPLES[q]
    values = np.arange(enough, dtype=np.int64)
    assert percentile(values, q) == pytest.approx((enough - 1) * q / 100)
    assert percentile(values[1:], q) is None
    assert percentile(ints(7), q, ints(enough)) == 7
    assert percentile(ints(7), q, ints(enough - 1)) is None


@pytest.mark.parametrize("q", MIN_SAMPLES)
def test_the_fewest_samples_are_those_that_can_bound_the_percentile_from_above(q: float) -> None:
    """That all of n samples lie below it has probability q ** n: 2.5 % is left on that side."""
    n = MIN_SAMPLES[q]
    assert (q / 100) ** n <= 0.025 < (q / 100) ** (n - 1)


def test_nothing_has_no_percentile() -> None:
    assert percentile(ints(), 10.0) is None
    assert percentile(ints(), 10.0, ints()) is None


# ---------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)]
    + [(40, 2.0211), (60, 2.0003), (120, 1.9799), (10**6, 1.95996)],
)
def test_students_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert t95(degrees) == pytest.approx(expected, abs=3e-4)


def test_students_t_falls_with_every_degree() -> None:
    values = [t95(degrees) for degrees in range(1, 200)]
    assert all(before > after for before, after in pairwise(values))


def test_no_degrees_of_freedom_no_t() -> None:
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        t95(0)


def test_the_interval_of_three_numbers() -> None:
    mean, half = mean_and_half_width([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3))


def test_one_number_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert mean_and_half_width([5.0]) == (5.0, None)
    assert mean_and_half_width([5.0, 5.0, 5.0]) == (5.0, 0.0)
    assert ratio_and_factor([2.0]) == (pytest.approx(2.0), None)


def test_ratios_are_averaged_as_factors() -> None:
    """Twice as good and half as good make no difference; 2 and 8 make 4."""
    assert ratio_and_factor([2.0, 0.5])[0] == pytest.approx(1.0)
    value, factor = ratio_and_factor([2.0, 8.0])
    assert value == pytest.approx(4.0)
    assert factor == pytest.approx(math.exp(12.706 * math.log(4) / 2))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_the_other_way_round_a_ratio_is_its_inverse_with_the_same_interval(
    ratios: list[float],
) -> None:
    value, factor = ratio_and_factor(ratios)
    back, same = ratio_and_factor([1 / ratio for ratio in ratios])
    assert value * back == pytest.approx(1.0)
    assert same == (None if factor is None else pytest.approx(factor))


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(4000):
        mean, half = mean_and_half_width([rng.gauss(10, 3) for _ in range(4)])
        assert half is not None
        held += abs(mean - 10) <= half
    assert abs(held / 4000 - 0.95) < 0.011  # three standard deviations
