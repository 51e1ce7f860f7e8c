"""Traps of copying to the host ahead of need (`movement`), docs/traps.md."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from policy.engines.swaps import Swaps
from policy.errors import InvariantError
from policy.integrity import check_integrity
from policy.memory.context import HostRole
from policy.memory.transfers import Fate
from policy.plan import Direction, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import RECOMPUTE, SWAP, Watched, assert_nothing_is_held_by_copies, run
from tests.helpers.shadow import Turn
from tests.helpers.small import random_turns, scheduler, variant

THROUGH = variant("fastswitch-write-through", overlap="async", between_turns="drop")
INCREMENTAL = variant("fastswitch-incremental", overlap="async", between_turns="drop")


def alone(tokens: int = 10, polls: int = 2, **sizes: int) -> tuple[Watched, Request]:
    """One request that decodes, its full blocks backed up as they fill."""
    made = scheduler(THROUGH, **sizes)
    machine = Watched(made, polls=polls)
    machine.arrive(Turn("a", 0, tokens, 60))
    return machine, made.request("a")


def sent(plan: Plan) -> list[int]:
    return [copy.num_blocks for copy in plan.copies if copy.direction is Direction.TO_HOST]


def until(machine: Watched, done: Callable[[], bool], most: int = 60) -> None:
    for _ in range(most):
        if done():
            return
        machine.step()
    raise AssertionError("it never came to that")


def backup_under_way(polls: int = 5) -> tuple[Scheduler, Request]:
    """A moment at which full blocks of a decoding request are on their way."""
    machine, request = alone(polls=polls)
    until(machine, lambda: request.context.backup is not None and request.is_decoding)
    return machine.scheduler, request


# ---------------------------------------------------------------------- what it is for


def test_every_block_is_sent_once_when_it_is_full_and_none_before() -> None:
    machine, request = alone(polls=1)
    plans = [machine.step() for _ in range(30)]
    assert sum(sum(sent(plan)) for plan in plans) == (request.num_tokens - 1) // 4


def test_a_victim_sends_its_last_block_alone() -> None:
    made = scheduler(THROUGH, device_blocks=12)
    machine = Watched(made, polls=1)
    machine.arrive(Turn("leads", 0, 2, 60))
    machine.arrive(Turn("low", 0, 17, 60, priority=1))
    until(machine, lambda: made.request("low").context.host_tokens >= 20)
    machine.arrive(Turn("urgent", 0, 25, 1))
    found: list[Plan] = []
    until(machine, lambda: bool(found.append(machine.step()) or machine.preempted))
    assert machine.preempted == [("low", SWAP)]
    assert sent(found[-1]) == [1]


# ---------------------------------------------------------------------- in rounds


def in_rounds(**sizes: float) -> Watched:
    """Two requests that decode, the second the likely victim."""
    made = scheduler(INCREMENTAL, **{"device_blocks": 40, "backup_every": 8, **sizes})
    machine = Watched(made, polls=1)
    machine.arrive(Turn("leads", 0, 10, 60))
    machine.arrive(Turn("last", 0, 10, 60, priority=1))
    return machine


def rounds(machine: Watched, steps: int) -> list[tuple[int, str, int]]:
    """Step, request and blocks of every copy to the host."""
    found = []
    for _ in range(steps):
        plan = machine.step()
        found += [(machine.scheduler.step, c.request_id, c.num_blocks) for c in plan.copies]
    return found


def test_a_round_comes_every_so_many_steps_and_sends_what_has_filled_up_since() -> None:
    found = rounds(in_rounds(backup_depth=1.0), 34)
    assert [step for step, name, _ in found if name == "last"] == [8, 16, 24, 32]
    assert [blocks for _, name, blocks in found if name == "leads"] == [4, 2, 2, 2]
    assert [name for step, name, _ in found if step == 8] == ["last", "leads"]


def test_only_likely_victims_are_backed_up_and_nobody_while_enough_is_free() -> None:
    assert rounds(in_rounds(backup_depth=0.25), 40) == []
    found = rounds(in_rounds(backup_depth=0.25, device_blocks=20), 40)
    assert {name for _, name, _ in found} == {"last"}
    assert found[0][0] > 8


def test_a_round_sends_no_more_than_may_be_under_way_and_leaves_the_rest_to_the_next() -> None:
    found = rounds(in_rounds(backup_depth=1.0, backup_blocks=3), 34)
    each: Counter[int] = Counter()
    for step, _, blocks in found:
        each[step] += blocks
    assert each == {8: 3, 16: 3, 24: 3, 32: 3}
    assert [name for _, name, _ in found][:2] == ["last", "last"]


def test_a_round_that_is_due_waits_for_urgent_copies_and_no_longer() -> None:
    machine = in_rounds(backup_depth=1.0, device_blocks=16)
    made = machine.scheduler
    until(machine, lambda: made.step == 7)
    machine.rng.polls = 6  # type: ignore[attr-defined]
    machine.arrive(Turn("urgent", 0, 30, 9, priority=-1))
    victims = machine.step().copies
    assert [copy.request_id for copy in victims] == ["last"]
    in_flight = memory_of(made).in_flight
    while victims[0].copy_id in in_flight:
        assert sent(machine.step()) == []
    assert made.step > 9
    assert sent(machine.step()) != []


def test_a_victim_of_a_round_sends_what_is_new_alone() -> None:
    machine = in_rounds(backup_depth=1.0, device_blocks=16)
    made = machine.scheduler
    until(machine, lambda: made.step == 12)
    request = made.request("last")
    new = -(-(request.num_tokens - 1) // 4) - request.context.host_tokens // 4
    machine.arrive(Turn("urgent", 0, 30, 9, priority=-1))
    plan = machine.step()
    assert machine.preempted == [("last", SWAP)]
    assert [copy.num_blocks for copy in plan.copies] == [new]
    assert 0 < new < 3 and request.context.host_tokens == 16


# ---------------------------------------------------------------------- traps


def test_a1_only_blocks_that_no_step_writes_any_more_are_sent() -> None:
    """The shadow machine reads a copy's source when it starts or when it ends: both must be right."""
    made = scheduler("fastswitch-write-through", "random", device_blocks=20, host_blocks=80)
    machine = run(made, random_turns(random.Random(7), 4))
    assert machine.moved_blocks[Direction.TO_HOST] > 20


