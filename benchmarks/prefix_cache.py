"""Prefix sharing in the simulator against an offline cache over the same hash_ids.

    FASTSWITCH_TRACES=FOLDER python benchmarks/prefix_cache.py

FOLDER holds a file whose name begins with mooncake_conversation_trace. Counted are trace blocks
(512 tokens):

    references   every hash id of every prompt
    any hit      ids seen in an earlier prompt: an infinite cache, as such traces are described
    usable       of those, what an engine can take: full blocks, a prefix that was computed before,
                 and one token at least left to compute

The simulator is asked for the third: it never shares a block that is not full nor all of a prompt.
`sequential` serves one prompt after the other, so that nothing is still being computed when the
next one asks; with room for all blocks it must find exactly `usable`, and with less what an LRU of
that many blocks finds, but for the room of the prompt being served. `as recorded` uses the trace's
own arrivals and lengths: prompts of one prefill step cannot use each other's blocks, and `missed`
says how many that were. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runs.recorder import Recorder
from runs.scenario import build
from runs.serving import make_scheduler
from sim import simulate as machine
from traces.readers.catalog import read_workload
from traces.workload import Turn, Workload

STEM = "mooncake_conversation_trace"
POOL_BLOCK = 16
MODEL_LEN = 1 << 18
#: Sequential prompts are this far apart: longer than any of them takes.
APART_NS = 10_000 * 1_000_000_000
#: Room for so many trace blocks, beside room for everything.
LIMITED = (2_000, 10_000, 50_000)


@dataclass
class Counted:
    """Trace blocks. `hits`: found on the device; `seconds`: of CPU."""

    hits: int
    looked_up: int
    evicted: int
    seconds: float


def full_blocks(turn: Turn, size: int) -> tuple[int, ...]:
    """Ids of the blocks that the prompt fills."""
    return (turn.hash_ids or ())[: turn.input_tokens // size]


def usable(turn: Turn, size: int) -> tuple[int, ...]:
    """Those of them that it may take from a cache: one token must be left."""
    return (turn.hash_ids or ())[: (turn.input_tokens - 1) // size]


def offline_any(turns: Iterable[Turn]) -> tuple[int, int]:
    """References, and ids that an earlier reference named."""
    seen: set[int] = set()
    references = hits = 0
    for turn in turns:
        for block in turn.hash_ids or ():
            references += 1
            hits += block in seen
            seen.add(block)
    return references, hits


def offline_lru(turns: Iterable[Turn], size: int, capacity: int | None) -> int:
    """Hits of a cache of `capacity` blocks, the one unused for longest given up; None: infinite.
    Of one prompt the last block counts as the one used first."""
    cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
    hits = 0
    for turn in turns:
        blocks = full_blocks(turn, size)
        chains = list(_chains(blocks))
        for chain in chains[: len(usable(turn, size))]:
            if chain not in cache:
                break
            hits += 1
        for chain in reversed(chains):
            cache[chain] = None
            cache.move_to_end(chain)
        while capacity is not None and len(cache) > capacity:
            cache.popitem(last=False)
    return hits


def _chains(blocks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Names of a prompt's blocks with all that comes before: a number for each chain."""
    chain: tuple[int, ...] = ()
    for block in blocks:
        chain = (hash(chain), block)
        yield chain


def simulated(path: Path, turns: list[Turn] | None, capacity: int, seats: int) -> Counted:
    """The simulator's own count. `turns` None: the trace as recorded."""
    scenario = build(
        {
            "name": STEM,
            "workload": {"file": str(path)},
            "profile": "h100-llama-3-8b",
            "system": {"base": "+prefix", "between_turns": "drop", "preemption": "recompute"},
            "order": "fcfs",
            "pool": {
                "device_blocks": capacity * 512 // POOL_BLOCK,
                "host_blocks": 0,
                "block_size": POOL_BLOCK,
                "watermark": 0.0,
                "aging": "none",
            },
            "limits": {"max_model_len": MODEL_LEN, "max_num_seqs": seats},
        },
        "prefix_cache",
    )
    setup = machine.prepare(scenario)
    if turns is not None:
        setup = replace(setup, workload=Workload.of(turns, setup.workload.header))
    scheduler = make_scheduler(setup)
    begin = time.process_time()
    with Recorder() as recorder:
        engine = machine.make_engine(setup, scheduler, recorder, "counts")
        with machine.calm_collector():
            engine.env.run(until=engine.env.process(engine.run()))
        recording = recorder.close({})
    seconds = time.process_time() - begin
    statuses = recording.table("requests")["status"].to_pylist()
    unserved = [status for status in statuses if status != "finished"]
    if unserved:
        raise SystemExit(f"{len(unserved)} prompts were not served: {sorted(set(unserved))}")
    found = scheduler.engine.facts()["prefixes"]
    names = ("hit_tokens", "looked_up_tokens", "evicted_tokens")
    hits, lookups, evicted = [found[name] // found["block_tokens"] for name in names]
    return Counted(hits, lookups, evicted, seconds)


def one_by_one(turns: list[Turn]) -> list[Turn]:
    """The same prompts, each alone; replies of one token, since what is generated is not named."""
    return [
        replace(turn, arrival_ns=index * APART_NS, output_tokens=1)
        for index, turn in enumerate(turns)
    ]


def main() -> int:
    """Count, print, compare. Exit code 1 if the exact comparison fails."""
    folder = Path(os.environ.get("FASTSWITCH_TRACES", "."))
    found = sorted(folder.glob(f"{STEM}*"))
    if not found:
        print(f"{STEM}: not in FASTSWITCH_TRACES, nothing done")
        return 0
    path = found[0]
    workload = read_workload(path)
    size = workload.header.block_size
    assert size is not None
    turns = list(workload)
    references, any_hits = offline_any(turns)
    infinite = offline_lru(turns, size, None)
    distinct = references - any_hits
    print(f"{len(turns)} prompts, {references} references to blocks of {size} tokens")
    print(f"any hit {any_hits} ({any_hits / references:.3f}), usable {infinite}")
    rows: list[dict[str, Any]] = []

    def row(how: str, room: int | None, offline: int, counted: Counted) -> None:
        missed = offline - counted.hits
        rows.append(
            {
                "how": how,
                "room": room,
                "offline": offline,
                "simulated": counted.hits,
                "missed": missed,
                "evicted": counted.evicted,
                "cpu_s": round(counted.seconds, 1),
            }
        )
        print(
            f"{how:12} {'all' if room is None else room:>8} {offline:>9} {counted.hits:>9}"
            f" {missed:>8} {counted.evicted:>9} {counted.seconds:>7.1f} s"
        )

    print(f"{'':12} {'room':>8} {'offline':>9} {'simulated':>9} {'missed':>8} {'evicted':>9}")
    alone = one_by_one(turns)
    ample = 2 * distinct
    row("sequential", None, infinite, simulated(path, alone, ample, 1))
    for room in LIMITED:
        row("sequential", room, offline_lru(turns, size, room), simulated(path, alone, room, 1))
    row("as recorded", None, infinite, simulated(path, None, ample, 256))
    exact = rows[0]["missed"] == 0
    print(
        json.dumps(
            {
                "references": references,
                "any_hit": any_hits,
                "usable": infinite,
                "exact": exact,
                "rows": rows,
            }
        )
    )
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
