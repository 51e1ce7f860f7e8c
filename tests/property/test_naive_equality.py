"""The fast loop and the step-by-step one give identical recordings and decisions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from policy.systems import SYSTEMS
from runs.scenario import Scenario, build
from tests.helpers.naive import fast_simulate, naive_simulate
from tests.helpers.small import IDS_NAME, random_ids

TABLES = ("requests", "steps", "spans", "preemptions", "copies", "workload")


def assert_same(scenario: Scenario, seed: int = 0, failing: float = 0.0) -> dict[str, int]:
    def fails() -> object:
        rng = random.Random(seed)
        return (lambda _copy: rng.random() < failing) if failing else None

    fast = fast_simulate(scenario, fails())
    naive = naive_simulate(scenario, fails())
    assert fast.summary == naive.summary
    for ours, theirs in zip(fast.decisions, naive.decisions, strict=False):
        assert ours == theirs
    for name in TABLES:
        left, right = fast.table(name), naive.table(name)
        assert left.to_pylist() == right.to_pylist(), name
    assert fast.decisions == naive.decisions
    return {name: fast.table(name).num_rows for name in TABLES}


def random_scenario(rng: random.Random, folder: Path) -> Scenario:
    """Every named system, any order, sizes so small that it must swap."""
    order = rng.choice(["fcfs", "priority", "random", "markov", "vtc"])
    data = {
        "name": "naive",
        "profile": "a10-llama-3-8b",
        "workload": {
            "generator": "chat",
            "conversations": rng.randrange(3, 14),
            "rate": rng.choice([0.2, 1.0, 5.0]),
            "context_cap": rng.choice([200, 400]),
            "think": rng.choice(["none", "exponential"]),
            "think_mean_s": 1.0,
        },
        "system": rng.choice(list(SYSTEMS)),
        "order": order,
        "priority": {"frequency": rng.choice([0.04, 0.2, 1.0])},
        "last_turn_known": rng.random() < 0.5,
        "pool": {
            "device_blocks": rng.randrange(26, 80),
            "host_blocks": rng.choice([0, 20, 60, 400]),
            "watermark": rng.choice([0.0, 0.01]),
            "aging": "none",
        },
        "limits": {"max_model_len": 400, "max_num_seqs": rng.choice([3, 256])},
        "hysteresis": {"min_run_steps": rng.choice([0, 0, 7]), "gap": rng.choice([0, 0.25, 1, 40])},
        "seed": rng.randrange(1 << 30),
    }
    movement = random.Random(repr(data))
    low = movement.choice([0.02, 0.1, 0.3])
    data["movement"] = {
        "every": movement.choice([1, 3, 32]),
        "blocks": movement.choice([1, 5, 64]),
        "depth": movement.choice([0.25, 1.0]),
        "low": low,
        "high": low + movement.choice([0.05, 0.3]),
    }
    if rng.random() < 0.3:
        data["workload"] = write_workload(rng, folder)
    return build(data, "test")


def write_workload(rng: random.Random, folder: Path) -> str:
    """Open loop, with clients that leave, shrinking contexts and priorities."""
    scope = rng.choice(["global", "session"])
    header = {"format": "fastswitch-workload/1", "timing": "open"}
    lines = [json.dumps({**header, "block_size": IDS_NAME, "hash_scope": scope})]
    arrival = 0.0
    for index in range(rng.randrange(4, 25)):
        arrival += rng.choice([0.0, 0.05, 0.5])
        row = {
            "request_id": f"r{index}",
            "session_id": f"s{index % 5}",
            "turn": index // 5 + 1,
            "input_tokens": rng.randrange(0, 390),
            "output_tokens": rng.randrange(0, 60),
            "arrival_s": round(arrival, 3),
            "client_id": f"k{index % 2}",
            "priority": rng.randrange(3),
        }
        if rng.random() < 0.3:
            row["parent_prefix_tokens"] = rng.randrange(0, 200)
        row["hash_ids"] = random_ids(rng, row["input_tokens"])
        if rng.random() < 0.3:
            row["cancel_s"] = rng.choice([0.01, 0.5, 3.0])
        lines.append(json.dumps(row))
    path = folder / f"w{rng.randrange(1 << 30)}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.counted
@pytest.mark.parametrize("part", range(4))
def test_fast_and_naive_recordings_are_identical(
    part: int, seeds: Callable[[int, int], range], tmp_path: Path
) -> None:
    rows = dict.fromkeys(TABLES, 0)
    for seed in seeds(20, 500):
        rng = random.Random(seed * 4 + part)
        failing = rng.choice([0.0, 0.0, 0.1])
        for name, count in assert_same(random_scenario(rng, tmp_path), seed, failing).items():
            rows[name] += count
    assert rows["preemptions"] > 100, "the runs did not preempt"
    assert rows["copies"] > 100, "the runs did not swap"
