"""What `equal.py` asks of one tree: runs and commands, by the public door alone. Writes to this folder.

    PYTHONPATH=TREE python -P benchmarks/equal_drive.py < ASKED

ASKED is JSON: `size`, `orders` (name -> values of a scenario) and `systems`, each `[name, order,
alternatives]`, of which the first that the tree knows is taken. Everything random is drawn from fixed
seeds here, so that two trees are asked the same.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastswitch

Row = dict[str, Any]

#: A machine where a step of this size is dear enough that copies and arrivals fall between steps.
MACHINE: dict[str, Any] = {
    "profile": "a10-llama-3-8b",
    "limits": {"max_model_len": 1024, "max_num_seqs": 24},
    "groups": {"initial_blocks": 12, "growth_blocks": 4, "host_increment_blocks": 4},
}
#: Not in the files, since a command refuses what none of its runs reads.
MOVEMENT = {
    "movement.every": 6,
    "movement.blocks": 24,
    "movement.depth": 0.5,
    "movement.low": 0.05,
    "movement.high": 0.2,
}


# ---------------------------------------------------------------------- workloads


def chat(size: int) -> tuple[list[Row] | None, Row]:
    """Conversations in closed loop: people who read and think between turns."""
    workload = {
        "generator": "chat",
        "conversations": 7 * size,
        "rate": 2.0,
        "context_cap": 768,
        "think": "exponential",
        "think_mean_s": 2.0,
    }
    return None, {"workload": workload, "pool": {"device_blocks": 90, "host_blocks": 200}}


def open_rows(size: int) -> tuple[list[Row] | None, Row]:
    """Single requests in open loop, in bursts, of clients with priorities."""
    draw = random.Random(1)
    rows: list[Row] = [{"format": "fastswitch-workload/2", "timing": "open", "source": "made"}]
    now = 0.0
    for index in range(60 * size):
        now += draw.choice((0.0, 0.0, 0.02, 0.1, 0.9))
        rows.append(
            {
                "request_id": f"r{index}",
                "input_tokens": draw.choice((9, 40, 150, 400, 700)),
                "output_tokens": draw.choice((1, 3, 20, 45, 90)),
                "arrival_s": round(now, 3),
                "client_id": f"c{draw.randrange(5)}",
                "priority": draw.randrange(3),
            }
        )
    return rows, {"pool": {"device_blocks": 120, "host_blocks": 300, "aging": "shuffle"}}


def shared(size: int) -> tuple[list[Row] | None, Row]:
    """Sessions whose prompts begin with one of a few texts, named by the ids of their blocks."""
    draw, block = random.Random(2), 32
    header = {"format": "fastswitch-workload/2", "timing": "closed", "source": "made"}
    rows: list[Row] = [{**header, "block_size": block, "hash_scope": "global"}]
    fresh = itertools.count(1000)
    for session in range(14 * size):
        ids = list(range(10 * draw.randrange(3), 10 * draw.randrange(3) + 6))[
            : draw.randrange(2, 7)
        ]
        tokens = block * len(ids)
        for turn in range(1, draw.randrange(2, 5)):
            tokens += draw.randrange(1, 90)
            ids += [next(fresh) for _ in range(-(-tokens // block) - len(ids))]
            reply = draw.randrange(1, 70)
            row: Row = {
                "request_id": f"s{session}/{turn}",
                "session_id": f"s{session}",
                "turn": turn,
                "input_tokens": tokens,
                "output_tokens": reply,
                "hash_ids": list(ids),
                "client_id": f"c{session % 4}",
            }
            time = {"arrival_s": 0.15 * session} if turn == 1 else {"think_s": draw.random()}
            rows.append({**row, **time})
            ids = ids[: tokens // block]  # the next turn's block holds more than this one's last
            tokens += reply
            if tokens > 800:
                break
    pool = {"device_blocks": 110, "host_blocks": 260, "aging": "none"}
    return rows, {"pool": pool, "last_turn_known": True}


def tight(size: int) -> tuple[list[Row] | None, Row]:
    """Pools that nearly nothing fits in, clients that leave, prompts that nobody can serve."""
    draw = random.Random(3)
    rows: list[Row] = [{"format": "fastswitch-workload/2", "timing": "closed", "source": "made"}]
    for session in range(20 * size):
        tokens = 0
        for turn in range(1, draw.randrange(2, 6)):
            tokens += draw.choice((3, 17, 40, 75))
            reply = draw.randrange(1, 40)
            row: Row = {
                "request_id": f"t{session}/{turn}",
                "session_id": f"t{session}",
                "turn": turn,
                "input_tokens": tokens if draw.random() > 0.03 else 900,
                "output_tokens": reply,
            }
            time = {"arrival_s": 0.2 * session} if turn == 1 else {"think_s": 2 * draw.random()}
            left = {"cancel_s": draw.choice((0.01, 0.4, 3.0))} if draw.random() < 0.15 else {}
            rows.append({**row, **time, **left})
            tokens += reply
            if tokens > 150:
                break
    pool = {
        "block_size": 4,
        "device_blocks": 70,
        "host_blocks": 60,
        "watermark": 0.03,
        "aging": "shuffle",
    }
    limits = {"max_model_len": 512, "max_num_seqs": 6, "max_num_batched_tokens": 512}
    hysteresis = {"min_run_steps": 2, "max_parkings": 2, "token_quantum": 4}
    return rows, {"pool": pool, "limits": limits, "hysteresis": hysteresis}


WORKLOADS: dict[str, Callable[[int], tuple[list[Row] | None, Row]]] = {
    "chat": chat,
    "open": open_rows,
    "shared": shared,
    "tight": tight,
}


def write_scenario(name: str, size: int) -> Path:
    """Write a workload's scenario, and its rows beside it; return the path of the first."""
    rows, values = WORKLOADS[name](size)
    folder = Path("scenarios")
    folder.mkdir(exist_ok=True)
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        values = {"workload": {"file": f"{name}.jsonl"}, **values}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, **MACHINE, **values}), encoding="utf-8")
    return path


