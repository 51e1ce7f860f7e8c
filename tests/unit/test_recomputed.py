"""Every metric agrees with a second, slow computation from the tables alone, on five systems."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from runs.scenario import build
from sim.simulate import simulate
from tests.helpers.recomputed import recomputed
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

SECOND = 1_000_000_000
SYSTEMS = ("vllm-0.3.3", "vllm-0.3.3-keep", "+reuse", "fastswitch", "fastswitch-chunked")


def turns(seed: int) -> list[Turn]:
    """Conversations of a few turns: some clients leave, some rows no system can serve, and one in
    three comes when its session's turn before has hardly begun."""
    rng = random.Random(seed)
    found = []
    for number in range(60):
        name = f"s{number}"
        begin = 200_000_000 * number + rng.randrange(150_000_000) + 3 * SECOND
        context = 0
        for turn in range(1, rng.randrange(2, 5)):
            prompt = context + rng.randrange(60, 300)
            output = rng.randrange(1, 90)
            if rng.random() < 0.02:
                prompt = 6000  # beyond the model's length
            found.append(
                Turn(
                    f"{name}/{turn}",
                    name,
                    turn,
                    prompt,
                    0 if rng.random() < 0.02 else output,
                    arrival_ns=begin,
                    client_id=rng.choice([None, f"k{number % 7}"]),
                    priority=rng.randrange(3),
                    cancel_ns=rng.choice([0, 1, 6]) * SECOND if rng.random() < 0.1 else None,
                )
            )
            context = min(1500, prompt + output)
            begin += rng.choice([SECOND // 4, 3 * SECOND, 20 * SECOND])
    return sorted(found, key=lambda one: one.arrival_ns or 0)


def run(folder: Path, system: str) -> Any:
    write(Workload.of(turns(11), Header(source="by chance", timing="open")), folder / "w.jsonl")
    scenario = {
        "name": "recomputed",
        "workload": str(folder / "w.jsonl"),
        "profile": "a10-llama-3-8b",
        "system": system,
        "order": "fcfs" if system == "vllm-0.3.3" else "priority",
        "priority": {"pattern": "random", "frequency": 0.05},
        "pool": {"device_blocks": 150, "host_blocks": 500},
        "limits": {"max_model_len": 4096},
        "profile_values": {"transfer.to_device": 1e9, "transfer.to_host": 1e9},
    }
    if system == "vllm-0.3.3":
        del scenario["priority"]
    else:
        scenario["order"] = "random"
    return simulate(build(scenario, "test"), out=folder / "run")


def same(told: float | None, found: float | None) -> bool:
    """Up to the last digit written."""
    if told is None or found is None:
        return told is found
    return math.isclose(told, found, rel_tol=1e-6, abs_tol=2e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_metric_agrees_with_a_computation_of_its_own(system: str, tmp_path: Path) -> None:
    told = run(tmp_path, system).summary["metrics"]
    found = recomputed(tmp_path / "run")
    assert set(found) == set(told)
    wrong = {
        name: (told[name], value) for name, value in found.items() if not same(told[name], value)
    }
    assert not wrong
    for name in ("cancelled", "rejected", "ttft_censored", "waited_for_parent", "blocks_out"):
        assert told[name] > 0, name
    assert told["preemptions"] > 5 and 0 < told["stall_share"] < 1
