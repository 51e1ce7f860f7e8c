"""Who arrives when: open loop, closed loop with think time, or start-to-start gaps.

Shared by every machine. A turn that would arrive before its parent has ended waits for it; when it
was due is told with it. A client may keep no more than so many turns in flight: what is due beyond that
waits in its own queue, of which the server knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from policy.errors import InputError
from traces.workload import Turn, Workload

NEVER = 1 << 62


class Arrival(NamedTuple):
    """A turn that has arrived. `parent_id`: the request whose context it extends. `is_last`: the
    workload is known to have no turn after it (in open loop, only where the driver was asked to look).
    `due_ns`: when it would have come, had it not had to wait for its parent's end or for a place among
    those in flight.
    """

    arrival_ns: int
    request_id: str
    turn: Turn
    parent_id: str | None
    due_ns: int
    is_last: bool = False


class Users(NamedTuple):
    """So many people, each in one conversation at a time: they come evenly over the first `start_ns`, and
    begin the next conversation `pause_ns` after one is over."""

    people: int
    pause_ns: int
    start_ns: int = 60_000_000_000


class Turns(Protocol):
    """What an engine loop asks of whoever hands it turns: a TurnDriver, or the inbox of a replica."""

    num_rows: int
    num_unsaid: int

    @property
    def next_ns(self) -> int:
        """When the next turn arrives, NEVER if that depends on a reply or nothing is left."""

    @property
    def has_queue(self) -> bool:
        """Whether the client keeps turns back."""

    @property
    def num_queued(self) -> int:
        """Turns that waited there."""

    @property
    def queued_ns(self) -> int:
        """How long they did."""

    @property
    def is_done(self) -> bool:
        """No turn will ever arrive again."""

    def due(self, now_ns: int) -> list[Arrival]:
        """Turns that have arrived by `now_ns`, in order."""

    def ended(self, request_id: str, now_ns: int) -> None:
        """A reply has ended, or the turn was rejected or cancelled."""


class TurnDriver:
    """Hands out turns in (arrival_ns, request id) order, reading the workload as it is needed.

    `next_ns` is when the next turn arrives, NEVER if that depends on a reply or nothing is left.
    `last_turn_known`: look through an open workload for the last turns of its sessions. `concurrency`:
    most turns in flight; a session without an arrival then begins when a place is free and nobody
    waits for it. `users`: sessions without an arrival are begun by them. Raises InputError for a turn
    whose parent does not come before it, or, without either, a first turn without an arrival.
    """

    def __init__(
        self,
        workload: Workload,
        concurrency: int | None = None,
        *,
        last_turn_known: bool = False,
        users: Users | None = None,
    ) -> None:
        self._open = workload.header.timing == "open"
        is_asked = last_turn_known and self._open
        self._followed = _followed(workload) if is_asked else None
        self._free = None if concurrency is None else [0] * concurrency  # since when, a heap
        self._users = users
        self._idle: list[
            int
        ] = []  # when users who are between conversations begin the next, a heap
        if users is not None:
            self._idle = [at * users.start_ns // users.people for at in range(users.people)]
        self._session: dict[str, str] = {}  # users' turns that have not ended -> session
        self._unended: dict[str, int] = {}  # users' sessions -> turns that have not ended
        self.num_queued = 0  # turns that waited for a place among those in flight
        self.queued_ns = 0
        self._rows: Iterator[Turn] = iter(workload)
        self._ahead: Turn | None = next(self._rows, None)
        self._due: list[Arrival] = []
        self._children: dict[str, list[Turn]] = {}  # parent -> turns that wait for its end
        self._began: dict[str, int] = {}  # turns read and not ended -> arrival, 0 before it
        self._ended: dict[str, tuple[int, int]] = {}  # open loop: (began, ended) of past turns
        self._last: dict[str, str] = {}  # session -> its latest request
        self.num_rows = 0
        self.num_unsaid = 0  # later turns that do not say what they repeat of their parent
        self.next_ns = NEVER
        self._read(-1)

    @property
    def has_queue(self) -> bool:
        """Whether the client keeps turns back."""
        return self._free is not None

    @property
    def is_done(self) -> bool:
        """No turn will ever arrive again."""
        return self._ahead is None and not self._due and not self._children

    def due(self, now_ns: int) -> list[Arrival]:
        """Turns that have arrived by `now_ns`, in order."""
        self._read(now_ns)
        found = []
        while self._due and self._due[0].arrival_ns <= now_ns and self._free != []:
            arrival = heappop(self._due)
            if self._free is not None:
                arrival = self._sent(arrival, heappop(self._free))
            found.append(arrival._replace(is_last=self._is_last(arrival.request_id)))
            if self._free:
                self._read(now_ns)  # a place is left for a session that waits for one
        self._set_next()
        return found

    def ended(self, request_id: str, now_ns: int) -> None:
        """A reply has ended, or the turn was rejected or cancelled: its children may come."""
        began = self._began.pop(request_id)
        if self._open:
            self._ended[request_id] = (began, now_ns)
        children = self._children.pop(request_id, None)
        if children is not None:
            for child in children:
                self._arrive(child, request_id, began, now_ns)
        if self._users is not None:
            self._over(request_id, now_ns)
        if self._free is not None:
            heappush(self._free, now_ns)
            self._read(now_ns)
        elif children is not None:
            self._set_next()

    def _over(self, request_id: str, now_ns: int) -> None:
        """A turn ended; with its session's last one its user goes on to another."""
        assert self._users is not None
        session = self._session.pop(request_id)
        self._unended[session] -= 1
        if not self._unended[session]:
            del self._unended[session]
            heappush(self._idle, now_ns + self._users.pause_ns)
            self._read(now_ns)

    def _is_last(self, request_id: str) -> bool:
        if self._followed is not None:
            return request_id not in self._followed
        return not self._open and request_id not in self._children

    def _sent(self, arrival: Arrival, free_ns: int) -> Arrival:
        """A turn of the client's own queue, once a place has been free since `free_ns`."""
        if free_ns <= arrival.arrival_ns:
            return arrival
        self.num_queued += 1
        self.queued_ns += free_ns - arrival.arrival_ns
        self._began[arrival.request_id] = free_ns
        return arrival._replace(arrival_ns=free_ns)

    # ------------------------------------------------------------------ reading ahead

    def _read(self, now_ns: int) -> None:
        """Take rows until one arrives by itself later than `now_ns`; children come along."""
        row = self._ahead
        while row is not None:
            if row.arrival_ns is not None and row.arrival_ns > now_ns and self._is_timed(row):
                break
            if self._free is not None and row.arrival_ns is None and self._is_timed(row):
                if len(self._due) >= len(self._free):
                    break
                row = replace(row, arrival_ns=max(0, now_ns))
            if self._users is not None and row.arrival_ns is None and self._is_timed(row):
                if not self._idle or self._idle[0] > now_ns:
                    break
                row = replace(row, arrival_ns=heappop(self._idle))
            self._accept(row)
            row = next(self._rows, None)
        self._ahead = row
        self._set_next()

    def _is_timed(self, row: Turn) -> bool:
        """Whether the row's own arrival decides when it is read."""
        return self._open or (row.turn == 1 and row.parent_id is None)

    def _set_next(self) -> None:
        next_ns = self._due[0].arrival_ns if self._due else NEVER
        if self._ahead is not None and self._ahead.arrival_ns is not None:
            next_ns = min(next_ns, self._ahead.arrival_ns)
        elif self._ahead is not None and self._idle:
            next_ns = min(next_ns, self._idle[0])
        if self._free is not None:
            next_ns = max(next_ns, self._free[0]) if self._free else NEVER
        self.next_ns = next_ns

    def _accept(self, row: Turn) -> None:
        self.num_rows += 1
        self.num_unsaid += row.turn > 1 and row.parent_prefix_tokens is None
        parent = row.parent_id
        if parent is None and row.turn > 1:
            parent = self._last.get(row.session_id)
        self._last[row.session_id] = row.request_id
        if self._users is not None:
            self._session[row.request_id] = row.session_id
            self._unended[row.session_id] = self._unended.get(row.session_id, 0) + 1
        if parent is None:
            if row.arrival_ns is None:
                raise InputError(f"{row.request_id}: a first turn needs an arrival time")
            self._push(row.arrival_ns, row, None)
        elif parent in self._began:
            self._began[row.request_id] = 0
            self._children.setdefault(parent, []).append(row)
        elif parent in self._ended:
            self._arrive(row, parent, *self._ended[parent])
        else:
            raise InputError(f"{row.request_id}: its parent {parent} does not come before it")

    def _arrive(self, turn: Turn, parent: str, parent_began: int, parent_ended: int) -> None:
        if not self._open and turn.think_ns is not None:
            self._push(parent_ended + turn.think_ns, turn, parent)
            return
        wanted = turn.arrival_ns
        if turn.gap_ns is not None:
            wanted = parent_began + turn.gap_ns
        if wanted is None:
            raise InputError(f"{turn.request_id}: neither arrival, think time nor gap is known")
        self._push(max(wanted, parent_ended), turn, parent, wanted)

    def _push(
        self, arrival_ns: int, turn: Turn, parent: str | None, due_ns: int | None = None
    ) -> None:
        self._began[turn.request_id] = arrival_ns
        due_ns = arrival_ns if due_ns is None else due_ns
        heappush(self._due, Arrival(arrival_ns, turn.request_id, turn, parent, due_ns))


def _followed(workload: Workload) -> set[str]:
    """Requests whose context another one extends: one pass over an open workload."""
    followed: set[str] = set()
    last: dict[str, str] = {}
    for row in workload:
        parent = row.parent_id or (last.get(row.session_id) if row.turn > 1 else None)
        if parent is not None:
            followed.add(parent)
        last[row.session_id] = row.request_id
    return followed
