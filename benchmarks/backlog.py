"""What a decision costs with so many requests waiting: CPU time against the backlog.

    python benchmarks/backlog.py [--sizes 1000,10000,100000] [--systems a,b] [--orders a,b] [--served N]
        [--limit SECONDS] [--profile SYSTEM ORDER SIZE]

All requests come at once, from 64 clients with priorities 0 to 3, about 80 tokens in and 60 out, on a
device of 2,000 blocks. Timed is, apart, how long their arrival takes and how long it takes from there
until `--served` of them (1,000, or half of them all where that is less) have been answered: the same work
behind a longer line. Near-linear means that the second column hardly grows and the first grows with the
number of requests. Random priorities are drawn anew for everybody at every update, so their cost cannot
but grow with the line; so does that of `vtc`, as far as the service of many a waiting client changed.
A cell that takes more than `--limit` CPU seconds (300) ends there, and is shown as more than that.
Prints a table and a JSON line. Machines are noisy: compare figures of one machine and hour.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from runs.recorder import Recorder
from runs.scenario import build
from runs.serving import make_scheduler
from sim import simulate as machine

SYSTEMS = ("fastswitch", "fastswitch-never", "+chunked", "vllm-0.3.3", "vllm-v1")
ORDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"order": "fcfs"},
    "priority": {"order": "priority"},
    "vtc": {"order": "vtc"},
    "random": {"priority.pattern": "random", "priority.frequency": 0.04},
    "markov": {"priority.pattern": "markov", "priority.frequency": 0.04},
}
CLIENTS = 64


class Cost(NamedTuple):
    """CPU seconds; `tokens` and `steps` of the second part. `is_whole`: it was not ended by the limit."""

    arrive_s: float
    serve_s: float
    tokens: int
    steps: int
    is_whole: bool


def workload(path: Path, size: int) -> None:
    """Write the line: seeded, the same for every system and order."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"format": "fastswitch-workload/2", "timing": "open"}\n')
        for number in range(size):
            row = {
                "request_id": f"r{number:06d}",
                "session_id": f"s{number:06d}",
                "turn": 1,
                "arrival_s": 0.0,
                "input_tokens": min(600, max(8, int(rng.lognormvariate(4.2, 0.6)))),
                "output_tokens": min(300, max(4, int(rng.lognormvariate(3.9, 0.6)))),
                "client_id": f"c{rng.randrange(CLIENTS):02d}",
                "priority": rng.randrange(4),
            }
            file.write(json.dumps(row) + "\n")


def cost(path: Path, size: int, system: str, order: str, served: int, limit_s: float) -> Cost:
    """One cell. All arrive with the first plan, so that is made in the first part."""
    values = {
        "name": "backlog",
        "workload": str(path),
        "profile": "a10-llama-3-8b",
        "system": system,
        "pool": {"device_blocks": 2000, "host_blocks": 8000},
    }
    setup = machine.prepare(build(values, "backlog").with_values(ORDERS[order]))
    scheduler, recorder = make_scheduler(setup), Recorder()
    engine = machine.make_engine(setup, scheduler, recorder, "off")
    env, desk = engine.env, scheduler.desk
    env.process(engine.run())
    with machine.calm_collector():
        begin = time.process_time()
        while not desk.live:
            env.step()
        between = time.process_time()
        first, left = scheduler.step, size - served
        while len(desk.live) > left and time.process_time() - between < limit_s:
            env.step()
        end = time.process_time()
    is_whole = len(desk.live) <= left
    return Cost(between - begin, end - between, desk.clock.count, scheduler.step - first, is_whole)


def profile(path: Path, system: str, order: str, size: int, served: int) -> None:
    """Where the time goes."""
    profiler = cProfile.Profile()
    profiler.enable()
    cost(path, size, system, order, served, 1e9)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--orders", default=",".join(ORDERS))
    parser.add_argument("--served", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--profile", nargs=3, metavar=("SYSTEM", "ORDER", "SIZE"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "line.jsonl")
        if options.profile:
            system, order, size = options.profile
            workload(path, int(size))
            profile(path, system, order, int(size), min(options.served, int(size) // 2))
            return
        print(
            f"{'waiting':>8} {'system':18} {'order':9} {'arrive s':>9} {'us each':>8} {'serve s':>9}"
        )
        for size in map(int, options.sizes.split(",")):
            workload(path, size)
            served = min(options.served, size // 2)
            for system in options.systems.split(","):
                for order in options.orders.split(","):
                    if order != "fcfs" and system.startswith("vllm-0.3.3"):
                        continue  # serves in order of arrival, whatever is asked
                    cell = cost(path, size, system, order, served, options.limit)
                    more = "" if cell.is_whole else ">"
                    print(
                        f"{size:8d} {system:18} {order:9} {cell.arrive_s:9.2f}"
                        f" {cell.arrive_s / size * 1e6:8.1f} {more + f'{cell.serve_s:.2f}':>9}",
                        flush=True,
                    )
                    found[f"{size} {system} {order}"] = [
                        round(cell.arrive_s, 3),
                        round(cell.serve_s, 3) if cell.is_whole else None,
                    ]
    print(json.dumps({"served": options.served, "arrive_and_serve_s": found}))


if __name__ == "__main__":
    main()
