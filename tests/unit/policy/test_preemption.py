"""Swap or recompute: the cost rule by its formula, its inputs by what copying then really takes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.choices.preemption import PREEMPTIONS, ByCost, Parking, parking_of
from policy.choices.rates import PrefillTime, Rates
from policy.engines.swaps import Swaps
from policy.errors import ConfigError
from policy.memory.transfers import Transfer
from policy.plan import Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.systems import CHOICES, SYSTEMS, custom_system
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import RECOMPUTE, SWAP, Watched, crowd, run
from tests.helpers.shadow import Turn, serve
from tests.helpers.small import draw, random_turns, scheduler, settings, variant

COST = variant("+groups", preemption="cost")
ASYNC_COST = variant("+async", preemption="cost", overlap="async")


def test_every_choice_of_the_switch_is_a_mode_of_that_name() -> None:
    assert tuple(PREEMPTIONS) == CHOICES["preemption"]
    assert [PREEMPTIONS[name]().name for name in PREEMPTIONS] == list(PREEMPTIONS)


def parking(**values: Any) -> Parking:
    """Sending 40, bringing back 60, computing again 100, one at a time."""
    numbers = {"store_ns": 40, "load_ns": 60, "reload_ns": 0, "prefill_ns": 100, "others": 0}
    return Parking(**{**numbers, "waits": False, **values})


@pytest.mark.parametrize(
    ("costs", "swaps"),
    [
        (parking(prefill_ns=101), True),
        (parking(prefill_ns=100), False),  # a tie frees the room at once
        (parking(prefill_ns=26, others=3), True),  # the step of four against one that waits
        (parking(prefill_ns=100, others=3, waits=True), False),  # of four either way
        (parking(prefill_ns=101, others=3, waits=True), True),
        (parking(prefill_ns=90, reload_ns=10), False),  # the host has a part of it all the same
        (parking(prefill_ns=90, reload_ns=11), True),
    ],
)
def test_the_cheaper_one_is_taken_and_a_tie_recomputes(costs: Parking, swaps: bool) -> None:
    assert ByCost().swaps(costs) is swaps
    assert PREEMPTIONS["swap"]().swaps(costs) and not PREEMPTIONS["recompute"]().swaps(costs)


# ---------------------------------------------------------------------- what parking takes


class Told(Rates):
    """Rates that stay what they are."""

    def saw_copy(self, flight: Transfer, done_ns: int, *, ok: bool) -> None:
        pass

    def saw(self, plan: Plan, outcome: Outcome) -> None:
        pass


RATES = {"load_ns_per_block": 1000, "store_ns_per_block": 100, "prefill_ns_per_token": 1}


def looked_at(seed: int, system: str) -> list[tuple[Parking, int, int, int]]:
    """(costs, blocks stored, blocks loaded later, tokens with KV) of parkings by swap."""
    rng = random.Random(seed)
    made = Scheduler(
        settings(device_blocks=20, update_every=2, host_blocks=400),
        variant(system, between_turns="keep_host"),
        scheduler(order="random").order,
        draw,
        Told(**RATES),
    )
    machine = Watched(made, polls=0)
    told: dict[str, tuple[Parking, int]] = {}
    found: list[tuple[Parking, int, int, int]] = []
    preempt = Swaps.preempt

    def watched(swaps: Swaps, request: Request, draft: Any, *, waited: bool) -> Any:
        context = request.context
        if request.is_decoding:
            context.device_tokens = request.num_tokens - 1
        swaps.memory.prepare_to_leave(context)
        costs = parking_of(context, swaps.memory, swaps.desk.rates, 0, waits=True)
        told[request.request_id] = (costs, context.device_tokens)
        return preempt(swaps, request, draft, waited=waited)

    stored: dict[str, int] = {}

    def watch(plan: Plan) -> None:
        for copy in plan.copies:
            name = copy.request_id
            if copy.direction is Direction.TO_HOST and any(name == n for n, _ in plan.preempt):
                stored[name] = copy.num_blocks
            elif copy.direction is Direction.TO_DEVICE and name in told and name in stored:
                costs, tokens = told.pop(name)
                found.append((costs, stored.pop(name), copy.num_blocks, tokens))

    swaps_of(made).preempt = watched.__get__(swaps_of(made))  # type: ignore[method-assign]
    machine.watch = watch
    serve(machine, random_turns(rng, 4), max_plans=5000)
    return found


@pytest.mark.parametrize("system", ["+groups", "+reuse"])
def test_costs_are_those_of_the_blocks_that_then_move(system: str) -> None:
    found = [one for seed in range(30) for one in looked_at(seed, system)]
    assert len(found) > 30
    for costs, out, back, tokens in found:
        assert costs.store_ns == 100 * out
        assert costs.load_ns == 1000 * back
        kept = costs.reload_ns // 1000
        assert tokens - 4 * kept < costs.prefill_ns <= tokens + 1 - 4 * (kept - 1)
    assert any(costs.reload_ns for costs, *_ in found) == (system == "+reuse")


def test_copies_in_flight_come_first_unless_the_step_waits_for_them() -> None:
    made = scheduler(ASYNC_COST, device_blocks=10)
    machine = Watched(made, polls=50)
    machine.arrive(Turn("leader", 0, 1, 60, priority=-9))
    machine.arrive(Turn("low", 0, 14, 20, priority=9))
    for _ in range(3):
        machine.step()
    machine.arrive(Turn("urgent", 3, 22, 4, priority=4))
    machine.step()
    assert machine.preempted == [("low", SWAP)]
    leader = made.request("leader")
    leader.context.device_tokens = leader.num_tokens - 1
    memory, rates = memory_of(made), made.desk.rates
    queued = sum(flight.copy.num_blocks for flight in memory.in_flight.values())
    beside = parking_of(leader.context, memory, rates, 1, waits=False)
    alone = parking_of(leader.context, memory, rates, 1, waits=True)
    assert queued == 4
    assert beside.store_ns - alone.store_ns == queued * rates.store_ns_per_block
    assert beside.load_ns == alone.load_ns  # nothing is on its way in
    assert (beside.others, beside.waits, alone.waits) == (1, False, True)


# ---------------------------------------------------------------------- in a scheduler


def modes(system: str | Any, **rates: int) -> set[Any]:
    made = Scheduler(
        settings(device_blocks=20, update_every=3),
        system,
        scheduler(order="random").order,
        draw,
        Told(**rates),
    )
    return {mode for _, mode in run(made, crowd()).preempted}


@pytest.mark.parametrize("system", [COST, ASYNC_COST], ids=["sync", "async"])
def test_dear_copies_recompute_and_dear_prefills_swap(system: Any) -> None:
    dear = 1_000_000_000
    assert modes(system, load_ns_per_block=dear, store_ns_per_block=dear) == {RECOMPUTE}
    assert modes(system, prefill_ns_per_token=dear) == {SWAP}


def test_both_happen_where_contexts_differ_in_what_the_host_has() -> None:
    """Prefill of a token costs little more than moving a quarter of a block both ways."""
    rates = {"load_ns_per_block": 100, "store_ns_per_block": 100, "prefill_ns_per_token": 54}
    system = variant("+reuse", preemption="cost")
    assert modes(system, **rates) == {SWAP, RECOMPUTE}


def test_a_swap_by_cost_pushes_out_no_copy_that_ranks_before_the_victim() -> None:
    """The idle conversation is the more urgent one: its copy stays, and the victim recomputes."""
    for system, mode in ((COST, RECOMPUTE), (variant("+groups"), SWAP)):
        made = Scheduler(
            settings(device_blocks=10, host_blocks=8),
            system,
            scheduler().order,
            draw,
            Rates(prefill_ns_per_token=10**9),
        )
        machine = Watched(made)
        machine.arrive(Turn("idle", 0, 14, 8, session_id="s", priority=-5))
        while "idle" not in machine.finished:
            machine.step()
        machine.arrive(Turn("leader", 20, 1, 60, priority=-9))
        machine.arrive(Turn("low", 20, 14, 20, priority=9))
        for _ in range(4):
            machine.step()
        machine.arrive(Turn("urgent", 30, 22, 4, priority=4))
        machine.step()
        assert machine.preempted == [("low", mode)]


class Contrary(ByCost):
    """A bad decision: it recomputes whenever everything is on the host."""

    def swaps(self, parking: Parking) -> bool:
        return parking.store_ns > 0


def test_a_complete_host_copy_is_never_disowned_whatever_is_decided() -> None:
    made = scheduler("fastswitch-cost", "random", device_blocks=20, update_every=1)
    swaps_of(made).preemption = Contrary()
    assert run(made, crowd()).preempted


def test_the_time_of_a_prefill_is_learnt_from_steps_that_prefilled_and_waited_for_nothing() -> None:
    made, told = scheduler(COST), PrefillTime(100_000)
    prefill = made.desk.rates.prefill
    assert prefill.ns(10) == told.ns(10) == 1_000_000
    made.add(Request("a", arrival_ns=0, input_tokens=10), 0)
    assert made.schedule(0).prefill == (("a", 10),)
    made.update(Outcome(True, 0, 8_000_000))
    told.saw(10, 8_000_000)
    assert prefill.ns(10) == told.ns(10) > 1_500_000
    made.schedule(8_000_000)
    made.update(Outcome(True, 8_000_000, 9_000_000))
    assert prefill.ns(10) == told.ns(10)
    other = scheduler("+groups")
    other.add(Request("a", arrival_ns=0, input_tokens=10), 0)
    other.schedule(0)
    other.update(Outcome(True, 0, 8_000_000))
    assert other.desk.rates.prefill.ns(10) == 1_000_000  # nobody would read it


@given(st.integers(1, 10**9), st.integers(0, 1 << 20))
def test_before_anything_was_seen_a_prefill_takes_the_start_value(rate: int, tokens: int) -> None:
    assert PrefillTime(rate).ns(tokens) == rate * tokens


@pytest.mark.parametrize("base", [0, 30_000_000])
def test_base_and_slope_of_prefills_are_told_apart(base: int) -> None:
    """Or a step of five tokens would make a context of thousands seem dear."""
    rng, prefill = random.Random(0), PrefillTime(1_000_000)
    for _ in range(500):
        tokens = rng.choice([2, 5, 30, 300])
        prefill.saw(tokens, base + 100_000 * tokens)
    for tokens in (5, 300, 4000):
        assert prefill.ns(tokens) == pytest.approx(base + 100_000 * tokens, rel=0.05, abs=100_000)


def test_a_line_follows_a_machine_that_has_become_slower() -> None:
    prefill = PrefillTime(100_000)
    for slowness in (1, 3):
        for index in range(300):
            tokens = (5, 300)[index % 2]
            prefill.saw(tokens, slowness * (10_000_000 + 100_000 * tokens))
    assert prefill.ns(300) == pytest.approx(3 * 40_000_000, rel=0.02)


def test_prompts_of_one_length_and_falling_times_still_give_a_sane_line() -> None:
    alike, falling = PrefillTime(100_000), PrefillTime(100_000)
    for _ in range(500):
        alike.saw(5, 30_000_000)
        falling.saw(5, 30_000_000)
        falling.saw(500, 1_000_000)
    assert alike.ns(5) == pytest.approx(30_000_000, rel=0.02)
    assert alike.ns(1000) < 10 * 30_000_000
    assert falling.ns(0) == falling.ns(10**6) > 0


@given(st.integers(0, 1 << 30))
def test_random_runs_by_cost_lose_nothing_and_stall_nowhere(seed: int) -> None:
    rng = random.Random(seed)
    system = rng.choice([COST, ASYNC_COST, SYSTEMS["fastswitch-cost"]])
    rates = Rates(prefill_ns_per_token=rng.choice([1, 100, 100_000]))
    made = Scheduler(
        settings(device_blocks=20, host_blocks=rng.choice([0, 9, 64])),
        system,
        scheduler(order=rng.choice(["random", "vtc", "priority"])).order,
        draw,
        rates,
    )
    run(made, crowd(), polls=rng.randrange(4))


def test_the_release_weighs_no_costs() -> None:
    with pytest.raises(ConfigError, match="the release weighs no costs of preemption"):
        custom_system({"base": "-keep", "preemption": "cost"})
    with pytest.raises(ConfigError, match="the release knows no rule of displacement"):
        custom_system({"base": "-keep", "displacement": "never"})
