"""The policies over real memory, real swap threads and a device that does everything late.

The twin of `shadow.ShadowMachine`: the same turns, the same tags, but a tag is a number in a KV
slot, copies are the swap manager's, and a step is a kernel that reads its request's context and
writes its new tokens whenever the device gets there. The engine never waits for it, as if sampling
were asynchronous too (trap A7).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from policy.plan import CopyResult, Direction, Outcome, Plan
from policy.scheduler import Scheduler
from policy.systems import custom_system
from realrun.swap import SwapManager, Transfer
from tests.helpers.fake_device import FakeDevice
from tests.helpers.shadow import ShadowMachine, Tag, WrongKV
from tests.helpers.small import scheduler
from tests.helpers.swapping import SUBMISSIONS, Ticks, make_store, tiny


def swapping_scheduler(rng: random.Random) -> Scheduler:
    """Any system that swaps, on a device so small that it must all the time."""
    system = custom_system(
        {
            "name": "swapping",
            "allocator": rng.choice(["paged", "groups", "buddy"]),
            "overlap": rng.choice(["sync", "async", "async", "adaptive"]),
            "reuse": rng.random() < 0.5,
            "between_turns": rng.choice(["drop", "keep_host", "keep_device"]),
            "host_eviction": rng.choice(["priority", "lru"]),
        }
    )
    return scheduler(
        system,
        rng.choice(["markov", "random"]),
        device_blocks=rng.randrange(10, 16),
        host_blocks=rng.choice([12, 30, 200]),
        update_every=rng.choice([1, 2, 5]),
        initial_group=rng.choice([1, 4]),
        max_model_len=40,
    )


class LateMachine(ShadowMachine):
    """`device`: its `on_put` decides which copies go wrong, and how."""

    def __init__(
        self,
        scheduler: Scheduler,
        rng: random.Random,
        device: FakeDevice,
        *,
        threads: int = 0,
        layout: str = "layer_major",
        submission: str | None = None,
        swap: type[SwapManager] = SwapManager,
    ) -> None:
        super().__init__(scheduler, rng)
        settings = scheduler.settings
        self.fake = device
        self.wrong: list[str] = []
        self.ended: list[Transfer] = []
        self.num_kernels = self.num_checks = 0
        self.store = make_store(
            layout,
            settings.device_blocks,
            settings.host_blocks,
            self.size,
            config=tiny(layers=1, head_dim=1),
        )
        self.store.device.poison(list(range(settings.device_blocks)))
        self.store.host.poison(list(range(settings.host_blocks)))
        self.swap = swap(
            self.store,
            device,
            submission=submission or rng.choice(SUBMISSIONS),
            threads=threads,
            clock=Ticks(),
        )
        self._numbers: dict[Tag, float] = {}

    @property
    def moving(self) -> dict[str, Any]:  # type: ignore[override]
        """What is in flight."""
        return {"copies": self.swap.in_flight}

    @moving.setter
    def moving(self, _value: Any) -> None:
        """The shadow's own queues are not used."""

    def execute(self, plan: Plan) -> Outcome:
        for copy_id in plan.cancel:
            self.swap.cancel(copy_id)
        for request_id, why in plan.reject:
            self.rejected[request_id] = why
            self.served.pop(request_id)
        lost = self._copy(plan)
        start = self.now_ns
        self.now_ns += 1
        prompts = {name for name, _ in plan.prefill}
        ran = [name for name, _ in plan.prefill]
        counts = [count for _, count in plan.prefill]
        if plan.batch is not None:
            ran += plan.batch.decode
            counts += [1] * len(plan.batch.decode)
        tokens, finished = [], []
        for name, count in zip(ran, counts, strict=True):
            tokens.append((name, int(name not in lost)))
            if name in lost:
                continue
            served = self.served[name]
            past = len(served.tags) - 1
            if name in prompts:
                past = self.scheduler.num_computed(name)
            self._launch(name, past, count)
            if past + count < len(served.tags):
                continue  # a chunk
            served.tags.append((name, len(served.tags)))
            served.produced += 1
            if served.produced == served.turn.output_tokens:
                finished.append(name)
                self.contexts[name] = self.served.pop(name).tags
                self.finished[name] = self.now_ns
        self.swap.set_barrier()
        return Outcome(
            plan.runs, start, self.now_ns, tuple(tokens), tuple(finished), tuple(self.poll())
        )

    def _copy(self, plan: Plan) -> set[str]:
        """Stores, then loads; each waited for as the plan says."""
        waits = set(plan.wait_for)
        lost: set[str] = set()
        for way in Direction:
            for copy in plan.copies:
                if copy.direction is way:
                    self.swap.submit(copy)
            named = [
                t
                for t in self.swap.in_flight.values()
                if t.copy.copy_id in waits and t.copy.direction is way
            ]
            self.swap.wait([t.copy.copy_id for t in named])
            if way is Direction.TO_DEVICE:
                lost = {t.copy.request_id for t in named if not t.ok}
            for transfer in named:
                self.swap.guard.give_back(transfer.copy)
        return lost

    def poll(self, *, force: bool = False) -> list[CopyResult]:
        """Copies that have ended. `force`: at least one."""
        while True:
            ended = self.swap.poll()
            self.ended += ended
            if ended or not force:
                break
            self.swap.wait_for_news(0.001)
        if self.wrong:
            raise WrongKV(self.wrong[0])
        return [CopyResult(t.copy.copy_id, t.ok, self.now_ns) for t in ended]

    def cancel(self, request_id: str) -> None:
        """The client goes away."""
        assert self.scheduler.cancel(request_id, self.now_ns)
        self.served.pop(request_id)
        self.rejected[request_id] = "left"

    def close(self) -> None:
        """Let the last kernels and copies end. Raises WrongKV."""
        self.swap.close()
        self.fake.run()
        self.poll()

    def _launch(self, name: str, past: int, count: int) -> None:
        total = past + count
        tags = self.served[name].tags[:total]
        table = list(self.scheduler.block_table(name))
        positions = torch.arange(total)
        blocks = torch.tensor(table)[positions // self.size]
        slots = positions % self.size
        numbers = torch.tensor([self._number(tag) for tag in tags], dtype=torch.float64)
        self.swap.guard.check_compute(table[past // self.size : -(-total // self.size)])
        self.num_kernels += 1

        def kernel() -> Iterator[None]:
            tier = self.store.device
            for sign, side in ((1, tier.keys(0)), (-1, tier.values(0))):
                flat = side[..., 0, 0]
                found = flat[blocks[:past], slots[:past]]
                if not torch.equal(found, sign * numbers[:past]):
                    at = int((found != sign * numbers[:past]).nonzero()[0])
                    self.wrong.append(f"{name} position {at} of {total}: block {int(blocks[at])}")
                flat[blocks[past:], slots[past:]] = sign * numbers[past:]
                yield

        self.fake.compute(kernel)

    def _number(self, tag: Tag) -> float:
        return self._numbers.setdefault(tag, 1.0 + len(self._numbers))
