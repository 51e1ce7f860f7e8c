"""What a planner asks of a sweep: numbers at a point, paired ratios, how far one can go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from explore.studies import answers
from explore.studies.estimates import Estimate, Ratio
from policy.errors import ConfigError
from tests.helpers.sweeps import SMALL, pretend

RATE = "workload.rate"
LIMITS = {"ttft_p95_s": 2.0, "tbt_p99_s": 0.2}


def rows(*values: tuple[Any, ...]) -> pd.DataFrame:
    """A frame of results: rate, system, run, TTFT, TBT."""
    names = ["point", RATE, "system", "run", "ttft_p95_s", "tbt_p99_s"]
    return pd.DataFrame([(0, *value) for value in values], columns=names)


def ladder(*steps: tuple[float, float, float]) -> pd.DataFrame:
    """One system and run: rate, TTFT, TBT."""
    return rows(*((rate, "a", 0, ttft, tbt) for rate, ttft, tbt in steps))


def highest_of(frame: pd.DataFrame) -> tuple[float, str]:
    (found,) = answers.highest(frame, RATE, LIMITS).itertuples()
    return found.highest, found.bound


def test_the_limit_that_is_crossed_first_decides() -> None:
    frame = ladder((1.0, 1.0, 0.1), (2.0, 4.0, 0.2), (3.0, 9.0, 0.9))
    assert highest_of(frame) == (1.5, "")  # 2 s is half way from 1 to 4 s by factors
    sooner = ladder((1.0, 1.0, 0.1), (2.0, 4.0, 1.6))
    assert highest_of(sooner) == (1.25, "")  # and .2 a quarter of the way from .1 to 1.6


def test_what_is_kept_again_after_it_was_broken_does_not_count() -> None:
    frame = ladder((1.0, 1.0, 0.1), (2.0, 4.0, 0.1), (3.0, 1.0, 0.1))
    assert highest_of(frame) == (1.5, "")


def test_a_limit_met_to_the_digit_is_kept() -> None:
    assert highest_of(ladder((1.0, 2.0, 0.2))) == (1.0, ">")


def test_an_answer_beyond_what_was_swept_is_a_bound_and_says_so() -> None:
    assert highest_of(ladder((1.0, 3.0, 0.1), (2.0, 9.0, 0.1))) == (1.0, "<")
    assert highest_of(ladder((2.0, 1.0, 0.1), (1.0, 0.5, 0.1))) == (2.0, ">")


def test_a_metric_of_zero_is_crossed_without_a_logarithm() -> None:
    assert highest_of(ladder((1.0, 0.0, 0.1), (2.0, 4.0, 0.1))) == (1.5, "")


def test_every_run_and_system_has_an_answer_of_its_own() -> None:
    frame = rows(
        (1.0, "a", 0, 1.0, 0.1),
        (2.0, "a", 0, 4.0, 0.1),
        (1.0, "a", 1, 3.0, 0.1),
        (2.0, "a", 1, 9.0, 0.1),
        (1.0, "b", 0, 1.0, 0.1),
        (2.0, "b", 0, 1.0, 0.1),
    )
    found = answers.highest(frame, RATE, LIMITS)
    assert found.to_dict("list") == {
        "system": ["a", "a", "b"],
        "run": [0, 1, 0],
        "highest": [1.5, 1.0, 2.0],
        "bound": ["", "<", ">"],
    }


def test_what_is_swept_along_does_not_part_the_ladder() -> None:
    frame = ladder((1.0, 1.0, 0.1), (2.0, 4.0, 0.1))
    frame.insert(1, "workload.conversations", [100, 200])
    apart = answers.highest(frame, RATE, LIMITS)
    assert apart["bound"].tolist() == [">", "<"]
    along = answers.highest(frame, RATE, LIMITS, along=["workload.conversations"])
    assert along["highest"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("frame", "limits", "says"),
    [
        (ladder((1.0, math.nan, 0.1)), LIMITS, "system=a, run=0: a trial failed or had too few"),
        (ladder((1.0, 1.0, 0.1), (1.0, 1.0, 0.1)), LIMITS, "several trials with one workload.rate"),
        (ladder((1.0, 1.0, 0.1)), {"ttft_p95": 2.0}, "ttft_p95: neither swept nor a metric"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    frame: pd.DataFrame, limits: dict[str, float], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        answers.highest(frame, RATE, limits)


def test_estimates_and_speed_ups_are_those_of_the_tables(tmp_path: Path) -> None:
    found = pretend(SMALL, tmp_path)
    at = {RATE: 4.0}
    (row,) = found.estimates.query(
        "metric == 'ttft_p95_s' and point == 1 and system == 'fastswitch'"
    ).itertuples()
    assert found.estimate("fastswitch", "ttft_p95_s", at) == Estimate(row.mean, row.half)
    (row,) = found.ratios.query("metric == 'ttft_p95_s' and point == 1").itertuples()
    told = found.speedup("fastswitch", "vllm-0.3.3-keep", "ttft_p95_s", at)
    assert (told.value, told.factor) == (row.ratio, row.factor)


def test_a_baseline_may_stand_at_another_point(tmp_path: Path) -> None:
    frame = rows((1.0, "a", 0, 4.0, 0.1), (1.0, "a", 1, 2.0, 0.1), (2.0, "a", 0, 8.0, 0.1), (2.0, "a", 1, 4.0, 0.1))  # fmt: skip
    told = answers.speedup(frame, "a", "a", "ttft_p95_s", {RATE: 1.0}, {RATE: 2.0})
    assert told.value == pytest.approx(2)
    assert told.factor == pytest.approx(1)


def test_too_few_samples_in_one_run_leave_no_number() -> None:
    frame = rows((1.0, "a", 0, 4.0, 0.1), (1.0, "a", 1, math.nan, 0.1))
    assert answers.estimate(frame, "a", "ttft_p95_s", {}) == Estimate(None)
    assert answers.estimate(frame, "a", "tbt_p99_s", {}).value == pytest.approx(0.1)
    frame["nobody"] = None
    assert answers.estimate(frame, "a", "nobody", {}) == Estimate(None)


def test_a_place_that_holds_no_trial_or_several_is_refused() -> None:
    frame = rows((1.0, "a", 0, 4.0, 0.1), (2.0, "a", 0, 4.0, 0.1), (1.0, "b", 0, 4.0, 0.1), (1.0, "b", 1, 4.0, 0.1))  # fmt: skip
    for at, says in (
        ({RATE: 3.0}, "system=a, workload.rate=3.0: no such trial"),
        ({}, "several trials of one run"),
        ({"order": "vtc"}, "order: neither swept nor a metric"),
    ):
        with pytest.raises(ConfigError, match=says):
            answers.estimate(frame, "a", "ttft_p95_s", at)
    with pytest.raises(ConfigError, match="a has the runs 0, b 0, 1: not paired"):
        answers.speedup(frame, "a", "b", "ttft_p95_s", {RATE: 1.0}, {RATE: 1.0})


def test_one_value_per_run_gives_a_mean_and_a_ratio_with_intervals() -> None:
    assert answers.mean_of_runs([1.0, 3.0]) == Estimate(2.0, pytest.approx(12.706))
    assert answers.mean_of_runs([1.0, math.nan]) == answers.mean_of_runs([]) == Estimate(None)
    ratio = answers.ratio_of_runs([2.0, 8.0], [1.0, 4.0])
    assert (ratio.value, ratio.factor) == (pytest.approx(2), pytest.approx(1))
    assert answers.ratio_of_runs([2.0], [0.0]) == Ratio(None)


def test_runs_that_are_not_the_same_are_not_paired() -> None:
    frame = rows((1.0, "a", 1, 2.0, 0.1), (1.0, "a", 2, 4.0, 0.1), (1.0, "b", 0, 2.0, 0.1), (1.0, "b", 1, 4.0, 0.1))  # fmt: skip
    with pytest.raises(ConfigError, match="a has the runs 1, 2, b 0, 1: not paired"):
        answers.speedup(frame, "a", "b", "ttft_p95_s", {}, {})


def test_nothing_and_lists_are_places_too(tmp_path: Path) -> None:
    """A swept null reads back as nothing, a list as its JSON."""
    grid = {"limits.max_num_batched_tokens": [None, 4096], RATE: [1.0, 2.0]}
    found = pretend({**SMALL, "grid": grid}, tmp_path / "out")
    told = found.highest(RATE, {"ttft_p95_s": 1e9})
    assert len(told) == 2 * len(SMALL["systems"]) * SMALL["runs"]
    at = {"limits.max_num_batched_tokens": None, RATE: 1.0}
    assert found.estimate("fastswitch", "ttft_p95_s", at).value is not None
    frame = rows((1.0, "a", 0, 2.0, 0.1))
    frame.insert(1, "listed", ["[1, 2]"])
    assert answers.estimate(frame, "a", "ttft_p95_s", {"listed": [1, 2]}).value == 2.0


def test_an_incomplete_sweep_gives_no_answer(tmp_path: Path) -> None:
    found = pretend(SMALL, tmp_path / "out", shard=(1, 2))
    assert found.missing
    for ask in (
        lambda: found.estimate("fastswitch", "ttft_p95_s", {RATE: 1.0}),
        lambda: found.speedup("fastswitch", "vllm-0.3.3-keep", "ttft_p95_s", {RATE: 1.0}),
        lambda: found.highest(RATE, LIMITS),
    ):
        with pytest.raises(ConfigError, match="trials are missing: run the rest, or merge"):
            ask()
