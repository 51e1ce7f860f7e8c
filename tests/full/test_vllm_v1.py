"""`vllm-v1` decides what vLLM 0.33.0's own scheduler decides, step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policy.desk import Desk
from policy.engines.swapping import Parts
from policy.engines.vllm_v1 import V1Engine
from policy.errors import ReleaseVerdict
from policy.integrity import check_integrity
from policy.orders.base import Order
from policy.orders.static import StaticPriority
from policy.plan import Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS
from tests.helpers.vllm_v1_release import ReleaseDriver, find_wheel, hash_block, imported

RUNS = 600

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    wheel = find_wheel()
    if wheel is None or not Path(wheel).exists():
        pytest.skip("the vllm 0.33.0 wheel is not here; `make test-full` fetches it")
    with imported(wheel, tmp_path_factory.mktemp("vllm-v1")) as modules:
        yield modules


class TokenNames:
    """Names of a request's blocks, of its tokens as far as they are known."""

    def __init__(self, tokens: list[int], size: int) -> None:
        self.tokens = tokens
        self.size = size
        self._names: list[bytes] = []

    def __getitem__(self, index: int) -> bytes:
        names, size = self._names, self.size
        while len(names) <= index:
            at = len(names) * size
            assert at + size <= len(self.tokens), "a name was asked for before its tokens are known"
            before = names[-1] if names else b"none"
            names.append(hash_block((before, tuple(self.tokens[at : at + size]), None)))
        return names[index]


class Ours:
    """Our scheduler with our engine, driven like the release."""

    def __init__(self, settings: Settings, *, by_priority: bool, caches: bool) -> None:
        self.settings = settings
        order = StaticPriority() if by_priority else Order()
        system = SYSTEMS["vllm-v1"].but(prefix_sharing=caches)
        self.engine = V1Engine(Parts(Desk(settings, order), system, lambda *_: 0))
        self.scheduler = Scheduler(settings, system, order, lambda *_: 0, engine=self.engine)
        self.now = 0
        self.plan = Plan()

    def add(self, request_id: str, arrival: int, priority: int, tokens: list[int]) -> None:
        request = Request(
            request_id, arrival_ns=arrival, input_tokens=len(tokens), priority=priority
        )
        request.block_names = TokenNames(tokens, self.settings.block_size)
        self.scheduler.add(request, self.now)

    def cancel(self, request_id: str) -> None:
        assert self.scheduler.cancel(request_id, self.now)

    def schedule(self) -> dict[str, Any]:
        engine = self.engine
        self.now += 1
        self.plan = plan = self.scheduler.schedule(self.now)
        check_integrity(self.scheduler)
        tokens = plan.num_scheduled_tokens
        live = self.scheduler.desk.live
        resumed = [name for name, _ in plan.found if live[name].num_preemptions]
        return {
            "tokens": [
                (r.request_id, tokens[r.request_id])
                for r in engine.running
                if r.request_id in tokens
            ],
            "new": [name for name, _ in plan.found if name not in resumed],
            "resumed": resumed,
            "found": list(plan.found),
            "preempted": list(plan.lost),
            "free": engine.levels().device,
            "running": [request.request_id for request in engine.running],
            "waiting": [request.request_id for request in engine.waiting],
        }

    def finish_step(self, finished: list[str]) -> None:
        self.scheduler.update(
            Outcome(self.plan.runs, self.now, self.now + 1, None, tuple(finished))
        )


