"""Turns come, clients leave, copies end or fail in any order: after every call every law holds.

The machine here knows no KV (`test_shadow` does): it makes copies end out of order, fail and be
late as no real one would, and checks that each plan only names what is there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from policy.errors import ReleaseVerdict
from policy.integrity import check_integrity
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.small import random_scheduler, sharing_scheduler


class Chaos:
    """A machine and its clients; `rng` decides everything that a scheduler may not rely on."""

    def __init__(
        self, seed: int, make: Callable[[random.Random], Scheduler] = random_scheduler
    ) -> None:
        self.rng = random.Random(seed)
        self.made = make(self.rng)
        self.failing = self.rng.choice([0.0, 0.05, 0.3])
        self.now_ns = 0
        self.outputs: dict[str, int] = {}  # live request -> tokens it still wants
        self.gone: list[str] = []
        self.moving: dict[int, Copy] = {}
        self.cancelled: set[int] = set()
        self.seen: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        """Some steps of chaos, then nobody comes and everybody who stays is served."""
        for _ in range(steps):
            self._clients()
            self._step(self.rng.choice([0.0, 0.3, 0.9]))
        for _ in range(5000):
            if not self.made.num_live and not self.moving:
                break
            self._step(0.5)
        self._nothing_is_left()

    # ------------------------------------------------------------------ clients

    def _clients(self) -> None:
        rng = self.rng
        for _ in range(rng.choice([0, 0, 0, 1, 1, 4])):
            self._arrive()
        if self.outputs and rng.random() < 0.1:
            name = rng.choice(sorted(self.outputs))
            was_live = name in self.made.desk.live  # or rejected, and not in a plan yet
            assert self.made.cancel(name, self.now_ns) == was_live
            if was_live:
                self._forget(name, "cancelled")
        check_integrity(self.made)

    def _arrive(self) -> None:
        rng = self.rng
        name = f"r{len(self.outputs) + len(self.gone)}"
        parent = rng.choice(self.gone) if self.gone and rng.random() < 0.6 else None
        self.outputs[name] = rng.randrange(1, 40)
        tokens = rng.randrange(1, 40)
        self.made.add(
            Request(
                name,
                arrival_ns=self.now_ns,
                input_tokens=tokens,
                session_id=f"s{rng.randrange(4)}",
                parent_id=parent,
                parent_prefix_tokens=rng.choice([None, None, 0, rng.randrange(60)]),
                priority=rng.randrange(3),
                is_last_turn=rng.random() < 0.1,
                prefix_keys=self._keys(tokens),
            ),
            self.now_ns,
        )

    def _keys(self, tokens: int) -> tuple[int, ...]:
        """Names of full blocks, few enough to meet again, whatever the parent's were."""
        if swaps_of(self.made).sharing is None:
            return ()
        size = self.made.settings.prefix_block or self.made.settings.block_size
        return tuple(self.rng.randrange(2) for _ in range(tokens // size))

    def _forget(self, name: str, how: str) -> None:
        del self.outputs[name]
        self.gone.append(name)
        self.seen[how] += 1

    # ------------------------------------------------------------------ the machine

    def _step(self, eager: float) -> None:
        self.now_ns += 1
        plan = self.made.schedule(self.now_ns)
        check_integrity(self.made)
        self._check_plan(plan)
        for name, _why in plan.reject:
            self._forget(name, "rejected")
        self.cancelled.update(plan.cancel)
        results = [self._end(copy_id) for copy_id in self._shuffled(plan.wait_for)]
        lost = {
            copy.request_id
            for copy in plan.copies
            if any(r.copy_id == copy.copy_id and not r.ok for r in results)
            and copy.direction is Direction.TO_DEVICE
        }
        finished = self._compute(plan, lost)
        late = [i for i in self._shuffled(self.moving) if self.rng.random() < eager]
        if not plan.runs and self.moving and not results and not late:
            late = self._shuffled(self.moving)[:1]
        results += [self._end(copy_id) for copy_id in late]
        tokens = tuple((name, int(name not in lost)) for name in plan.num_scheduled_tokens)
        self.made.update(
            Outcome(
                plan.runs,
                self.now_ns - 1,
                self.now_ns,
                tokens if plan.runs and (lost or self.rng.random() < 0.3) else None,
                finished,
                tuple(results),
            )
        )
        check_integrity(self.made)

    def _check_plan(self, plan: Plan) -> None:
        """It names only what exists, and who runs holds the blocks for it."""
        assert not self.moving.keys() & {copy.copy_id for copy in plan.copies}
        self.moving.update({copy.copy_id: copy for copy in plan.copies})
        assert {*plan.wait_for, *plan.cancel} <= self.moving.keys()
        assert plan.runs or plan.is_numbered or plan.has_commands or plan.waiting_on
        running = plan.num_scheduled_tokens
        assert len(running) == len(plan.prefill) + (len(plan.batch.decode) if plan.batch else 0)
        assert not {name for name, _mode in plan.preempt} & running.keys()
        size = self.made.settings.block_size
        for name in running:
            assert len(self.made.block_table(name)) * size >= self.made.num_tokens(name)
        self.seen["copies"] += len(plan.copies)
        self.seen["taken back"] += len(plan.cancel)

    def _shuffled(self, copy_ids: tuple[int, ...] | dict[int, Copy]) -> list[int]:
        ids = list(copy_ids)
        self.rng.shuffle(ids)
        return ids

    def _end(self, copy_id: int) -> CopyResult:
        del self.moving[copy_id]
        ok = copy_id not in self.cancelled and self.rng.random() >= self.failing
        self.seen["failed"] += not ok and copy_id not in self.cancelled
        return CopyResult(copy_id, ok, self.now_ns)

    def _compute(self, plan: Plan, lost: set[str]) -> tuple[str, ...]:
        done = []
        limit = self.made.settings.max_model_len
        computed, total = self.made.num_computed, self.made.num_tokens
        chunks = {name for name, count in plan.prefill if computed(name) + count < total(name)}
        self.seen["chunks"] += len(chunks)
        for name in plan.num_scheduled_tokens:
            if name not in lost and name not in chunks:
                self.outputs[name] -= 1
                if not self.outputs[name] or self.made.num_tokens(name) >= limit:
                    done.append(name)
        for name in done:
            self._forget(name, "finished")
        return tuple(sorted(done))

    def _nothing_is_left(self) -> None:
        """Everybody has ended, no copy holds anything, and all blocks are free or somebody's."""
        made = self.made
        assert (made.num_live, self.outputs, self.moving) == (0, {}, {})
        memory = memory_of(made)
        assert (memory.in_flight, memory.transfers.coming, swaps_of(made).residents) == ({}, 0, {})
        idle = sum(len(c.device.blocks) for c in memory.ledger.kept.values() if c.device)
        idle -= sum(c.device.num_shared for c in memory.ledger.kept.values() if c.device)
        idle += memory.device.num_shared
        assert memory.device.num_available + idle == memory.device.num_blocks


def survive(
    seed: int, make: Callable[[random.Random], Scheduler] = random_scheduler
) -> Counter[str]:
    """What one run of chaos met on its way; `verdict` where vLLM 0.3.3 would stop."""
    chaos = Chaos(seed, make)
    try:
        chaos.run(60)
    except ReleaseVerdict:
        chaos.seen["verdict"] += 1
    if swaps_of(chaos.made).sharing is not None:
        chaos.seen["hits"] += swaps_of(chaos.made).sharing.num_hits
        chaos.seen["lost"] += swaps_of(chaos.made).sharing.num_lost_copies
    return chaos.seen


@pytest.mark.counted
def test_every_law_holds_whatever_clients_and_copies_do(seeds: Callable[[int, int], range]) -> None:
    runs = seeds(60, 10_000)
    seen = sum((survive(seed) for seed in runs), Counter())
    for what in ("finished", "cancelled", "rejected", "failed", "taken back"):
        assert seen[what] > len(runs) // 50, f"hardly any {what}: {seen}"
    assert seen["verdict"] < len(runs) // 5
    assert seen["copies"] > 10 * len(runs)


@pytest.mark.counted
def test_every_law_holds_where_prompts_share_blocks(seeds: Callable[[int, int], range]) -> None:
    runs = seeds(50, 10_000)
    seen = sum((survive(seed, sharing_scheduler) for seed in runs), Counter())
    for what in ("finished", "cancelled", "failed", "taken back", "hits"):
        assert seen[what] > len(runs) // 50, f"hardly any {what}: {seen}"
    assert seen["lost"] >= len(runs) // 10_000, seen
