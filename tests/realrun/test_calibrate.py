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
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

import fastswitch
from calibrate import machine, measure, overhead
from calibrate.bench import all_points
from calibrate.grid import Limits, decode_points
from calibrate.header import header_of
from calibrate.points import FEATURES, Point, read
from calibrate.timers import Timers, background, contexts_of, make_job, work_for
from policy.errors import ConfigError
from policy.plan import Direction
from realrun import attention, serve
from realrun.graphs import DecodeGraphs
from realrun.pieces import Pieces
from realrun.runtime import CpuLane, CpuRuntime
from realrun.swap import SwapManager
from tests.helpers.real import ROOM, scenario, write_workload
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
    assert kinds == set(FEATURES) - {"submit", "python"}


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
    pythons = [point for point in points if point.kind == "python"]
    assert [point.features for point in pythons] == [point.features for point in submits]
    timers = Timers(target.bench)
    try:  # on a CPU the same code takes as long as the copy, which it also is
        assert 0 < timers(submits[0]) < 10**9
        assert 0 < timers(pythons[0]) < 10**9
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
    store = target.bench.store("layer_major")
    last = store.device.num_blocks - 1  # the scratch block is behind it
    store.device.keys(0)[last] = 7.0
    swap = SwapManager(
        store, CpuRuntime(), submission="merged", threads=0, clock=time.perf_counter_ns
    )
    with background(swap, Direction.TO_HOST, 4):
        pass
    assert bool((store.host.keys(0)[last] == 7.0).all())
    store.close()


class Broken(CpuRuntime):
    """A machine on which copies fail, all or those of one direction, or that refuses a submission."""

    def __init__(self, *, refuses: str = "", works_for: int = 0) -> None:
        super().__init__()
        self.refuses = refuses
        self.works_for = works_for
        self.num_lanes = 0

    def why_not(self, submission: str) -> str | None:
        return "this driver has none" if submission == self.refuses else None

    def lane(self) -> CpuLane:
        self.num_lanes += 1
        machine = self

        class Lane(CpuLane):
            def copy_each(self, pieces: Pieces) -> None:
                machine.works_for -= 1
                if machine.works_for < 0:
                    raise RuntimeError("CUDA error: misaligned address\nmore")
                super().copy_each(pieces)

            def copy_batch(self, pieces: Pieces) -> int:
                self.copy_each(pieces)
                return 1

        return Lane()


def measured(
    target: machine.Target, path: Path, runtime: Broken, points: list[Point]
) -> tuple[set[Point], dict[Point, str]]:
    """Points with samples, and those that failed, as this call has them and as the file does."""
    timers = Timers(target.bench, runtime)
    try:
        found = measure.measure(
            target.bench, path, target.header, repeats=2, points=points, timers=timers
        )
    finally:
        timers.close()
    again = read(path)
    assert not again.problems
    assert (again.samples, again.failed) == (found.samples, found.failed)
    return set(found.samples), found.failed


def test_a_copy_that_fails_is_no_fast_sample_and_ends_its_point_in_words(
    target: machine.Target, tmp_path: Path
) -> None:
    points = all_points(target.bench)
    copies = [point for point in points if point.kind == "copy"]
    busy = [p for p in points if p.kind == "interference" and p["with_copy"]]
    steps = [point for point in points if point.kind == "decode"][:2]
    wanted = [*copies[:3], *(p for p in copies if p["duplex"]), *busy, *steps]
    timed, failed = measured(target, tmp_path / "p.jsonl", Broken(), wanted)
    assert timed == set(steps)
    assert set(failed) == set(wanted) - set(steps)
    assert {why.split(":")[0] for why in failed.values()} == {
        "the copy failed", "copies in the background"
    }  # fmt: skip
    assert all("misaligned address" in why and "\n" not in why for why in failed.values())


def test_what_this_machine_cannot_submit_is_not_timed_by_other_means(
    target: machine.Target, tmp_path: Path
) -> None:
    copies = [p for p in all_points(target.bench) if p.kind == "copy"]
    runtime = Broken(refuses="batched", works_for=1 << 30)
    timed, failed = measured(target, tmp_path / "p.jsonl", runtime, copies)
    assert {point["system"] for point in failed} == {"+batched"}
    assert set(failed.values()) == {"+batched: this driver has none"}
    assert timed == set(copies) - set(failed)


def test_samples_with_the_other_direction_busy_take_no_new_lanes(target: machine.Target) -> None:
    """A lane is a stream; one made for each sample would run out and share the timed one's."""
    runtime = Broken(works_for=1 << 30)
    timers = Timers(target.bench, runtime)
    busy = next(p for p in all_points(target.bench) if p.kind == "copy" and p["duplex"])
    try:
        timers(busy)
        before = runtime.num_lanes
        for _ in range(20):
            timers(busy)
        assert runtime.num_lanes == before
    finally:
        timers.close()


def test_what_the_engine_adds_is_timed_without_a_model_or_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overhead._tiny("cpu")

    def refuse(*_: object) -> None:
        raise AssertionError("the runner computes")

    monkeypatch.setattr(serve.Runner, "step", refuse)
    monkeypatch.setattr(DecodeGraphs, "warm_up", refuse)
    assert 0 < overhead.step_overhead_ns(4, "cpu") < 10**8


def test_no_prompt_of_a_run_attends_in_a_way_that_calibration_never_timed(
    target: machine.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is paid once for a way of attending, such as planning it, is paid before a system is served."""
    seen: set[tuple[str, bool]] = set()
    proper = torch.nn.functional.scaled_dot_product_attention

    def look(q: Any, *args: Any, attn_mask: Any, is_causal: Any = None, **rest: Any) -> Any:
        if is_causal is not None:  # else it is decoding in plain torch
            seen.add((type(attn_mask).__name__, is_causal))
        return proper(q, *args, attn_mask=attn_mask, is_causal=bool(is_causal), **rest)

    monkeypatch.setattr(attention, "F", SimpleNamespace(scaled_dot_product_attention=look))
    prompts = [p for p in all_points(target.bench) if p.kind in ("prefill", "prompts", "mixed")]
    timers = Timers(target.bench)
    for point in prompts:
        timers(point)
    timers.close()
    timed, seen = seen, set()
    path = write_workload(tmp_path / "w.jsonl", seed=1)
    for system in (
        "vllm-0.3.3",
        "fastswitch",
    ):  # prompts, recomputed contexts, prompts behind a prefix
        values = {"system": system, "pool": {**ROOM, "device_blocks": 16}}
        serve.serve(
            scenario(path, **values), serve.Options(model="random:tiny"), out=tmp_path / system
        )
    assert seen and seen <= timed


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


def test_ctrl_c_keeps_every_sample_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    points = tmp_path / "mine.points.jsonl"
    arguments = ["calibrate", "--model", "random:tiny", "--repeats", "1000", "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-m", "fastswitch", *arguments],
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
