"""What a second core gives a sweep, and what the sweep itself costs.

    python benchmarks/sweep_speed.py [--rounds N] [--trials N]

The same sweep, of trials of about a second, with one worker and with two, in turn. The ratio
of each round is taken in that round, so a slow minute hits both; printed is its median. Start of
processes, plan, writes, syncs and tables are all inside the time. The cost of the sweep is what its
own process spends beside its one worker, as a share of the time. `resume` is the time to
find a sweep of 10,000 trials complete and to make its tables again. A trial of 20 conversations is
timed too, in CPU seconds: alone in its process, and beside others, whose aged pools it may use.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from explore.studies import trial
from explore.studies.plan import expand
from explore.studies.semantics import canonical
from explore.studies.spec import load
from explore.studies.store import Store, claimed
from explore.studies.sweep import sweep


def spec(trials: int) -> dict[str, Any]:
    """A sweep of `trials` trials of about a second."""
    return {
        "name": "sweep-speed",
        "scenario": "paper-8b-a10",
        "set": {"workload.conversations": 150, "pool.device_blocks": 2000},
        "systems": ["paged-keep", "fastswitch"],
        "grid": {"workload.rate": [round(0.05 * 1.1**i, 6) for i in range(trials // 2)]},
    }


def timed(trials: int, workers: int, folder: Path) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds of this process alone, and the digest."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = sweep(spec(trials), folder, workers=workers)
    assert found.done == found.trials == trials
    return time.perf_counter() - wall, time.process_time() - cpu, found.digest


def resumed(done: Path, folder: Path) -> float:
    """Seconds to go on with 10,000 trials that are all there: copies of one result of `done`."""
    many = {**spec(2), "grid": {"seed": list(range(5000))}}
    result = next(filter(None, map(Store(done).result, Store(done).plan().keys)))
    plan = expand(load(many))
    with claimed(folder) as store:
        store.write_plan(plan)
        for key in plan.keys:
            store.keep(key, result)
    begin = time.perf_counter()
    assert sweep(many, folder, workers=1).done == 10_000
    return time.perf_counter() - begin


def small_trials(rounds: int) -> tuple[float, float]:
    """CPU seconds of a trial of 20 conversations: alone, and beside others. The least of some rounds."""
    given = {
        "name": "small-trials",
        "scenario": "paper-8b-a10",
        "set": {"workload.conversations": 20},
        "systems": ["paged-keep", "fastswitch"],
        "grid": {"workload.rate": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]},
    }
    plan = expand(load(given))
    common = {"seconds": None, "memory_mb": None}
    asks = [canonical({"key": t.key, "scenario": t.scenario, **common}) for t in plan.trials]
    least = [math.inf, math.inf]
    for _ in range(rounds):
        for kind in (0, 1):
            begin = time.process_time()
            for ask in asks:
                if not kind:
                    trial.POOLS.clear()
                assert "result" in json.loads(trial.run_trial(ask))
            least[kind] = min(least[kind], (time.process_time() - begin) / len(asks))
    return least[0], least[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    ratios, shares, digests = [], [], set()
    print(f"{'round':>5} {'1 worker s':>11} {'2 workers s':>12} {'ratio':>6} {'own cost':>9}")
    with tempfile.TemporaryDirectory() as name:
        one = Path(name)
        for number in range(options.rounds):
            one, two = Path(name) / f"{number}-1", Path(name) / f"{number}-2"
            alone, cpu, digest = timed(options.trials, 1, one)
            both, _, other = timed(options.trials, 2, two)
            digests |= {digest, other}
            ratios.append(alone / both)
            shares.append(cpu / alone)
            print(f"{number:>5} {alone:>11.1f} {both:>12.1f} {ratios[-1]:>6.2f} {shares[-1]:>9.1%}")
        resume = resumed(one, Path(name) / "many")
    alone, beside = small_trials(options.rounds)
    print(f"a trial of 20 conversations: {alone:.3f} CPU s alone, {beside:.3f} beside others")
    found = {
        "trials": options.trials,
        "cores": os.cpu_count(),
        "ratio_of_two_workers": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "own_cpu_share": round(statistics.median(shares), 4),
        "resume_s_per_10000": round(resume, 2),
        "small_trial_cpu_s": round(beside, 4),
        "small_trial_alone_cpu_s": round(alone, 4),
        "tables_equal": len(digests) == 1,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
