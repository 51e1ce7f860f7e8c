"""Traps of lifetime and accounting (docs/traps.md, A6 and L1 to L20): no block is handed out while
a copy still needs it, nothing leaks, and what is called valid is valid."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest

from policy.engines import swap_laws
from policy.engines.draft import Draft
from policy.engines.swaps import Swaps
from policy.errors import InvariantError, OutOfBlocks
from policy.integrity import check_integrity
from policy.memory.context import Context, HostRole
from policy.memory.ledger import Ledger
from policy.memory.memory import Memory
from policy.memory.transfers import Transfer, Transfers
from policy.orders.base import Order
from policy.plan import Copy, Direction, Plan
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.request import Request
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS, System, custom_system
from tests.helpers.inside import is_cancelled, memory_of, swaps_of
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
from tests.helpers.shadow import ShadowMachine, Turn, WrongKV, serve
from tests.helpers.small import random_turns, scheduler, variant


class StillWrites(Watched):
    """A machine whose cancelled copies were submitted already: they write, and end as not ok."""

    def writes_after_all(self) -> bool:
        return True


def free_the_source_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap itself: a store that no step waits for gives its source back when it starts."""
    proper = Memory.copy_out

    def copy_out(self: Memory, context: Context, now_ns: int, *, waited: bool) -> Copy | None:
        return proper(self, context, now_ns, waited=True)

    monkeypatch.setattr(Memory, "copy_out", copy_out)


def low_then_urgent() -> list[Turn]:
    """On nine blocks the last cannot run beside the first two. The leader is never a victim."""
    return [
        Turn("leader", 0, 3, 20, priority=-1),
        Turn("low", 0, 12, 10, priority=1),
        Turn("urgent", 4, 12, 5, priority=0),
    ]


class Flips(Order):
    """At every update the two conversations below the leader change places."""

    name = "flips"
    refreshes = True

    def __init__(self) -> None:
        self.sign = 1

    def update(self, index: int, now_ns: int) -> None:
        self.sign = -self.sign

    def key(self, request: Any, now_ns: int) -> tuple[int, ...]:
        rank = {"leader": -2, "a": 0, "b": 1}[request.session_id]
        return (rank if rank < 0 else rank ^ (self.sign < 0),)


# ------------------------------------------------------------------ A: order between copies


def blocks_of(plan: Plan, way: Direction) -> set[int]:
    """Device blocks that a plan's copies of one direction touch."""
    return {
        device + i
        for copy in plan.copies
        if copy.direction is way
        for device, _host, length in copy.runs
        for i in range(length)
    }


def test_a6_what_leaves_leaves_before_what_comes_in_takes_its_place() -> None:
    shared: list[set[int]] = []

    def watch(plan: Plan) -> None:
        ways = [copy.direction for copy in plan.copies]
        assert ways == sorted(ways, key=lambda way: way is Direction.TO_DEVICE)
        assert {copy.copy_id for copy in plan.copies} == set(plan.wait_for)
        if len(set(ways)) == 2:
            out, into = blocks_of(plan, Direction.TO_HOST), blocks_of(plan, Direction.TO_DEVICE)
            shared.append(out & into)

    made = scheduler(SYNC, Flips(), device_blocks=10, update_every=4)
    turns = [Turn("leader", 0, 3, 20), Turn("a", 0, 16, 9), Turn("b", 0, 16, 9)]
    run(made, turns, watch=watch)
    assert shared and all(shared)


# ------------------------------------------------------------------ L1 to L3: who frees, and when


def test_l1_preemption_does_not_free_blocks_that_a_store_still_reads() -> None:
    made = scheduler(ASYNC, device_blocks=9)
    overlaps: list[set[int]] = []

    def watch(plan: Plan) -> None:
        flights = memory_of(made).in_flight.values()
        stores = Plan(copies=tuple(f.copy for f in flights if not is_cancelled(f)))
        read = blocks_of(stores, Direction.TO_HOST)
        tables = [set(made.block_table(r.request_id)) for r in swaps_of(made).residents]
        overlaps.append(read & set().union(*tables))
        reading.append(bool(read))

    reading: list[bool] = []
    run(made, low_then_urgent(), watch=watch)
    assert reading.count(True) > 3
    assert not any(overlaps)
    assert_both_pools_are_empty(made)


def test_l1_without_the_pin_the_urgent_request_is_saved_as_the_low_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free_the_source_at_once(monkeypatch)
    with pytest.raises(WrongKV, match="low position 0"):
        run(scheduler(ASYNC, device_blocks=9), low_then_urgent())


