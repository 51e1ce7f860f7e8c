"""Differences told together: Student's tails, Holm's correction, and what compare calls better."""

from __future__ import annotations

import math
import random

import pytest

from explore.studies.estimates import Ratio, difference_of, family_of, speedup_of
from runs.metrics.stats import holm, p_of_t, p_of_zero_mean, t95
from tests.helpers.made import compared


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [  # two-sided, from standard tables
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (2.776, 4, 0.05),
        (4.032, 5, 0.01),
        (2.228, 10, 0.05),
        (3.169, 10, 0.01),
        (1.684, 40, 0.10),
        (2.704, 40, 0.01),
        (0.0, 7, 1.0),
    ],
)
def test_tails_of_student_are_those_of_the_tables(t: float, degrees: int, p: float) -> None:
    assert p_of_t(t, degrees) == pytest.approx(p, rel=2e-3)
    assert p_of_t(-t, degrees) == p_of_t(t, degrees)


def test_tails_and_quantiles_are_each_others_inverse() -> None:
    for degrees in range(1, 61):
        assert p_of_t(t95(degrees), degrees) == pytest.approx(0.05, rel=2e-3)


def test_no_degrees_of_freedom_no_tail() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        p_of_t(1.0, 0)


def test_a_mean_that_is_surely_not_zero() -> None:
    assert p_of_zero_mean([1.0]) is None
    assert p_of_zero_mean([0.0, 0.0]) == 1.0
    assert p_of_zero_mean([2.0, 2.0]) == 0.0
    assert p_of_zero_mean([1.0, -1.0]) == pytest.approx(1.0)
    # mean 2, deviation 1, t = 2 * sqrt(3): between the tables' 10 % (2.92) and 5 % (4.30)
    assert p_of_zero_mean([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


def test_among_many_comparisons_without_a_difference_few_are_called_one() -> None:
    """Families of ten true nulls: alone two of five families have a false call, corrected one of
    twenty."""
    rng = random.Random(0)
    alone = together = 0
    for _ in range(1000):
        found = [p_of_zero_mean([rng.gauss(0, 1) for _ in range(6)]) for _ in range(10)]
        ps = [p for p in found if p is not None]
        alone += min(ps) < 0.05
        together += min(holm(ps)) < 0.05
    assert 0.35 < alone / 1000 < 0.45
    assert 0.03 < together / 1000 < 0.07


def test_a_family_leaves_alone_what_cannot_be_told() -> None:
    found = family_of([Ratio(2.0, 1.1, 0.02), Ratio(None), Ratio(1.5, 1.2, 0.03)])
    assert [ratio.p for ratio in found] == [pytest.approx(0.04), None, pytest.approx(0.04)]


def test_better_is_said_of_what_is_sure_beside_its_family() -> None:
    assert Ratio(1.5, 1.4, 0.04).is_better and not Ratio(1.5, 1.4, 0.06).is_better
    assert Ratio(0.5, 1.4, 0.04).is_worse and not Ratio(0.5, 1.4, 0.06).is_worse


def test_every_system_compared_with_a_baseline_is_of_one_family() -> None:
    def change(system: str, run: int) -> dict[str, float]:
        gain = {"vllm-0.3.3-keep": 1.0, "fastswitch": 0.5, "+groups": 0.8}[system]
        return {"ttft_p99_s": gain * (1 + 0.1 * run * (system == "fastswitch"))}

    found = compared("vllm-0.3.3-keep", "fastswitch", "+groups", runs=5, change=change)
    alone = speedup_of(found.results["fastswitch"], found.results["vllm-0.3.3-keep"], "ttft_p99_s")
    told = found.speedup("fastswitch", "vllm-0.3.3-keep", "ttft_p99_s")
    assert (told.value, told.factor) == (alone.value, alone.factor)
    assert told.p == alone.p  # the other's is 0, so this is the last of two
    groups = found.speedup("+groups", "vllm-0.3.3-keep", "ttft_p99_s")
    assert groups.p == 0.0 and groups.is_better


def test_a_difference_is_paired_by_run() -> None:
    ours = [{"metrics": {"x": 1.0 + run}} for run in range(4)]
    theirs = [{"metrics": {"x": 3.0 + run}} for run in range(4)]
    found = difference_of(ours, theirs, "x")
    assert (found.value, found.half) == (-2.0, 0.0)
    assert difference_of(ours, [{"metrics": {"x": None}}] * 4, "x").value is None
    assert math.isclose(p_of_zero_mean([-2.0, -2.1]) or 0, 0.0155, rel_tol=0.01)
