"""Terminating and steady-state comparisons, as `compare` makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fastswitch
from explore.report import comparison as report
from explore.studies import output, precision, tables, warm_up
from explore.studies.compare import compare, num_trials
from explore.studies.comparison import Comparison
from explore.studies.tables import as_json
from policy.errors import ConfigError
from runs.metrics.goodput import Slo
from runs.scenario import Scenario, build
from tests.helpers.made import compared
from tests.helpers.sweeps import SCENARIO

CALM = {
    **SCENARIO,
    "workload": {**SCENARIO["workload"], "conversations": 120, "rate": 2.0},
    "pool": {"device_blocks": 200, "host_blocks": 400, "aging": "none"},
}
SYSTEMS = ["vllm-0.3.3-keep", "fastswitch"]


def scenario(**values: Any) -> Scenario:
    return build(CALM, "calm").with_values(values)


PILOTS = 3  # for speed; how many there are otherwise is tried on a queue


@pytest.fixture(scope="module", autouse=True)
def few_pilots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "PILOTS", PILOTS)
        yield


@pytest.fixture(scope="module")
def steady(few_pilots: None) -> Comparison:
    return compare(scenario(), SYSTEMS, 2, 1, study="steady-state", slo=Slo(ttft_s=1.0))


def test_a_steady_state_study_cuts_the_same_for_all_systems_and_runs(steady: Comparison) -> None:
    found = steady.warm_up
    assert found is not None and steady.study == "steady-state"
    assert set(found.traces) == set(SYSTEMS) and found.runs == PILOTS
    assert found.cut_s == max(trace.cut_s for trace in found.traces.values())
    assert steady.measure.warm_up_s == found.cut_s
    plain = compare(scenario(), SYSTEMS, 2, 1)
    assert plain.study == "terminating" and plain.warm_up is None
    for name in SYSTEMS:
        for ours, whole in zip(steady.results[name], plain.results[name], strict=True):
            assert ours["metrics"]["window_s"] is not None
            assert ours["metrics"]["ttft_samples"] < whole["metrics"]["ttft_samples"]
            assert 0 < ours["metrics"]["slo_attainment"] <= 1
            assert "slo_attainment" not in whole["metrics"]
    assert any("turns of the first" in note for note in steady.notes)


def test_what_was_cut_is_shown(steady: Comparison, tmp_path: Path) -> None:
    output.write(steady, tmp_path, "fastswitch compare")
    assert (tmp_path / "warm_up.png").stat().st_size > 5000
    made = json.loads((tmp_path / "compare.json").read_text())
    assert made["study"] == "steady-state" and made["measure"]["slo"] == {"ttft_s": 1.0}
    trace = made["warm_up"]["traces"]["fastswitch"]
    assert len(trace["ttft_s"]) == len(trace["arrival_s"]) == trace["cut"]["of"]
    assert len(trace["cut"]["errors"]) > 10
    text = report.page(steady, "fastswitch compare")
    assert ">Warm-up</h2>" in text and "A steady-state study." in text
    assert report.page(tables.from_json(made), "fastswitch compare") == text


def test_where_no_steady_state_is_seen_nothing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "calm.yaml"
    path.write_text(json.dumps(CALM))
    command = ["compare", str(path), "--systems", "fastswitch", "--set", "workload.rate=1.0"]
    out = tmp_path / "out"
    told = CliRunner().invoke(
        fastswitch.main,
        [*command, "--workers", "1", "--study", "steady-state", "--out", str(out)],
    )
    assert told.exit_code == 2
    assert "error: steady state: fastswitch: MSER-5 would cut 26 of 31 batches" in told.output
    assert len(told.output.splitlines()) <= 5 and not (out / "compare.json").exists()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see that runs are added."""
    monkeypatch.setattr(precision, "FIRST", 2)
    monkeypatch.setattr(precision, "STEP", 2)
    monkeypatch.setattr(precision, "MOST", 6)


def test_runs_are_added_until_intervals_are_narrow(few: None) -> None:
    made = compared("vllm-0.3.3-keep", runs=3)
    assert made.runs == 3 and not made.until_precise
    found = compare(scenario(), ["fastswitch"], 1, 1, until_precise=True)
    assert found.runs in (2, 4, 6) and found.until_precise
    wide = [width for width in precision.widths(found.results) if width.is_wide]
    assert bool(wide) == (found.runs == 6)
    assert len(found.results["fastswitch"]) == found.runs
    assert any(f"{found.runs} runs, added until" in note for note in found.notes)
    assert as_json(found)["until_precise"] is True


def test_the_command_takes_both(tmp_path: Path, few: None) -> None:
    path = tmp_path / "calm.yaml"
    path.write_text(json.dumps(CALM))
    command = ["compare", str(path), "--systems", "fastswitch", "--workers", "1", "--json"]
    told = CliRunner().invoke(
        fastswitch.main, [*command, "--study", "steady-state", "--until-precise"]
    )
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert made["study"] == "steady-state" and made["until_precise"]
    with pytest.raises(ConfigError, match="study: 'forever' is not one of"):
        compare(scenario(), ["fastswitch"], 1, 1, study="forever")


def test_pilots_are_jobs_too() -> None:
    assert num_trials(scenario(), SYSTEMS, 3, "steady-state") == 2 * (3 + PILOTS)


def test_differences_are_in_the_metrics_unit_and_paired() -> None:
    def change(system: str, run: int) -> dict[str, Any]:
        return {"ttft_p99_s": 1.0 + run - 0.5 * (system == "fastswitch")}

    found = compared("vllm-0.3.3-keep", "fastswitch", runs=4, change=change)
    difference = found.difference("fastswitch", "vllm-0.3.3-keep", "ttft_p99_s")
    assert (difference.value, difference.half) == pytest.approx((-0.5, 0.0), abs=1e-8)
    told = as_json(found)["systems"]["fastswitch"]["differences"]["vllm-0.3.3-keep"]
    assert told["ttft_p99_s"]["low"] == pytest.approx(-0.5)