# ---------------------------------------------------------------------- runs


def known(path: Path, order: Row, alternatives: list[Any]) -> Any:
    """The scenario with the first of a system's names, or of its switches, that this tree knows."""
    for system in alternatives[:-1]:
        with contextlib.suppress(Exception):
            return fastswitch.load_scenario(str(path), {**order, "system": system})
    return fastswitch.load_scenario(str(path), {**order, "system": alternatives[-1]})


def runs(asked: Row) -> None:
    """Record every system under every order with every workload."""
    for workload in WORKLOADS:
        path = write_scenario(workload, asked["size"])
        for system, order, alternatives in asked["systems"]:
            values = {**MOVEMENT, **asked["orders"][order]}
            scenario = known(path, values, alternatives)
            folder = Path("runs", workload, order, system)
            fastswitch.simulate(scenario, out=folder, decisions=True)


# ---------------------------------------------------------------------- commands


def points() -> Iterator[Row]:
    """Samples of a machine with known costs and noise, in nanoseconds."""
    draw = random.Random(4)
    model = {"name": "made", "layers": 8, "kv_heads": 4, "head_dim": 64, "dtype_bytes": 2}
    yield {
        "format": "fastswitch-points/1",
        "machine": "made",
        "date": "2026-01-02",
        "model": {**model, "weight_bytes": 1 << 28, "max_model_len": 2048},
        "device": "cpu",
        "dtype": "bfloat16",
        "pools": {"block_size": 16, "device_blocks": 1000, "host_blocks": 4000},
        "provenance": {"driver": "1"},
    }
    shapes: list[tuple[Row, float]] = []
    for batch in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 96):
        for context in (16, 180, 1024):
            kv = batch * context
            cost = 4e6 + 20e3 * batch + 55 * kv
            shapes.append(
                ({"kind": "decode", "batch": batch, "kv_tokens": kv, "longest": context}, cost)
            )
        shapes.append(({"kind": "overhead", "batch": batch}, 2e5 + 1e3 * batch))
    for tokens in (1, 2, 3, 4, 8, 16, 48, 96, 256, 512, 1024):
        for past in (0, 512):
            cost = 5e6 + 9e3 * tokens + 2 * tokens * (past + tokens / 2)
            shapes.append(({"kind": "prefill", "tokens": tokens, "past": past}, cost))
    for prompts, tokens in itertools.product((2, 3, 4, 8), (16, 64)):
        cost = 5e6 + 9e3 * prompts * tokens + 3e5 * (prompts - 1)
        shapes.append(({"kind": "prompts", "prompts": prompts, "tokens": tokens, "past": 0}, cost))
    for way, (system, calls) in itertools.product(
        ("h2d", "d2h"), {"vllm-0.3.3-keep": 16, "+groups": -16, "fastswitch": -16}.items()
    ):
        for blocks, parts in ((1, 1), (4, 1), (4, 4), (16, 2), (64, 8), (64, 64)):
            issued = blocks * calls if calls > 0 else parts * -calls
            size = blocks * 16 * 8192
            job = {"kind": "copy", "way": way, "system": system, "blocks": blocks, "runs": parts}
            job |= {"calls": issued, "bytes": size}
            for duplex in (0, 1):
                cost = 3e4 + 5e3 * issued + size / (12, 7)[duplex]
                shapes.append(({**job, "duplex": duplex}, cost))
    for shape, cost in shapes:
        middle = cost * (1 + draw.gauss(0, 0.01))
        for _ in range(6):
            yield {**shape, "ns": round(middle * (1 + draw.gauss(0, 0.01)))}


