"""Traps of progress (docs/traps.md, D1 to D10): whatever waits, waits for something that will come.

Every run here is under the watchdog of `tests.helpers.watchdog`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import policy.engines.ranked
from policy.engines.ranked import RankedEngine
from policy.engines.swaps import Swaps
from policy.engines.target import Bounds, Target, choose_target
from policy.errors import InvariantError, OutOfBlocks, ProgressError
from policy.integrity import check_integrity
from policy.memory.ledger import Ledger
from policy.plan import Direction, Plan
from policy.request import Request, RequestState
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import (
    ASYNC,
    KEEPING,
    NEVER,
    RECOMPUTE,
    SWAP,
    SYNC,
    Watched,
    assert_both_pools_are_empty,
    assert_nothing_is_held_by_copies,
    crowd,
    run,
)
from tests.helpers.shadow import Turn, serve
from tests.helpers.small import scheduler, variant
from tests.helpers.watchdog import NoProgress

Choose = Callable[[Sequence[Request], Any, Sequence[Request], Bounds], Target]


def let_choose(monkeypatch: pytest.MonkeyPatch, choose: Choose) -> None:
    """A planner that asks `choose` who should hold device memory."""
    monkeypatch.setattr(policy.engines.ranked, "choose_target", choose)


# ------------------------------------------------------------------ D1: half a room each


def four_that_come_back() -> list[Turn]:
    """Four conversations of 4 host blocks come back at once, for 10 of 12 device blocks each."""
    first = [Turn(name, 20 * index, 12, 3, session_id=name) for index, name in enumerate("abcd")]
    then = [Turn(f"{n}+", 100, 36, 4, session_id=n, parent_id=n) for n in "abcd"]
    return first + then


def test_d1_a_load_holds_the_room_of_the_prefill_behind_it() -> None:
    made = scheduler(KEEPING, device_blocks=12)
    held: list[tuple[int, int]] = []

    def watch(_plan: Plan) -> None:
        held.extend((r.device_blocks, -(-r.num_tokens // 4)) for r in swaps_of(made).loading)

    run(made, four_that_come_back(), watch=watch)
    assert len(held) >= 4
    assert all(blocks == whole for blocks, whole in held)


def test_d1_loads_that_hold_room_for_themselves_alone_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def everybody_idle(order: Sequence[Request], *_: Any) -> Target:
        return Target([r for r in order if r.state is RequestState.WAITING], [], None, [], True)

    def with_room_to_load(
        planner: RankedEngine, target: Target, _draft: Any
    ) -> tuple[list[Request], list[Request]]:
        ready, loading = [], []
        memory = planner.swaps.memory
        room = memory.device.num_available
        for request in target.incoming:
            loads = request.context.device is None and request.context.host_tokens > 0
            need = memory.blocks_for(request.context.host_tokens if loads else request.num_tokens)
            room -= max(0, need - request.device_blocks)
            if room >= 0:
                (loading if loads else ready).append(request)
        return ready, loading

    monkeypatch.setattr(Swaps, "blocks_to_resume", lambda s, r: s.memory.blocks_to_load(r.context))
    monkeypatch.setattr(RankedEngine, "_with_room", with_room_to_load)
    let_choose(monkeypatch, everybody_idle)
    with pytest.raises(ProgressError, match="4 requests are live, nothing runs"):
        run(scheduler(KEEPING, device_blocks=12), four_that_come_back())


@pytest.mark.parametrize("system", ["fastswitch", "fastswitch-no-leader", "fastswitch-no-cap"])
def test_d1_two_next_turns_that_took_over_what_their_parents_left_shield_nobody(
    system: str,
) -> None:
    """Each holds three of nine blocks, needs seven and has never run."""
    made = scheduler(system, device_blocks=9, min_run_steps=3)
    turns = [Turn(name, 0, 12, 1, session_id=name) for name in "ab"]
    turns += [Turn(f"{name}+", 1, 27, 4, session_id=name, parent_id=name) for name in "ab"]
    run(made, turns)


# ------------------------------------------------------------------ D2: holders first


def holder_behind_a_big_one() -> list[Turn]:
    """`holder+` is being loaded when `big` comes, which is before it in order, and too big beside
    the leader."""
    return [
        Turn("leader", 0, 3, 30, priority=-1),
        Turn("holder", 0, 8, 3, session_id="h", priority=1),
        Turn("holder+", 10, 14, 3, session_id="h", parent_id="holder", priority=1),
        Turn("big", 11, 28, 3, priority=0),
    ]


def order_of_ends(machine: Watched) -> list[str]:
    return sorted(machine.finished, key=lambda name: machine.finished[name])


def test_d2_who_holds_its_blocks_goes_on_before_one_that_does_not_fit() -> None:
    machine = run(scheduler(KEEPING, device_blocks=12), holder_behind_a_big_one())
    assert order_of_ends(machine) == ["holder", "holder+", "leader", "big"]
    assert machine.preempted == []


def test_d2_a_holder_left_waiting_in_line_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.engines.target._holders", lambda *_: [])
    machine = run(scheduler(KEEPING, device_blocks=12), holder_behind_a_big_one())
    assert order_of_ends(machine).index("leader") < order_of_ends(machine).index("holder+")


# ------------------------------------------------------------------ D3: the whole context


def exactly_full() -> list[Turn]:
    """A prompt that fits beside the leader, but not with the token after it."""
    return [Turn("leader", 0, 3, 9, priority=-1), Turn("low", 1, 12, 5)]


@pytest.mark.parametrize("system", [SYNC, ASYNC], ids=["sync", "async"])
def test_d3_nobody_is_admitted_whose_next_token_would_throw_it_out(system: Any) -> None:
    made = scheduler(system, device_blocks=5, initial_group=1)
    machine = run(made, exactly_full())
    assert order_of_ends(machine) == ["leader", "low"]
    assert machine.preempted == []


def test_d3_admitting_without_room_for_one_more_token_is_caught() -> None:
    made = scheduler(SYNC, device_blocks=5, initial_group=1)
    made.desk.watermark = -1
    machine = run(made, exactly_full())
    assert machine.preempted == [("low", SWAP)]


# ------------------------------------------------------------------ D4: too large for ever


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("protects_leader", [True, False])
def test_d4_who_grew_into_what_admission_keeps_free_comes_back_once_it_is_alone(
    protects_leader: bool, preemption: str
) -> None:
    """Thirteen of sixteen blocks may be asked for by a prompt; the long one needs fourteen when the lead
    takes a third block."""
    system = variant("fastswitch", protects_leader=protects_leader, preemption=preemption)
    made = scheduler(system, watermark=0.2)
    turns = [Turn("lead", 0, 1, 14), Turn("long", 0, 45, 18, priority=1)]
    turns += [Turn("behind", 9, 8, 3, priority=2), Turn("next", 12, 8, 3)]
    machine = run(made, turns)
    assert machine.preempted
    assert {name for name, _ in machine.preempted} == {"long"}
    assert not machine.rejected


TOO_LARGE = {
    "at arrival": Turn("huge", 1, 25, 2, priority=-2),
    "by one": Turn("huge", 1, 24, 2, priority=-2),
    "by growth": Turn("huge", 1, 20, 30, priority=-2),
}


def serve_beside(turn: Turn, made: Scheduler) -> Watched:
    small = [Turn("before", 0, 5, 6), Turn("after", 2, 5, 6)]
    machine = Watched(made)
    serve(machine, [*small, turn], check=check_integrity)
    assert sorted(machine.finished) == ["after", "before"]
    assert_nothing_is_held_by_copies(made)
    return machine


@pytest.mark.parametrize("system", [SYNC, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("when", TOO_LARGE)
def test_d4_what_cannot_fit_even_alone_is_refused_with_its_reason_and_bars_nobody(
    when: str, system: Any
) -> None:
    machine = serve_beside(TOO_LARGE[when], scheduler(system, device_blocks=6))
    tokens = 24 if when == "by one" else 25
    why = f"{tokens} tokens and one more need 7 blocks; the device has 6 and keeps 0 free"
    assert machine.rejected == {"huge": why}


def test_d4_the_release_refuses_at_arrival_what_its_device_cannot_hold() -> None:
    machine = serve_beside(
        TOO_LARGE["at arrival"], scheduler("vllm-0.3.3", "fcfs", device_blocks=6)
    )
    assert machine.rejected["huge"].startswith("25 tokens need 7 blocks")


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("at arrival", "first in order is <huge WAITING 25 tokens>, 6 device blocks available"),
        ("by one", "first in order is <huge WAITING 24 tokens>, 6 device blocks available"),
        ("by growth", "the batch cannot grow"),
    ],
)
def test_d4_waiting_for_room_that_does_not_exist_is_caught(
    when: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policy.engines.target._is_hopeless", lambda *_: False)
    with pytest.raises(ProgressError, match=how):
        serve_beside(TOO_LARGE[when], scheduler(SYNC, device_blocks=6))


# ------------------------------------------------------------------ D5: room that is coming


def line_of_victims(made: Scheduler) -> Watched:
    """Three low ones run behind a request that does not fit. An urgent one needs the room of one
    of them, whose blocks come back only when its store ends."""
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 1, 9, priority=-2))
    for index in range(3):
        machine.arrive(Turn(f"low{index}", 0, 9, 9, priority=1 + index))
    machine.step()
    machine.arrive(Turn("large", 0, 56, 3, priority=0))
    machine.arrive(Turn("urgent", 0, 28, 3, priority=-1))
    for _ in range(2):
        machine.step()
    return machine


def test_d5_a_victim_whose_blocks_are_still_coming_back_is_the_only_one() -> None:
    made = scheduler(ASYNC, device_blocks=16)
    machine = line_of_victims(made)
    assert machine.preempted == [("low2", SWAP)]
    assert made.request("urgent").state is RequestState.WAITING
    machine.end_copy(Direction.TO_HOST)
    assert machine.step().prefill == (("urgent", 28),)
    serve(machine, [], check=check_integrity)
    assert len(machine.finished) == 6


def test_d5_counting_free_room_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scheduler(ASYNC, device_blocks=16)

    def choose(order: Any, residents: Any, shielded: Any, bounds: Bounds) -> Target:
        free = memory_of(made).device.num_available
        return choose_target(order, residents, shielded, bounds._replace(coming=free))

    let_choose(monkeypatch, choose)
    assert [name for name, _ in line_of_victims(made).preempted] == ["low2", "low1"]


# ------------------------------------------------------------------ D6, D7: no room on the host


@pytest.mark.parametrize("host_blocks", [0, 1])
@pytest.mark.parametrize("order", ["priority", "random", "vtc", "fcfs"])
@pytest.mark.parametrize("system", [SYNC, ASYNC, KEEPING, variant("+reuse")], ids=str)
def test_d6_without_host_room_a_victim_recomputes_and_the_engine_lives(
    system: Any, order: str, host_blocks: int
) -> None:
    made = scheduler(system, order, host_blocks=host_blocks)
    machine = run(made, crowd())
    modes = Counter(mode for _, mode in machine.preempted)
    assert modes[SWAP] == 0
    assert modes[RECOMPUTE] > 0
    assert machine.moved_blocks[Direction.TO_HOST] <= host_blocks * len(crowd())


def test_d6_a_full_host_that_nobody_asks_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "make_room", lambda *_args, **_named: True)
    with pytest.raises(OutOfBlocks, match="host: "):
        run(scheduler(SYNC, host_blocks=1), crowd())


def test_d7_host_room_that_only_a_copy_under_way_could_free_is_not_waited_for() -> None:
    made = scheduler(ASYNC, device_blocks=14, host_blocks=3, host_increment=0)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 1, 9, priority=-1))
    for name, priority in (("a", 1), ("b", 2), ("c", 3)):
        machine.arrive(Turn(name, 0, 9, 9, priority=priority))
    machine.step()
    machine.arrive(Turn("urgent", 0, 20, 3))
    assert machine.step().preempt == (("c", SWAP),)
    assert memory_of(made).host.num_available == 0
    machine.cancel("urgent")
    machine.arrive(Turn("another", 0, 32, 3))
    assert machine.step().preempt == (("b", RECOMPUTE),)
    machine.end_copy(Direction.TO_HOST)
    assert machine.step().prefill == (("another", 32),)
    serve(machine, [], check=check_integrity)
    assert sorted(machine.finished) == ["a", "another", "b", "c", "leader"]
    assert_both_pools_are_empty(made)


# ------------------------------------------------------------------ D8: victims are not candidates


class NotBothWays:
    """No request loses its place and gets one in the same plan."""

    def __init__(self) -> None:
        self.victims = 0

    def __call__(self, plan: Plan) -> None:
        victims = {name for name, _ in plan.preempt}
        loads = {c.request_id for c in plan.copies if c.direction is Direction.TO_DEVICE}
        taken = victims & (plan.num_scheduled_tokens.keys() | loads)
        assert not taken, f"{taken} lose and get room in one plan"
        self.victims += len(victims)


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("overlap", ["sync", "async", "adaptive"])
def test_d8_a_victim_is_no_candidate_in_the_plan_that_makes_it_one(
    overlap: str, preemption: str
) -> None:
    watch = NotBothWays()
    system = variant("fastswitch", overlap=overlap, preemption=preemption)
    run(scheduler(system, "random", update_every=1, max_parkings=50), crowd(), watch=watch)
    assert watch.victims > 10


@pytest.mark.parametrize("name", ["vllm-0.3.3", "vllm-0.3.3-recompute"])
def test_d8_nor_is_it_in_the_release(name: str) -> None:
    watch = NotBothWays()
    run(scheduler(name, "fcfs", device_blocks=10), crowd(), watch=watch)
    assert watch.victims >= 5


def test_d8_looking_at_the_victim_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*what: Any) -> Target:
        target = choose_target(*what)
        return target._replace(incoming=target.victims + target.incoming)

    let_choose(monkeypatch, choose)
    system = variant("fastswitch", overlap="sync", preemption="recompute")
    with pytest.raises(AssertionError, match="lose and get room in one plan"):
        run(scheduler(system, "random", update_every=1), crowd(), watch=NotBothWays())


# ------------------------------------------------------------------ D9: plans that run nothing


@pytest.mark.parametrize("order", ["vtc", "random", "fcfs"])
def test_d9_a_plan_that_runs_nothing_says_what_it_waits_on(order: str) -> None:
    made = scheduler(KEEPING, order, device_blocks=11, update_every=1)
    idle: list[tuple[str, ...]] = []

    def watch(plan: Plan) -> None:
        if not plan.runs:
            idle.append(plan.waiting_on)

    run(made, crowd(), watch=watch)
    assert idle
    assert all(idle)


def test_d9_choosing_nobody_while_requests_wait_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_choose(monkeypatch, lambda *_: Target([], [], None, [], False))
    machine = Watched(scheduler(SYNC, "vtc"))
    machine.arrive(Turn("a", 0, 5, 3))
    with pytest.raises(ProgressError, match="1 requests are live, nothing runs"):
        machine.step()


def back_while_being_loaded(made: Scheduler) -> Watched:
    """`back` was parked behind the leader and is loaded again."""
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 3, 30, priority=-1))
    machine.arrive(Turn("back", 0, 12, 9, priority=1))
    machine.step()
    machine.arrive(Turn("u", 0, 20, 9))
    assert machine.step().preempt == (("back", SWAP),)
    machine.end_copy(Direction.TO_HOST)
    machine.cancel("u")
    assert [copy.request_id for copy in machine.step().copies] == ["back"]
    return machine


def test_d9_asking_again_while_a_copy_is_under_way_is_no_error() -> None:
    machine = back_while_being_loaded(scheduler(ASYNC, device_blocks=9, idle_limit=20))
    machine.cancel("leader")
    assert [machine.step().waiting_on for _ in range(50)] == [("copy 1",)] * 50
    machine.end_copy(Direction.TO_DEVICE)
    assert machine.step().runs


@pytest.mark.parametrize(
    ("idle_limit", "error", "how"),
    [
        (20, ProgressError, "21 plans in a row ran nothing with 1 live"),
        (10_000, NoProgress, "200 plans without progress"),
    ],
)
def test_d9_moving_one_request_out_and_in_for_ever_is_an_error_and_is_seen_by_the_watchdog(
    idle_limit: int, error: type[Exception], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(order: Sequence[Request], *_: Any) -> Target:
        out = [request for request in order if request.is_decoding]
        back = [r for r in order if r not in out and not r.context.is_busy]
        return Target(back, out, None, [], False)

    let_choose(monkeypatch, choose)
    with pytest.raises(error, match=how):
        run(scheduler(ASYNC, idle_limit=idle_limit), [Turn("a", 0, 5, 3)])


# ------------------------------------------------------------------ D10: finished loads first


def load_ends_as_an_urgent_one_comes(made: Scheduler) -> Watched:
    """The urgent request is before `back` in order and does not fit beside the leader."""
    machine = back_while_being_loaded(made)
    machine.arrive(Turn("urgent", 0, 29, 3))
    machine.end_copy(Direction.TO_DEVICE)
    return machine


def test_d10_a_finished_load_goes_on_though_an_urgent_request_waits() -> None:
    made = scheduler(ASYNC, device_blocks=9)
    machine = load_ends_as_an_urgent_one_comes(made)
    batch = machine.step().batch
    assert batch is not None
    assert batch.decode == ("leader", "back")
    serve(machine, [], check=check_integrity)
    assert order_of_ends(machine) == ["back", "leader", "urgent"]


def test_d10_a_finished_load_left_behind_an_urgent_request_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Swaps.loaded

    def unless_somebody_waits_before_it(swaps: Swaps, request: Request) -> None:
        if swaps.desk.ranked[0] is request:
            loaded(swaps, request)

    monkeypatch.setattr(Swaps, "loaded", unless_somebody_waits_before_it)
    with pytest.raises(InvariantError, match="back LOADING 13 tokens> loads without a copy"):
        load_ends_as_an_urgent_one_comes(scheduler(ASYNC, device_blocks=9))
