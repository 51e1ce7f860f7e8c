"""Prediction beside measurement, with a simulated machine in the place of the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fastswitch
from explore.predict import Line, predict
from policy.errors import ConfigError
from sim.simulate import simulate
from traces.scenario import build

PROFILE = "a10-llama-3-8b"


def pretend(out: Path, system: str, **values: Any) -> Path:
    """A recording that says it is of a real machine."""
    chat = {"generator": "chat", "conversations": 40, "rate": 2.0, "context_cap": 600}
    data = {
        "name": "pretended",
        "workload": {**chat, "think": "none"},
        "profile": PROFILE,
        "system": system,
        "pool": {"device_blocks": 120, "host_blocks": 400, "aging": "none"},
        "limits": {"max_model_len": 600},
        "priority": {"pattern": "markov", "frequency": 0.2},
    }
    simulate(build({**data, **values}, "test"), out=out, decisions=True)
    path = out / "run.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "machine": "real", "was_stopped": False}))
    return out


def test_a_profile_that_is_the_machine_predicts_it_exactly(tmp_path: Path) -> None:
    runs = [pretend(tmp_path / name, name) for name in ("vllm-0.3.3", "fastswitch")]
    found = predict(runs, PROFILE)
    known = [line for line in (*found.lines, *found.ratios) if line.error is not None]
    assert len(known) > 25
    assert {line.error for line in known} == {0.0}
    assert [one.equal_lines for one in found.divergences] == [
        one.lines for one in found.divergences
    ]
    assert {one.first for one in found.divergences} == {""}
    assert {line.system for line in found.ratios} == {"fastswitch / vllm-0.3.3"}


def test_a_machine_slower_than_its_profile_is_outside_and_the_logs_part(tmp_path: Path) -> None:
    slow = {"profile_values": {"step.base": 80_000_000.0}}
    run = pretend(tmp_path / "slow", "fastswitch", **slow)
    scenario = run / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("80000000.0", "33100000.0"))
    found = predict([run], PROFILE)
    tbt = next(line for line in found.lines if line.metric == "tbt_p50_s")
    assert tbt.error is not None
    assert tbt.error < -0.4
    assert tbt.is_within is False
    [parted] = found.divergences
    assert 0 < parted.equal_lines < parted.lines
    assert parted.first.startswith("step ")


def test_repeats_widen_the_bar_by_their_spread() -> None:
    calm = Line("s", "ttft_p50_s", 2.0, 0.0, 2.3)
    rough = Line("s", "ttft_p50_s", 2.0, 0.4, 2.3)
    assert calm.bar == 0.10
    assert rough.bar == pytest.approx(0.3)
    assert (calm.is_within, rough.is_within) == (False, True)
    assert calm.error == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("measured", "predicted", "error"), [(0.0, 0.0, 0.0), (0.0, 1.0, None), (None, 1.0, None)]
)
def test_nothing_is_said_where_nothing_was_measured(
    measured: float | None, predicted: float, error: float | None
) -> None:
    line = Line("s", "stall_share", measured, None, predicted)
    assert line.error == error
    assert line.is_within is None


def test_runs_of_one_system_are_repeats(tmp_path: Path) -> None:
    runs = [pretend(tmp_path / str(k), "fastswitch") for k in range(3)]
    found = predict(runs, PROFILE)
    assert found.repeats == {"fastswitch": 3}
    assert {line.spread for line in found.lines if line.measured is not None} == {0.0}


def test_a_simulated_run_is_no_measurement(tmp_path: Path) -> None:
    run = pretend(tmp_path / "run", "fastswitch")
    path = run / "run.json"
    path.write_text(path.read_text().replace('"machine": "real"', '"machine": "simulated"'))
    with pytest.raises(ConfigError, match="is no whole run of a real machine"):
        predict([run], PROFILE)


def test_runs_of_different_scenarios_are_not_repeats(tmp_path: Path) -> None:
    runs = [pretend(tmp_path / "a", "fastswitch"), pretend(tmp_path / "b", "fastswitch", seed=1)]
    with pytest.raises(ConfigError, match="differs from the first run in seed"):
        predict(runs, PROFILE)


def test_a_run_that_served_something_else_than_its_scenario_is_refused(tmp_path: Path) -> None:
    run = pretend(tmp_path / "run", "fastswitch")
    scenario = run / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("conversations: 40", "conversations: 39"))
    with pytest.raises(ConfigError, match="served other turns than its scenario's workload"):
        predict([run], PROFILE)


def test_the_command_writes_table_data_and_figure(tmp_path: Path) -> None:
    run = pretend(tmp_path / "run", "fastswitch")
    out = tmp_path / "checked"
    arguments = ["validate", str(run), "--profile", PROFILE, "--out", str(out)]
    result = CliRunner().invoke(fastswitch.main, arguments)
    assert result.exit_code == 0, result.output
    assert "0 outside" in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "prediction.json",
        "prediction.png",
        "prediction.txt",
    ]
    data = json.loads((out / "prediction.json").read_text())
    assert data["lines"][0]["error"] == 0.0


def test_replay_or_profile_but_not_both(tmp_path: Path) -> None:
    for extra in ([], ["--replay", "--profile", PROFILE]):
        result = CliRunner().invoke(fastswitch.main, ["validate", str(tmp_path), *extra])
        assert result.exit_code == 2
        assert "--replay or --profile P" in result.output
    result = CliRunner().invoke(fastswitch.main, ["validate", "x", "--replay", "--out", "y"])
    assert result.exit_code == 2
    assert "a replay writes nothing" in result.output
