"""How fast a fleet is simulated, beside the same engine alone.

    python benchmarks/fleet_speed.py [--replicas 1,8,32] [--router sticky-least]

Chat on the A10 costs, FastSwitch, 200 conversations a replica, checks off, in memory. Tokens per CPU second
of the run itself (metrics and building are apart), as a share of the engine's alone in the same process;
CPU seconds to build a replica; resident memory above that of one replica. `scraped` is llm-d-default with
signals every 50 ms. Machines are noisy: compare figures of one run of this script only.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from runs.fleet_lines import Lines
from runs.recorder import Recorder
from runs.scenario import Scenario, build
from runs.serving import Kept, make_scheduler
from sim import simulate as machine
from sim.fleet.simulate import assembled, parts_of, router_of
from traces.randomness import Streams

EACH = 200


def scenario(replicas: int, router: str) -> Scenario:
    """The same load for each replica."""
    return build(
        {
            "name": "fleet-speed",
            "workload": {
                "generator": "chat",
                "conversations": EACH * replicas,
                "rate": 0.33 * replicas,
                "context_cap": 8192,
                "think": "exponential",
            },
            "profile": "a10-llama-3-8b",
            "pool": {"device_blocks": 9000},
            "replicas": replicas,
            "router": router,
        },
        "fleet-speed",
    )


def resident_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def alone() -> float:
    """Tokens per CPU second of the engine by itself."""
    values = {"replicas": [], "router": "sticky-least"}
    setup = machine.prepare(scenario(1, "sticky-least").with_values(values))
    recorder = Recorder()
    engine = machine.make_engine(setup, make_scheduler(setup), recorder, "off")
    begin = time.process_time()
    with machine.calm_collector():
        engine.env.run(until=engine.env.process(engine.run()))
    spent = time.process_time() - begin
    rows = recorder.close({}).table("requests")["output_tokens"].to_pylist()
    return float(sum(rows) / spent)


def fleet(replicas: int, router: str) -> dict[str, Any]:
    """One size behind one router."""
    given = scenario(replicas, router)
    gc.collect()
    before, begin = resident_mb(), time.process_time()
    with ExitStack() as files:
        parts = list(parts_of(given, None, None, False, Kept(), files))
        lines = Lines(None, decisions=False)
        made = assembled(given, router_of(router, Streams(given.seed)), lines, parts, "off", None)
        built, idle = time.process_time() - begin, resident_mb() - before
        begin = time.process_time()
        with machine.calm_collector():
            made.run()
        spent = time.process_time() - begin
        tokens = sum(
            sum(part.recorder.close({}).table("requests")["output_tokens"].to_pylist())
            for part in parts
        )
    return {
        "replicas": replicas,
        "router": router,
        "tokens": tokens,
        "tok_per_cpu_s": tokens / spent,
        "build_cpu_s": built,
        "idle_mb_each": idle / replicas,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", default="1,8,32")
    parser.add_argument("--routers", default="sticky-least,llm-d-default")
    given = parser.parse_args()
    alone()  # warm
    speed = max(alone(), alone())
    print(f"alone: {speed / 1e6:.2f} M tokens per CPU s")
    print(
        f"{'N':>4} {'router':16} {'M tok':>7} {'M tok/s':>8} {'share':>6} {'build s':>8} {'MB each':>8}"
    )
    rows = []
    for replicas in map(int, given.replicas.split(",")):
        for router in given.routers.split(","):
            row = fleet(replicas, router)
            row["share_of_alone"] = row["tok_per_cpu_s"] / speed
            rows.append(row)
            print(
                f"{replicas:4} {router:16} {row['tokens'] / 1e6:7.2f} {row['tok_per_cpu_s'] / 1e6:8.2f}"
                f" {row['share_of_alone']:6.2f} {row['build_cpu_s']:8.2f} {row['idle_mb_each']:8.1f}"
            )
    print(json.dumps({"alone_tok_per_cpu_s": speed, "rows": rows}))


if __name__ == "__main__":
    main()
