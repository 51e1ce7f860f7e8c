"""Who arrives when: every turn exactly once, in order, and never before it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from runs.turns import NEVER, Arrival, TurnDriver
from traces.workload import Header, Timing, Turn, Workload


def turn(request_id: str, **values: Any) -> Turn:
    """`a/2` is turn 2 of session a."""
    session, _, number = request_id.partition("/")
    return Turn(request_id, session, int(number or 1), 10, 5, **values)


def driver(*turns: Turn, timing: Timing = "closed") -> TurnDriver:
    return TurnDriver(Workload.of(turns, Header(timing=timing)))


def names(turns: TurnDriver, now_ns: int) -> list[tuple[int, str]]:
    """(arrival, id) of what has arrived by now."""
    return [(arrival.arrival_ns, arrival.request_id) for arrival in turns.due(now_ns)]


# ---------------------------------------------------------------------- one rule at a time


def test_turns_without_a_parent_arrive_when_they_say() -> None:
    turns = driver(turn("a", arrival_ns=5), turn("b", arrival_ns=9), timing="open")
    assert (turns.next_ns, turns.is_done) == (5, False)
    assert names(turns, 4) == []
    assert names(turns, 5) == [(5, "a")]
    assert turns.next_ns == 9
    assert names(turns, 100) == [(9, "b")]
    assert (turns.next_ns, turns.is_done, turns.num_rows) == (NEVER, True, 2)


def test_turns_of_one_moment_come_in_the_order_of_their_ids() -> None:
    turns = driver(*(turn(name, arrival_ns=7) for name in "cab"), timing="open")
    assert names(turns, 7) == [(7, "a"), (7, "b"), (7, "c")]


def test_turns_handed_out_together_come_in_the_order_of_their_arrivals() -> None:
    turns = driver(*(turn(name, arrival_ns=at) for name, at in (("z", 1), ("m", 2), ("a", 3))))
    assert names(turns, 10) == [(1, "z"), (2, "m"), (3, "a")]


def test_an_empty_workload_is_done_at_once() -> None:
    turns = driver()
    assert (turns.next_ns, turns.is_done, turns.due(1 << 60)) == (NEVER, True, [])


def test_in_closed_loop_the_next_turn_thinks_after_the_reply() -> None:
    turns = driver(turn("a/1", arrival_ns=5), turn("a/2", think_ns=30), turn("a/3", think_ns=0))
    assert names(turns, 5) == [(5, "a/1")]
    assert (turns.next_ns, turns.is_done) == (NEVER, False)
    turns.ended("a/1", 50)
    assert turns.next_ns == 80
    assert names(turns, 79) == []
    assert names(turns, 80) == [(80, "a/2")]
    turns.ended("a/2", 90)
    assert names(turns, 90) == [(90, "a/3")]
    assert turns.is_done


@pytest.mark.parametrize(
    ("timing", "ended_ns", "arrival_ns", "waited_ns"),
    [
        ("open", 30, 60, 0),
        ("open", 60, 60, 0),
        ("open", 85, 85, 25),
        ("gap", 30, 45, 0),
        ("gap", 45, 45, 0),
        ("gap", 85, 85, 40),
    ],
)
def test_a_turn_that_is_due_before_its_parent_has_ended_waits_and_says_since_when(
    timing: Timing, ended_ns: int, arrival_ns: int, waited_ns: int
) -> None:
    """Open: due at 60. Gap: due 40 after its parent's start at 5."""
    due = {"arrival_ns": 60} if timing == "open" else {"gap_ns": 40}
    turns = driver(turn("a/1", arrival_ns=5), turn("a/2", **due), timing=timing)
    assert names(turns, 20) == [(5, "a/1")]
    turns.ended("a/1", ended_ns)
    assert names(turns, arrival_ns - 1) == []
    (found,) = turns.due(arrival_ns)
    assert (found.arrival_ns, found.request_id) == (arrival_ns, "a/2")
    assert found.arrival_ns - found.due_ns == waited_ns


def test_an_open_turn_whose_parent_ended_long_ago_arrives_when_it_says() -> None:
    turns = driver(turn("a/1", arrival_ns=5), turn("a/2", arrival_ns=900), timing="open")
    assert names(turns, 5) == [(5, "a/1")]
    turns.ended("a/1", 6)
    assert [(a.arrival_ns, a.due_ns) for a in turns.due(900)] == [(900, 900)]


def test_a_gap_runs_from_the_start_that_the_parent_really_had() -> None:
    """a/2 is held up by a/1 to 100; a/3 then comes 20 after 100, not after what a/2 wanted."""
    turns = driver(
        turn("a/1", arrival_ns=0), turn("a/2", gap_ns=10), turn("a/3", gap_ns=20), timing="gap"
    )
    turns.due(0)
    turns.ended("a/1", 100)
    assert [(a.arrival_ns, a.due_ns) for a in turns.due(100)] == [(100, 10)]
    turns.ended("a/2", 105)
    assert [(a.arrival_ns, a.due_ns) for a in turns.due(500)] == [(120, 120)]