def random_settings(rng: random.Random) -> tuple[Settings, bool, bool]:
    """Settings, and whether the policy is priority, and whether there is a cache."""
    size = rng.choice([1, 2, 4, 16, 16])
    length = rng.choice([40, 200, 800, 3000])
    fullest = -(-length // size)
    few = [max(2, fullest // 2), fullest, fullest + 1, fullest + 2, fullest * 3 // 2]
    blocks = rng.choice([*few, fullest * 2, fullest * 8])
    settings = Settings(
        device_blocks=blocks,
        host_blocks=0,
        block_size=size,
        max_num_seqs=rng.choice([1, 2, 4, 16, 256]),
        max_num_batched_tokens=rng.choice([1, 8, 16, 64, 64, 128, 512, 2048, 8192]),
        max_model_len=length,
        watermark=rng.choice([0.0, 0.0, 0.01, 0.05, 0.2]),
        reserve_full_isl=rng.random() < 0.6,
        long_prefill_token_threshold=rng.choice([0, 0, 0, 4, 8, 40, 200]),
        long_prefill_token_threshold_adaptive=rng.random() < 0.3,
    )
    if rng.random() < 0.08:  # trap L1
        settings = replace(
            settings,
            device_blocks=fullest,
            max_num_seqs=256,
            reserve_full_isl=False,
            long_prefill_token_threshold=8,
            long_prefill_token_threshold_adaptive=False,
        )
        return settings, True, False
    return settings, rng.random() < 0.5, rng.random() < 0.7


class Workload:
    """Prompts that begin alike, sessions whose turns repeat what came before, ties and cancels."""

    def __init__(self, rng: random.Random, settings: Settings) -> None:
        self.rng = rng
        self.length = settings.max_model_len
        self.stems = [self._tokens(self.length) for _ in range(3)]
        self.sessions: list[list[int]] = []
        self.replies_alike = rng.random() < 0.5
        self.ties = rng.random() < 0.4

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(1000) for _ in range(count)]

    def prompt(self) -> list[int]:
        rng, longest = self.rng, self.length - 1
        kind = rng.random()
        if kind < 0.4 and self.sessions:
            before = rng.choice(self.sessions)
            tokens = before + self._tokens(rng.randrange(0, 20))
        elif kind < 0.7:
            stem = rng.choice(self.stems)
            tokens = stem[: rng.randrange(1, self.length)] + self._tokens(rng.randrange(0, 8))
        else:
            tokens = self._tokens(rng.randrange(1, max(2, self.length // rng.choice([1, 4, 10]))))
        return tokens[:longest] or [1]

    def reply(self, tokens: list[int]) -> int:
        return sum(tokens[-3:]) % 1000 if self.replies_alike else self.rng.randrange(1000)


class Clients:
    """Who comes when, with what, who leaves, and what is generated: alike for both sides. `known`: tokens
    of those who are served; `left`: output tokens to come. `shortest`: of a prompt."""

    def __init__(self, rng: random.Random, settings: Settings, shortest: int = 1) -> None:
        self.rng = rng
        self.workload = Workload(rng, settings)
        self.total = rng.randrange(1, 40)
        self.known: dict[str, list[int]] = {}
        self.left: dict[str, int] = {}
        self._shortest = shortest
        self._count = self._now = self._next_arrival = 0
        self._gap = rng.choice([0, 1, 5])
        self._longest_reply = rng.choice([3, 60, 60, 300])

    @property
    def are_done(self) -> bool:
        return not self.left and self._count == self.total

    def come_and_go(self, step: int, ours: Any, theirs: Any, seen: dict[str, int]) -> None:
        """What happens before a step."""
        rng, workload = self.rng, self.workload
        while self._count < self.total and self._next_arrival <= step:
            name = f"r{rng.randrange(1000):03d}-{self._count}"
            prompt = workload.prompt()
            if len(prompt) < self._shortest:
                prompt = prompt * self._shortest
            output = min(rng.randrange(1, self._longest_reply), workload.length - len(prompt))
            priority = rng.randrange(0, 3)
            arrival = 0 if workload.ties else self._now
            self.known[name] = prompt
            self.left[name] = output
            ours.add(name, arrival, priority, prompt)
            theirs.add(name, arrival, priority, prompt, output)
            self._count += 1
            self._now += 1
            self._next_arrival = step + rng.randrange(0, self._gap + 1)
        if self.left and rng.random() < 0.01:
            gone = rng.choice(sorted(self.left))
            ours.cancel(gone)
            theirs.cancel(gone)
            del self.left[gone], self.known[gone]
            seen["cancelled"] += 1

    def sample(self, ran: list[tuple[str, int]], theirs: Any) -> tuple[dict[str, int], list[str]]:
        """Tokens of who has computed all it has, and who is done with them."""
        known = self.known
        sampled = {
            name: self.workload.reply(known[name])
            for name, _ in ran
            if theirs.scheduler.requests[name].num_computed_tokens == len(known[name])
        }
        finished = []
        for name, token in sampled.items():
            known[name].append(token)
            self.left[name] -= 1
            if not self.left[name]:
                finished.append(name)
        return sampled, finished

    def leave(self, finished: list[str]) -> None:
        """They are done; others may go on from there."""
        for name in finished:
            self.workload.sessions.append(self.known.pop(name))
            del self.left[name]


def compare_one_run(vllm: Any, rng: random.Random, seen: dict[str, int]) -> None:
    """Both side by side until all is served. Raises AssertionError at the first difference."""
    settings, by_priority, caches = random_settings(rng)
    ours = Ours(settings, by_priority=by_priority, caches=caches)
    theirs = ReleaseDriver(vllm, settings, by_priority=by_priority, caches=caches)
    clients = Clients(rng, settings)
    for step in range(6000):
        clients.come_and_go(step, ours, theirs, seen)
        expected = theirs.schedule()
        try:
            found = ours.schedule()
        except ReleaseVerdict as verdict:
            if "waits" in str(verdict):
                seen["stalled"] += 1
                assert not expected["tokens"]
                assert not expected["running"]
                return
            seen["verdict"] += 1
            confirm_livelock(theirs, clients.known)
            return
        assert found == expected, f"step {step}"
        seen["steps"] += 1
        seen["found"] += sum(tokens for _, tokens in expected["found"])
        for key in ("new", "resumed", "preempted"):
            seen[key] += len(expected[key])
        sampled, finished = clients.sample(expected["tokens"], theirs)
        theirs.finish_step(sampled)
        ours.finish_step(rng.sample(finished, len(finished)))
        clients.leave(finished)
        if clients.are_done:
            return
    pytest.fail("the run did not end")


def confirm_livelock(theirs: ReleaseDriver, known: dict[str, list[int]]) -> None:
    """The release gives nobody a token for as long as we care to look."""
    for _ in range(300):
        for name in theirs.output.num_scheduled_tokens:
            computed = theirs.scheduler.requests[name].num_computed_tokens
            assert computed < len(known[name]), "the release goes on"
        theirs.finish_step({})
        theirs.schedule()


def compare_runs(vllm: Any, runs: range) -> dict[str, int]:
    keys = ("steps", "new", "resumed", "preempted", "found", "cancelled", "verdict", "stalled")
    seen = dict.fromkeys(keys, 0)
    for seed in runs:
        try:
            compare_one_run(vllm, random.Random(seed), seen)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return seen


def test_every_decision_equals_the_release(vllm: Any) -> None:
    seen = compare_runs(vllm, range(RUNS))
    print(seen)
    assert all(count > 2 for count in seen.values()), f"the inputs did not exercise {seen}"
