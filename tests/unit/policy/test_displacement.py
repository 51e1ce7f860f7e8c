"""Who may take a running request's place: the gap rule and "never", against their sources' own words."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.choices.displacement import DISPLACEMENTS, ByGap
from policy.engines.base import Until
from policy.errors import ConfigError
from policy.orders.base import Order
from policy.plan import Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import CHOICES, System
from tests.helpers.inside import Wrapped, wrap
from tests.helpers.scripted import SYNC, Watched, crowd, run
from tests.helpers.shadow import Turn
from tests.helpers.small import draw, scheduler, settings, variant

GAP = variant("+groups", between_turns="drop", displacement="gap")
NEVER = variant("+groups", between_turns="drop", displacement="never")


def test_every_choice_of_the_switch_is_a_rule_of_that_name() -> None:
    assert tuple(DISPLACEMENTS) == CHOICES["displacement"]
    for name, make in DISPLACEMENTS.items():
        made = make(1.0, 4)
        assert (made.name, made.by_rank) == (name, name == "order")
    request = Request("r", arrival_ns=0, input_tokens=1)
    assert DISPLACEMENTS["order"](1.0, 4).key(request) == ()


# ---------------------------------------------------------------------- a gap with a threshold


def victims_by_sglang(
    running: Sequence[tuple[int, int]], waiting: tuple[int, int], blocks: int, threshold: float
) -> int:
    """How many SGLang's rule preempts, the worst first (docs/sources.md#sglang): stop at the first
    whose gap is not larger than the threshold, commit only if all of the need is met. Requests are
    (priority, blocks with one step of headroom)."""
    priority, need = waiting
    need -= blocks - sum(size for _, size in running)
    taken = 0
    for victim, size in sorted(running, reverse=True):
        if need <= 0 or victim - priority <= threshold:
            break
        taken += 1
        need -= size
    return taken if need <= 0 else 0


#: (priority, prompt): after its first token each holds whole blocks and one token of the last.
RUNNING = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([4, 8, 12])), min_size=2, max_size=6, unique=True
)


@given(
    RUNNING, st.integers(0, 12), st.sampled_from([3, 7, 11, 19]), st.sampled_from([0, 1, 2.5, 6])
)
def test_the_gap_rule_preempts_as_sglang_does_all_or_nothing(
    running: list[tuple[int, int]], priority: int, prompt: int, gap: float
) -> None:
    """Distinct priorities, one leader whom nobody may displace, no block to spare."""
    running = [(-1, 4), *{priority: (priority, size) for priority, size in running}.values()]
    sizes = [(rank, size // 4 + 1) for rank, size in running]
    blocks = sum(size for _, size in sizes)
    made = scheduler(GAP, device_blocks=blocks, displacement_gap=gap)
    machine = Watched(made)
    for index, (rank, size) in enumerate(running):
        machine.arrive(Turn(f"r{index}", 0, size, 30, priority=rank))
    while len(made.desk.running) < len(running):
        machine.step()
    machine.arrive(Turn("new", 1, prompt, 1, priority=priority))
    plan = machine.step()
    expected = victims_by_sglang(sizes[1:], (priority, prompt // 4 + 1), blocks - 2, gap)
    worst = sorted(running, reverse=True)[:expected]
    names = {f"r{running.index(found)}" for found in worst}
    assert {name for name, _ in plan.preempt} == names
    assert len(plan.preempt) == expected


def steps_until(made: Scheduler, wanted: str) -> int:
    """A low one that needs the whole device but the leader's block runs; then `wanted` comes."""
    machine = Watched(made)
    machine.arrive(Turn("leader", 0, 1, 60, priority=-9))
    machine.arrive(Turn("low", 0, 20, 12, priority=9))
    for _ in range(3):
        machine.step()
    machine.arrive(Turn(wanted, 3, 20, 4, priority=4))
    return sum(wanted not in machine.finished and bool(machine.step()) for _ in range(60))


@pytest.mark.parametrize(("gap", "waits"), [(0, False), (4.5, False), (5, True), (100, True)])
def test_only_a_gap_beyond_the_threshold_displaces(gap: float, waits: bool) -> None:
    taken = steps_until(scheduler(GAP, device_blocks=12, displacement_gap=gap), "new")
    assert (taken > 10) == waits


def test_a_unit_of_priority_is_what_the_order_says() -> None:
    """Random keys are 64 bits: a quarter of the range is a threshold of 0.25."""

    class Halves(Order):
        name = "halves"
        unit = 2

        def key(self, request: object, now_ns: int) -> tuple[int]:
            return (2 * request.priority,)  # type: ignore[attr-defined]

    for gap, waits in ((4.5, False), (5, True)):
        made = Scheduler(settings(device_blocks=12, displacement_gap=gap), GAP, Halves(), draw)
        assert (steps_until(made, "new") > 10) == waits


def test_an_order_without_numbers_knows_no_gap() -> None:
    made = scheduler(GAP, "fcfs", device_blocks=12)
    assert run(made, crowd()).preempted
    machine = Watched(made)
    machine.arrive(Turn("a", 1000, 8, 3))
    machine.step()
    assert ByGap(0.0, 4).key(made.request("a"))[0] == -inf


@pytest.mark.parametrize("gap", [-1.0, float("inf"), float("nan")])
def test_a_threshold_is_a_number_from_zero_on(gap: float) -> None:
    with pytest.raises(ConfigError, match=r"^hysteresis.gap: .* is not in 0 <= gap < infinity$"):
        Settings(device_blocks=1, host_blocks=1, displacement_gap=gap)


# ---------------------------------------------------------------------- never, as vLLM V1


def parkings(system: System, order: str) -> list[tuple[bool, bool]]:
    """(growth was short, its victims were the last in order), of every plan that parks."""
    made = scheduler(system, order, device_blocks=20, update_every=3)
    desk = made.desk
    seen: list[tuple[bool, bool]] = []

    class Watched(Wrapped):
        def decide(self) -> tuple[Plan, Until]:
            short = len(desk.growing()) > self.inner.num_available
            plan, until = self.inner.decide()
            if plan.preempt:
                first = min(made.request(name).rank for name, _ in plan.preempt)
                seen.append((short, all(request.rank < first for request in desk.running)))
            return plan, until

    wrap(made, Watched)
    run(made, [*crowd(), *[Turn(f"x{i}", 3 * i, 14, 20, priority=i % 3) for i in range(8)]])
    return seen


@pytest.mark.parametrize("order", ["priority", "fcfs", "random", "vtc"])
def test_under_never_only_growth_preempts_and_the_last_in_order_goes(order: str) -> None:
    """vLLM V1: a waiting request displaces nobody; when a running one cannot grow, the victim is
    max(priority, arrival) of those that run."""
    seen = parkings(NEVER, order)
    assert len(seen) >= 3
    assert all(short and last for short, last in seen)


def test_under_the_order_a_waiting_request_does_preempt() -> None:
    assert not all(short for short, _ in parkings(SYNC, "priority"))
