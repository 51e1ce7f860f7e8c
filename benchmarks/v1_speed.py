"""Is `vllm-v1` simulated at least as fast as `fastswitch`? Output tokens per second of CPU time.

    python benchmarks/v1_speed.py [--repeats 3]

Both systems get the same scenarios, those of sim_speed.py with other numbers: light load and saturation;
a storm, in which each preempts 3,000 times at least; and queues of 1,000 and 4,000 requests that have all
come within seconds. Timed is as in sim_speed.py: the run with its tables; the best of the repeats, in CPU
time. `speed-up` is vllm-v1's tokens a second over fastswitch's; below 1 it is slower.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.sim_speed import CAPACITY, base, run_once
from runs.scenario import Scenario, build

SYSTEMS = ("fastswitch", "vllm-v1")
BURST = {
    "workload.rate": 1000.0,
    "workload.context_cap": 1024,
    "workload.think": "none",
    "order": "fcfs",
    "priority.pattern": "none",
}
POINTS: dict[str, tuple[int, dict[str, Any]]] = {
    "light": (300, {"workload.rate": 0.5 * CAPACITY}),
    "saturated": (300, {}),
    "storm": (
        1500,
        {
            "workload.rate": 20.0,
            "workload.context_cap": 1024,
            "workload.think": "none",
            "priority.pattern": "random",
            "pool.device_blocks": 700,
        },
    ),
    "queue of 1000": (1000, BURST),
    "queue of 4000": (4000, BURST),
}


def scenario_for(point: str, system: str) -> Scenario:
    """A point's scenario under a system."""
    conversations, values = POINTS[point]
    return build(base(conversations), "v1-speed").with_values({**values, "system": system})


def main() -> None:
    """Print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", default=",".join(POINTS))
    asked = parser.parse_args()
    print(
        f"{'point':15} {'system':11} {'tok/s':>9} {'us/step':>8} {'steps':>8} {'preempt':>8} {'speed-up':>8}"
    )
    line: dict[str, float] = {}
    for point in asked.points.split(","):
        best: dict[str, float] = {}
        facts: dict[str, dict[str, Any]] = {}
        for _ in range(asked.repeats):  # a slow minute then hits both
            for system in SYSTEMS:
                spent, facts[system] = run_once(scenario_for(point, system), "off")
                best[system] = min(spent, best.get(system, spent))
        speeds = {s: facts[s]["output_tokens"] / best[s] for s in SYSTEMS}
        for system in SYSTEMS:
            steps = facts[system]["steps"]
            ratio = speeds[system] / speeds["fastswitch"]
            print(
                f"{point:15} {system:11} {speeds[system]:9.0f} {best[system] / steps * 1e6:8.2f}"
                f" {steps:8d} {facts[system]['preemptions']:8d} {ratio:8.2f}",
                flush=True,
            )
        line[point] = round(speeds["vllm-v1"] / speeds["fastswitch"], 2)
    print(json.dumps({"v1_speedup_over_fastswitch": line}))


if __name__ == "__main__":
    main()
