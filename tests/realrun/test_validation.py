"""The one-command experiment, on a CPU with a tiny model: stopped, resumed, reported."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from benchmarks import validation, validation_workloads
from calibrate import machine
from calibrate.grid import Limits
from calibrate.points import Point, Points, read
from runs.scenario import SCENARIOS
from tests.helpers.swapping import one_thread
from traces.readers.catalog import read_workload

SMALL = Limits(max_batch=4, max_context=64, max_tokens=256, max_prefill=32, copy_blocks=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def small_scenario(folder: Path) -> Path:
    """Eight requests with room for three of them."""
    rows = [{"format": "fastswitch-workload/1", "timing": "open"}]
    rows += [
        {
            "request_id": f"r{index}",
            "session_id": f"r{index}",
            "turn": 1,
            "input_tokens": 6 + index,
            "output_tokens": 10,
            "arrival_s": 0.002 * index,
        }
        for index in range(8)
    ]  # fmt: skip
    (folder / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "name": "small",
        "workload": "w.jsonl",
        "profile": "a10-llama-3-8b",
        "priority": {"pattern": "random", "frequency": 0.5},
        "pool": {"block_size": 4, "device_blocks": 16, "host_blocks": 200, "aging": "none"},
        "limits": {"max_model_len": 40, "max_num_seqs": 4},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_it_goes_on_where_time_ran_out_and_ends_with_every_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "CPU_LIMITS", SMALL)
    monkeypatch.setattr(validation, "SAMPLES", 6)
    scenario = str(small_scenario(tmp_path))
    out = tmp_path / "out"
    same = ["--out", str(out), "--model", "random:tiny", "--scenarios", scenario, "--repeats", "2"]
    assert validation.main([*same, "--budget", "0"]) == 3
    assert "left: calibration" in capsys.readouterr().out
    assert validation.main([*same, "--part", "calibrate"]) == 0
    points = out / "machine.points.jsonl"
    taken = points.read_bytes()
    assert {len(values) for values in read(points).samples.values()} == {6}
    assert validation.main([*same, "--part", "validate", "--budget", "0"]) == 3
    assert "left: 4 runs" in capsys.readouterr().out

    assert validation.main(same) == 0
    assert points.read_bytes() == taken
    text = capsys.readouterr().out
    found = json.loads(text.splitlines()[-1])
    [prediction] = found["predictions"]
    assert prediction["repeats"] == {"paged": 2, "fastswitch": 2}
    assert prediction["replays"] == {"paged": True, "fastswitch": True}
    assert len(found["drift"]) == 2
    assert (out / "validation.html").is_file()

    run = out / "runs" / scenario.replace("/", "_") / "fastswitch-2"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    assert run / "run.json" in kept and len(kept) == 4
    (run / "run.json").unlink()  # as if it had been killed
    assert validation.main([*same, "--budget", "600"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept if path.parent != run} == {
        path: time for path, time in kept.items() if path.parent != run
    }
    assert (run / "run.json").is_file()
    shutil.rmtree(out)
    assert [one.name for one in threading.enumerate() if one.name.startswith("swap-")] == []


def test_drift_is_how_slow_each_round_was() -> None:
    points = Points({})
    for index in range(5):
        base = 1000 * (index + 1)
        points.samples[Point("decode", (index + 1, 16, 16))] = [base] * 4 + [2 * base] * 2
    assert validation.drift(points, 3) == [1.0, 1.0, 2.0]
    assert validation.drift(Points({}), 2) == [1.0, 1.0]


@pytest.mark.parametrize("name", ["chat", "agent", "bursty"])
def test_the_workloads_that_ship_are_those_the_script_makes_with_200_turns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["validation_workloads", str(tmp_path)])
    validation_workloads.main()
    file = f"validate-{name}.jsonl"
    assert (tmp_path / file).read_bytes() == (SCENARIOS / file).read_bytes()
    turns = list(read_workload(SCENARIOS / file))
    assert len(turns) >= 200
    context: dict[str, int] = {}
    for turn in turns:
        assert turn.input_tokens == context.get(turn.session_id, 0) + (turn.new_input_tokens or 0)
        context[turn.session_id] = turn.input_tokens + turn.output_tokens
    assert max(context.values()) <= 256


def test_calibration_and_runs_can_be_parts_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "CPU_LIMITS", SMALL)
    monkeypatch.setattr(validation, "SAMPLES", 6)
    monkeypatch.setitem(validation.MODELS, "cpu", "random:tiny")
    monkeypatch.setitem(validation.SCENARIOS, "cpu", (str(small_scenario(tmp_path)),))
    same = ["--full", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert validation.main(["--part", "calibrate", *same]) == 0
    assert "error on" in capsys.readouterr().out
    assert (tmp_path / "out" / "machine.json").is_file()
    assert validation.main(["--part", "validate", *same]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["predictions"][0]["repeats"] == {"paged": 3, "fastswitch": 3}


def test_a_cpus_calibration_reaches_what_its_scenarios_do_and_no_further(tmp_path: Path) -> None:
    """The largest of the scenarios', never more than is usual; without a limit, what is usual."""
    written = []
    for name, pool, limits in (
        ("small", {"device_blocks": 140, "block_size": 4}, {"max_model_len": 96}),
        ("large", {"device_blocks": 50, "block_size": 4}, {"max_num_batched_tokens": 48}),
    ):
        data = {
            "workload": {"generator": "chat", "conversations": 1, "rate": 1.0},
            "profile": "a10-llama-3-8b",
            "pool": pool,
            "limits": {"max_num_seqs": 8, **limits},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(data))
        written.append(str(path))
    usual = machine.CPU_LIMITS
    assert validation.limits_of(written[:1]) == usual._replace(
        max_batch=8, max_context=96, max_tokens=560
    )
    short = {"max_context": 200, "max_tokens": 200}  # no context is larger than its pool
    assert validation.limits_of(written[1:]) == usual._replace(max_batch=8, max_prefill=48, **short)
    assert validation.limits_of(written) == usual._replace(max_batch=8, max_tokens=560)