def test_l1_a_victim_stops_its_backup_and_its_target_is_nobodys_until_that_has_ended() -> None:
    made, request = backup_under_way()
    flight = request.context.backup
    assert flight is not None
    assert made.cancel("a", 0)
    check_integrity(made)
    assert flight.host is not None
    plan = made.schedule(0)
    assert plan.cancel == (flight.copy.copy_id,)
    held = memory_of(made).host
    assert held.num_available == held.num_blocks - len(flight.host.blocks)


def test_l8_backups_of_a_long_decode_pin_nothing_once_they_have_ended() -> None:
    machine, request = alone(polls=3)
    for _ in range(40):
        machine.step()
    until(machine, lambda: request.context.backup is None)
    assert request.context.role is HostRole.DUPLICATE


def test_l10_a_host_copy_that_is_added_to_is_not_given_away() -> None:
    made, request = backup_under_way()
    assert request.context.role is HostRole.NONE
    ledger = memory_of(made).ledger
    short = ledger.host.num_available + 1
    assert not ledger.make_room(short, request.context, at_any_cost=True)


def test_l11_a_backup_that_fails_or_finds_no_room_is_not_taken_for_one() -> None:
    made = scheduler(THROUGH, host_blocks=2)
    machine = Watched(made, polls=1, fail=lambda copy: copy.copy_id == 0)
    machine.arrive(Turn("a", 0, 20, 30))
    request = made.request("a")
    machine.step()
    machine.step()
    assert request.context.backup is not None
    until(machine, lambda: request.context.backup is None)
    assert request.context.host_tokens == 0
    until(machine, lambda: request.context.host_tokens == 8)
    for _ in range(10):
        assert sent(machine.step()) == []  # the host has two blocks, and both are used


