"""Under FCFS, `vllm-0.3.3` decides what vLLM 0.3.3's own scheduler decides, line by line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from policy.errors import ReleaseVerdict
from policy.orders.base import Order
from policy.plan import Direction, Outcome, Plan, PreemptionMode
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS
from tests.helpers.inside import memory_of
from tests.helpers.vllm_release import ReleaseDriver, find_wheel, load

RUNS = 4000

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    wheel = find_wheel()
    if wheel is None or not Path(wheel).exists():
        pytest.skip("the vllm 0.3.3 wheel is not here; `make test-full` fetches it")
    return load(wheel, tmp_path_factory.mktemp("vllm"))


def our_line(scheduler: Scheduler, plan: Plan) -> dict[str, Any]:
    memory = memory_of(scheduler)
    return {
        "prefill": [list(item) for item in plan.prefill],
        "decode": list(plan.batch.decode) if plan.batch is not None else [],
        "swap_out": [r for r, mode in plan.preempt if mode is PreemptionMode.SWAP],
        "recompute": [r for r, mode in plan.preempt if mode is PreemptionMode.RECOMPUTE],
        "swap_in": [c.request_id for c in plan.copies if c.direction is Direction.TO_DEVICE],
        "reject": [r for r, _ in plan.reject],
        "free_device_blocks": memory.device.num_free,
        "free_host_blocks": memory.host.num_free,
    }


def is_empty(line: dict[str, Any]) -> bool:
    return not any(line[key] for key in ("prefill", "decode", "swap_out", "recompute", "reject"))


def random_settings(rng: random.Random) -> Settings:
    length = rng.choice([24, 64, 200])
    return Settings(
        device_blocks=rng.randrange(4, 60),
        host_blocks=rng.choice([0, 3, 20, 200, 200, 200]),
        block_size=rng.choice([1, 2, 4, 16]),
        watermark=rng.choice([0.0, 0.01, 0.01, 0.1]),
        max_num_seqs=rng.choice([1, 2, 4, 256]),
        max_num_batched_tokens=rng.choice([length, 2 * length, 20]),
        max_paddings=rng.choice([0, 4, 256]),
        max_model_len=length,
    )


@pytest.mark.parametrize("name", ["vllm-0.3.3", "vllm-0.3.3-recompute"])
def test_every_decision_equals_the_release(vllm: Any, name: str) -> None:
    seen = dict.fromkeys(("swap_out", "swap_in", "recompute", "reject", "abort", "stall"), 0)
    for seed in range(RUNS):
        compare_one_run(vllm, name, random.Random(seed), seen)
    kinds = {"swap_out", "swap_in", "reject", "abort", "stall"}
    if name.endswith("recompute"):
        kinds = {"recompute", "reject"}
    assert all(seen[kind] > 20 for kind in kinds), f"the inputs did not exercise {seen}"


def compare_one_run(vllm: Any, name: str, rng: random.Random, seen: dict[str, int]) -> None:
    settings = random_settings(rng)
    system = SYSTEMS[name]
    ours = Scheduler(settings, system, Order(), lambda *_: 0)
    theirs = ReleaseDriver(vllm, settings, swap=system.options.preemption == "swap")
    arrivals = []
    now = 0
    for index in range(rng.randrange(1, 25)):
        now += rng.choice([0, 0, 1, 7])
        arrivals.append(
            (now, f"r{index}", rng.randrange(1, settings.max_model_len + 3), rng.randrange(1, 40))
        )
    left: dict[str, int] = {}
    for now in range(20_000):
        while arrivals and arrivals[0][0] <= now:
            arrival, request_id, tokens, output = arrivals.pop(0)
            ours.add(Request(request_id, arrival_ns=arrival, input_tokens=tokens), now)
            theirs.add(request_id, arrival, tokens)
            left[request_id] = output
        if left and rng.random() < 0.01:
            gone = rng.choice(sorted(left))
            assert ours.cancel(gone, now)
            theirs.cancel(gone)
            del left[gone]
        aborted = None
        try:
            expected = theirs.schedule()
        except RuntimeError as error:
            aborted = error
        try:
            plan = ours.schedule(now)
        except ReleaseVerdict as verdict:
            if aborted is not None:
                assert "aborts" in str(verdict)
                seen["abort"] += 1
                return
            assert "waits for ever" in str(verdict)
            assert is_empty(expected)
            assert theirs.scheduler.has_unfinished_seqs()
            seen["stall"] += 1
            return
        assert aborted is None, f"the release aborts: {aborted}"
        assert our_line(ours, plan) == expected
        for key in ("swap_out", "swap_in", "recompute", "reject"):
            seen[key] += len(expected[key])
        for request_id in expected["reject"]:
            del left[request_id]
        finished = []
        for request_id in expected["decode"] + [r for r, _ in expected["prefill"]]:
            left[request_id] -= 1
            if not left[request_id]:
                finished.append(request_id)
                del left[request_id]
        theirs.finish_step(tuple(finished))
        ours.update(Outcome(plan.runs, now, now + 1, None, tuple(finished)))
        if not arrivals and not left:
            return
    pytest.fail("the run did not end")
