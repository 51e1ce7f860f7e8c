"""Traps of parking before the device is full (`movement: proactive`), docs/traps.md."""

from __future__ import annotations

import random

import pytest

from policy.choices.catalog import named_decisions
from policy.choices.overlap import Async, Choice
from policy.orders.catalog import OrderSettings, make_order
from policy.plan import Direction, Plan
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS, System
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import RECOMPUTE, SWAP, Watched
from tests.helpers.scripted import run as serve_all
from tests.helpers.shadow import Turn
from tests.helpers.small import draw, random_turns, scheduler, settings, variant
from tests.traps.test_meaning import Told, crowd, run, thrash

PROACTIVE = variant("fastswitch-proactive", overlap="async", between_turns="drop")
#: Of twenty blocks, four and eight.
THRESHOLDS = {"free_low": 0.2, "free_high": 0.4}


def machine(
    *names: str,
    tokens: int = 16,
    outputs: int = 60,
    polls: int = 3,
    system: System = PROACTIVE,
    **sizes: int | float,
) -> Watched:
    """Requests that come at once, the first the most urgent."""
    made = scheduler(system, **{"device_blocks": 20, **THRESHOLDS, **sizes})
    found = Watched(made, polls=polls)
    for priority, name in enumerate(names):
        found.arrive(Turn(name, 0, tokens, outputs, priority=priority))
    return found


def until_parked(found: Watched, most: int = 80) -> Plan:
    for _ in range(most):
        plan = found.step()
        if plan.preempt:
            return plan
    raise AssertionError("nobody was parked")


def room(made: Scheduler) -> int:
    return swaps_of(made).room_left()


# ---------------------------------------------------------------------- what it is for


def test_the_last_in_order_leaves_before_blocks_run_out_and_no_step_waits_for_its_copy() -> None:
    found = machine("leads", "last")
    rooms = []
    plan = Plan()
    while not plan.preempt:
        rooms.append(room(found.scheduler))
        plan = found.step()
    assert found.preempted == [("last", SWAP)]
    assert plan.wait_for == ()
    assert plan.batch is not None and plan.batch.decode == ("leads",)
    assert rooms[-1] < 4 <= min(rooms[:-1])  # in the very step whose growth passes the threshold
    assert room(found.scheduler) >= 8


def test_idle_conversations_on_the_device_give_way_first() -> None:
    keeping = variant("fastswitch-proactive", overlap="async", between_turns="keep_device")
    found = machine("idles", "goes on", outputs=2, system=keeping)
    while found.served:
        found.step()
    assert len(swaps_of(found.scheduler).idle_device) == 2
    found.arrive(Turn("a", 0, 10, 50))
    while len(swaps_of(found.scheduler).idle_device) == 2:
        found.step()
    assert room(found.scheduler) >= 8 and found.preempted == []


def test_no_idle_conversation_is_lost_for_room_that_nobody_needs_yet() -> None:
    """As on the page of the decision: where the host has no room, they stay until somebody comes."""
    keeping = variant("fastswitch-proactive", overlap="async", between_turns="keep_device")
    found = machine("idles", "goes on", outputs=2, system=keeping, host_blocks=0)
    while found.served:
        found.step()
    state = swaps_of(found.scheduler)
    found.arrive(Turn("a", 0, 10, 60))
    while room(found.scheduler) >= 3:
        found.step()
        assert len(state.idle_device) == 2
    while "a" in found.served:  # who needs their room gets it all the same
        found.step()
    assert len(state.idle_device) < 2


# ---------------------------------------------------------------------- traps


def test_t1_who_was_parked_comes_back_over_the_high_threshold_or_when_nobody_else_is_there() -> (
    None
):
    found = machine("leads", "last")
    until_parked(found)
    while "leads" in found.served:
        plan = found.step()
        assert [c for c in plan.copies if c.direction is Direction.TO_DEVICE] == []
    while found.served:
        found.step()
    assert found.preempted == [("last", SWAP)]


@pytest.mark.parametrize("shape", ["prefill_only", "chunked"])
def test_t1_two_thresholds_park_and_resume_nobody_at_once(shape: str) -> None:
    def serve(high: float) -> Told:
        sizes = {"device_blocks": 40, "max_num_seqs": 63, "free_low": 0.2, "free_high": high}
        return run(scheduler(PROACTIVE.but(shape=shape), "random", **sizes), crowd(1))

    apart, close = serve(0.4), serve(0.25)
    assert len(apart.parked) > 30
    assert thrash(apart) < 0.1
    assert len(close.parked) > 1.3 * len(apart.parked)


