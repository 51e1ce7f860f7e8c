"""Calibration of the real machine, with a tiny model: points, resuming, a profile the simulator takes."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

import fastswitch
from calibrate import machine, measure
from calibrate.bench import all_points
from calibrate.grid import Limits, decode_points
from calibrate.header import header_of
from calibrate.points import FEATURES, read
from calibrate.timers import Background, Timers, contexts_of, make_job, work_for
from policy.errors import ConfigError
from policy.plan import Direction
from tests.helpers.swapping import one_thread

SMALL = Limits(max_batch=4, max_context=64, max_tokens=256, max_prefill=32, copy_blocks=4)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def target() -> machine.Target:
    return machine.prepare("random:tiny", "cpu", limits=SMALL)


def test_every_kind_of_point_but_submit_is_timed_on_a_cpu(target: machine.Target) -> None:
    kinds = {point.kind for point in all_points(target.bench)}
    assert kinds == set(FEATURES) - {"submit"}


def test_on_a_device_the_calls_of_a_job_are_timed_apart_from_its_bytes(
    target: machine.Target,
) -> None:
    on_cuda = dataclasses.replace(target.bench, device=torch.device("cuda"))
    points = all_points(on_cuda)
    submits = [point for point in points if point.kind == "submit"]
    assert submits and {point.features for point in submits} < {
        point.features for point in points if point.kind == "copy"
    }
    assert {point["system"] for point in submits} == {
        "vllm-0.3.3-keep", "+groups", "+block-major", "+batched"
    }  # fmt: skip
    timers = Timers(target.bench)
    try:  # on a CPU the same code takes as long as the copy, which it also is
        assert 0 < timers(submits[0]) < 10**9
    finally:
        timers.close()


def test_a_stopped_calibration_goes_on_and_no_sample_is_taken_twice(
    target: machine.Target, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    some = random.Random(0).sample(all_points(target.bench), 12)
    left = [30]

    class Stopped(Exception):
        pass

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            raise Stopped

    arguments = {"repeats": 5, "points": some}
    with torch.inference_mode(), pytest.raises(Stopped):
        measure.measure(target.bench, path, target.header, progress=stop, **arguments)  # type: ignore[arg-type]
    assert sum(map(len, read(path).samples.values())) == 30
    measure.measure(target.bench, path, target.header, **arguments)  # type: ignore[arg-type]
    points = read(path)
    assert {point: len(values) for point, values in points.samples.items()} == dict.fromkeys(
        some, 5
    )
    assert not points.problems
    assert header_of(points).model.name == "tiny"


def test_samples_of_another_model_are_not_mixed_in(target: machine.Target, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    other = {**target.header, "dtype": "bfloat16"}
    path.write_text(json.dumps({"format": "fastswitch-points/1", **other}) + "\n")
    with pytest.raises(ConfigError, match="holds samples of dtype 'bfloat16'"):
        machine.run(target, path)


@pytest.mark.parametrize("point", decode_points(SMALL), ids=str)
def test_a_decode_point_is_the_step_it_says(point: object) -> None:
    from calibrate.points import Point

    assert isinstance(point, Point)
    contexts = contexts_of(point["batch"], point["kv_tokens"], point["longest"])
    assert (len(contexts), max(contexts)) == (point["batch"], point["longest"])
    assert sum(contexts) == point["kv_tokens"]
    tables = [block for work in work_for(contexts, []) for block in work.table]
    assert len(tables) == len(set(tables))


@pytest.mark.parametrize(("blocks", "runs"), [(1, 1), (7, 3), (8, 8)])
def test_a_job_has_the_blocks_and_runs_it_says(blocks: int, runs: int) -> None:
    job = make_job(0, Direction.TO_HOST, blocks, runs, first=5)
    assert (job.num_blocks, len(job.runs)) == (blocks, runs)
    assert sum(length for _, _, length in job.runs) == blocks


def test_the_other_direction_is_busy_while_it_says_so(target: machine.Target) -> None:
    timers = Timers(target.bench)
    store = target.bench.store("layer_major")
    last = store.device.num_blocks - 1  # the scratch block is behind it
    store.device.keys(0)[last] = 7.0
    background = Background(store, timers.runtime, Direction.TO_HOST, 4, on=True)
    with background:
        pass
    assert bool((store.host.keys(0)[last] == 7.0).all())
    timers.close()
    store.close()


def test_the_roofline_names_what_a_step_must_take(target: machine.Target) -> None:
    lines = machine.roofline(target)
    assert "GB/s" in lines[0]
    assert any(line.startswith("a decode step of 4 with 256 tokens") for line in lines)


def test_the_command_makes_a_profile_that_the_simulator_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPU_LIMITS", SMALL)
    out = tmp_path / "cpu.json"
    arguments = ["calibrate", "--model", "random:tiny", "--repeats", "5", "--out", str(out)]
    result = CliRunner().invoke(fastswitch.main, arguments)
    assert result.exit_code == 0, result.output
    assert "held-out points" in result.output
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "cpu2.json"
    points = tmp_path / "cpu.points.jsonl"
    result = CliRunner().invoke(
        fastswitch.main, ["calibrate", "--from", str(points), "--out", str(again)]
    )
    assert result.exit_code == 0, result.output
    first, second = (json.loads(path.read_text()) for path in (out, again))
    assert {**first, "name": ""} == {**second, "name": ""}
    run = tmp_path / "run"
    result = CliRunner().invoke(
        fastswitch.main,
        ["simulate", "cpu-smoke", "--set", f"profile={out}", "--out", str(run)],
    )
    assert result.exit_code == 0, result.output
    assert "24 finished" in result.output
    assert "measured profile cpu" in result.output


#: Whatever runs the tests in the background may have had the signal ignored.
_INTERRUPTIBLE = """
import signal

import fastswitch

signal.signal(signal.SIGINT, signal.default_int_handler)
fastswitch.main()
"""


def test_ctrl_c_keeps_every_sample_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    points = tmp_path / "mine.points.jsonl"
    arguments = ["calibrate", "--model", "random:tiny", "--repeats", "1000", "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while child.poll() is None and (not points.exists() or points.stat().st_size < 20_000):
            threading.Event().wait(0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert "run it again to go on" in said
    assert "Traceback" not in said
    kept = read(points)
    assert not kept.problems
    assert sum(map(len, kept.samples.values())) > 100
    assert not out.exists()
