"""How often the interval of one trace, its sessions drawn anew, holds what traces give on the mean.

    python benchmarks/resample_coverage.py [--traces N] [--draws N] [--truth N]

Traces are made by a generator, so the truth can be had: the mean of a metric over many of them. Each trace
is written to a file and served `draws` times with `workload.resample`; its interval is the one that
`compare` prints. Beside it, what the same draws would claim if they counted as independent runs. Prints a
table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from explore.studies.estimates import Estimate, Ratio, estimate_of, speedup_of
from runs.scenario import build
from sim.simulate import simulate
from traces.randomness import Streams
from traces.readers.native import write
from traces.sources import open_workload

CHAT = {"generator": "chat", "conversations": 90, "rate": 0.5, "context_cap": 400, "think": "none"}
BASE: dict[str, Any] = {
    "name": "coverage",
    "profile": "a10-llama-3-8b",
    "order": "fcfs",
    "pool": {"device_blocks": 55, "host_blocks": 400, "aging": "none"},
    "limits": {"max_model_len": 400},
}
SYSTEMS = ("paged-keep", "fastswitch")
METRICS = ("ttft_p50_s", "ttft_p95_s", "throughput_live_tok_s")


def run(workload: dict[str, Any], system: str, number: int) -> dict[str, Any]:
    """Metrics and what was drawn."""
    found = simulate(
        build({**BASE, "workload": workload, "system": system, "run": number}, "coverage")
    )
    return {"metrics": found.summary["metrics"], "workload": found.summary["workload"]}


def traced(number: int, path: Path) -> None:
    """The generator's trace of a run, as a file."""
    spec = build({**BASE, "workload": CHAT}, "coverage").workload
    write(open_workload(spec, Streams(0, number)), path)


def naive(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same runs, taken for independent ones."""
    return [{"metrics": one["metrics"]} for one in results]


def holds(found: Estimate | Ratio, truth: float) -> bool | None:
    """Whether the interval holds it; None without one."""
    if isinstance(found, Ratio):
        if found.value is None or found.factor is None:
            return None
        return found.value / found.factor <= truth <= found.value * found.factor
    if found.interval is None:
        return None
    return found.interval[0] <= truth <= found.interval[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=40)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--truth", type=int, default=150)
    asked = parser.parse_args()
    many = {s: [run(CHAT, s, 10_000 + k) for k in range(asked.truth)] for s in SYSTEMS}
    ours, theirs = many["fastswitch"], many["paged-keep"]
    truth = {
        **{name: estimate_of(ours, name).value for name in METRICS},
        "times better, TTFT P95": speedup_of(ours, theirs, "ttft_p95_s").value,
    }
    held: dict[tuple[str, str], list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.traces):
            path = Path(folder) / f"{number}.jsonl"
            traced(number, path)
            drawn = {"file": str(path), "resample": True}
            each = {s: [run(drawn, s, k) for k in range(asked.draws)] for s in SYSTEMS}
            for way, of in (("one trace", list), ("as if independent", naive)):
                one, other = of(each["fastswitch"]), of(each["paged-keep"])
                found: dict[str, Estimate | Ratio] = {n: estimate_of(one, n) for n in METRICS}
                found["times better, TTFT P95"] = speedup_of(one, other, "ttft_p95_s")
                for name, estimate in found.items():
                    value = truth[name]
                    is_in = None if value is None else holds(estimate, value)
                    if is_in is not None:
                        held.setdefault((name, way), []).append(is_in)
    print(f"{'metric':<26} {'interval':<18} {'held':>6} {'of':>4} {'share':>7} {'±':>6}")
    rows = []
    for (name, way), answers in held.items():
        share = sum(answers) / len(answers)
        error = 1.96 * math.sqrt(share * (1 - share) / len(answers))
        print(
            f"{name:<26} {way:<18} {sum(answers):>6} {len(answers):>4} {share:>7.1%} {error:>6.1%}"
        )
        rows.append({"metric": name, "interval": way, "held": sum(answers), "of": len(answers)})
    print(json.dumps({"traces": asked.traces, "draws": asked.draws, "truth": truth, "rows": rows}))


if __name__ == "__main__":
    main()