def test_t10_d5_no_more_are_parked_than_the_high_threshold_takes_pending_room_counted() -> None:
    """Thirty blocks, thresholds six and twelve; the copy takes long, so its room is pending."""
    found = machine("leads", "second", "last", device_blocks=30, polls=30)
    until_parked(found)
    for _ in range(5):
        found.step()
    assert found.preempted == [("last", SWAP)]
    assert memory_of(found.scheduler).transfers.coming > 0


def test_t2_rule_10_shields_from_parking_ahead_too() -> None:
    found = machine("leads", "last", min_run_steps=18)
    until_parked(found)
    assert found.scheduler.step >= 18 > first_parking(min_run_steps=0)


def first_parking(**sizes: int) -> int:
    found = machine("leads", "last", **sizes)
    until_parked(found)
    return found.scheduler.step


def test_the_leader_stays_below_every_threshold_also_without_rule_9() -> None:
    for system in (PROACTIVE, variant("fastswitch-proactive", protects_leader=False)):
        found = machine("alone", system=system)
        lowest = 20
        while found.served:
            found.step()
            lowest = min(lowest, room(found.scheduler))
        assert lowest < 4
        assert found.preempted == []


def test_d4_who_does_not_fit_beside_the_headroom_is_served_once_nobody_else_is_there() -> None:
    made = scheduler(PROACTIVE, "priority", device_blocks=20, **THRESHOLDS)
    turns = [Turn("small", 0, 10, 20), Turn("large", 0, 60, 6, priority=1)]
    served = serve_all(made, [*turns, Turn("later", 30, 10, 5, priority=2)])
    assert served.finished["small"] < served.finished["large"] < served.finished["later"]


def test_d6_without_host_room_nobody_leaves_ahead_of_need() -> None:
    """Nothing is recomputed for room that nobody needs yet."""
    found = machine("leads", "last", host_blocks=3)
    memory = memory_of(found.scheduler)
    plan, free = Plan(), 20
    while not plan.preempt:
        free = memory.device.num_available
        plan = found.step()
    assert found.preempted == [("last", RECOMPUTE)]
    assert free < 2


def test_t7_headroom_is_no_watermark_the_first_prompt_may_use_it() -> None:
    found = machine("large", tokens=70, outputs=4)
    assert found.step().prefill == (("large", 70),)


class WaitsForLoads(Async):
    """What `adaptive` may choose in any step."""

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:
        return Choice(wait=True)


def host_blocks(plan: Plan, way: Direction) -> set[int]:
    runs = [run for copy in plan.copies if copy.direction is way for run in copy.runs]
    return {host + i for _, host, length in runs for i in range(length)}


@pytest.mark.parametrize("system", ["+proactive", "fastswitch-proactive"])
def test_l10_nobody_is_parked_into_host_blocks_that_a_load_of_the_same_plan_reads(
    system: str,
) -> None:
    """A load that the step waits for gives its host blocks back at once, but reads them after the
    stores of its plan have begun."""
    loads = 0

    def watch(plan: Plan) -> None:
        nonlocal loads
        read = host_blocks(plan, Direction.TO_DEVICE)
        assert read.isdisjoint(host_blocks(plan, Direction.TO_HOST))
        loads += bool(read)

    for seed in range(12):
        sizes = {"device_blocks": 24, "host_blocks": 24, "update_every": 2, **THRESHOLDS}
        order, chosen = make_order("random", draw, OrderSettings()), SYSTEMS[system]
        decisions = named_decisions(chosen.options, settings(**sizes), order)._replace(
            overlap=WaitsForLoads()
        )
        made = Scheduler(settings(**sizes), chosen, order, draw, decisions=decisions)
        serve_all(made, random_turns(random.Random(seed), 4), watch=watch)
    assert loads > 20


def test_l1_parked_blocks_are_nobodys_until_their_copy_has_ended() -> None:
    """Whatever the copies' timing, everybody computes on its own KV."""
    for seed in range(6):
        made = scheduler(
            PROACTIVE, "random", device_blocks=24, host_blocks=80, update_every=3, **THRESHOLDS
        )
        serve_all(made, random_turns(random.Random(seed), 4), polls=1 + seed)
