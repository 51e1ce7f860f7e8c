"""Replications until intervals are narrow: when they stop, and what they do not wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from explore.studies.plan import Plan, expand
from explore.studies.precision import FIRST, MOST, STEP, first, next_runs, target_of, widths
from explore.studies.spec import load
from tests.helpers.sweeps import SMALL, made_result, pretend


def runs(spread: float, count: int, **metrics: Any) -> list[dict[str, Any]]:
    """Around 1, half of them `spread` above, half below."""
    return [
        {"metrics": {"ttft_p99_s": 1 + (spread if i % 2 else -spread), **metrics}}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("metric", "target"),
    [
        ("ttft_p50_s", 0.05),
        ("throughput_tok_s", 0.05),
        ("ttft_p95_s", 0.10),
        ("tbt_p99_s", 0.10),
        ("ttft_p999_s", 0.20),
        ("tbt_in_batch_p999_s", 0.20),
    ],
)
def test_the_further_out_the_wider_it_may_be(metric: str, target: float) -> None:
    assert target_of(metric) == target


def test_narrow_intervals_stop_it_and_wide_ones_add_a_step() -> None:
    assert next_runs({"a": runs(0.05, FIRST)}) == FIRST
    assert next_runs({"a": runs(0.5, FIRST)}) == FIRST + STEP
    assert next_runs({"a": runs(0.05, FIRST), "b": runs(0.5, FIRST)}) == FIRST + STEP
    assert next_runs({"a": runs(0.5, MOST)}) == MOST
    assert next_runs({"a": runs(0.05, 2)}) == FIRST


def test_runs_that_are_the_same_run_have_no_interval_to_narrow() -> None:
    assert next_runs({"a": runs(0.0, 2), "b": runs(0.0, 2)}) == 2
    assert next_runs({"a": runs(0.0, 2), "b": runs(0.5, 2)}) == FIRST


def test_what_has_too_few_samples_is_not_waited_for() -> None:
    found = runs(0.05, FIRST, tbt_p999_s=None)
    assert next_runs({"a": found}) == FIRST
    (width,) = [w for w in widths({"a": found}) if w.metric == "tbt_p999_s"]
    assert width.relative is None and not width.is_wide


def test_it_goes_on_until_it_is_enough_and_every_run_is_made_once(tmp_path: Path) -> None:
    plan = first(load(SMALL), None, None)
    number = {trial.key: trial.run for trial in expand_to(MOST).trials}
    asked: list[int] = []

    def reply(key: str) -> dict[str, Any]:
        run = number[key]
        asked.append(run)
        # the first twenty runs are far apart, what follows makes the mean sure
        return {"result": made_result(key, ttft_p95_s=1.0, ttft_p99_s=1 + (run < 20) * (-1) ** run)}

    found = pretend(SMALL, tmp_path / "out", reply, until_precise=True)
    assert len({trial.run for trial in plan.trials}) == FIRST
    assert found.trials == len(asked) == 4 * MOST  # half width 0.18 after 50
    assert max(asked[: 4 * FIRST]) == FIRST - 1
    assert max(asked[: 4 * (FIRST + STEP)]) == FIRST + STEP - 1


def test_more_than_the_least_may_be_asked_for_first() -> None:
    plan = first(load({**SMALL, "runs": 23}), None, None)
    assert {trial.run for trial in plan.trials} == set(range(23))


def expand_to(count: int) -> Plan:
    return expand(load({**SMALL, "runs": count}))
