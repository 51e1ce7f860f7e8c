"""Sweeps whose points get runs until their intervals are narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from explore.studies.precision import FIRST, MOST, STEP
from explore.studies.sweep import sweep
from policy.errors import ConfigError
from tests.helpers.sweeps import SMALL, keys, made_result, pretend, tree


def test_points_with_wide_intervals_get_more_runs_and_others_do_not(tmp_path: Path) -> None:
    from explore.studies.plan import expand
    from explore.studies.spec import load

    far = {trial.key: trial for trial in expand(load({**SMALL, "runs": MOST})).trials}

    def told(key: str) -> dict[str, Any]:
        trial = far[key]
        spread = 0.28 * trial.point * (-1) ** trial.run
        return {"result": made_result(key, ttft_p95_s=1.0, ttft_p99_s=1 + spread)}

    found = pretend(SMALL, tmp_path / "out", told, until_precise=True)
    counts = found.results.groupby("point")["run"].nunique()
    # 0.28 * t / sqrt(n) falls below a tenth after 35 runs
    assert counts.to_dict() == {0: FIRST, 1: 35}
    assert found.missing == 0
    halves = found.estimates.set_index(["point", "system", "metric"])["half"]
    assert halves.loc[(1, "fastswitch", "ttft_p99_s")] <= 0.1
    ratios = found.ratios
    assert (ratios["runs"] == ratios["point"].map({0: FIRST, 1: 35})).all()
    assert {"p", "factor"} <= set(ratios.columns)

    again = pretend(SMALL, tmp_path / "out", pytest.fail, until_precise=True)
    assert again.digest == found.digest
    stopped = tmp_path / "stopped"
    for stop in (3, 30, 50):
        left = iter(range(stop))

        def interrupted(key: str, left: Any = left) -> dict[str, Any]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return told(key)

        with pytest.raises(KeyboardInterrupt):
            pretend(SMALL, stopped, interrupted, until_precise=True)
    pretend(SMALL, stopped, told, until_precise=True)
    assert tree(stopped) == tree(tmp_path / "out")


def test_a_point_with_a_failed_trial_gets_no_more_runs(tmp_path: Path) -> None:
    found = pretend(SMALL, tmp_path / "out", lambda _key: {"failed": "no"}, until_precise=True)
    assert (found.trials, found.failed) == (4 * FIRST, 4 * FIRST)
    assert STEP < FIRST


def test_shards_cannot_know_when_it_is_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what is to run depends on results of the other shards"):
        pretend(SMALL, tmp_path / "out", until_precise=True, shard=(1, 2))
    assert not (tmp_path / "out").exists()


def test_an_ordinary_sweep_does_not_go_on_in_a_growing_ones_folder(tmp_path: Path) -> None:
    pretend(SMALL, tmp_path / "out", until_precise=True)
    with pytest.raises(ConfigError, match="another version of 'small'"):
        pretend(SMALL, tmp_path / "out")


def test_a_sweep_with_an_slo_and_a_warm_up_has_its_metrics(tmp_path: Path) -> None:
    given = {**SMALL, "systems": ["fastswitch"], "runs": 1, "grid": {"workload.rate": [1.0]}}
    found = sweep({**given, "slo": {"ttft_s": 2.0}, "warm_up_s": 3.0}, tmp_path / "a", workers=1)
    plain = sweep(given, tmp_path / "b", workers=1)
    assert 0 <= found.results["slo_attainment"][0] <= 1
    assert found.results["ttft_samples"][0] < plain.results["ttft_samples"][0]
    assert "slo_attainment" not in plain.results
    assert set(keys(tmp_path / "a")).isdisjoint(keys(tmp_path / "b"))