def test_two_children_of_one_parent_both_come_after_it() -> None:
    turns = driver(
        turn("a/1", arrival_ns=0),
        turn("a/2", parent_id="a/1", think_ns=30),
        turn("a/3", parent_id="a/1", think_ns=10),
        turn("b/1", parent_id="a/1", think_ns=10),
    )
    turns.due(0)
    turns.ended("a/1", 100)
    found = turns.due(1000)
    assert [(a.arrival_ns, a.request_id, a.parent_id) for a in found] == [
        (110, "a/3", "a/1"),
        (110, "b/1", "a/1"),
        (130, "a/2", "a/1"),
    ]


def test_a_turn_without_a_named_parent_extends_the_one_before_it_in_its_session() -> None:
    turns = driver(
        turn("a/1", arrival_ns=0), turn("a/2", think_ns=1), turn("b/1", arrival_ns=0), timing="gap"
    )
    assert [(a.request_id, a.parent_id) for a in turns.due(0)] == [("a/1", None), ("b/1", None)]
    turns.ended("b/1", 3)
    assert turns.due(50) == []
    turns.ended("a/1", 60)
    assert [(a.request_id, a.parent_id) for a in turns.due(61)] == [("a/2", "a/1")]


def test_a_turn_that_is_refused_on_arrival_lets_its_children_come() -> None:
    """Rejected and cancelled turns end without a reply; nobody waits for them for ever."""
    turns = driver(turn("a/1", arrival_ns=5), turn("a/2", think_ns=7), turn("a/3", think_ns=7))
    for now_ns, name in ((5, "a/1"), (12, "a/2"), (19, "a/3")):
        assert names(turns, now_ns) == [(now_ns, name)]
        turns.ended(name, now_ns)
    assert turns.is_done


def test_the_last_turn_is_known_in_closed_loop_and_never_in_open_loop() -> None:
    def lasts(timing: Timing) -> list[bool]:
        turns = driver(
            turn("a/1", arrival_ns=0),
            turn("a/2", arrival_ns=0, think_ns=0),
            turn("b/1", arrival_ns=0),
            timing=timing,
        )
        found = turns.due(0)
        turns.ended("a/1", 0)
        return [arrival.is_last for arrival in found + turns.due(0)]

    assert lasts("closed") == [False, True, True]
    assert lasts("open") == [False, False, False]


# ---------------------------------------------------------------------- broken workloads


@pytest.mark.parametrize("timing", ["open", "closed", "gap"])
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [turn("a/1", arrival_ns=0), turn("b/2", arrival_ns=0, parent_id="z")],
            "b/2: its parent z ",
        ),
        (
            [turn("a/2", arrival_ns=0, parent_id="a/1"), turn("a/1", arrival_ns=0)],
            "a/2: its parent a/1 does not come before it",
        ),
        ([turn("a/1", think_ns=3)], "a/1: a first turn needs an arrival"),
        ([turn("a/1")], "a/1: a first turn needs an arrival"),
        ([turn("a/2", think_ns=3)], "a/2: a first turn needs an arrival"),
        (
            [turn("a/1", arrival_ns=0), turn("a/2")],
            "a/2: neither arrival, think time nor gap is known",
        ),
    ],
    ids=[
        "no such parent",
        "parent comes later",
        "think, no arrival",
        "no time",
        "first is turn 2",
        "child",
    ],
)
def test_a_row_that_can_never_arrive_is_named(timing: Timing, rows: list[Turn], says: str) -> None:
    with pytest.raises(InputError, match=says):
        serve(driver(*rows, timing=timing), lambda _name: 5)


# ---------------------------------------------------------------------- streaming


class Counted:
    """An iterator that says how many rows have been taken."""

    def __init__(self, rows: list[Turn]) -> None:
        self._rows = iter(rows)
        self.taken = 0

    def __iter__(self) -> Iterator[Turn]:
        return self

    def __next__(self) -> Turn:
        row = next(self._rows)
        self.taken += 1
        return row


def test_single_turns_are_read_one_ahead_of_now() -> None:
    rows = Counted([turn(f"r{i:04d}", arrival_ns=10 * i) for i in range(1000)])
    turns = TurnDriver(Workload(Header(timing="open"), lambda: rows))
    assert rows.taken == 1
    for i in range(999):
        assert len(turns.due(10 * i)) == 1
        assert rows.taken == i + 2
        turns.ended(f"r{i:04d}", 10 * i + 5)
        assert rows.taken == i + 2