def test_l6_a_turn_may_end_while_its_blocks_are_backed_up() -> None:
    turns = [Turn(f"r{i}", 0, 6 + i, 7) for i in range(4)]
    for polls in range(1, 9):
        made = scheduler("fastswitch-write-through", device_blocks=20)
        run(made, [Turn(**{**vars(turn), "parent_id": None}) for turn in turns], polls=polls)
        assert_nothing_is_held_by_copies(made)


def test_d7_a_victim_finds_host_room_that_backups_pin() -> None:
    """The last free host block has gone to a backup, which pins the copy that it adds to. The victim
    stops it, and the rest of that copy gives way."""
    made = scheduler(THROUGH, "priority", device_blocks=14, host_blocks=8)
    machine = Watched(made, polls=1)
    machine.arrive(Turn("leads", 0, 17, 60))
    machine.arrive(Turn("low", 0, 12, 60, priority=1))
    leads, low = (made.request(name).context for name in ("leads", "low"))
    until(machine, lambda: (leads.host_tokens, low.host_tokens) == (16, 12))
    machine.rng.polls = 40  # type: ignore[attr-defined]
    until(machine, lambda: leads.backup is not None)
    assert memory_of(made).host.num_available == 0
    machine.arrive(Turn("urgent", 0, 25, 1))
    until(machine, lambda: bool(machine.preempted))
    assert machine.preempted == [("low", SWAP)]
    assert leads.host is None


def test_t1_backups_give_way_to_urgent_copies_and_keep_to_their_share() -> None:
    made = scheduler(
        "fastswitch-write-through", "random", device_blocks=200, host_blocks=400, update_every=3
    )
    turns = [Turn(f"r{i}", 2 * i, 40, 12) for i in range(30)]

    def watch(plan: Plan) -> None:
        stores = [copy for copy in plan.copies if copy.direction is Direction.TO_HOST]
        memory = memory_of(made)
        backups = {flight.copy.copy_id for flight in memory.backups()}
        assert len({copy.copy_id in backups for copy in stores}) < 2
        under_way = sum(flight.copy.num_blocks for flight in memory.backups())
        assert under_way <= made.settings.backup_blocks

    machine = run(made, turns, watch=watch, polls=4)
    assert RECOMPUTE not in [mode for _, mode in machine.preempted]


# ---------------------------------------------------------------------- the law, broken


def forget_it(swaps: Swaps, request: Request) -> None:
    flight = request.context.backup
    assert flight is not None
    del swaps.memory.in_flight[flight.copy.copy_id]


def settle_it(_swaps: Swaps, request: Request) -> None:
    assert request.context.backup is not None
    request.context.backup.fate = Fate.KEPT


def read_what_is_not_computed(_swaps: Swaps, request: Request) -> None:
    assert request.context.backup is not None
    request.context.backup.tokens = 4 * request.num_tokens


def lose_its_room(swaps: Swaps, request: Request) -> None:
    assert request.context.host is not None
    swaps.memory.host.truncate(request.context.host, 0)


def overdo_it(swaps: Swaps, _request: Request) -> None:
    swaps.settings = replace(swaps.settings, backup_blocks=1)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (overdo_it, r"2 blocks are being backed up, limit 1"),
        (forget_it, r"copy \d+ is not in flight for it"),
        (settle_it, r"copy \d+: holds"),
        (read_what_is_not_computed, r"backup \d+ reads \d+ tokens"),
        (lose_its_room, r"backup \d+ has no room for \d+ tokens"),
    ],
)
def test_a_seeded_bug_of_backups_is_named(
    broken: Callable[[Swaps, Request], None], says: str
) -> None:
    made, request = backup_under_way()
    check_integrity(made)
    broken(swaps_of(made), request)
    with pytest.raises(InvariantError, match=says):
        check_integrity(made)
