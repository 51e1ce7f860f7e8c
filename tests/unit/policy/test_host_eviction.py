"""Who gives up host room: ARC by its formulas and by what it is for, isolation by its promise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.choices.host_eviction import (
    HOST_EVICTIONS,
    AdaptiveReplacement,
    HostEviction,
    IsolatedLru,
)
from policy.memory.context import Context
from policy.memory.ledger import Ledger
from policy.orders.base import Key, Order
from policy.orders.guard import Guarded
from policy.request import Request
from policy.systems import CHOICES
from policy.views import HostCopy, RequestView
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import run
from tests.helpers.shadow import Turn
from tests.helpers.small import scheduler, variant


def owner(session: str, client: str = "k") -> Request:
    return Request(session, arrival_ns=0, input_tokens=1, client_id=client)


@dataclass(frozen=True)
class Copy:
    """A host copy, as an eviction sees it."""

    owner: Request
    host_blocks: int = 1


def test_every_choice_of_the_switch_is_an_eviction_of_that_name() -> None:
    assert CHOICES["host_eviction"] is HOST_EVICTIONS
    assert [make(8).name for make in HOST_EVICTIONS.values()] == list(HOST_EVICTIONS)


class Cache:
    """A host pool with nothing but idle copies of a block each, under one eviction."""

    def __init__(self, eviction: HostEviction) -> None:
        self.eviction = eviction
        self.idle: OrderedDict[str, Copy] = OrderedDict()  # the longest idle first
        self.hits = 0

    def turn(self, session: str) -> None:
        """One turn of a conversation comes and goes."""
        request = owner(session)
        hit = self.idle.pop(session, None) is not None
        self.hits += hit
        self.eviction.returned(request, hit=hit)
        if len(self.idle) == self.eviction.num_blocks:
            gone = next(iter(self.eviction.nominate(request, self.idle.values())))
            del self.idle[gone.owner.session_id]
            self.eviction.given_up(gone.owner, gone.host_blocks)
        self.idle[session] = Copy(request)


# ---------------------------------------------------------------------- ARC


def regulars_among_strangers(eviction: HostEviction) -> int:
    """Four conversations that come back all the time; between their turns, six that never do."""
    cache = Cache(eviction)
    for name in "abcd" * 2:
        cache.turn(name)
    before = cache.hits
    for index in range(30):
        for stranger in range(6):
            cache.turn(f"s{index}.{stranger}")
        for name in "abcd":
            cache.turn(name)
    return cache.hits - before


def test_arc_keeps_those_who_come_back_from_a_stream_of_those_who_do_not() -> None:
    assert regulars_among_strangers(AdaptiveReplacement(8)) == 120
    assert regulars_among_strangers(HostEviction(8)) == 0


def test_a_ghost_of_the_first_list_asks_for_room_and_one_of_the_second_takes_it_away() -> None:
    arc = AdaptiveReplacement(100)
    for name, blocks in (("a", 6), ("b", 4)):
        arc.given_up(owner(name), blocks)
    for name, blocks in (("x", 30), ("y", 10)):
        arc.returned(owner(name), hit=True)
        arc.given_up(owner(name), blocks)
    arc.returned(owner("a"), hit=False)
    assert arc.target == 6 * (40 // 10)
    arc.returned(owner("y"), hit=False)
    assert arc.target == 24 - 10 * 1  # 4 // 40 is below 1
    arc.returned(owner("x"), hit=False)
    assert arc.target == 0


def test_the_target_never_exceeds_the_pool() -> None:
    arc = AdaptiveReplacement(10)
    arc.given_up(owner("a"), 10)
    arc.returned(owner("a"), hit=False)
    arc.given_up(owner("b"), 9)
    arc.returned(owner("b"), hit=False)
    assert arc.target == 10


def test_the_first_list_is_cut_to_its_target_and_then_the_second_gives_way() -> None:
    arc = AdaptiveReplacement(20)
    arc.target = 4
    for name in ("x", "y"):
        arc.returned(owner(name), hit=True)
    copies = [Copy(owner(name), 3) for name in ("a", "x", "b", "y", "c")]
    order = [copy.owner.session_id for copy in arc.nominate(owner("new"), copies)]
    assert order == ["a", "b", "x", "y", "c"]
    assert order == [copy.owner.session_id for copy in arc.nominate(owner("new"), copies)]


def test_what_was_never_here_is_no_second_visit_and_a_visit_counts_once() -> None:
    arc = AdaptiveReplacement(8)
    arc.returned(owner("a"), hit=False)
    copies = [Copy(owner("a")), Copy(owner("b"))]
    assert next(iter(arc.nominate(owner("new"), copies))).owner.session_id == "a"
    arc.returned(owner("a"), hit=True)
    arc.given_up(owner("a"), 1)  # its stay in the second list ends with the copy
    arc.given_up(owner("a"), 2)
    arc.returned(owner("b"), hit=False)
    assert arc.target == 0


def test_who_came_back_longest_ago_is_forgotten_beyond_twice_the_pool() -> None:
    arc = AdaptiveReplacement(2)
    for name in "abcde":
        arc.returned(owner(name), hit=True)
    assert list(arc._came_back) == list("bcde")


class Repeats(HostEviction):
    """Bad: it names every copy twice."""

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> list[HostCopy]:
        return [copy for copy in copies for _ in range(2)]


def test_a_copy_that_is_nominated_twice_goes_once() -> None:
    made = scheduler(variant("fastswitch"), host_blocks=24, host_increment=0)
    memory_of(made).ledger._eviction = Repeats(24)
    run(made, [Turn(f"c{i}", 40 * i, 16, 8, session_id=f"c{i}") for i in range(9)])
    kept = memory_of(made).ledger.kept.values()
    assert sum(context.host_blocks for context in kept) == 24


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), max_size=200))
def test_what_arc_remembers_is_bounded_by_the_pool(events: list[tuple[int, int, bool]]) -> None:
    arc = AdaptiveReplacement(12)
    for number, blocks, comes in events:
        who = owner(f"c{number}")
        if comes:
            arc.returned(who, hit=bool(blocks % 2))
        else:
            arc.given_up(who, blocks)
        for ghosts in (arc._once, arc._often):
            assert ghosts.size == sum(ghosts._blocks.values()) <= 12
        assert 0 <= arc.target <= 12
        assert len(arc._came_back) <= 24


# ---------------------------------------------------------------------- isolation


COPIES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), min_size=1, max_size=14)


@given(COPIES, st.sampled_from("abcde"))
def test_nobody_within_its_share_loses_a_copy_to_somebody_else(
    held: list[tuple[str, int]], wants: str
) -> None:
    copies = [Copy(owner(f"s{i}", client), size) for i, (client, size) in enumerate(held)]
    clients = {wants, *[client for client, _ in held]}
    share = 40 // len(clients)
    left = {c: sum(size for who, size in held if who == c) for c in clients}
    gone = list(IsolatedLru(40).nominate(owner("new", wants), copies))
    for copy in gone:
        client = copy.owner.client_id
        assert client == wants or left[client] > share
        left[client] -= copy.host_blocks
    assert all(left[client] <= share for client in clients)
    assert left[wants] == 0  # its own may all go, the last of them after everybody's excess
    assert len({copy.owner.session_id for copy in gone}) == len(gone)


def test_within_a_client_the_longest_idle_goes_first_and_after_what_others_have_too_much() -> None:
    copies = [Copy(owner(*who), 5) for who in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"))]
    names = [copy.owner.session_id for copy in IsolatedLru(12).nominate(owner("new", "a"), copies)]
    assert names == ["a1", "b1", "a2"]


def flooded(eviction: str) -> list[str]:
    """A quiet client's two conversations are idle; a loud one leaves eight more on a host for six."""
    made = scheduler(
        variant("fastswitch", host_eviction=eviction), host_blocks=24, host_increment=0
    )
    turns = [Turn(f"q{i}", 0, 8, 8, session_id=f"q{i}", client_id="quiet") for i in range(2)]
    turns += [
        Turn(f"l{i}", 40 + 40 * i, 8, 8, session_id=f"l{i}", client_id="loud") for i in range(8)
    ]
    run(made, turns)
    kept = memory_of(made).ledger.kept.items()
    return [name for name, context in kept if context.host is not None]


