"""Calibration within what a run needs, then whole systems served one after another under the same load."""

from __future__ import annotations

import math
import shutil
import statistics
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_bench import BLOCK, Bench
from calibrate import machine
from calibrate.bench import Bench as Calibrated
from calibrate.points import Point, Points, read
from calibrate.timers import Timers
from policy.systems import SYSTEMS
from realrun.kvstore import LAYOUTS
from realrun.serve import Options, Warm, serve
from runs.scenario import Scenario, build

Values = dict[str, Any]
#: Served in this order, the whole list as often as REPEATS says; those that there are.
WANTED = ("vllm-0.3.3", "fastswitch", "+block-major", "+batched", "vllm-v1")
REPEATS = 2
POINTS = "calibration.points.jsonl"
RUNS = "runs.tar.gz"
#: The load: so many times what the memory's contexts could be served at.
OVERLOAD = 1.5
#: Updates of priorities in a run, at the speed of its decode steps.
UPDATES = 200
#: Tokens of a reply of the chat workload, on average.
REPLY = 200
METRICS = (
    "finished", "output_tokens", "makespan_s", "throughput_live_tok_s", "ttft_p50_s", "ttft_p95_s",
    "ttft_p99_s", "tbt_p50_s", "tbt_p99_s", "stall_share", "preemptions", "copy_calls", "copy_bytes",
    "mean_run_blocks",
)  # fmt: skip


def systems() -> list[str]:
    """Those of WANTED that there are here."""
    return [name for name in WANTED if name in SYSTEMS]


def calibrate(bench: Bench, budget_s: float) -> Values:
    """Times every point as often as the sizes say; a stopped one goes on. Fit and prediction are for
    later, from the points file."""
    sizes = bench.sizes
    target = machine.prepare_with(
        bench.model(), sizes.limits, bench.device, sizes.dtype, sizes.model
    )
    stores = {(layout, BLOCK): bench.store(layout) for layout in LAYOUTS}
    timers = Timers(target.bench, bench.runtime, stores, bench.runner("layer_major"))
    path = bench.out / POINTS
    try:
        found = machine.run(target, path, repeats=sizes.samples, budget_s=budget_s, timers=timers)
    finally:
        timers.close()
    return _came_to(target.bench, found, sizes.samples)


def _came_to(bench: Calibrated, found: Points, samples: int) -> Values:
    done = sum(len(values) >= samples for values in found.samples.values())
    values: Values = {"points": done, "samples": sum(map(len, found.samples.values()))}
    left = machine.num_points(bench) - done - len(found.failed)
    if left:
        values["left"] = left
    if found.failed:
        values["failed"] = len(found.failed)
        values["first failure"] = next(iter(found.failed.values()))
    return values


class Load(NamedTuple):
    """What every system is served under: device blocks, conversations a second, priority updates a step."""

    blocks: int
    rate: float
    frequency: float


def load(bench: Bench) -> Load:
    """From the calibration: memory for a third of the largest batch that was timed, arrivals faster than it
    can be served, and UPDATES of priorities in a run. Raises LookupError without it."""
    sizes = bench.sizes
    path = bench.out / POINTS
    found = read(path).samples if path.exists() else {}
    steps = {p: statistics.median(ns) for p, ns in found.items() if p.kind == "decode"}
    if not steps:
        raise LookupError("no decode step was calibrated")
    running = max(2, sizes.limits.max_batch // 3)
    context = sizes.serve_context // 2
    nearest = min(steps, key=lambda point: _distance(point, running, running * context))
    step_s = steps[nearest] / 1e9
    rate = OVERLOAD * running / (step_s * REPLY)
    blocks = running * -(-context // BLOCK) + 2 * (sizes.serve_context // BLOCK)
    frequency = min(0.25, max(0.02, UPDATES * step_s / sizes.serve_s))
    return Load(min(blocks, sizes.device_blocks), round(rate, 3), round(frequency, 3))


def _distance(point: Point, batch: int, kv_tokens: int) -> float:
    return abs(math.log(point["batch"] / batch)) + abs(math.log(point["kv_tokens"] / kv_tokens))


def scenario(bench: Bench, system: str, given: Load) -> Scenario:
    """Chat conversations with priorities that change often, in memory for a part of them."""
    sizes = bench.sizes
    blocks, rate, frequency = given
    return build(
        {
            "name": "gpu-check",
            "description": "Chat, Markov priorities, memory for a part of the contexts.",
            "workload": {
                "generator": "chat",
                "conversations": max(8, math.ceil(1.2 * rate * sizes.serve_s)),
                "rate": rate,
                "context_cap": sizes.serve_context,
                "think": "none",
            },
            "system": system,
            "profile": "a10-llama-3-8b",
            "priority": {"pattern": "markov", "frequency": frequency},
            "pool": {
                "device_blocks": blocks,
                "host_blocks": sizes.host_blocks,
                "block_size": BLOCK,
            },
            "limits": {
                "max_model_len": sizes.serve_context,
                "max_num_seqs": sizes.limits.max_batch,
            },
            "last_turn_known": True,
        },
        "gpu-check",
    )


def served(bench: Bench, system: str, number: int) -> Values:
    """One run of so many seconds, recorded; the archive of all recordings so far is written anew."""
    given = load(bench)
    folder = bench.work / "runs" / f"{system}-{number}"
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted check left
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = scenario(bench, system, given)
    layout = made.resolve_system().transport.layout
    options = Options(bench.device.type, bench.sizes.model, str(bench.sizes.dtype)[6:])
    timer: list[threading.Timer] = []

    def stop_in_time(stop: Callable[[], None]) -> None:
        timer.append(threading.Timer(bench.sizes.serve_s, stop))
        timer[0].daemon = True
        timer[0].start()

    try:
        recording = serve(
            made,
            options,
            out=folder,
            decisions=True,
            model=bench.model(),
            warm=Warm(bench.store(layout), bench.runner(layout)),
            interruptible=stop_in_time,
        )
    finally:
        for one in timer:
            one.cancel()
    archive(bench)
    summary = recording.summary
    values = {name: summary["metrics"][name] for name in METRICS}
    return {
        **values,
        **given._asdict(),
        "enough preemptions": values["preemptions"] >= bench.sizes.min_preemptions,
        "verdict": summary["verdict"],
        "warnings": summary["warnings"],
    }


def archive(bench: Bench) -> None:
    """All recordings in one file, whole or as it was."""
    part = bench.work / "runs.part"
    with tarfile.open(part, "w:gz") as file:
        for folder in sorted((bench.work / "runs").iterdir()):
            file.add(folder, arcname=_plain(folder.name))
    shutil.move(part, bench.out / RUNS)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def restore(earlier: Path, bench: Bench) -> None:
    """Recordings of an earlier, stopped check, so that the archive keeps them."""
    if (earlier / RUNS).exists():
        with tarfile.open(earlier / RUNS) as file:
            file.extractall(bench.work / "runs", filter="data")