def test_conversations_are_read_when_they_begin_and_not_when_they_are_far_off() -> None:
    rows = Counted(
        [
            turn(f"s{i:03d}/{k}", **({"arrival_ns": 1000 * i} if k == 1 else {"think_ns": 5}))
            for i in range(100)
            for k in (1, 2, 3)
        ]
    )
    turns = TurnDriver(Workload(Header(timing="closed"), lambda: rows))
    assert (rows.taken, turns.next_ns) == (1, 0)
    for i in range(99):
        assert names(turns, 1000 * i) == [(1000 * i, f"s{i:03d}/1")]
        assert rows.taken == 3 * (i + 1) + 1
    turns.ended("s000/1", 99_000)
    assert rows.taken == 3 * 99 + 1


# ---------------------------------------------------------------------- any workload


def serve(turns: TurnDriver, service: Callable[[str], int]) -> list[tuple[int, Arrival]]:
    """Serve to the end, waking only when the driver says so or a reply ends: (now, arrival)."""
    found: list[tuple[int, Arrival]] = []
    ends: list[tuple[int, str]] = []
    while not turns.is_done or ends:
        now_ns = min([turns.next_ns] + [end for end, _ in ends[:1]])
        assert now_ns < NEVER, "nothing will ever happen again"
        while ends and ends[0][0] <= now_ns:
            turns.ended(heappop(ends)[1], now_ns)
        came = turns.due(now_ns)
        assert came == sorted(came, key=lambda arrival: arrival[:2])
        for arrival in came:
            found.append((now_ns, arrival))
            heappush(ends, (now_ns + service(arrival.request_id), arrival.request_id))
    assert (turns.next_ns, turns.due(NEVER - 1)) == (NEVER, [])
    return found


@st.composite
def workloads(draw: Any) -> tuple[Timing, list[Turn], dict[str, int]]:
    """A timing, rows in the order that it asks for, and how long each is served (0: refused)."""
    timing: Timing = draw(st.sampled_from(["open", "closed", "gap"]))
    moments = st.integers(0, 40)
    sessions = []
    for session in range(draw(st.integers(1, 6))):
        begin = draw(moments)
        rows = [turn(f"s{session}/1", arrival_ns=begin)]
        for number in range(2, draw(st.integers(1, 5)) + 1):
            parent = draw(st.sampled_from([None, *(row.request_id for row in rows)]))
            kind = "arrival" if timing == "open" else draw(st.sampled_from(["think", "gap"]))
            when = (rows[-1].arrival_ns or 0) if kind == "arrival" else 0
            values = {f"{kind}_ns": when + draw(moments), "parent_id": parent}
            rows.append(turn(f"s{session}/{number}", **values))
        sessions.append(rows)
    sessions.sort(key=lambda rows: rows[0].arrival_ns or 0)
    ordered = [row for rows in sessions for row in rows]
    if timing == "open":
        ordered.sort(key=lambda row: row.arrival_ns or 0)
    service = {row.request_id: draw(st.integers(0, 60)) for row in ordered}
    return timing, ordered, service


@given(workloads())
def test_every_row_comes_once_in_order_and_exactly_when_it_may(
    case: tuple[Timing, list[Turn], dict[str, int]],
) -> None:
    timing, rows, service = case
    turns = driver(*rows, timing=timing)
    found = serve(turns, service.__getitem__)
    assert [now for now, _ in found] == [arrival.arrival_ns for _, arrival in found]
    assert sorted(arrival.request_id for _, arrival in found) == sorted(service)
    began = {arrival.request_id: arrival.arrival_ns for _, arrival in found}
    due = {arrival.request_id: arrival.due_ns for _, arrival in found}
    latest: dict[str, str] = {}
    for row in rows:
        parent = row.parent_id or (latest.get(row.session_id) if row.turn > 1 else None)
        latest[row.session_id] = row.request_id
        if parent is None:
            assert began[row.request_id] == due[row.request_id] == row.arrival_ns
            continue
        ended = began[parent] + service[parent]
        if row.think_ns is not None:
            assert began[row.request_id] == due[row.request_id] == ended + row.think_ns
            continue
        wanted = row.arrival_ns if row.gap_ns is None else began[parent] + row.gap_ns
        assert wanted is not None
        assert (began[row.request_id], due[row.request_id]) == (max(wanted, ended), wanted)
    assert turns.num_rows == len(rows)


@given(workloads())
def test_only_turns_without_children_are_called_the_last(
    case: tuple[Timing, list[Turn], dict[str, int]],
) -> None:
    timing, rows, service = case
    found = serve(driver(*rows, timing=timing), service.__getitem__)
    parents = {arrival.parent_id for _, arrival in found}
    lasts = {arrival.request_id for _, arrival in found if arrival.is_last}
    assert lasts == (set() if timing == "open" else set(service) - parents)


