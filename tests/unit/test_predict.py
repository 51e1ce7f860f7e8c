"""Prediction beside measurement, with a simulated machine in the place of the real one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fastswitch
from calibrate.build import save
from calibrate.profile import Fit, HeldOut, load
from explore.validation import predict_text
from explore.validation.predict import DRAWS, Line, predict, within_its_error
from policy.errors import ConfigError
from runs import recording
from runs.scenario import build
from sim.costs import step_costs
from sim.simulate import simulate
from tests.helpers.pages import problems

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
    runs = [pretend(tmp_path / name, name) for name in ("paged", "fastswitch")]
    [found] = predict(runs, PROFILE).predictions
    known = [line for line in (*found.lines, *found.ratios) if line.error is not None]
    assert len(known) > 25
    assert {line.error for line in known} == {0.0}
    assert [one.equal_lines for one in found.divergences] == [
        one.lines for one in found.divergences
    ]
    assert {one.first for one in found.divergences} == {""}
    assert {line.system for line in found.ratios} == {"fastswitch / paged"}
    assert found.replays == {"paged": True, "fastswitch": True}
    assert not found.causes


def known_within(mean: float, folder: Path) -> str:
    """The profile, with such a mean error on 25 points held out."""
    held_out = HeldOut(points=25, mean=mean, p95=2 * mean, max=3 * mean, covered=0.95)
    fit = Fit(seed=0, draws=1, points=80, steps=held_out, copies=held_out, terms=())
    path = folder / f"known-{mean}.json"
    save(load(PROFILE).model_copy(update={"fit": fit}), path)
    return str(path)


def test_a_prediction_is_the_mean_of_what_the_profiles_own_error_leaves_open(
    tmp_path: Path,
) -> None:
    """Under preemption a little more or less changes every decision after it; one simulation is one draw."""
    run = pretend(tmp_path / "run", "fastswitch")
    [sure] = predict([run], known_within(0.0, tmp_path)).predictions
    for line in sure.lines:
        assert line.predicted_low == line.predicted_high == pytest.approx(line.predicted)
    [unsure] = predict([run], known_within(0.05, tmp_path)).predictions
    tbt = next(line for line in unsure.lines if line.metric == "tbt_p50_s")
    assert tbt.predicted_low is not None and tbt.predicted_high is not None
    assert tbt.predicted_low < tbt.measured < tbt.predicted_high  # type: ignore[operator]
    # 0.05 is the mean of |N(0, s)|; the level of 25 points is known to s / 5, and 9 quantiles reach 1.6 of it
    level = 0.05 * math.sqrt(math.pi / 2) / 5
    offs = [
        step_costs(one).decode_ns(1, 16) / step_costs(load(PROFILE)).decode_ns(1, 16) - 1
        for one in within_its_error(load(known_within(0.05, tmp_path)))
    ]
    assert len(offs) == DRAWS - 1
    assert min(offs) == pytest.approx(-1.59 * level, abs=0.002)
    assert max(offs) == pytest.approx(1.59 * level, abs=0.002)
    assert within_its_error(load(PROFILE)) == []


def slow(out: Path, **values: float) -> Path:
    """A run on a machine that is slower than the profile says in some number of it."""
    return pretend(out, "fastswitch", profile_values=values)


def test_a_machine_with_slower_steps_is_outside_and_the_cost_of_steps_is_blamed(
    tmp_path: Path,
) -> None:
    [found] = predict([slow(tmp_path / "a", **{"step.base": 80e6})], PROFILE).predictions
    tbt = next(line for line in found.lines if line.metric == "tbt_p50_s")
    assert tbt.error is not None
    assert tbt.error < -0.4
    assert tbt.is_within is False
    blamed = {cause.metric: cause.responsible for cause in found.causes}
    assert blamed["tbt_p50_s"] == blamed["throughput_live_tok_s"] == "steps"
    decode = next(one for one in found.costs["fastswitch"] if one.kind == "decode")
    assert -0.6 < decode.bias < -0.4


def test_a_machine_with_slower_copies_has_the_cost_of_copies_blamed(tmp_path: Path) -> None:
    run = pretend(
        tmp_path / "a", "paged", profile_values={"transfer.per_call": 400_000.0}
    )  # fmt: skip
    [found] = predict([run], PROFILE).predictions
    blamed = {cause.metric: cause.responsible for cause in found.causes}
    assert blamed["stall_share"] == "copies"
    assert next(one.bias for one in found.costs["paged"] if one.kind == "copy") < -0.5


def test_a_log_that_cannot_be_made_again_is_blamed_before_all_else(tmp_path: Path) -> None:
    run = slow(tmp_path / "a", **{"step.base": 80e6})
    path = run / "decisions.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[20])
    row["free_device_blocks"] += 1
    path.write_text("\n".join([*lines[:20], json.dumps(row), *lines[21:]]) + "\n")
    [found] = predict([run], PROFILE).predictions
    assert found.replays == {"fastswitch": False}
    assert {cause.responsible for cause in found.causes} == {"replay"}


def test_runs_without_logs_are_predicted_and_nothing_is_said_of_replay(tmp_path: Path) -> None:
    run = slow(tmp_path / "a", **{"step.base": 80e6})
    (run / "replay.jsonl").unlink()
    (run / "decisions.jsonl").unlink()
    [found] = predict([run], PROFILE).predictions
    assert found.replays == {"fastswitch": None}
    assert not found.divergences
    assert found.causes


def test_the_event_that_fell_on_the_other_side_of_a_step_is_named(tmp_path: Path) -> None:
    run = slow(tmp_path / "a", **{"step.base": 36e6})
    [found] = predict([run], PROFILE).predictions
    [parted] = found.divergences
    assert 0 < parted.equal_lines < parted.lines
    matched = re.fullmatch(
        r"(arrival|end|end of copy \d+ \w+) of (\S+): really (\S+) ms (before|after) step (\d+) began,"
        r" simulated (\S+) ms (before|after)",
        parted.event,
    )
    assert matched is not None, parted.event
    kind, name, _, really, step, _, foretold = matched.groups()
    assert really != foretold
    assert parted.first.startswith(f"step {step}: ")
    if kind == "arrival":
        rows = recording.load(run).table("requests").to_pylist()
        arrival = next(row["arrival_ns"] for row in rows if row["request_id"] == name)
        steps = recording.load(run).table("steps").to_pylist()
        begin = next(row["start_ns"] for row in steps if row["step"] == int(step))
        assert (arrival <= begin) == (really == "before")


def test_repeats_widen_the_bar_by_their_spread() -> None:
    calm = Line("s", "ttft_p50_s", 2.0, 2.0, 2.0, 2.3)
    rough = Line("s", "ttft_p50_s", 2.0, 1.8, 2.2, 2.3)
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
    line = Line("s", "stall_share", measured, None, None, predicted)
    assert line.error == error
    assert line.is_within is None


def test_runs_of_one_system_are_repeats(tmp_path: Path) -> None:
    runs = [pretend(tmp_path / str(k), "fastswitch") for k in range(3)]
    [found] = predict(runs, PROFILE).predictions
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
    with pytest.raises(ConfigError, match="differs from the first run of pretended in seed"):
        predict(runs, PROFILE)


def test_runs_of_scenarios_with_other_names_are_predicted_apart(tmp_path: Path) -> None:
    runs = [
        pretend(tmp_path / "a", "fastswitch"),
        pretend(tmp_path / "b", "fastswitch", name="other", seed=1),
    ]
    found = predict(runs, PROFILE)
    assert [one.scenario for one in found.predictions] == ["pretended", "other"]
    text = predict_text.as_text(found)
    assert text.count("0 outside") == 2


def test_runs_on_another_machine_than_the_profiles_are_told_apart(tmp_path: Path) -> None:
    run = pretend(tmp_path / "a", "fastswitch")
    data = load(PROFILE).as_json() | {"provenance": {"threads": "64"}}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    summary = json.loads((run / "run.json").read_text())
    summary["provenance"]["threads"] = 2
    (run / "run.json").write_text(json.dumps(summary))
    assert any(
        "threads: runs had 2, the profile 64" in w for w in predict([run], str(path)).warnings
    )


def test_a_run_that_served_something_else_than_its_scenario_is_refused(tmp_path: Path) -> None:
    run = pretend(tmp_path / "run", "fastswitch")
    scenario = run / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("conversations: 40", "conversations: 39"))
    with pytest.raises(ConfigError, match="served other turns than its scenario's workload"):
        predict([run], PROFILE)


def test_the_command_writes_page_tables_and_figures(tmp_path: Path) -> None:
    name = "<script>/../evil"
    run = pretend(tmp_path / "run", "fastswitch", name=name, profile_values={"step.base": 80e6})
    out = tmp_path / "checked"
    arguments = ["validate", str(run), "--profile", PROFILE, "--out", str(out)]
    result = CliRunner().invoke(fastswitch.main, arguments)
    assert result.exit_code == 0, result.output
    assert "outside" in result.output
    slug = "_script__.._evil"
    assert sorted(path.name for path in out.iterdir()) == [
        f"residuals-{slug}.png",
        f"scatter-{slug}.png",
        "validation.html",
        "validation.json",
        "validation.txt",
    ]
    [data] = json.loads((out / "validation.json").read_text())["predictions"]
    assert {line["metric"]: line["is_within"] for line in data["lines"]}["tbt_p50_s"] is False
    page = (out / "validation.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;/../evil" in page
    assert problems(page) == []
    assert page.count('<svg class="chart"') == 1 and page.count("<img") == 1
    assert "responsible for those of systems that are not: steps" in page


def test_replay_or_profile_but_not_both(tmp_path: Path) -> None:
    for extra in ([], ["--replay", "--profile", PROFILE]):
        result = CliRunner().invoke(fastswitch.main, ["validate", str(tmp_path), *extra])
        assert result.exit_code == 2
        assert "--replay or --profile P" in result.output
    result = CliRunner().invoke(fastswitch.main, ["validate", "x", "--replay", "--out", "y"])
    assert result.exit_code == 2
    assert "a replay writes nothing" in result.output