def test_l2_the_plan_that_hands_a_block_on_names_who_lost_it() -> None:
    made = scheduler(SYNC, device_blocks=9)
    owners: dict[int, str] = {}
    handed_on: list[tuple[str, str]] = []

    def watch(plan: Plan) -> None:
        tables = {r.request_id: made.block_table(r.request_id) for r in swaps_of(made).residents}
        preempted = {request_id for request_id, _mode in plan.preempt}
        for name, table in tables.items():
            for block in table:
                before = owners.get(block, name)
                if before != name and before in made.desk.live:
                    assert before in preempted
                    handed_on.append((before, name))
        owners.clear()
        owners.update((block, name) for name, table in tables.items() for block in table)

    run(made, low_then_urgent(), watch=watch)
    assert ("low", "urgent") in handed_on


# ------------------------------------------------------------------ L5: who tracks reuse


def park_resume_and_talk_on() -> list[Turn]:
    """A conversation that is parked, resumed, idle, and comes back."""
    return [
        *low_then_urgent(),
        Turn("again", 40, 25, 3, parent_id="low", priority=1),
        Turn("last", 60, 3, 3, priority=1),
    ]


def test_l5_the_ledger_hears_of_every_change_of_a_host_copy() -> None:
    made = scheduler(KEEPING, device_blocks=9)
    roles: list[str] = []

    def check(_scheduler: Scheduler) -> None:
        check_integrity(made)
        if not contexts:
            contexts.append(made.desk.live["low"].context)
        context = contexts[0]
        if context.host is not None and (not roles or roles[-1] != context.role.name):
            roles.append(context.role.name)

    contexts: list[Context] = []
    machine = Watched(made)
    serve(machine, park_resume_and_talk_on(), check=check)
    assert len(machine.finished) == 5
    # Live and only there, beside the device, nobody's; while a store adds to it, nobody's again.
    turn = ["NONE", "DUPLICATE", "IDLE", "NONE", "IDLE"]
    assert roles == turn + turn


def test_l5_a_change_the_ledger_does_not_hear_of_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Ledger, "classify", lambda *_: None)
    with pytest.raises(InvariantError, match="host role NONE, not IDLE"):
        run(scheduler(KEEPING, device_blocks=9), park_resume_and_talk_on())


# ------------------------------------------------------------------ L6: cancelled under way


def with_copies_both_ways() -> Watched:
    """Request `a` with a cancelled store, kept at its source, and a load of what was clean."""
    made = scheduler(ASYNC, device_blocks=12)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 3, 30, priority=-1))
    machine.arrive(Turn("a", 0, 12, 30, priority=1))
    for _ in range(3):
        machine.step()
    machine.arrive(Turn("u1", 0, 24, 9))
    assert machine.step().preempt == (("a", SWAP),)
    machine.end_copy(Direction.TO_HOST)
    machine.cancel("u1")
    assert [copy.request_id for copy in machine.step().copies] == ["a"]
    machine.end_copy(Direction.TO_DEVICE)
    for _ in range(3):
        machine.step()
    machine.arrive(Turn("u2", 0, 24, 9))
    assert [(copy.copy_id, copy.num_blocks) for copy in machine.step().copies] == [(2, 2)]
    machine.cancel("u2")
    plan = machine.step()
    assert (plan.cancel, [copy.direction for copy in plan.copies]) == ((2,), [Direction.TO_DEVICE])
    return machine


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("order", list(permutations(("cancel", "load", "store"))), ids="-".join)
def test_l6_a_client_may_leave_before_between_and_after_its_copies(
    order: tuple[str, ...], between: bool
) -> None:
    machine = with_copies_both_ways()
    for event in order:
        if event == "cancel":
            machine.cancel("a")
        else:
            machine.end_copy(Direction.TO_DEVICE if event == "load" else Direction.TO_HOST)
        if between:
            machine.step()
    machine.cancel("leader")
    assert_nothing_is_held_by_copies(machine.scheduler)
    assert_both_pools_are_empty(machine.scheduler)


@pytest.mark.parametrize("ok", [False, True])
@pytest.mark.parametrize("order", list(permutations(("cancel", "store"))), ids="-".join)
def test_l6_a_client_may_leave_around_a_store_that_ends_well_or_not(
    order: tuple[str, ...], ok: bool
) -> None:
    made = scheduler(ASYNC, device_blocks=9)
    machine = Watched(made, polls=NEVER, fail=lambda _copy: not ok)
    machine.arrive(Turn("leader", 0, 3, 30, priority=-1))
    machine.arrive(Turn("a", 0, 12, 30, priority=1))
    machine.step()
    machine.arrive(Turn("u", 0, 20, 9))
    assert machine.step().preempt == (("a", SWAP),)
    for event in order:
        if event == "cancel":
            machine.cancel("a")
        else:
            machine.end_copy(Direction.TO_HOST)
    machine.cancel("u")
    machine.cancel("leader")
    assert_nothing_is_held_by_copies(made)
    assert_both_pools_are_empty(made)


