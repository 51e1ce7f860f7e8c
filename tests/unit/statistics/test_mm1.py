"""Intervals of studies of an M/M/1 queue hold its known mean about as often as they say."""

from __future__ import annotations

import pytest

from benchmarks.mm1_coverage import Queue, fixed


def test_nominal_intervals_cover_the_known_mean_and_a_run_of_one_does_not() -> None:
    """Fixed seeds, so this passes or fails for ever; the long form is benchmarks/mm1_coverage.py."""
    queue = Queue(0.5, 4000)
    ten, cold, naive = fixed(queue, (10,), 150, seed=0)
    print(ten, cold, naive)
    assert ten.refused == 0 and ten.studies == 150
    assert abs(ten.coverage - 0.95) <= 0.03
    assert abs(ten.bias) < 0.01
    assert naive.coverage < 0.7


def test_the_known_mean_is_that_of_a_long_run() -> None:
    _, waits = Queue(0.5, 200_000).runs(1, (7,))
    assert waits.mean() / 1e9 == pytest.approx(1.0, rel=0.05)
