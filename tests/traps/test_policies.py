"""Traps that displacement rules, preemption modes, host evictions and the planner's two protections
could fall into (docs/traps.md, the table of policies; ids are those of the traps elsewhere)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from policy.choices.host_eviction import HOST_EVICTIONS
from policy.orders.base import Key, Order
from policy.systems import System
from policy.views import RequestView
from tests.helpers.scripted import RECOMPUTE
from tests.helpers.scripted import run as serve_all
from tests.helpers.shadow import Turn
from tests.helpers.small import draw, scheduler, variant
from tests.traps.test_meaning import (
    Told,
    crowd,
    five_and_an_urgent_one,
    in_ten_blocks,
    low_is_swapped_when_urgent_comes,
    run,
    thrash,
)

GAP = variant("+groups", between_turns="drop", displacement="gap")
NEVER = variant("+groups", between_turns="drop", displacement="never")
COST = variant("fastswitch", preemption="cost")


class Nervous(Order):
    """Ten classes, and a difference of up to three that changes at every update."""

    name = "nervous"
    refreshes = True

    def __init__(self) -> None:
        self.index = 0

    def update(self, index: int, now_ns: int) -> None:
        self.index = index

    def key(self, request: RequestView, now_ns: int) -> Key:
        noise = draw("nervous", request.request_id, self.index) % 4
        return (10 * request.priority + noise,)


# ------------------------------------------------------------------ T1, T2: to and fro


def nervous(gap: float) -> Told:
    made = scheduler(GAP, Nervous(), device_blocks=20, update_every=2, displacement_gap=gap)
    return run(made, crowd(1))


def test_t1_a_gap_beyond_the_noise_ends_the_to_and_fro_and_classes_still_displace() -> None:
    restless, calm = nervous(0), nervous(3)
    assert len(restless.parked) > 3 * len(calm.parked)
    assert thrash(calm) < 0.3
    place = {request.request_id: request.priority for request in calm.requests.values()}
    assert {place[name] for _, name in calm.parked} >= {1, 2}


@pytest.mark.parametrize("system", [COST, NEVER, GAP], ids=["cost", "never", "gap"])
def test_t1_whoever_is_parked_stays_parked_for_a_while_under_every_policy(system: System) -> None:
    machine = run(scheduler(system, "random", device_blocks=20, update_every=25), crowd(1))
    assert len(machine.parked) >= 4
    assert thrash(machine) < 0.4


class PrefersTheAbsent(Order):
    """Whoever is on the device is last, at every update."""

    name = "absent-first"
    refreshes = True

    def key(self, request: RequestView, now_ns: int) -> Key:
        return (int(request.is_resident), request.num_generated)


def worst_parkings(system: str) -> int:
    made = scheduler(system, PrefersTheAbsent(), device_blocks=20, update_every=1, token_quantum=8)
    machine = run(made, crowd(1))
    return max(request.num_preemptions for request in machine.requests.values())


def test_t2_without_the_cap_one_request_is_parked_far_more_often() -> None:
    assert worst_parkings("fastswitch-no-cap") > 1.5 * worst_parkings("fastswitch")


class Reversing(Order):
    """Whoever was first is last at the next update."""

    name = "reversing"
    refreshes = True

    def __init__(self) -> None:
        self.sign = 1

    def update(self, index: int, now_ns: int) -> None:
        self.sign = 1 if index % 2 else -1

    def key(self, request: RequestView, now_ns: int) -> Key:
        return (self.sign * request.priority,)


def parkings_of_two(system: System) -> int:
    """Two, of which the device holds one, take turns at being first."""
    made = scheduler(system, Reversing(), device_blocks=11, update_every=1)
    machine = run(made, [Turn(f"r{i}", 0, 17, 20, priority=i + 1) for i in range(2)])
    return len(machine.parked)


def test_t2_without_the_protected_leader_two_throw_each_other_out_at_every_update() -> None:
    free = variant("+groups", protects_leader=False, caps_parkings=False)
    kept = variant("+groups", caps_parkings=False)
    assert parkings_of_two(kept) <= 1
    assert parkings_of_two(free) > 10


# ------------------------------------------------------------------ T4, T8, T10: who is meant


def test_t4_under_never_the_urgent_waits_for_room_and_then_comes_before_all_who_wait() -> None:
    """It displaces nobody; among those that wait it is first, whoever came before it."""
    turns = [Turn(f"low{i}", 0, 11, 20, priority=5) for i in range(8)]
    turns += [Turn("urgent", 4, 11, 2, priority=0)]
    made = scheduler(NEVER, device_blocks=16, initial_group=1, growth_group=1)
    machine = run(made, turns)
    assert machine.started == [*[f"low{i}" for i in range(5)], "urgent", "low5", "low6", "low7"]


def test_t8_a_request_swapped_by_growth_does_not_bar_an_urgent_one_that_fits() -> None:
    machine = low_is_swapped_when_urgent_comes(in_ten_blocks(NEVER))
    assert "urgent" in machine.finished


@pytest.mark.parametrize("need", range(1, 16))
def test_t10_over_a_gap_no_more_are_parked_than_the_room_takes(need: int) -> None:
    """As under the order: gaps of 1 to 5, threshold 0."""
    parked = five_and_an_urgent_one(need, GAP)
    assert parked == [f"low{4 - index}" for index in range(-(-need // 3))]


@pytest.mark.parametrize("need", range(1, 16))
def test_t10_under_never_nobody_is_parked_for_a_newcomer(need: int) -> None:
    assert five_and_an_urgent_one(need, NEVER) == []


# ------------------------------------------------------------------ D2: holders first


@pytest.mark.parametrize("displacement", ["order", "gap", "never"])
def test_d2_who_holds_all_its_blocks_goes_on_before_one_that_needs_more(displacement: str) -> None:
    """Both next turns found their KV on the device, are shielded, and one block is free: the first
    in order needs two. Room is given out in the order that the target was chosen in."""
    system = variant("+groups", between_turns="keep_device", displacement=displacement)
    made = scheduler(system, device_blocks=9, host_blocks=0, min_run_steps=10, initial_group=1)
    turns = [
        Turn("first", 0, 10, 6, "s1", priority=1),
        Turn("other", 0, 9, 5, "s2", priority=2),
        Turn("first+", 40, 22, 3, "s1", "first", priority=1),
        Turn("other+", 40, 16, 3, "s2", "other", priority=2),
    ]
    machine = run(made, turns)
    if displacement == "never":
        assert machine.started[2:] == ["other+", "first+"]


# ------------------------------------------------------------------ D6, L13: full hosts, lost copies


@pytest.mark.parametrize("eviction", HOST_EVICTIONS)
@pytest.mark.parametrize("host_blocks", [0, 1, 8, 20])
@pytest.mark.parametrize("preemption", ["swap", "cost"])
def test_d6_whatever_the_host_refuses_the_engine_lives(
    eviction: str, host_blocks: int, preemption: str
) -> None:
    """Isolation refuses room that a swap wants: then it recomputes."""
    system = variant("fastswitch", host_eviction=eviction, preemption=preemption)
    made = scheduler(system, "random", device_blocks=20, host_blocks=host_blocks)
    turns = [
        Turn(f"c{i}{'+' * turn}", 30 * turn + i, 9 + i + 20 * turn, 9, f"c{i}",
             f"c{i}" if turn else None, client_id=f"k{i % 3}")
        for turn in range(2)
        for i in range(8)
    ]  # fmt: skip
    machine = serve_all(made, turns)
    if not host_blocks:
        assert {mode for _, mode in machine.preempted} == {RECOMPUTE}


def test_l13_modes_that_are_chosen_per_victim_move_the_blocks_they_imply() -> None:
    """Who was swapped is stored or had nothing to send; who recomputes has no store of its own."""
    rng = random.Random(5)
    made = scheduler(COST, "random", device_blocks=20, update_every=2, host_blocks=40)
    seen: dict[Any, int] = {True: 0, False: 0}

    def watch(plan: Any) -> None:
        stored = {copy.request_id for copy in plan.copies if copy.direction.value == "d2h"}
        for name, mode in plan.preempt:
            if mode is RECOMPUTE:
                assert name not in stored
            seen[name in stored] += 1

    turns = [Turn(f"r{i}", 2 * i, rng.randrange(1, 30), rng.randrange(1, 30)) for i in range(25)]
    serve_all(made, turns, watch=watch)
    assert seen[True] > 3 and seen[False] > 0
