"""Sweep files: what they expand to, and how each mistake is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explore.studies.plan import MAX_TRIALS, Plan, expand
from explore.studies.spec import load
from policy.errors import ConfigError, FastSwitchError, InputError
from runs.scenario import SCENARIOS
from tests.helpers.sweeps import SCENARIO, SMALL, written
from traces.yaml import parse_yaml


def planned(**parts: Any) -> Plan:
    return expand(load({"scenario": SCENARIO, "systems": ["fastswitch"], **parts}))


def values_of(plan: Plan) -> list[dict[str, Any]]:
    return [trial.values for trial in plan.trials]


# ---------------------------------------------------------------------- expansion


def test_a_grid_is_every_combination_and_the_last_path_turns_fastest() -> None:
    plan = planned(grid={"workload.rate": [1.0, 2.0], "pool.host_blocks": [10, 20]})
    assert [tuple(values.values()) for values in values_of(plan)] == [
        (1.0, 10),
        (1.0, 20),
        (2.0, 10),
        (2.0, 20),
    ]
    assert [trial.scenario["pool"]["host_blocks"] for trial in plan.trials] == [10, 20, 10, 20]


def test_a_zip_goes_row_by_row() -> None:
    plan = planned(zip={"workload.rate": [1.0, 2.0], "pool.host_blocks": [10, 20]})
    assert [tuple(values.values()) for values in values_of(plan)] == [(1.0, 10), (2.0, 20)]


def test_named_scenarios_carry_their_values_and_their_name() -> None:
    calm, storm = {"workload.rate": 0.5}, {"workload.rate": 9.0, "pool.host_blocks": 5}
    plan = planned(scenarios=[{"name": "calm", "set": calm}, {"name": "storm", "set": storm}])
    assert [trial.label for trial in plan.trials] == ["calm", "storm"]
    assert [trial.scenario["workload"]["rate"] for trial in plan.trials] == [0.5, 9.0]
    assert [trial.scenario["pool"]["host_blocks"] for trial in plan.trials] == [400, 5]


def test_parts_multiply_and_points_are_numbered_in_order() -> None:
    plan = planned(
        scenarios=[{"name": "a"}, {"name": "b", "set": {"seed": 3}}],
        grid={"workload.rate": [1.0, 2.0]},
        zip={"pool.host_blocks": [10, 20, 30]},
        sobol={"points": 4, "parameters": {"pool.device_blocks": {"low": 40, "high": 90}}},
        runs=2,
    )
    assert len(plan.trials) == 2 * 2 * 3 * 4 * 2
    assert [trial.point for trial in plan.trials] == sorted(list(range(48)) * 2)


def test_replications_share_their_random_numbers_over_points_and_systems() -> None:
    """Common random numbers: seed and run alone name the streams, and both are the same."""
    plan = expand(load({**SMALL, "runs": 3, "scenario": {**SCENARIO, "seed": 7, "run": 40}}))
    drawn: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for trial in plan.trials:
        streams = (trial.scenario["seed"], trial.scenario["run"])
        drawn.setdefault((trial.point, trial.system), []).append(streams)
    assert len(drawn) == 4
    assert set(map(tuple, drawn.values())) == {((7, 40), (7, 41), (7, 42))}
    assert [trial.run for trial in plan.trials[:3]] == [0, 1, 2]


def test_systems_are_the_sweeps_else_the_scenarios_else_its_one() -> None:
    def systems(**parts: Any) -> list[str]:
        return [trial.system for trial in expand(load(parts)).trials]

    listed = {**SCENARIO, "systems": ["vllm-0.3.3", "fastswitch"]}
    assert systems(scenario=listed, systems=["+groups"]) == ["+groups"]
    assert systems(scenario=listed) == ["vllm-0.3.3", "fastswitch"]
    assert systems(scenario=SCENARIO) == ["fastswitch"]
    assert systems(scenario=listed, grid={"system": ["+reuse", "+groups"]}) == ["+reuse", "+groups"]
    assert systems(scenario=listed, set={"system": "+reuse"}) == ["+reuse"]
    assert systems(scenario=listed, grid={"system.reuse": [True]}) == ["custom+reuse"]


def test_a_system_that_is_set_on_the_command_line_is_the_one() -> None:
    listed = {**SCENARIO, "systems": ["vllm-0.3.3", "fastswitch"]}
    plan = expand(load({"scenario": listed}), {"system": "+reuse"})
    assert [trial.system for trial in plan.trials] == ["+reuse"]
    with pytest.raises(ConfigError, match="systems: listed here, and --set says another"):
        expand(load(SMALL), {"system": "+reuse"})


def test_two_systems_of_one_name_are_refused() -> None:
    """By their names tables tell them apart."""
    two = [{"base": "fastswitch", "preemption": one} for one in ("recompute", "cost")]
    with pytest.raises(ConfigError, match=r"two that differ are called 'fastswitch\+preemption'"):
        expand(load({"scenario": SCENARIO, "grid": {"system": two}}))
    named = [{**one, "name": one["preemption"]} for one in two]
    plan = expand(load({"scenario": SCENARIO, "grid": {"system": named}}))
    assert [trial.system for trial in plan.trials] == ["recompute", "cost"]


@given(st.integers(0, 5), st.integers(-50, 50), st.integers(1, 1000), st.booleans())
def test_drawn_whole_numbers_are_whole_and_inside_their_range(
    power: int, low: int, width: int, log: bool
) -> None:
    low = abs(low) + 1
    high = low + width
    parameter = {"low": low, "high": high, "scale": "log" if log else "linear"}
    plan = planned(sobol={"points": 1 << power, "parameters": {"pool.host_blocks": parameter}})
    drawn = [values["pool.host_blocks"] for values in values_of(plan)]
    assert all(type(value) is int and low <= value <= high for value in drawn)


def test_a_log_range_has_as_many_points_in_every_tenfold() -> None:
    parameter = {"low": 0.001, "high": 1000.0, "scale": "log"}
    plan = planned(sobol={"points": 64, "parameters": {"workload.rate": parameter}})
    rates = [values["workload.rate"] for values in values_of(plan)]
    assert sum(rate < 1.0 for rate in rates) == 32
    assert all(rate == float(f"{rate:.6g}") for rate in rates)


def test_a_list_is_drawn_evenly_and_the_seed_moves_ranges() -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        parameters = {"order": ["fcfs", "vtc"], "workload.rate": {"low": 1.0, "high": 2.0}}
        return values_of(planned(sobol={"points": 8, "seed": seed, "parameters": parameters}))

    assert sorted(values["order"] for values in drawn(0)) == ["fcfs"] * 4 + ["vtc"] * 4
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_shards_divide_the_trials_and_know_each_other_not() -> None:
    plan = planned(runs=40)
    shards = [plan.shard(index, 3) for index in (1, 2, 3)]
    assert sorted(key for shard in shards for key in shard) == sorted(plan.keys)
    assert all(shards)


def test_set_is_put_over_the_base_and_under_what_is_swept() -> None:
    source = load({"scenario": SCENARIO, "systems": ["fastswitch"], "grid": {"seed": [1, 2]}})
    plan = expand(source, {"pool.host_blocks": 77, "seed": 9})
    assert [t.scenario["seed"] for t in plan.trials] == [1, 2]
    assert {t.scenario["pool"]["host_blocks"] for t in plan.trials} == {77}


def test_files_are_found_beside_the_sweep(tmp_path: Path) -> None:
    row = '{"request_id":"a","input_tokens":5,"output_tokens":2,"arrival_s":0.0}\n'
    (tmp_path / "rows.jsonl").write_text(row)
    base = {**SCENARIO, "workload": "rows.jsonl"}
    plan = expand(load(written(tmp_path, {**SMALL, "scenario": base, "grid": {}})))
    assert {t.scenario["workload"]["file"] for t in plan.trials} == {str(tmp_path / "rows.jsonl")}
    (tmp_path / "base.yaml").write_text(
        "workload: rows.jsonl\nprofile: a10-llama-3-8b\nsystem: fastswitch\n"
    )
    named = expand(load(written(tmp_path, {"name": "n", "scenario": "base.yaml"})))
    assert named.trials[0].scenario["workload"]["file"] == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "path", sorted((SCENARIOS / "sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_sweeps_that_ship_expand(path: Path) -> None:
    assert expand(load(path.stem)).trials


# ---------------------------------------------------------------------- mistakes

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"gird": {}}, "gird: Extra inputs"),
    "empty list": ({"grid": {"seed": []}}, "grid.seed: List should have at least 1"),
    "no list": ({"grid": {"seed": 3}}, "grid.seed: Input should be a valid array"),
    "unequal": ({"zip": {"seed": [1], "order": ["fcfs", "vtc"]}}, "zip: lists must be equally"),
    "no runs": ({"runs": 0}, "runs: Input should be greater"),
    "run": ({"grid": {"run": [1, 2]}}, "run: cannot be swept: replications are `runs: N`"),
    "twice": ({"grid": {"seed": [1]}, "zip": {"seed": [2]}}, "seed: swept in two places"),
    "inside": ({"grid": {"pool": [{}], "pool.host_blocks": [1]}}, "pool: pool.host_blocks is in"),
    "systems": ({"grid": {"system": ["+reuse"]}}, "systems: leave it out"),
    "same name": ({"scenarios": [{"name": "a"}, {"name": "a"}]}, "scenarios: two scenarios"),
    "range": (
        {"sobol": {"points": 2, "parameters": {"seed": {"low": 3, "high": 1}}}},
        "sobol.parameters.seed: Value error, low 3 must be below high 1",
    ),
    "log": (
        {"sobol": {"points": 2, "parameters": {"seed": {"low": 0, "high": 1, "scale": "log"}}}},
        "must be above 0 on a log scale",
    ),
    "too many": ({"runs": 1000, "grid": {"seed": list(range(200))}}, f"limit {MAX_TRIALS}"),
    "field": ({"grid": {"workload.rat": [1.0]}}, "point 0 (workload.rat=1.0): workload.rat: there"),
    "value": ({"grid": {"pool.host_blocks": [5, -5]}}, "point 1 (pool.host_blocks=-5)"),
    "system": ({"systems": ["vllm-9"]}, "vllm-9"),
    "profile": ({"grid": {"profile": ["b200"]}}, "b200"),
    "scenario": ({"scenario": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_mistake_is_told_in_few_words_with_its_field(name: str, tmp_path: Path) -> None:
    parts, words = BROKEN[name]
    path = written(tmp_path, {**SMALL, "grid": {}, **parts})
    with pytest.raises(ConfigError) as raised:
        expand(load(path))
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5


def test_a_mistake_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("scenario: paper-8b-a10\nsobol:\n  points: 4\n  parameters:\n    seed: []\n")
    with pytest.raises(ConfigError, match=r"s\.yaml:5: sobol\.parameters\.seed: "):
        load(path)
    path.write_text("scenario: paper-8b-a10\nscenarios:\n- name: a\n- nome: b\n")
    with pytest.raises(ConfigError, match=r"s\.yaml:4: scenarios\.1\.(name|nome): "):
        load(path)
    path.write_text("scenario: a\nscenario: b\n")
    with pytest.raises(ConfigError, match=r"s\.yaml:2: 'scenario' is given twice"):
        load(path)


def test_a_workload_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl: cannot be read"):
        planned(set={"workload": str(tmp_path / "nothing.jsonl")})


def test_a_sweep_that_is_no_mapping_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        load(path)
    with pytest.raises(ConfigError, match="neither a file nor one of load"):
        load("nowhere")
    with pytest.raises(ConfigError):
        load({"scenario": SCENARIO, "grid": {"seed": [float("nan")]}})


@given(st.text(max_size=200))
def test_any_text_is_a_sweep_or_a_typed_error(text: str) -> None:
    try:
        data = parse_yaml(text, "x.yaml")
        expand(load(data if isinstance(data, dict) else {}))
    except FastSwitchError:
        return


def test_the_sweep_in_the_documents_expands(tmp_path: Path) -> None:
    text = (SCENARIOS.parent / "docs" / "formats.md").read_text()
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "sobol" in b]
    path = tmp_path / "s.yaml"
    path.write_text(block)
    assert len(expand(load(path)).trials) == 2 * 2 * 16 * 2 * 3
