"""Who arrives when: open loop, closed loop with think time, or start-to-start gaps.

Shared by every machine. A turn that would arrive before its parent has ended waits for it; when it
was due is told with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from policy.errors import InputError
from traces.workload import Turn, Workload

NEVER = 1 << 62
_NO_PLACE: deque[int] = deque()


class Arrival(NamedTuple):
    """A turn that has arrived. `parent_id`: the request whose context it extends. `is_last`: the
    workload is known to have no turn after it (never so in open loop). `due_ns`: when it would have
    come, had it not had to wait for its parent's end."""

    arrival_ns: int
    request_id: str
    turn: Turn
    parent_id: str | None
    due_ns: int
    is_last: bool = False


class TurnDriver:
    """Hands out turns in (arrival_ns, request id) order, reading the workload as it is needed.

    `next_ns` is when the next turn arrives, NEVER if that depends on a reply or nothing is left. With
    `concurrency` the clients together keep at most so many requests under way: a turn that is due
    while so many are arrives when one of them ends, and its wait is the client's own.
    Raises InputError for a turn whose parent does not come before it, or a first turn without an
    arrival.
    """

    def __init__(self, workload: Workload, concurrency: int | None = None) -> None:
        #: When each free place became so, where there are only so many.
        self._free: deque[int] | None = None if concurrency is None else deque([0] * concurrency)
        self._open = workload.header.timing == "open"
        self._rows: Iterator[Turn] = iter(workload)
        self._ahead: Turn | None = next(self._rows, None)
        self._due: list[Arrival] = []
        self._children: dict[str, list[Turn]] = {}  # parent -> turns that wait for its end
        self._began: dict[str, int] = {}  # turns read and not ended -> arrival, 0 before it
        self._ended: dict[str, tuple[int, int]] = {}  # open loop: (began, ended) of past turns
        self._last: dict[str, str] = {}  # session -> its latest request
        self.num_rows = 0
        self.num_unsaid = (
            0  # later turns that do not say what they repeat of their parent's context
        )
        self.next_ns = NEVER
        self._read(-1)

    @property
    def is_done(self) -> bool:
        """No turn will ever arrive again."""
        return self._ahead is None and not self._due and not self._children

    def due(self, now_ns: int) -> list[Arrival]:
        """Turns that have arrived by `now_ns`, in order."""
        self._read(now_ns)
        found = []
        while self._due and self._due[0].arrival_ns <= now_ns and self._free != _NO_PLACE:
            arrival = heappop(self._due)
            if self._free is not None:
                freed_ns = self._free.popleft()
                arrival = arrival._replace(arrival_ns=max(arrival.arrival_ns, freed_ns))
            is_last = not self._open and arrival.request_id not in self._children
            found.append(arrival._replace(is_last=is_last))
        self._set_next()
        return found

    def ended(self, request_id: str, now_ns: int) -> None:
        """A reply has ended, or the turn was rejected or cancelled: its children may come."""
        began = self._began.pop(request_id)
        if self._free is not None:
            self._free.append(now_ns)
        if self._open:
            self._ended[request_id] = (began, now_ns)
        children = self._children.pop(request_id, None)
        if children is not None:
            for child in children:
                self._arrive(child, request_id, began, now_ns)
        self._set_next()

    # ------------------------------------------------------------------ reading ahead

    def _read(self, now_ns: int) -> None:
        """Take rows until one arrives by itself later than `now_ns`; children come along."""
        row = self._ahead
        while row is not None:
            if row.arrival_ns is not None and row.arrival_ns > now_ns and self._is_timed(row):
                break
            self._accept(row)
            row = next(self._rows, None)
        self._ahead = row
        self._set_next()

    def _is_timed(self, row: Turn) -> bool:
        """Whether the row's own arrival decides when it is read."""
        return self._open or (row.turn == 1 and row.parent_id is None)

    def _set_next(self) -> None:
        if self._free == _NO_PLACE:
            self.next_ns = NEVER
            return
        next_ns = self._due[0].arrival_ns if self._due else NEVER
        if self._ahead is not None and self._ahead.arrival_ns is not None:
            next_ns = min(next_ns, self._ahead.arrival_ns)
        self.next_ns = max(next_ns, self._free[0]) if self._free else next_ns

    def _accept(self, row: Turn) -> None:
        self.num_rows += 1
        self.num_unsaid += row.turn > 1 and row.parent_prefix_tokens is None
        parent = row.parent_id
        if parent is None and row.turn > 1:
            parent = self._last.get(row.session_id)
        self._last[row.session_id] = row.request_id
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