def test_l6_forgetting_the_copies_of_a_client_that_left_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def abandon(self: Memory, context: Context) -> tuple[int, ...]:
        self.drop_device(context)
        self.ledger.drop(context)
        return ()

    machine, other = with_copies_both_ways(), with_copies_both_ways()
    monkeypatch.setattr(Memory, "abandon", abandon)
    with pytest.raises(InvariantError, match=r"copy \d+: .* holds \(False, False\), not as"):
        other.cancel("a")
    without_the_table(monkeypatch)
    machine.cancel("a")
    machine.arrive(Turn("next", 0, 24, 9))
    machine.step()
    machine.end_copy(Direction.TO_DEVICE)
    with pytest.raises(WrongKV, match="next position"):
        machine.step()


def without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds the blocks of a copy is not compared with the table: what it would say first is said
    by another law, or seen by the machine."""
    monkeypatch.setattr(Transfers, "check", lambda _: None)


# ------------------------------------------------------------------ L8 to L12: pins


def idle_then_parked(made: Scheduler, urgent_at: int, **how: Any) -> Watched:
    """`idle` ends early; long after, or while it is still being stored, `low` must be parked."""
    turns = [
        Turn("leader", 0, 3, 20, priority=-1),
        Turn("idle", 0, 8, 5),
        Turn("low", 0, 8, 20, priority=1),
        Turn("urgent", urgent_at, 24, 4),
    ]
    return run(made, turns, **how)


def test_l8_a_copy_stored_in_a_decode_only_phase_can_be_given_up_afterwards() -> None:
    made = scheduler(KEEPING, device_blocks=13, host_blocks=6, host_increment=0)
    machine = idle_then_parked(made, 14)
    assert machine.preempted == [("low", SWAP)]
    assert memory_of(made).ledger.num_contaminated >= 3


def test_l9_blocks_that_come_back_are_in_the_budget_of_the_very_next_plan() -> None:
    made = scheduler(ASYNC, device_blocks=10)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 3, 3, priority=-1))
    machine.arrive(Turn("low", 0, 20, 9, priority=1))
    machine.step()
    machine.arrive(Turn("urgent", 0, 28, 9))
    machine.step()
    machine.step()
    assert list(made.desk.live) == ["low", "urgent"]
    idle = machine.step()
    assert (idle.runs, idle.waiting_on) == (False, ("copy 0",))
    assert memory_of(made).device.num_available < 8
    machine.end_copy(Direction.TO_HOST)
    assert machine.step().prefill == (("urgent", 28),)


def test_l10_one_victim_does_not_take_the_host_room_of_the_one_before_it() -> None:
    made = scheduler(ASYNC, device_blocks=9, host_blocks=3, host_increment=0)
    turns = [
        Turn("leader", 0, 3, 9, priority=-1),
        Turn("a", 0, 8, 5, priority=1),
        Turn("b", 0, 8, 5, priority=2),
        Turn("urgent", 1, 24, 4),
    ]
    machine = run(made, turns)
    assert machine.preempted[:2] == [("b", SWAP), ("a", RECOMPUTE)]
    assert_both_pools_are_empty(made)


def host_room_only_in_a_store_under_way() -> Watched:
    made = scheduler(KEEPING, device_blocks=13, host_blocks=6, host_increment=0)
    return idle_then_parked(
        made, 6, polls=12, watch=lambda _plan: assert_targets_are_pinned(memory_of(made))
    )


def assert_targets_are_pinned(memory: Memory) -> None:
    """No block that a copy under way writes is free, or written by another."""
    seen = set(free_blocks(memory.host))
    for flight in memory.in_flight.values():
        if flight.to_host:
            targets = {host + i for _d, host, length in flight.copy.runs for i in range(length)}
            assert not targets & seen, f"copy {flight.copy.copy_id} writes {targets & seen}"
            seen |= targets


def free_blocks(pool: Pool) -> list[int]:
    return list(pool.free_list if isinstance(pool, PagedPool) else pool._space)


def test_l10_the_target_of_a_store_under_way_is_not_evicted() -> None:
    assert host_room_only_in_a_store_under_way().preempted == [("low", RECOMPUTE)]


def test_l10_without_the_pin_the_target_is_evicted_under_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned = Ledger._role_of

    def role_of(ledger: Ledger, context: Context) -> HostRole:
        moving = context.transfer
        if not context.owner.is_live:
            context.transfer = None
        role = pinned(ledger, context)
        context.transfer = moving
        return role

    monkeypatch.setattr(Ledger, "_role_of", role_of)
    with pytest.raises(InvariantError, match="host role IDLE, not NONE"):
        host_room_only_in_a_store_under_way()
    monkeypatch.setattr(swap_laws, "check", lambda _: None)
    with pytest.raises(AssertionError, match="copy 1 writes"):
        host_room_only_in_a_store_under_way()


def kept_beside_its_cancelled_store(**sizes: int) -> StillWrites:
    """`a` has a partial block on both sides; a store of it was cancelled and has not ended."""
    made = scheduler(ASYNC, device_blocks=6, initial_group=1, growth_group=1, **sizes)
    machine = StillWrites(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 1, 15, priority=-1))
    machine.arrive(Turn("a", 0, 2, 9, priority=1))
    machine.step()
    displace(machine, 16)
    machine.end_copy(Direction.TO_HOST)
    machine.step()
    machine.end_copy(Direction.TO_DEVICE)
    machine.step()
    displace(machine, 12)
    assert machine.step().cancel == (1 + 1,)
    (flight,) = memory_of(made).in_flight.values()
    assert (is_cancelled(flight), flight.before, made.request("a").is_decoding) == (True, 2, True)
    return machine


def displace(machine: Watched, tokens: int) -> None:
    """Somebody urgent pushes `a` out and leaves at once."""
    machine.arrive(Turn("u", 0, tokens, 2))
    assert machine.step().preempt == (("a", SWAP),)
    machine.cancel("u")


def test_l10_the_target_of_a_cancelled_store_is_the_copys_until_its_outcome() -> None:
    made = kept_beside_its_cancelled_store(host_blocks=4).scheduler
    (flight,) = memory_of(made).in_flight.values()
    targets = [host + i for _device, host, length in flight.copy.runs for i in range(length)]
    assert flight.host is not None
    assert flight.host.blocks == targets


def test_l10_a_cancelled_store_does_not_write_into_a_copy_that_is_trusted() -> None:
    machine = kept_beside_its_cancelled_store(host_blocks=1, host_increment=0)
    while machine.scheduler.num_tokens("a") < 6:
        machine.step()
    machine.arrive(Turn("u", 0, 10, 3))
    assert machine.step().preempt == (("a", RECOMPUTE),)
    machine.step()
    machine.step()
    machine.end_copy(Direction.TO_HOST)  # cancelled long ago, and reads what is there now
    for _ in range(40):
        machine.step()
        if machine.moving[Direction.TO_DEVICE]:
            machine.end_copy(Direction.TO_DEVICE)
    assert "a" in machine.finished


def test_l10_growth_waits_for_no_cancelled_store_since_that_holds_no_room_back() -> None:
    machine = kept_beside_its_cancelled_store()
    machine.arrive(Turn("u", 0, 8, 6))
    assert [copy.copy_id for copy in machine.step().copies] == [3]
    plans = [machine.step() for _ in range(4)]
    assert [plan.wait_for for plan in plans if plan.wait_for] == [(3,)]


def full_host_then_second_turn() -> list[Turn]:
    """The host has no room for the first conversation when its turn ends."""
    return [
        Turn("first", 0, 8, 5),
        Turn("second", 20, 16, 3, parent_id="first", session_id="first"),
    ]


@pytest.mark.parametrize("host_blocks", [0, 2])
def test_l11_what_found_no_room_on_the_host_is_not_taken_for_stored(host_blocks: int) -> None:
    made = scheduler(KEEPING, host_blocks=host_blocks, host_increment=0)
    cached = cached_tokens_of(made, full_host_then_second_turn())
    assert cached == {"first": 0, "second": 0}


def cached_tokens_of(made: Scheduler, turns: list[Turn], **how: Any) -> dict[str, int]:
    """Prompt tokens each turn found computed when it was first prefilled."""
    seen: dict[str, Request] = {}
    run(made, turns, watch=lambda _plan: seen.update(made.desk.live), **how)
    return {name: request.cached_tokens for name, request in seen.items()}


def test_l11_taking_a_full_host_for_an_empty_one_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Ledger, "make_room", lambda *_args, **_named: True)
    with pytest.raises(OutOfBlocks, match="host: 3 blocks wanted"):
        run(scheduler(KEEPING, host_blocks=2, host_increment=0), full_host_then_second_turn())


def random_run(seed: int, failing: float, check: Callable[[Scheduler], None]) -> None:
    """Reuse, slow copies, clients that leave, frequent updates: where copies are kept halfway."""
    rng = random.Random(seed)
    system = custom_system(
        {
            "base": "fastswitch",
            "allocator": rng.choice(["paged", "groups", "buddy"]),
            "overlap": rng.choice(["async", "adaptive"]),
            "reuse": rng.random() < 0.8,
            "between_turns": rng.choice(["drop", "keep_host", "keep_host", "keep_device"]),
            "contamination": rng.choice(["whole", "tail"]),
        }
    )
    made = scheduler(
        system,
        rng.choice(["random", "markov", "vtc"]),
        device_blocks=rng.randrange(4, 24),
        host_blocks=rng.choice([3, 8, 16, 40]),
        block_size=rng.choice([1, 2, 4]),
        update_every=rng.choice([1, 2, 3]),
    )
    machine = Impatient(made, rng, lambda _copy: rng.random() < failing)
    machine.polls = rng.choice([2, 6, 20])
    calls = [0]

    def check_and_leave(_scheduler: Scheduler) -> None:
        check_integrity(made)
        check(made)
        calls[0] += 1
        if calls[0] % 2 == 0 and made.desk.live and rng.random() < 0.03:
            name = rng.choice(sorted(made.desk.live))
            assert made.cancel(name, machine.now_ns)
            machine.served.pop(name)
            machine.rejected[name] = "the client left"

    serve(machine, random_turns(rng, made.settings.block_size), check=check_and_leave)
    assert_nothing_is_held_by_copies(made)


class Impatient(ShadowMachine):
    """Copies that nobody waits for take up to `polls` polls."""

    polls = 4

    def _begin(self, copies: list[Copy]) -> None:
        super()._begin(copies)
        for copy in copies:
            for moving in self.moving[copy.direction]:
                if moving.copy is copy:
                    moving.left = self.rng.randrange(self.polls)


def test_l12_no_block_is_given_back_twice_and_none_is_left_at_the_end() -> None:
    kept = []

    def check(made: Scheduler) -> None:
        memory = memory_of(made)
        assert 0 <= memory.transfers.coming <= memory.device.num_blocks
        kept.append(any(map(is_cancelled, memory.in_flight.values())))

    for seed in range(120):
        random_run(seed, 0.0, check)
    assert kept.count(True) > 50


def test_l12_giving_a_source_back_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Transfers._vacate

    def vacate(self: Transfers, transfer: Transfer) -> None:
        again = self._device.new()
        if transfer.device is not None and transfer.device.runs is not None:
            again.blocks = [*transfer.device.blocks]
            again.runs = [[*run] for run in transfer.device.runs]
        proper(self, transfer)
        self._device.truncate(again, 0)

    monkeypatch.setattr(Transfers, "_vacate", vacate)
    with pytest.raises(InvariantError, match="in flight is not 9"):
        run(scheduler(ASYNC, device_blocks=9), low_then_urgent())


# ------------------------------------------------------------------ L13, L14: what is moved


class Tally:
    """Blocks that changes of state imply, by direction, counted where the changes are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.implied = dict.fromkeys(Direction, 0)
        self.swaps = 0
        preempt, load, retire = Swaps.preempt, Swaps.load, Swaps.retire

        def counted_preempt(swaps: Swaps, request: Request, *rest: Any, **named: Any) -> Any:
            context, before = request.context, request.context.host_tokens
            kv = request.num_tokens - 1 if request.is_decoding else context.device_tokens
            mode = preempt(swaps, request, *rest, **named)
            if mode is SWAP:
                self.swaps += 1
                self._left(swaps, kv, before)
            return mode

        def counted_load(swaps: Swaps, request: Request, *rest: Any, **named: Any) -> None:
            context, blocks_for = request.context, swaps.memory.blocks_for
            clean = context.outgoing.first_block if context.outgoing is not None else None
            tokens = context.host_tokens if clean is None else clean * swaps.settings.block_size
            load(swaps, request, *rest, **named)
            self.implied[Direction.TO_DEVICE] += blocks_for(tokens)

        def counted_retire(swaps: Swaps, context: Context, *rest: Any) -> None:
            tokens, before = context.device_tokens, context.host_tokens
            retire(swaps, context, *rest)
            if context.outgoing is not None or context.host_tokens == tokens:
                self._left(swaps, tokens, before)

        monkeypatch.setattr(Swaps, "preempt", counted_preempt)
        monkeypatch.setattr(Swaps, "load", counted_load)
        monkeypatch.setattr(Swaps, "retire", counted_retire)

    def _left(self, swaps: Swaps, tokens: int, before: int) -> None:
        size = swaps.settings.block_size
        if tokens > before:
            self.implied[Direction.TO_HOST] += -(-tokens // size) - before // size


@pytest.mark.parametrize("name", ["+groups", "+reuse", "+async", "fastswitch", "+batched"])
@pytest.mark.parametrize("overlap", ["sync", "async", "adaptive"])
def test_l13_blocks_moved_are_those_that_changes_of_state_imply(
    name: str, overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally(monkeypatch)
    machine = run(scheduler(variant(name, overlap=overlap), "random"), crowd())
    assert tally.swaps > 5
    assert machine.moved_blocks == tally.implied


def test_l13_a_mapping_that_is_computed_and_dropped_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Draft, "add_store", lambda *_args, **_named: None)
    with pytest.raises(WrongKV):
        run(scheduler(SYNC, device_blocks=9), low_then_urgent())


def parked_with(kv_tokens: int, host_blocks: int, system: System) -> Watched:
    """`low` is parked with KV of exactly so many tokens; the device is full then."""
    blocks = -(-kv_tokens // 4)
    made = scheduler(
        system,
        device_blocks=2 + (kv_tokens + 1) // 4 + 1,
        host_blocks=host_blocks,
        host_increment=0,
        initial_group=1,
        growth_group=1,
    )
    machine = Watched(made)
    machine.arrive(Turn("leader", 0, 1, 6, priority=-1))
    machine.arrive(Turn("low", 0, kv_tokens, 2, priority=1))
    machine.step()
    assert made.request("low").device_blocks == blocks
    machine.arrive(Turn("urgent", 0, 4 * blocks, 2))
    machine.step()
    return machine


@pytest.mark.parametrize("system", [SYNC, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("kv_tokens", range(8, 14))
def test_l14_a_victim_needs_the_host_blocks_that_its_kv_fills_and_not_one_more(
    kv_tokens: int, system: System
) -> None:
    blocks = -(-kv_tokens // 4)
    machine = parked_with(kv_tokens, blocks, system)
    assert machine.preempted == [("low", SWAP)]
    assert machine.moved_blocks[Direction.TO_HOST] == blocks
    assert memory_of(machine.scheduler).host.num_available == 0
    serve(machine, [], check=check_integrity)
    assert sorted(machine.finished) == ["leader", "low", "urgent"]
    assert_both_pools_are_empty(machine.scheduler)


@pytest.mark.parametrize("kv_tokens", range(8, 14))
def test_l14_with_one_host_block_too_few_the_victim_recomputes(kv_tokens: int) -> None:
    machine = parked_with(kv_tokens, -(-kv_tokens // 4) - 1, SYNC)
    assert machine.preempted == [("low", RECOMPUTE)]
    serve(machine, [], check=check_integrity)
    assert sorted(machine.finished) == ["leader", "low", "urgent"]
    assert machine.moved_blocks == {Direction.TO_HOST: 0, Direction.TO_DEVICE: 0}


# ------------------------------------------------------------------ L16 to L18: between turns


def three_conversations_on_a_small_host() -> list[Turn]:
    """The host keeps one idle conversation whole; the one that spoke last comes back first."""
    turns = []
    for index in range(3):
        name = f"c{index}"
        turns.append(Turn(name, 30 * index, 16, 8, session_id=name))
        turns.append(Turn(f"{name}+", 180 - 30 * index, 30, 4, session_id=name, parent_id=name))
    return turns


@pytest.mark.parametrize("contamination", ["whole", "tail"])
def test_l16_a_conversation_whose_copy_was_given_away_is_not_found_again(
    contamination: str,
) -> None:
    system = variant("fastswitch", contamination=contamination)
    made = scheduler(system, host_blocks=10, host_increment=0)
    cached = cached_tokens_of(made, three_conversations_on_a_small_host())
    # Each first turn fills 6 blocks of 10, each second one 9. Cut from its end, c1 keeps 4 blocks
    # beside c2's 6, and one beside the 9 of c2's second turn.
    found = [cached[f"c{index}+"] for index in range(3)]
    assert found == ([0, 0, 23] if contamination == "whole" else [0, 4, 23])
    assert memory_of(made).ledger.num_contaminated > 0


def test_l16_a_table_that_still_names_recycled_blocks_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_up(self: Ledger, context: Context, keep: int) -> None:
        names_them_still = context.host
        context.host = self.host.split(names_them_still, 0)
        self.host.truncate(context.host, keep)
        context.host = names_them_still
        context.host.blocks = [0] * 6

    monkeypatch.setattr(Ledger, "_give_up", give_up)
    with pytest.raises(InvariantError):
        run(
            scheduler(KEEPING, host_blocks=10, host_increment=0),
            three_conversations_on_a_small_host(),
        )


def idle_then_back(gap: int) -> list[Turn]:
    """A turn ends; others want its room; its next turn comes `gap` after the others."""
    return [
        Turn("leader", 0, 3, 18, priority=-1),
        Turn("first", 0, 12, 6),
        Turn("other", 5, 12, 6),
        Turn("second", 5 + gap, 22, 4, parent_id="first", session_id="first"),
    ]


@pytest.mark.parametrize("gap", range(9))
@pytest.mark.parametrize("polls", [1, 3, 8])
def test_l17_a_turn_may_end_and_its_next_begin_while_its_kv_is_stored(gap: int, polls: int) -> None:
    made = scheduler(KEEPING, device_blocks=11)
    cached = cached_tokens_of(made, idle_then_back(gap), polls=polls)
    assert cached["second"] == 12 + 6 - 1


def test_l17_freeing_what_a_finished_turn_still_sends_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free_the_source_at_once(monkeypatch)
    with pytest.raises(WrongKV, match="second position"):
        run(scheduler(KEEPING, device_blocks=11), idle_then_back(6), polls=8)


BETWEEN_TURNS = {
    name: system
    for name, system in {
        **SYSTEMS,
        "keep_device": variant("fastswitch", between_turns="keep_device"),
        "buddy": variant("fastswitch", allocator="buddy"),
        "async": KEEPING,
    }.items()
    if system.options.between_turns != "drop"
}


@pytest.mark.parametrize("order", ["priority", "fcfs"])
@pytest.mark.parametrize("name", [n for n in BETWEEN_TURNS if "recompute" not in n])
@pytest.mark.parametrize("output", range(3, 8))
def test_l18_the_second_turn_finds_every_token_of_the_first_but_its_last(
    name: str, output: int, order: str
) -> None:
    """Of 9 + `output` tokens the last was sampled and never computed, whether it fills a block
    or not."""
    first = Turn("first", 0, 9, output, session_id="c")
    second = Turn("second", 50, 9 + output + 5, 3, session_id="c", parent_id="first")
    made = scheduler(
        BETWEEN_TURNS[name], order, max_num_seqs=16
    )  # chunks need a larger budget than that
    cached = cached_tokens_of(made, [first, second])
    assert cached == {"first": 0, "second": 9 + output - 1}


def test_l18_storing_full_blocks_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Memory.settle

    def settle_full_blocks(self: Memory, context: Context, tokens: int) -> None:
        settle(self, context, tokens - tokens % self.block_size)

    monkeypatch.setattr(Memory, "settle", settle_full_blocks)
    turns = [Turn("first", 0, 9, 5), Turn("second", 50, 20, 3, parent_id="first")]
    assert cached_tokens_of(scheduler(KEEPING), turns)["second"] == 12


# ------------------------------------------------------------------ L19: all or nothing


def pools() -> Iterator[Any]:
    yield pytest.param(lambda: PagedPool("pool", 16), id="paged")
    yield pytest.param(lambda: GroupPool("pool", FreeRuns(16), lambda _n: 0), id="groups")
    yield pytest.param(lambda: GroupPool("pool", BuddyRuns(16), lambda _n: 0), id="buddy")


def snapshot(pool: Pool, holders: list[Allocation]) -> Any:
    """Everything an allocation could have changed."""
    held = [(list(h.blocks), h.reserved, repr(h.runs)) for h in holders]
    return sorted(free_blocks(pool)), pool.num_free, pool.num_reserved, held


@pytest.mark.parametrize("make", list(pools()))
def test_l19_an_allocation_that_fails_leaves_the_pool_as_it_was(make: Callable[[], Pool]) -> None:
    pool = make()
    holders = [pool.new() for _ in range(3)]
    for holder, count in zip(holders, (3, 5, 2), strict=True):
        pool.allocate(holder, count, reserve=2)
    pool.truncate(holders[1], 3)
    for holder in holders:
        before = snapshot(pool, holders)
        with pytest.raises(OutOfBlocks):
            pool.allocate(holder, pool.num_available + 1, reserve=2)
        assert snapshot(pool, holders) == before
    pool.check(holders)
    pool.allocate(holders[0], pool.num_available)
    assert (pool.num_available, sum(len(h.blocks) for h in holders)) == (0, 16)


def test_l19_host_room_that_cannot_be_made_costs_nobody_its_copy() -> None:
    made = scheduler(KEEPING, host_blocks=10, host_increment=0)
    run(made, [Turn("a", 0, 8, 5), Turn("b", 5, 16, 5)])
    ledger = memory_of(made).ledger
    kept = list(ledger.kept.values())
    holders = [context.host for context in kept]
    before = snapshot(ledger.host, holders)
    wanted_by = Context(Request("c", arrival_ns=9, input_tokens=44))
    assert not ledger.make_room(11, wanted_by, at_any_cost=True)
    assert snapshot(ledger.host, [context.host for context in kept]) == before
    assert [context.role for context in kept] == [HostRole.IDLE, HostRole.IDLE]
    assert ledger.num_contaminated == 0
    check_integrity(made)
    assert ledger.make_room(10, wanted_by, at_any_cost=True)
    assert_both_pools_are_empty(made)


# ------------------------------------------------------------------ L20: copies that fail


FAILURES: dict[str, Callable[[Copy], bool]] = {
    "first": lambda copy: copy.copy_id == 0,
    "every other": lambda copy: copy.copy_id % 2 == 0,
    "stores": lambda copy: copy.direction is Direction.TO_HOST,
    "loads": lambda copy: copy.direction is Direction.TO_DEVICE,
    "all": lambda _copy: True,
}


@pytest.mark.parametrize("which", FAILURES)
@pytest.mark.parametrize("name", ["+groups", "+reuse", "+async", "fastswitch", "vllm-0.3.3-keep"])
def test_l20_a_request_whose_copy_failed_recomputes_and_computes_on_its_own_kv(
    name: str, which: str
) -> None:
    made = scheduler(name, "random", max_parkings=2)
    run(made, crowd(), fail=FAILURES[which])


@pytest.mark.parametrize("which", ["stores", "loads"])
def test_l20_using_the_hole_as_if_it_were_loaded_is_caught(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Memory.complete

    def believe(self: Memory, copy_id: int, *, ok: bool) -> Any:
        return complete(self, copy_id, ok=True)

    monkeypatch.setattr(Memory, "complete", believe)
    monkeypatch.setattr(Swaps, "copy_ended", believed(Swaps.copy_ended))
    with pytest.raises(WrongKV):
        run(scheduler("fastswitch", "random"), crowd(), fail=FAILURES[which])


def believed(copy_ended: Callable[..., bool]) -> Callable[..., bool]:
    return lambda self, flight, *, ok: copy_ended(self, flight, ok=True)


def grows_into_stores_under_way() -> Watched:
    """Three requests grow at once on a full device: the step waits for the stores of `a` and of
    `z`, whose clients' rival has left, and has room to bring `a` back. The store of `a` fails."""
    made = scheduler(ASYNC, device_blocks=7, initial_group=1, growth_group=1)
    machine = Watched(made, polls=NEVER, fail=lambda copy: copy.copy_id == 0)
    for rank in range(3):
        machine.arrive(Turn(f"r{rank}", 0, 2, 8, priority=rank - 3))
    machine.arrive(Turn("z", 0, 8, 8, priority=2))
    machine.arrive(Turn("a", 0, 2, 8, priority=3))
    machine.step()
    machine.arrive(Turn("u", 0, 12, 8))
    assert machine.step().preempt == (("a", SWAP), ("z", SWAP))
    machine.step()
    machine.cancel("u")
    machine.cancel("z")
    return machine


def test_l20_what_a_step_waits_to_see_stored_is_not_loaded_by_that_step() -> None:
    machine = grows_into_stores_under_way()
    plan = machine.step()
    assert (plan.wait_for, plan.copies) == ((0, 1), ())
    serve(machine, [], check=check_integrity)
    assert sorted(machine.finished) == ["a", "r0", "r1", "r2"]


def next_turns_at_once(watch: Callable[[Plan], None]) -> None:
    """Two next turns come before their parents' KV has left the device, which must make way for
    the first of them. The store that this takes fails."""
    turns = [Turn(name, 0, 16, 4, session_id=name) for name in "ab"]
    turns += [
        Turn("a+", 1, 36, 3, session_id="a", parent_id="a"),
        Turn("b+", 1, 24, 3, session_id="b", parent_id="b"),
    ]
    made = scheduler("vllm-0.3.3-keep", "fcfs", device_blocks=12)
    run(made, turns, watch=watch, fail=lambda copy: copy.copy_id == 0)


def test_l20_a_turn_whose_kv_is_just_being_stored_is_admitted_once_that_has_ended() -> None:
    prefills: list[tuple[str, int]] = []
    next_turns_at_once(lambda plan: prefills.extend(plan.prefill))
    assert prefills[2:] == [("a+", 36), ("b+", 24 - 19)]


def test_l20_believing_a_store_before_its_outcome_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Memory, "is_promised", lambda *_: False)
    with pytest.raises(InvariantError, match=r"copy \d+: .* holds \(True, False\), not as"):
        grows_into_stores_under_way().step()
    without_the_table(monkeypatch)
    with pytest.raises(InvariantError, match="waits while it is loaded"):
        grows_into_stores_under_way().step()
    with pytest.raises(WrongKV, match="position 0 of 36"):
        next_turns_at_once(lambda _plan: None)
