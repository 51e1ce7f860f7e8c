"""What an engine owes the scheduler, shown by one that fits on a page and has no memory at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from policy.contract.crowd import Machine, crowd
from policy.desk import Desk
from policy.engines.base import ALWAYS, Engine, Event, Levels, Until
from policy.engines.catalog import ENGINES, make_engine
from policy.engines.draft import Draft
from policy.errors import ConfigError, InvariantError
from policy.integrity import check_counts, check_integrity
from policy.orders.catalog import OrderSettings, make_order
from policy.plan import CopyResult, Plan
from policy.pools.allocation import Pool
from policy.request import Move, Request
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS, System
from tests.helpers.small import draw, scheduler, settings, variant


class Nothing:
    """What is held for a request."""

    device_blocks = host_blocks = 0
    is_resident = False


class OneByOne:
    """Serves one request after the other, in order, on a machine that needs no room."""

    name = "one by one"
    num_available, num_coming = 1 << 30, 0

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.num_decisions = 0

    def enter(self, request: Request) -> None:
        request.holding = Nothing()
        self.desk.enter(request)

    def leave(self, request: Request, move: Move) -> None:
        self.desk.leave(request, move)

    def ranks_changed(self) -> None:
        pass

    def computed(self, request: Request, tokens: int) -> None:
        pass

    def copy_ended(self, result: CopyResult) -> int:
        raise InvariantError(f"copy {result.copy_id} is nobody's")

    def decide(self) -> tuple[Plan, Until]:
        desk, draft = self.desk, Draft()
        self.num_decisions += 1
        desk.flush_rejects(draft)
        if desk.ranked and not desk.running:
            first = desk.ranked[0]
            first.move(Move.PREFILL)
            desk.prefilling[first] = first.num_tokens
            draft.prefill.append((first.request_id, first.num_tokens))
            return draft.finish(None), Until()
        batch = desk.standing_batch()
        return draft.finish(batch, () if batch is not None else ("arrivals",)), Until()

    def grow(self, growing: Mapping[Request, None]) -> None:
        pass

    def block_table(self, request_id: str) -> Sequence[int]:
        return ()

    def num_computed(self, request_id: str) -> int:
        return 0

    def levels(self) -> Levels:
        return Levels(0, 0)

    def pools(self) -> tuple[tuple[Pool, int], ...]:
        return ()

    def facts(self) -> dict[str, Any]:
        return {}

    def check(self, *, full: bool) -> None:
        if full and len(self.desk.running) > 1:
            raise InvariantError("more than one runs")


def test_an_engine_without_memory_serves_everybody_in_order() -> None:
    made = scheduler("fastswitch", "fcfs")
    engine: Engine = OneByOne(Desk(settings(), made.order))
    toy = Scheduler(settings(), variant("fastswitch"), made.order, draw, engine=engine)
    machine = Machine(toy, crowd())
    machine.serve()
    assert machine.done == {turn.request_id for turn in crowd()}
    prefills = [plan.prefill[0][0] for plan in machine.plans if plan.prefill]
    assert sorted(prefills) == sorted(machine.done)
    assert engine.num_decisions < len(machine.plans)  # type: ignore[attr-defined]


def test_a_system_names_its_engine_and_the_catalog_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENGINES, "one by one", lambda parts: OneByOne(parts.desk))
    made = scheduler(System("toy", "one by one"), "fcfs")
    machine = Machine(made, crowd())
    machine.serve()
    assert machine.done == {turn.request_id for turn in crowd()}


def test_an_engine_that_nobody_wrote_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'none' is not one of ranked, vllm-0\.3\.3"):
        scheduler(System("s", "none"), "fcfs")


def test_the_release_serves_under_no_order_but_its_own() -> None:
    order = make_order("random", draw, OrderSettings())
    with pytest.raises(
        ConfigError, match=r"knows no order but fcfs, and this is random; .* paged$"
    ):
        make_engine(settings(), SYSTEMS["vllm-0.3.3"], order, draw)


def test_the_laws_of_an_engine_and_of_its_desk_are_both_asked() -> None:
    made = scheduler("fastswitch", "fcfs")
    engine = OneByOne(Desk(settings(), made.order))
    toy = Scheduler(settings(), variant("fastswitch"), made.order, draw, engine=engine)
    for name in ("a", "b"):
        toy.add(Request(name, arrival_ns=0, input_tokens=3), 0)
        toy.request(name).move(Move.PREFILL)
        engine.desk.join_batch(toy.request(name))
    check_counts(toy)
    with pytest.raises(InvariantError, match="more than one runs"):
        check_integrity(toy)
    toy.cancel("b", 0)
    check_integrity(toy)
    engine.desk.live["c"] = toy.request("a")
    with pytest.raises(InvariantError, match="1 ranked, 2 live"):
        check_integrity(toy)


# ---------------------------------------------------------------------- how long a plan holds


class Room:
    """As many blocks available, as many coming."""

    def __init__(self, available: int, coming: int = 0) -> None:
        self.num_available, self.num_coming = available, coming


@pytest.mark.parametrize(
    ("until", "seen", "step", "is_over"),
    [
        (Until(), Event.MADE, 7, False),
        (Until(), Event.MADE | Event.PLANNED | Event.STORED, 7, False),
        (Until(), Event.MADE | Event.ARRIVED, 7, True),
        (Until(), Event.MADE | Event.LOST, 7, True),
        (Until(ALWAYS | Event.PLANNED), Event.MADE | Event.PLANNED, 7, True),
        (Until(Event.MADE), Event.MADE, 7, True),
        (Until(step=7), Event.MADE, 7, True),
        (Until(step=8), Event.MADE, 7, False),
    ],
)
def test_a_plan_ends_with_the_events_and_the_step_that_its_engine_named(
    until: Until, seen: int, step: int, is_over: bool
) -> None:
    assert until.is_over(seen, step) == is_over


@pytest.mark.parametrize(
    ("until", "growing", "room", "is_short"),
    [
        (Until(), 2, Room(2), False),
        (Until(), 3, Room(2), True),
        (Until(spare=1), 2, Room(2), True),
        (Until(spare=1), 0, Room(0), True),
        (Until(as_blocks_fill=True), 0, Room(0), False),
        (Until(as_blocks_fill=True), 1, Room(9), True),
        (Until(room=5), 1, Room(4, 2), False),
        (Until(room=5), 2, Room(4, 2), True),
    ],
)
def test_a_plan_ends_where_its_next_step_finds_less_room_than_its_engine_said(
    until: Until, growing: int, room: Any, is_short: bool
) -> None:
    assert until.is_short(growing, room) == is_short