def test_a_loud_client_cannot_flush_a_quiet_ones_copies() -> None:
    assert flooded("isolated_lru") == ["q0", "q1", "l4", "l5", "l6", "l7"]
    assert flooded("lru") == [f"l{i}" for i in range(2, 8)]


# ---------------------------------------------------------------------- what the ledger tells


class Told(HostEviction):
    """Writes down what happens."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.log: list[tuple[str, str, bool | int]] = []

    def returned(self, request: Request, *, hit: bool) -> None:  # type: ignore[override]
        super().returned(request, hit=hit)
        self.log.append(("returned", request.request_id, hit))

    def given_up(self, owner: Request, blocks: int) -> None:  # type: ignore[override]
        super().given_up(owner, blocks)
        self.log.append(("gone", owner.request_id, blocks))


@pytest.mark.parametrize("contamination", ["whole", "tail"])
def test_the_ledger_tells_of_every_return_and_of_every_copy_that_is_gone(
    contamination: str,
) -> None:
    system = variant("+reuse", contamination=contamination, host_eviction="lru")
    made = scheduler(system, host_blocks=12, host_increment=0)
    ledger: Ledger = memory_of(made).ledger
    told = ledger._eviction = Told(12)
    turns = [Turn(f"c{i}", 40 * i, 15, 8, session_id=f"c{i}") for i in range(3)]
    turns += [Turn(f"c{i}+", 200 + 40 * i, 25, 2, f"c{i}", f"c{i}") for i in (0, 2)]
    run(made, turns)
    assert told.log[:3] == [("gone", "c0", 6), ("returned", "c0+", False), ("gone", "c1", 6)]
    if contamination == "tail":  # what is left of a copy is a hit
        assert told.log[3:] == [("returned", "c2+", True)]
    else:
        assert told.log[3:] == [("gone", "c2", 6), ("returned", "c2+", False), ("gone", "c0+", 7)]


class Turncoat(Order):
    """Last at first, first from its first update on; the others the other way round."""

    name = "turncoat"
    refreshes = True
    late = False

    def update(self, index: int, now_ns: int) -> None:
        self.late = True

    def key(self, request: RequestView, now_ns: int) -> Key:
        return (int((request.session_id == "turns") != self.late),)


@pytest.mark.parametrize("guarded", [False, True])
def test_an_idle_conversation_ranks_by_what_the_order_says_now(guarded: bool) -> None:
    """Two copies of six blocks on a host for two: who ranked last when its turn ended is kept, since it
    is served first by now, and the other makes room for a third."""
    order: Order = Guarded("turncoat", Turncoat()) if guarded else Turncoat()
    made = scheduler("+reuse", order, host_blocks=12, host_increment=0, update_every=15)
    turns = [Turn(name, 0, 15, 8, session_id=name) for name in ("turns", "stays")]
    run(made, [*turns, Turn("third", 60, 15, 8, session_id="third")])
    kept = memory_of(made).ledger.kept.items()
    assert [name for name, context in kept if context.host is not None] == ["turns", "third"]


def test_idle_conversations_on_the_device_make_way_by_what_the_order_says_now() -> None:
    """As above, where idle KV stays on the device until somebody wants the room."""
    system = variant("+reuse", between_turns="keep_device")
    made = scheduler(system, Turncoat(), device_blocks=16, update_every=12)
    turns = [Turn(name, 0, 15, 8, session_id=name) for name in ("turns", "stays")]
    run(made, [*turns, Turn("third", 60, 11, 12, session_id="third")])
    on_device = [context.owner.request_id for context in swaps_of(made).idle_device]
    assert on_device == ["turns", "third"]


def test_a_turn_whose_parents_copy_is_still_being_written_is_no_hit() -> None:
    made = scheduler(variant("fastswitch", overlap="async"), device_blocks=30)
    told = memory_of(made).ledger._eviction = Told(64)
    turns = [Turn("a", 0, 15, 4, "s"), Turn("b", 5, 20, 2, "s", "a")]
    run(made, [*turns, Turn("other", 0, 9, 30)], polls=1 << 20)
    assert told.log == [("returned", "b", False)]


class Careless(HostEviction):
    """Nominates every copy twice."""

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterable[HostCopy]:
        return [copy for copy in copies for _ in range(2)]


def test_a_copy_nominated_twice_gives_up_its_room_once() -> None:
    """Two copies of six blocks go for one of nine."""
    gone = []
    for kind in (HostEviction, Careless):
        made = scheduler(variant("+reuse", host_eviction="lru"), host_blocks=12, host_increment=0)
        told = Told(12)
        told.nominate = kind(12).nominate  # type: ignore[method-assign]
        memory_of(made).ledger._eviction = told
        turns = [Turn(f"c{i}", 40 * i, 15, 8, session_id=f"c{i}") for i in range(2)]
        run(made, [*turns, Turn("large", 80, 27, 8, session_id="large")])
        gone.append(told.log)
    assert gone[0] == gone[1] == [("gone", "c0", 6), ("gone", "c1", 6)]


@pytest.mark.parametrize("order", ["fcfs", "random"])
@pytest.mark.parametrize("eviction", list(HOST_EVICTIONS))
def test_conversations_that_came_back_are_not_listed_for_ever(eviction: str, order: str) -> None:
    """Some return again and again beside one that stays; only what is idle may go."""
    made = scheduler(
        variant("+reuse", host_eviction=eviction), order, host_blocks=16, host_increment=0
    )
    ledger = memory_of(made).ledger
    most = 0
    classify = ledger.classify

    def watched(context: Context) -> None:
        nonlocal most
        classify(context)
        if ledger._idle_order is not None:
            most = max(most, len(ledger._idle_order) - 2 * len(ledger._idle))

    ledger.classify = watched  # type: ignore[method-assign]
    turns = [Turn("stays", 0, 8, 8, session_id="stays", client_id="quiet")]
    for index in range(150):
        parent = f"c{index - 3}" if index >= 3 else None
        size = 8 if parent is None else 8 + 2 * (index // 3)
        turns.append(Turn(f"c{index}", 20 + 20 * index, min(size, 30), 2, f"s{index % 3}", parent))
    run(made, turns)
    assert most <= 20  # sixteen, and a few that came back since the last was added
