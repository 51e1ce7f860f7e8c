"""`vllm-v1-offload` decides what vLLM 0.33.0 with its native offloading connector decides."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from policy.errors import ReleaseVerdict
from policy.orders.base import Order
from policy.orders.static import StaticPriority
from policy.plan import CopyResult, Direction, Outcome
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS, System
from tests.full.test_vllm_v1 import Clients, Ours, random_settings, vllm  # noqa: F401
from tests.helpers.vllm_v1_offload import OffloadDriver

pytestmark = pytest.mark.full

LRU_RUNS = 300
ARC_RUNS = 100


class OursOffloading(Ours):
    """Adds to a decision what OffloadDriver does."""

    def __init__(self, settings: Settings, system: System, *, by_priority: bool) -> None:
        self.settings = settings
        order = StaticPriority() if by_priority else Order()
        self.scheduler = Scheduler(settings, system, order, lambda *_: 0)
        self.engine: Any = self.scheduler.engine
        self.now = 0
        self.submitted: dict[int, bool] = {}  # copies under way -> whether the step waits for it
        self.evicted: list[Any] = []
        eviction = self.engine.host.pool._eviction
        original = eviction.evict

        def evict(count: int, protected: Any) -> Any:
            found = original(count, protected)
            self.evicted += found or []
            return found

        eviction.evict = evict

    def schedule(self) -> dict[str, Any]:
        self.evicted = []
        host = self.engine.host
        before = host._next_id
        line = super().schedule()
        fresh = list(range(before, host._next_id))
        for key, is_store in (("loads", False), ("stores", True)):
            line[key] = [
                (
                    number,
                    host.jobs[number].share.request.request_id,
                    sorted(host.jobs[number].names),
                    len(host.jobs[number].blocks),
                )
                for number in fresh
                if host.jobs[number].is_store is is_store
            ]
        line["evicted"] = self.evicted
        line["flushed"] = list(self.plan.wait_for)
        line["holding"] = [request.request_id for request in self.engine.holding]
        for copy in self.plan.copies:
            self.submitted[copy.copy_id] = False
            stores = copy.direction is Direction.TO_HOST
            assert host.jobs[copy.copy_id].is_store is stores
        return line

    def finish_step(self, finished: list[str], ended: tuple[int, ...] = ()) -> None:
        for number in ended:
            del self.submitted[number]
        self.scheduler.update(
            Outcome(
                self.plan.runs,
                self.now,
                self.now + 1,
                None,
                tuple(finished),
                tuple(CopyResult(number, True, self.now) for number in ended),
            )
        )


def random_offloading(rng: random.Random, eviction: str) -> tuple[Settings, System, bool]:
    settings, by_priority, caches = random_settings(rng)
    per_chunk = rng.choice([1, 1, 1, 2, 3])
    settings = replace(
        settings,
        host_blocks=per_chunk * rng.choice([1, 4, 20, settings.device_blocks, 2000]),
        offload_chunk_blocks=per_chunk,
    )
    system = SYSTEMS[rng.choice(["vllm-v1-offload", "vllm-v1-offload-all"])]
    return settings, system.but(host_eviction=eviction, prefix_sharing=caches), by_priority


def compare_one_run(vllm: Any, rng: random.Random, eviction: str, seen: dict[str, int]) -> None:  # noqa: F811
    settings, system, by_priority = random_offloading(rng, eviction)
    ours = OursOffloading(settings, system, by_priority=by_priority)
    theirs = OffloadDriver(vllm, settings, system.options, by_priority=by_priority)
    # One token of prompt in blocks of one is trap L4.
    clients = Clients(rng, settings, shortest=2 if settings.block_size == 1 else 1)
    pace = rng.choice([0.1, 0.5, 1.0])
    for step in range(5000):
        clients.come_and_go(step, ours, theirs, seen)
        expected = theirs.schedule()
        try:
            found = ours.schedule()
        except ReleaseVerdict:
            seen["verdict"] += 1
            confirm(theirs, clients.known)
            return
        for key in expected:
            assert found[key] == expected[key], f"step {step}: {key}"
        seen["steps"] += 1
        seen["found"] += sum(tokens for _, tokens in expected["found"])
        for key in ("new", "resumed", "preempted", "loads", "stores", "evicted", "flushed"):
            seen[key] += len(expected[key])
        sampled, finished = clients.sample(expected["tokens"], theirs)
        waited = list(ours.plan.wait_for)
        rest = [n for n in ours.submitted if n not in waited and rng.random() < pace]
        ended = tuple(rng.sample(waited, len(waited)) + rng.sample(rest, len(rest)))
        theirs.finish_step(sampled, ended)
        ours.finish_step(rng.sample(finished, len(finished)), ended)
        clients.leave(finished)
        if clients.are_done and not ours.engine.host.jobs and not theirs.jobs:
            return
    raise AssertionError("the run did not end")


def confirm(theirs: OffloadDriver, known: dict[str, list[int]]) -> None:
    """The release gives nobody a token for as long as we care to look."""
    for _ in range(200):
        for name in theirs.output.num_scheduled_tokens:
            computed = theirs.scheduler.requests[name].num_computed_tokens
            assert computed < len(known[name]), "the release goes on"
        theirs.finish_step({}, tuple(theirs.jobs))
        theirs.schedule()


def compare_runs(vllm: Any, runs: range, eviction: str) -> dict[str, int]:  # noqa: F811
    keys = ("steps", "new", "resumed", "preempted", "found", "cancelled", "verdict")
    seen = dict.fromkeys((*keys, "loads", "stores", "evicted", "flushed"), 0)
    for seed in runs:
        try:
            compare_one_run(vllm, random.Random(f"offload-{seed}"), eviction, seen)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return seen


def test_every_decision_equals_the_release_under_lru(vllm: Any) -> None:  # noqa: F811
    seen = compare_runs(vllm, range(LRU_RUNS), "lru")
    print(seen)
    assert all(count > 2 for key, count in seen.items() if key != "verdict"), (
        f"not exercised: {seen}"
    )


def test_every_decision_equals_the_release_under_arc(vllm: Any) -> None:  # noqa: F811
    seen = compare_runs(vllm, range(ARC_RUNS), "arc")
    assert seen["evicted"] > 100
