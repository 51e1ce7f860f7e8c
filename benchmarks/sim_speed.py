"""How fast the simulator is: output tokens simulated per second of CPU time on one core.

    python benchmarks/sim_speed.py [--quick] [--point POINT] [--growth] [--profile SYSTEM]

Four operating points of one machine (A10 costs, chat conversations with an 8k cap; the pool is
larger than an A10's so that about 28 requests decode at once near saturation):

    light       half of capacity
    saturated   Markov priorities every 25 steps, at the rate the system can just serve
    storm       Random priorities every 25 steps at 1.2 times the rate that paged-keep can just
                serve, and a third of the host memory

Timed is the run itself with its tables recorded; workload, ageing of pools and metrics are not.
Each figure is the best of five runs in CPU time (with the median beside it). Machines are noisy:
compare only figures of one run of this script. `--growth` runs 1,000 to 100,000 conversations at
0.8 of capacity and prints time and peak memory; `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import json
import pstats
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from runs.metrics.summary import summarise
from runs.recorder import Recorder
from runs.scenario import Scenario, build
from runs.serving import make_scheduler
from sim import simulate as machine
from traces.workload import Workload

SYSTEMS = ("paged", "paged-keep", "+groups", "+reuse", "fastswitch", "+block-major")
CAPACITY = 0.33  # conversations per second that paged-keep can just serve on this machine
GROUPS_CAPACITY = 0.35  # and those systems that copy in few large pieces

POINTS: dict[str, dict[str, Any]] = {
    "light": {"workload.rate": 0.5 * CAPACITY},
    "saturated": {},
    "storm": {
        "workload.rate": 1.2 * CAPACITY,
        "priority.pattern": "random",
        "pool.host_blocks": 10_240,
    },
}


def base(conversations: int) -> dict[str, Any]:
    """The scenario at saturation, as plain data."""
    return {
        "name": "sim-speed",
        "workload": {
            "generator": "chat",
            "conversations": conversations,
            "rate": CAPACITY,
            "context_cap": 8192,
            "think": "exponential",
        },
        "last_turn_known": True,
        "profile": "a10-llama-3-8b",
        "pool": {"device_blocks": 9000},
        "priority": {"pattern": "markov", "frequency": 0.04},
    }


def scenario_for(point: str, system: str, conversations: int) -> Scenario:
    values = dict(POINTS[point], system=system)
    if point == "saturated" and not system.startswith("paged"):
        values["workload.rate"] = GROUPS_CAPACITY
    return build(base(conversations), "sim-speed").with_values(values)


def run_once(scenario: Scenario, check: str) -> tuple[float, dict[str, Any]]:
    """CPU seconds of one run, and its metrics."""
    setup = machine.prepare(scenario)
    held = Workload.of(setup.workload, setup.workload.header)
    setup = replace(setup, workload=held)
    scheduler = make_scheduler(setup)
    recorder = Recorder()
    engine = machine.make_engine(setup, scheduler, recorder, check)
    gc.collect()
    begin = time.process_time()
    with machine.calm_collector():
        engine.env.run(until=engine.env.process(engine.run()))
    recording = recorder.close({"link_bytes_per_s": {"h2d": 1.0, "d2h": 1.0}})
    spent = time.process_time() - begin
    return spent, summarise(recording)


def table(points: list[str], conversations: int, repeats: int) -> dict[str, float]:
    """Print a row per point, check and system; return the best speeds."""
    best: dict[str, float] = {}
    print(
        f"{'point':10} {'checks':7} {'system':18} {'best':>9} {'median':>9} tok/s"
        f" {'batch':>6} {'preempt':>8} {'run':>6} {'us/step':>8}"
    )
    for point in points:
        cells = [(check, system) for check in ("off", "counts") for system in SYSTEMS]
        times: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
        metrics: dict[tuple[str, str], dict[str, Any]] = {}
        for _ in range(repeats):  # a slow minute of the machine then hits every cell once
            for check, system in cells:
                scenario = scenario_for(point, system, conversations)
                spent, metrics[check, system] = run_once(scenario, check)
                times[check, system].append(spent)
        for check, system in cells:
            best |= row(point, check, system, times[check, system], metrics[check, system])
    return best


def row(
    point: str, check: str, system: str, times: list[float], metrics: dict[str, Any]
) -> dict[str, float]:
    """Print one line of the table; return its best speed under its name."""
    tokens, steps = metrics["output_tokens"], metrics["steps"]
    speed = tokens / min(times)
    print(
        f"{point:10} {check:7} {system:18} {speed:9.0f} {tokens / statistics.median(times):9.0f}      "
        f" {tokens / steps:6.1f} {metrics['preemptions']:8d}"
        f" {metrics['mean_run_blocks'] or 0:6.1f} {min(times) / steps * 1e6:8.2f}",
        flush=True,
    )
    name = f"{point}_{system}_{check}".replace("+", "plus_").replace("-", "_").replace(".", "")
    return {f"{name}_tokens_per_s": round(speed)}


def growth(sizes: tuple[int, ...]) -> dict[str, float]:
    """Time and memory against the number of conversations, each in a process of its own."""
    print(
        f"\n{'conversations':>13} {'turns':>8} {'tokens':>11} {'CPU s':>8} {'tok/s':>9} {'MB':>6}"
    )
    found: dict[str, float] = {}
    for size in sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(line.splitlines()[-1])
        print(
            f"{size:13d} {row['turns']:8d} {row['tokens']:11d} {row['cpu_s']:8.1f}"
            f" {row['tokens'] / row['cpu_s']:9.0f} {row['peak_mb']:6.0f}",
            flush=True,
        )
        found[f"growth_{size}_tokens_per_s"] = round(row["tokens"] / row["cpu_s"])
        found[f"growth_{size}_peak_mb"] = row["peak_mb"]
    return found


def one(size: int) -> None:
    """A run as a user has it, recorded to disk, in this process; prints one JSON line."""
    import tempfile
    from pathlib import Path

    scenario = scenario_for("saturated", "fastswitch", size).with_values(
        {"workload.rate": 0.8 * CAPACITY}
    )
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        recording = machine.simulate(scenario, out=Path(folder) / "run", check="off")
    metrics = recording.summary["metrics"]
    print(
        json.dumps(
            {
                "turns": metrics["rows"],
                "tokens": metrics["output_tokens"],
                "cpu_s": round(time.process_time() - begin, 2),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def profile(system: str, point: str, conversations: int) -> None:
    profiler = cProfile.Profile()
    scenario = scenario_for(point, system, conversations)
    profiler.enable()
    run_once(scenario, "off")
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(30)
    print(text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer conversations, two repeats")
    parser.add_argument("--growth", action="store_true", help="1,000 to 100,000 conversations")
    parser.add_argument("--profile", metavar="SYSTEM", help="print a profile of this system")
    parser.add_argument("--point", choices=list(POINTS), help="only this one")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    if options.profile:
        profile(options.profile, options.point or "saturated", 1000)
        return
    if options.growth:
        print(json.dumps(growth((1000, 10_000, 100_000))))
        return
    conversations, repeats = (200, 2) if options.quick else (1000, 5)
    points = [options.point] if options.point else list(POINTS)
    print(json.dumps(table(points, conversations, repeats)))


if __name__ == "__main__":
    main()
