"""Sobol points: balanced in every dimension, and those of two well-known libraries."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explore.studies.sobol import BITS, MAX_DIMENSIONS, MAX_POINTS, points

SHIFTS = st.integers(0, (1 << BITS) - 1)


@given(st.integers(0, 8), st.lists(SHIFTS, min_size=MAX_DIMENSIONS, max_size=MAX_DIMENSIONS))
def test_every_dimension_has_one_point_in_each_equal_part_whatever_the_shift(
    power: int, shifts: list[int]
) -> None:
    found = points(1 << power, shifts)
    for values in zip(*found, strict=True):
        assert sorted(value >> (BITS - power) for value in values) == list(range(1 << power))


def test_the_first_two_dimensions_are_balanced_together() -> None:
    """A (0, 2)-net: one of 64 points in each of 64 equal boxes, for every shape of box."""
    found = points(64, [0, 0])
    for bits in range(7):
        boxes = {(x >> (BITS - bits), y >> (BITS - 6 + bits)) for x, y in found}
        assert len(boxes) == 64


def test_a_longer_sequence_begins_with_the_shorter_one() -> None:
    assert points(1000, [5, 6, 7])[:100] == points(100, [5, 6, 7])


@pytest.mark.parametrize(("count", "dimensions"), [(1, 0), (1, MAX_DIMENSIONS + 1), (-1, 1)])
def test_what_the_table_has_not_is_refused(count: int, dimensions: int) -> None:
    with pytest.raises(ValueError, match="points in"):
        points(count, [0] * dimensions)
    with pytest.raises(ValueError, match="points in"):
        points(MAX_POINTS + 1, [0])


def test_the_points_are_those_of_scipy() -> None:
    qmc = pytest.importorskip("scipy.stats.qmc")
    theirs = qmc.Sobol(MAX_DIMENSIONS, scramble=False, bits=BITS).random(1024)
    ours = points(1024, [0] * MAX_DIMENSIONS)
    assert all(
        a == b * (1 << BITS)
        for row, other in zip(ours, theirs, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def test_all_points_differ() -> None:
    found = points(4096, [0] * 3)
    assert all(a != b for a, b in itertools.pairwise(sorted(found)))
