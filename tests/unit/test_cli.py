"""The command, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import fastswitch
from tests.helpers.sweeps import SCENARIO

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    **SCENARIO,
    "name": "small",
    "systems": ["vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch"],
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, [str(a) for a in arguments])


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_simulate_leaves_a_whole_recording(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("simulate", scenario, "--out", out, "--decisions", "--check", "full")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "copies.parquet",
        "decisions.jsonl",
        "preemptions.parquet",
        "replay.jsonl",
        "requests.parquet",
        "run.json",
        "scenario.yaml",
        "spans.parquet",
        "steps.parquet",
        "waits.parquet",
        "workload.parquet",
    ]
    summary = json.loads((out / "run.json").read_text())
    metrics = summary["metrics"]
    assert metrics["finished"] + metrics["rejected"] == metrics["rows"]
    assert summary["verdict"] is None


def test_set_beats_the_file(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("simulate", scenario, "--out", out, "--json")
    result = run(*command, "--set", "system=vllm-0.3.3", "--set", "order=fcfs")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["system"], summary["order"], summary["planner"]) == (
        "vllm-0.3.3",
        "fcfs",
        "release",
    )


def test_an_old_name_is_an_alias_where_the_release_does_not_know_the_order(
    scenario: Path, tmp_path: Path
) -> None:
    result = run("simulate", scenario, "--out", tmp_path / "run", "--json", "--set", "system=-keep")
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "0.3.3" in line]
    assert said == ["under markov, which vLLM 0.3.3 does not know: -keep is paged-keep"]
    summary = json.loads(result.stdout)
    assert (summary["system"], summary["planner"]) == ("vllm-0.3.3-keep", "rules")


def test_compare_writes_everything_it_prints(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("compare", scenario, "--seeds", 2, "--out", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.csv",
        "compare.html",
        "compare.json",
        "compare.tex",
        "compare.txt",
        *(f"frontier.{kind}" for kind in ("csv", "png", "svg")),
        "lock",
        *(f"mechanisms.{kind}" for kind in ("csv", "png", "svg")),
        *(f"speedups.{kind}" for kind in ("csv", "png", "svg")),
        "study.sqlite",
        *(f"tails.{kind}" for kind in ("csv", "png", "svg")),
        *(f"timeline.{kind}" for kind in ("csv", "png", "svg")),
    ]
    found = json.loads((out / "compare.json").read_text())
    assert list(found["systems"]) == SMALL["systems"]
    assert all(len(system["runs"]) == 2 for system in found["systems"].values())
    for heading in ("TTFT P95 s", "stall share %", "Times better than vllm-0.3.3-keep"):
        assert heading in result.stdout
    page = (out / "compare.html").read_text()
    for loads in ("<script", "src=", 'href="http', "url(http", "@import"):
        assert loads not in page


def test_compare_gives_the_same_bytes_with_one_worker_and_with_two(
    scenario: Path, tmp_path: Path
) -> None:
    texts = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        assert (
            run("compare", scenario, "--seeds", 2, "--out", out, "--workers", workers).exit_code
            == 0
        )
        found = json.loads((out / "compare.json").read_text())
        del found["provenance"]
        figures = [(out / f"{name}.svg").read_bytes() for name in ("tails", "timeline")]
        texts.append((json.dumps(found), (out / "compare.csv").read_text(), figures))
    assert texts[0] == texts[1]


def in_process(scenario: Path, out: Path, **environment: str) -> dict[str, bytes]:
    """Simulate in a fresh process; the bytes of everything but provenance."""
    command = [sys.executable, "-m", "fastswitch", "simulate", str(scenario), "--decisions"]
    subprocess.run(
        [*command, "--out", str(out)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    found = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    summary = json.loads(found.pop("run.json"))
    del summary["provenance"]
    return {**found, "run.json": json.dumps(summary).encode()}


def test_recordings_are_equal_to_the_byte_under_three_hash_seeds(
    scenario: Path, tmp_path: Path
) -> None:
    runs = [
        in_process(scenario, tmp_path / f"run{seed}", PYTHONHASHSEED=str(seed))
        for seed in (0, 1, 2)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_where_the_release_aborts_the_run_ends_with_that_verdict(
    scenario: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    values = ("--set", "system=vllm-0.3.3", "--set", "order=fcfs", "--set", "pool.host_blocks=1")
    result = run("simulate", scenario, "--out", out, *values)
    assert result.exit_code == 5
    assert "vLLM 0.3.3 aborts its engine here" in result.output
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    assert metrics["unfinished"] > 0


ERRORS = {
    "no such scenario": (("simulate", "nowhere", "--out", "x"), 2, "neither a file nor one of"),
    "bad value": (("simulate", "{s}", "--out", "x", "--set", "pool.block_size=0"), 2, "block_size"),
    "unknown key": (("simulate", "{s}", "--out", "x", "--set", "pool.blocks=1"), 2, "pool.blocks"),
    "bad set": (("simulate", "{s}", "--out", "x", "--set", "nonsense"), 2, "name=value"),
    "unknown system": (("compare", "{s}", "--systems", "vllm-9"), 2, "vllm-9"),
    "no system": (("compare", "{s}", "--systems", ""), 2, "'' is not one of"),
    "no container": (("trace", "generate", "chat", "--out", "x.txt"), 2, "ends in none of .jsonl"),
    "no runs": (("compare", "{s}", "--seeds", "0"), 2, "--seeds"),
    "no file": (("trace", "describe", "nothing.csv"), 3, "nothing.csv"),
    "bad profile": (("config", "validate", "{s}", "--set", "profile=b200"), 2, "b200"),
    "no room": (("config", "validate", "{s}", "--set", "priority.frequency=2"), 2, "frequency"),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_is_at_most_five_lines_without_a_traceback(name: str, scenario: Path) -> None:
    arguments, code, word = ERRORS[name]
    result = run(*(str(a).replace("{s}", str(scenario)) for a in arguments))
    assert result.exit_code == code
    assert word in result.output
    assert len(result.output.strip().splitlines()) <= 5
    assert "Traceback" not in result.output


def test_debug_shows_where_an_error_comes_from() -> None:
    result = run("--debug", "simulate", "nowhere", "--out", "x")
    assert type(result.exception).__name__ == "ConfigError"


def test_a_failed_run_leaves_nothing_behind(scenario: Path, tmp_path: Path) -> None:
    workload = tmp_path / "w.jsonl"
    rows = [{"request_id": f"r{i}", "input_tokens": 5, "output_tokens": 2} for i in range(3)]
    rows[2]["input_tokens"] = -1
    workload.write_text("".join(json.dumps({**r, "arrival_s": 0.0}) + "\n" for r in rows))
    before = sorted(tmp_path.iterdir())
    result = run("simulate", scenario, "--out", tmp_path / "run", "--set", f"workload={workload}")
    assert result.exit_code == 3
    assert f"{workload}:3: input_tokens" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_no_recording_is_left_alone(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    result = run("simulate", scenario, "--out", out)
    assert result.exit_code == 2
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_generate_and_describe_agree(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl.gz"
    made = run("trace", "generate", "chat", "--conversations", 30, "--out", path)
    assert made.exit_code == 0, made.output
    found = json.loads(run("trace", "describe", path, "--json").stdout)
    assert found["sessions"] == 30
    assert f"{found['requests']} turns in 30 conversations" in made.output
    assert "30 sessions" in run("trace", "describe", path).stdout


def test_config_prints_a_schema_and_a_resolved_scenario(scenario: Path) -> None:
    schema = json.loads(run("config", "schema").stdout)
    assert "workload" in schema["properties"]
    resolved = yaml.safe_load(run("config", "validate", scenario).stdout)
    assert resolved["pool"]["block_size"] == 16
    assert resolved["name"] == "small"


COMMANDS = [("compare",), ("simulate",), ("trace", "generate"), ("trace", "describe")]
COMMANDS += [("config", "schema"), ("config", "validate")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(command: tuple[str, ...]) -> None:
    text = run(*command, "--help").output
    assert f"fastswitch {' '.join(command)}" in text


def test_the_python_api_is_loaded_when_it_is_asked_for(scenario: Path) -> None:
    loaded = fastswitch.load_scenario(str(scenario))
    recording = fastswitch.simulate(loaded)
    assert recording.summary["metrics"]["rows"] == recording.table("requests").num_rows
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastswitch.nothing  # noqa: B018