def test_clients_keep_no_more_under_way_than_they_may_and_their_wait_is_their_own() -> None:
    rows = [Turn(f"r{i}", f"s{i}", 1, 10, 10, arrival_ns=i) for i in range(5)]
    turns = TurnDriver(Workload.of(rows, Header(timing="open")), 2)
    assert [arrival.request_id for arrival in turns.due(10)] == ["r0", "r1"]
    assert turns.next_ns == NEVER
    turns.ended("r1", 50)
    assert turns.next_ns == 50
    assert [(a.request_id, a.arrival_ns) for a in turns.due(50)] == [("r2", 50)]
    assert not turns.is_done
    turns.ended("r0", 60)
    turns.ended("r2", 70)
    assert [(a.request_id, a.arrival_ns) for a in turns.due(80)] == [("r3", 60), ("r4", 70)]
    assert turns.is_done


# ---------------------------------------------------------------------- last turns of open loops


def test_the_last_turns_of_an_open_loop_are_known_where_somebody_looks() -> None:
    rows = [
        turn("a/1", arrival_ns=0),
        turn("b/1", arrival_ns=1),
        turn("a/2", arrival_ns=50),
        turn("c/1", arrival_ns=60, parent_id="b/1"),
    ]
    workload = Workload.of(rows, Header(timing="open"))
    for is_known in (True, False):
        turns = TurnDriver(workload, last_turn_known=is_known)
        found = {a.request_id: a.is_last for a in turns.due(1)}
        for name in ("a/1", "b/1"):
            turns.ended(name, 2)
        found |= {a.request_id: a.is_last for a in turns.due(60)}
        assert found == {"a/1": False, "b/1": False, "a/2": is_known, "c/1": is_known}


# ---------------------------------------------------------------------- so many in flight


def served(turns: TurnDriver, service: dict[str, int]) -> list[tuple[int, int, str]]:
    """(arrival, end, id) of every turn, on a server that begins each at once."""
    now, done = 0, []
    running: list[tuple[int, str]] = []
    while not turns.is_done or running:
        for arrival in turns.due(now):
            end = max(now, arrival.arrival_ns) + service[arrival.request_id]
            running.append((end, arrival.request_id))
            done.append((arrival.arrival_ns, end, arrival.request_id))
        now = min([*(end for end, _ in running), turns.next_ns])
        for end, name in sorted(running):
            if end <= now:
                running.remove((end, name))
                turns.ended(name, end)
    return done


@given(workloads(), st.integers(1, 4))
def test_never_more_turns_are_in_flight_than_the_client_allows_and_none_waits_for_nothing(
    made: tuple[Timing, list[Turn], dict[str, int]], places: int
) -> None:
    timing, rows, service = made
    workload = Workload.of(rows, Header(timing=timing))
    turns = TurnDriver(workload, concurrency=places)
    done = served(turns, {name: max(1, ns) for name, ns in service.items()})
    assert sorted(name for _, _, name in done) == sorted(row.request_id for row in rows)
    for begin, _, name in done:
        others = [one for one in done if one[2] != name and one[0] <= begin < one[1]]
        assert len(others) < places
    free = TurnDriver(workload, concurrency=len(rows) + 1)
    assert served(free, service) == served(TurnDriver(workload), service)
    assert free.num_queued == 0


def test_what_waits_at_the_client_is_counted_and_comes_when_a_place_is_free() -> None:
    rows = [turn(f"{name}/1", arrival_ns=at) for name, at in (("a", 0), ("b", 10), ("c", 90))]
    turns = TurnDriver(Workload.of(rows, Header(timing="open")), concurrency=1)
    assert served(turns, dict.fromkeys(("a/1", "b/1", "c/1"), 40)) == [
        (0, 40, "a/1"),
        (40, 80, "b/1"),
        (90, 130, "c/1"),
    ]
    assert (turns.num_queued, turns.queued_ns) == (1, 30)


def test_sessions_without_arrivals_begin_as_places_get_free_behind_turns_that_wait() -> None:
    rows = [turn("a/1"), turn("a/2", think_ns=5), turn("b/1"), turn("c/1"), turn("c/2", think_ns=5)]
    turns = TurnDriver(Workload.of(rows, Header(timing="closed")), concurrency=2)
    assert served(turns, dict.fromkeys((row.request_id for row in rows), 10)) == [
        (0, 10, "a/1"),
        (0, 10, "b/1"),
        (10, 20, "c/1"),
        (15, 25, "a/2"),
        (25, 35, "c/2"),
    ]
    assert turns.num_queued == 0
