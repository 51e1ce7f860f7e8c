"""Warm-up by MSER-5: where it cuts, and when it says that there is nothing to cut to."""

from __future__ import annotations

import random

import pytest

from explore.studies.warm_up import BATCH, Waits, find, mser5
from policy.errors import ConfigError

S = 1_000_000_000


def noisy(length: int, seed: int, *, ramp: int = 0) -> list[int]:
    """Around ten seconds, after a ramp from thirty."""
    rng = random.Random(seed)
    return [
        round((10 + max(0, 20 - 20 * i / ramp if ramp else 0) + rng.uniform(-1, 1)) * S)
        for i in range(length)
    ]


def waits(length: int, seeds: range, *, ramp: int = 0) -> list[Waits]:
    arrivals = [i * S for i in range(length)]
    return [Waits(arrivals, noisy(length, seed, ramp=ramp)) for seed in seeds]


def test_a_ramp_is_cut_where_it_ends() -> None:
    cut = mser5(noisy(1000, 0, ramp=200))
    assert cut.is_trusted and cut.of == 200
    assert 180 <= cut.batches * BATCH <= 260


def test_the_error_is_that_of_the_mean_of_what_is_left() -> None:
    values = noisy(200, 1)
    cut = mser5(values)
    sums = [sum(values[i : i + 5]) for i in range(0, 200, 5)]
    for at in (0, 7, 30):
        left = sums[at:]
        mean = sum(left) / len(left)
        error = sum((one - mean) ** 2 for one in left) / len(left) ** 2
        assert cut.errors[at] == pytest.approx(error, rel=1e-9)
    assert cut.batches == cut.errors.index(min(cut.errors))


def test_what_is_steady_from_the_beginning_loses_little() -> None:
    assert find({"a": waits(1000, range(10))}).cut_s < 300


def test_the_mean_over_replications_shows_what_one_run_hides() -> None:
    """A ramp of the size of the noise: the mean of ten runs finds it."""
    rng = random.Random(3)
    runs = []
    for _ in range(10):
        values = [round((10 + max(0, 2 - i / 100) + rng.gauss(0, 2)) * S) for i in range(1000)]
        runs.append(Waits([i * S for i in range(1000)], values))
    assert 80 <= find({"a": runs}).cut_s <= 350


def test_one_cut_holds_for_all_systems_and_is_the_latest_asked_for() -> None:
    found = find({"quick": waits(1000, range(5)), "slow": waits(1000, range(5), ramp=300)})
    assert found.cut_s == found.traces["slow"].cut_s > found.traces["quick"].cut_s
    assert len(found.traces["slow"].ttft_s) == len(found.traces["slow"].arrival_s) == 200
    assert found.traces["slow"].ttft_s[0] == pytest.approx(30, abs=1.5)
    assert found.runs == 5


def test_a_queue_that_only_grows_has_no_steady_state() -> None:
    growing = [Waits([i * S for i in range(500)], [i * S for i in range(500)])]
    with pytest.raises(ConfigError, match=r"steady state: a: MSER-5 would cut .* none is seen"):
        find({"a": growing})


def test_too_few_turns_are_told() -> None:
    with pytest.raises(ConfigError, match="steady state: a: 99 observations, at least 100"):
        find({"a": waits(99, range(3))})
