"""A shadow machine without chance, driven by hand or to the end, with every law checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from policy.integrity import check_integrity
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan, PreemptionMode
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.shadow import ShadowMachine, Turn, serve
from tests.helpers.small import variant

NEVER = 1 << 30
SYNC = variant("+groups", between_turns="drop")
ASYNC = variant("fastswitch", overlap="async", between_turns="drop")
KEEPING = variant("fastswitch", overlap="async")
SWAP, RECOMPUTE = PreemptionMode.SWAP, PreemptionMode.RECOMPUTE


class Steady:
    """Chance for the shadow machine, scripted: a step takes 1 ns, a copy that nobody waits for ends
    `polls` polls later and reads its source only then."""

    def __init__(self, polls: int) -> None:
        self.polls = polls

    def randrange(self, low: int, _high: int) -> int:
        return low or self.polls

    def random(self) -> float:
        return 0.6


class Watched(ShadowMachine):
    """Shows every plan to `watch` before executing it."""

    def __init__(
        self,
        made: Scheduler,
        watch: Callable[[Plan], None] = lambda _plan: None,
        *,
        polls: int = 3,
        fail: Callable[[Copy], bool] = lambda _copy: False,
    ) -> None:
        super().__init__(made, Steady(polls), fail)
        self.watch = watch
        self.preempted: list[tuple[str, PreemptionMode]] = []

    def execute(self, plan: Plan) -> Outcome:
        self.watch(plan)
        self.preempted += plan.preempt
        return super().execute(plan)

    def step(self) -> Plan:
        """One plan by hand, with every law checked around it."""
        plan = self.scheduler.schedule(self.now_ns)
        check_integrity(self.scheduler)
        self.scheduler.update(self.execute(plan))
        check_integrity(self.scheduler)
        return plan

    def end_copy(self, way: Direction) -> None:
        """The oldest copy under way in one direction ends now."""
        self.report(self._end(self.moving[way].popleft()))

    def report(self, result: CopyResult) -> None:
        """Nothing ran; a copy has ended."""
        self.scheduler.update(Outcome(False, self.now_ns, self.now_ns, None, (), (result,)))
        check_integrity(self.scheduler)

    def cancel(self, request_id: str) -> None:
        """The client goes away."""
        assert self.scheduler.cancel(request_id, self.now_ns)
        self.served.pop(request_id)
        check_integrity(self.scheduler)


def run(made: Scheduler, turns: list[Turn], **how: Any) -> Watched:
    """Serve all turns with every law checked around every plan; nothing may be left over."""
    machine = Watched(made, **how)
    serve(machine, turns, check=check_integrity, max_plans=5000)
    assert sorted(machine.finished) == sorted(turn.request_id for turn in turns)
    assert_nothing_is_held_by_copies(made)
    return machine


def assert_nothing_is_held_by_copies(made: Scheduler) -> None:
    memory = memory_of(made)
    assert (memory.in_flight, memory.transfers.coming, made.num_live) == ({}, 0, 0)
    assert not swaps_of(made).residents


def assert_both_pools_are_empty(made: Scheduler) -> None:
    memory = memory_of(made)
    free = (memory.device.num_available, memory.host.num_available)
    assert free == (memory.device.num_blocks, memory.host.num_blocks)


def crowd() -> list[Turn]:
    """Eight conversations of two turns on a device that holds three of them."""
    turns = []
    for index in range(8):
        name = f"c{index}"
        turns.append(Turn(name, 2 * index, 9 + index, 9, session_id=name, priority=index % 3))
        turns.append(Turn(f"{name}+", 90, 26 + index, 5, session_id=name, parent_id=name))
    return turns
