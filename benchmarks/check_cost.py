"""What checking every law after every decision costs, beside checking counts.

    python benchmarks/check_cost.py [--conversations 20] [--repeats 3] [--systems a,b,c] [--profile SYSTEM]

Runs `make demo`'s scenario with each of its systems, once with `--check off`, `counts` and `full` each,
and prints CPU seconds of the run itself (reading the workload and ageing of pools left out), the best of
the repeats, how often the laws were checked, and `full` / `counts`. `--profile` says where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from dataclasses import replace

from policy.scheduler import Scheduler
from runs.recorder import Recorder
from runs.scenario import Scenario, load
from runs.serving import CHECKS, Kept, make_scheduler
from sim import simulate as machine
from traces.workload import Workload

SYSTEMS = (
    "paged", "paged-keep", "+groups", "+reuse", "fastswitch", "+block-major", "+batched",
    "vllm-v1", "vllm-v1+swap", "vllm-v1+offload", "fastswitch-prefix",
)  # fmt: skip


def run(scenario: Scenario, check: str, kept: Kept) -> tuple[float, int]:
    """CPU seconds of a run, and how many decisions and updates it had."""
    setup = machine.prepare(scenario)
    setup = replace(setup, workload=Workload.of(setup.workload, setup.workload.header))
    scheduler = make_scheduler(setup, kept=kept)
    recorder = Recorder()
    engine = machine.make_engine(setup, scheduler, recorder, check)
    calls = 0
    proper = engine._check

    def counted(checked: Scheduler) -> None:
        nonlocal calls
        calls += 1
        if proper is not None:
            proper(checked)

    if proper is not None:
        engine._check = counted
    begin = time.process_time()
    with machine.calm_collector():
        engine.env.run(until=engine.env.process(engine.run()))
    spent = time.process_time() - begin
    recorder.close({"link_bytes_per_s": {"h2d": 1.0, "d2h": 1.0}})
    return spent, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--profile", metavar="SYSTEM", help="print a profile of its full checks")
    options = parser.parse_args()
    kept = Kept()
    base = load("paper-8b-a10").with_values({"workload.conversations": options.conversations})
    if options.profile:
        profiler = cProfile.Profile()
        scenario = base.with_values({"system": options.profile})
        run(scenario, "off", kept)
        profiler.runcall(run, scenario, "full", kept)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        return
    found: dict[str, dict[str, float]] = {}
    print(f"{'system':20} {'checks':>8} {'off':>8} {'counts':>8} {'full':>8} s {'full/counts':>12}")
    for system in options.systems.split(","):
        scenario = base.with_values({"system": system})
        best = dict.fromkeys(CHECKS, float("inf"))
        calls = 0
        for _ in range(options.repeats):
            for check in CHECKS:
                spent, calls = run(scenario, check, kept)
                best[check] = min(best[check], spent)
        ratio = best["full"] / best["counts"]
        print(
            f"{system:20} {calls:8d} {best['off']:8.3f} {best['counts']:8.3f} {best['full']:8.3f}"
            f"   {ratio:11.1f}x",
            flush=True,
        )
        found[system] = {"checks": calls, **{k: round(v, 4) for k, v in best.items()}}
        found[system]["ratio"] = round(ratio, 2)
    print(json.dumps({"conversations": options.conversations, "systems": found}))


if __name__ == "__main__":
    main()
