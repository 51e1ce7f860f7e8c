"""Asynchronous scheduling: a turn that arrives while step k runs is planned for k+2; and what lies
between a client and the engine comes before that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibrate.profile import Profile, load
from runs import scenario
from runs.metrics.columns import columns_of
from runs.recording import Recording
from sim.replay import replay
from sim.simulate import simulate

PROFILE = "h100-sxm-qwen3-14b"


def asked(seed: int, **system: Any) -> scenario.Scenario:
    return scenario.build(
        {
            "name": "async",
            "workload": {"generator": "chat", "conversations": 12, "rate": 8.0, "think": "agent"},
            "system": {"base": "+chunked", "preemption": "recompute", **system},
            "profile": PROFILE,
            "pool": {"device_blocks": 900, "watermark": 0.0, "aging": "none"},
            "limits": {"max_num_batched_tokens": 512, "max_model_len": 4096},
            "seed": seed,
        },
        "test",
    )


def profile(first_token: float) -> Profile:
    return load(PROFILE).with_values({"step.first_token": first_token})


def waits(recorded: Recording, frontend_ns: int = 0) -> list[bool]:
    """For each request that was first computed right behind another step: whether that step began
    after the request was seen."""
    steps = columns_of(recorded, "steps")
    requests = columns_of(recorded, "requests")
    arrival = dict(zip(requests["request_id"], requests["arrival_ns"], strict=True))
    first: dict[str, int] = {}
    for span in recorded.table("spans").to_pylist():
        name, step = span["request_id"], span["first_step"]
        first[name] = min(step, first.get(name, step))
    return [
        bool(steps["start_ns"][step - 1] >= arrival[name] + frontend_ns)
        for name, step in first.items()
        if step and steps["end_ns"][step - 1] == steps["start_ns"][step]
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_who_arrives_while_a_step_runs_is_planned_two_steps_on(seed: int) -> None:
    ahead = waits(simulate(asked(seed, async_scheduling=True), profile=profile(0)))
    at_once = waits(simulate(asked(seed), profile=profile(0)))
    assert ahead
    assert all(ahead)
    assert not all(at_once)


@pytest.mark.parametrize("ahead", [False, True])
def test_turns_reach_the_engine_after_what_lies_between(ahead: bool) -> None:
    late = 7_000_000
    recorded = simulate(asked(3, async_scheduling=ahead), profile=profile(late))
    if ahead:
        assert all(waits(recorded, late))
    steps, requests = columns_of(recorded, "steps"), columns_of(recorded, "requests")
    first = int(requests["arrival_ns"].min())
    assert int(steps["start_ns"][0]) == first + late


@pytest.mark.parametrize("ahead", [False, True])
def test_such_a_run_is_replayed_to_the_line(tmp_path: Path, ahead: bool) -> None:
    what = asked(4, async_scheduling=ahead)
    recorded = simulate(what, out=tmp_path / "run", decisions=True, profile=profile(5e6))
    replayed = replay(recorded, what)
    assert replayed.difference is None
    assert replayed.equal_lines > 50