#: Rows of a sweep and of a search over a small scenario.
SWEEP: Row = {
    "name": "pools",
    "scenario": "scenarios/open.yaml",
    "systems": ["+groups", "fastswitch"],
    "runs": 2,
    "set": {"priority.pattern": "random", "priority.frequency": 0.1},
    "grid": {"pool.device_blocks": [100, 160]},
    "sobol": {"points": 2, "parameters": {"pool.watermark": {"low": 0.0, "high": 0.1}}},
    "slo": {"ttft_s": 2.0},
}
SEARCH: Row = {
    "name": "rate",
    "recipe": "max-rate-under-sla",
    "scenario": "scenarios/chat.yaml",
    "set": {"workload.conversations": 6, "priority.pattern": "markov", "priority.frequency": 0.1},
    "runs": 2,
    "space": {"workload.rate": [0.5, 2.0], "system": ["+reuse", "fastswitch"]},
    "limits": {"ttft_p95_s": {"at_most": 20}},
}

ONE = "runs/chat/markov/fastswitch"
#: What a folder holds of -> its command. Paths are of the folder this runs in.
COMMANDS: dict[str, str] = {
    "profile": "calibrate --from points.jsonl --out made/profile/fitted.json",
    "own-profile": "simulate scenarios/open.yaml --set profile=made/profile/fitted.json --decisions"
    " --set pool.block_size=16 --out made/own-profile/run",
    "compare": "compare scenarios/tight.yaml --systems vllm-0.3.3,+groups,fastswitch --seeds 2 --workers 1"
    " --out made/compare",
    "sweep": "sweep run sweep.yaml --workers 1 --out made/sweep --json",
    "sweep-status": "sweep status made/sweep --json",
    "search": "search search.yaml --workers 1 --out made/search --json",
    "report-sweep": "report made/sweep --out made/report-sweep/page.html",
    "report-run": f"report {ONE} --out made/report-run/page.html",
    "replay": f"validate {ONE} runs/tight/fcfs/vllm-0.3.3 --replay --json",
    "perfetto": f"export {ONE} --format perfetto --out made/perfetto/out.json",
    "vllm": f"export {ONE} --format vllm --out made/vllm/out.json",
    "aiperf": f"export {ONE} --format aiperf --out made/aiperf/out.jsonl",
    "llm-d": f"export {ONE} --format llm-d --out made/llm-d/out.yaml",
    "simulate": "simulate scenarios/tight.yaml --out made/simulate/run",
    "config": "config validate scenarios/chat.yaml",
    "generate": "trace generate agent --conversations 60 --rate 0.1 --hash-block 64 --arrivals gamma,cv=2"
    " --out made/generate/out.jsonl",
    "generate-code": "trace generate code --conversations 30 --rate 0.1 --out made/generate-code/out.jsonl",
    "compose": "trace compose scenarios/open.jsonl --gaps made/generate/out.jsonl --arrivals poisson"
    " --rate 0.5 --cap 512 --out made/compose/out.jsonl",
    "describe": "trace describe made/generate/out.jsonl scenarios/shared.jsonl --json",
    "convert": "trace convert made/generate/out.jsonl -o made/convert/out.parquet",
}

#: Without --small.
LONG = {
    "compare-steady": "compare scenarios/chat.yaml --systems +groups,fastswitch --seeds 2 --workers 1"
    " --study steady-state --set workload.conversations=120 --set workload.rate=0.2"
    " --set pool.device_blocks=300 --out made/compare-steady --json",
    "fit": "trace fit made/generate/out.jsonl -o made/fit/mine.yaml",
}


def commands(*, small: bool) -> None:
    """Run every command; what it prints is beside what it writes. Exits if one of them fails."""
    lines = (json.dumps(row) + "\n" for row in points())
    Path("points.jsonl").write_text("".join(lines), encoding="utf-8")
    Path("sweep.yaml").write_text(json.dumps(SWEEP), encoding="utf-8")
    Path("search.yaml").write_text(json.dumps(SEARCH), encoding="utf-8")
    for name, line in (COMMANDS if small else {**COMMANDS, **LONG}).items():
        Path("made", name).mkdir(parents=True, exist_ok=True)
        sys.argv = ["fastswitch", *line.split()]
        with contextlib.redirect_stdout(io.StringIO()) as text:
            code = fastswitch.main(line.split(), standalone_mode=False)
        if code:
            sys.exit(f"fastswitch {line}: exit code {code}")
        Path("printed").mkdir(exist_ok=True)
        Path("printed", f"{name}.txt").write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    question = json.load(sys.stdin)
    runs(question)
    commands(small=question["size"] == 1)
