"""A workload as compact columns: what describing, fitting and comparing read.

One pass; 104 bytes a row whatever its ids are, since ids become 64-bit digests and are let go.
Two ids of a million would share a digest once in 37 million workloads.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from traces.describing.caches import PrefixCaches
from traces.workload import Header, Turn, Workload, repeats_all

NS = 1_000_000_000
#: Stands for a value that a row does not have.
NONE = -1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


class Collector:
    """Takes turns one by one. `caches`: prefix caches that see their blocks on the way."""

    def __init__(self, header: Header, caches: PrefixCaches | None = None) -> None:
        self.header = header
        self.caches = caches
        self._columns = {name: array("q") for name in _COLUMNS}
        self._add = [self._columns[name].append for name in _COLUMNS]
        self._codes: dict[str, int] = {}
        self._clients: dict[str, int] = {}

    def add(self, turn: Turn) -> None:
        """One row."""
        values = (
            _digest(turn.session_id),
            turn.turn,
            turn.input_tokens,
            turn.output_tokens,
            NONE if turn.new_input_tokens is None else turn.new_input_tokens,
            NONE if turn.parent_prefix_tokens is None else turn.parent_prefix_tokens,
            NONE if turn.arrival_ns is None else turn.arrival_ns,
            NONE if turn.think_ns is None else turn.think_ns,
            NONE if turn.gap_ns is None else turn.gap_ns,
            NONE if turn.stop is None else self._codes.setdefault(turn.stop, len(self._codes)),
            NONE
            if turn.client_id is None
            else self._clients.setdefault(turn.client_id, len(self._clients)),
            _digest(turn.request_id),
            0 if turn.parent_id is None else _digest(turn.parent_id),
        )
        for add, value in zip(self._add, values, strict=True):
            add(value)
        if self.caches is not None and turn.hash_ids is not None:
            self.caches.see(turn.session_id, turn.hash_ids)

    def columns(self) -> Columns:
        """What was taken. The arrays are handed over, not copied."""
        arrays = {
            name: np.frombuffer(column, dtype=np.int64) if column else np.zeros(0, np.int64)
            for name, column in self._columns.items()
        }
        return Columns(self.header, tuple(self._codes), arrays)


_COLUMNS = (
    "session",
    "turn",
    "input",
    "output",
    "new",
    "prefix",
    "arrival",
    "think",
    "gap",
    "stop",
    "client",
    "request",
    "parent",
)


def collect(
    workload: Workload,
    caches: PrefixCaches | None = None,
    advance: Callable[[], None] | None = None,
) -> Columns:
    """Read a workload once."""
    found = Collector(workload.header, caches)
    for turn in workload:
        found.add(turn)
        if advance is not None:
            advance()
    return found.columns()


@dataclass(frozen=True)
class Columns:
    """Rows in the workload's order. `stops`: names by code. NONE: not known."""

    header: Header
    stops: tuple[str, ...]
    arrays: dict[str, Ints]

    def __len__(self) -> int:
        return int(self.arrays["turn"].size)

    @property
    def inputs(self) -> Ints:
        """Prompt tokens."""
        return self.arrays["input"]

    @property
    def outputs(self) -> Ints:
        """Reply tokens."""
        return self.arrays["output"]

    @cached_property
    def first(self) -> Mask:
        """Turns that begin a session."""
        mask: Mask = self.arrays["turn"] == 1
        return mask

    @cached_property
    def order(self) -> Ints:
        """Rows by session, in each by turn."""
        return np.lexsort((self.arrays["turn"], self.arrays["session"]))

    @cached_property
    def parent(self) -> Ints:
        """The row whose context a row extends, NONE for the first of a session: the one named, or
        the turn before."""
        rows = self.order
        before = np.full(len(self), NONE, dtype=np.int64)
        session = self.arrays["session"]
        same = session[rows[1:]] == session[rows[:-1]]
        before[rows[1:][same]] = rows[:-1][same]
        named = np.flatnonzero(self.arrays["parent"])
        if named.size:
            request = self.arrays["request"]
            by_id = np.argsort(request, kind="stable")
            wanted = self.arrays["parent"][named]
            at = np.minimum(np.searchsorted(request[by_id], wanted), len(self) - 1)
            found = by_id[at]
            hit = request[found] == wanted
            before[named[hit]] = found[hit]
        return before

    @cached_property
    def children(self) -> Ints:
        """Rows that have a parent in their own session: its later turns."""
        rows = np.flatnonzero(self.parent != NONE)
        session = self.arrays["session"]
        same = session[rows] == session[self.parent[rows]]
        kept: Ints = rows[same & ~self.first[rows]]
        return kept

    @cached_property
    def turns(self) -> Ints:
        """Turns of each session, in the order of their digests."""
        return np.unique(self.arrays["session"], return_counts=True)[1].astype(np.int64)

    @cached_property
    def kept(self) -> Ints:
        """Of each row's prompt, the tokens repeated from its parent's context; 0 where it has none."""
        tokens = np.zeros(len(self), dtype=np.int64)
        rows = np.flatnonzero(self.parent != NONE)
        parents = self.parent[rows]
        context = self.inputs[parents] + self.outputs[parents]
        prefix = self.arrays["prefix"][rows]
        known = np.where(prefix == NONE, context, np.minimum(prefix, context))
        tokens[rows] = np.minimum(known, self.inputs[rows])
        return tokens

    @cached_property
    def assumed(self) -> list[str]:
        """What the rows do not say and is taken for granted here, as a run takes it."""
        unsaid = int((self.arrays["prefix"][self.children] == NONE).sum())
        return [repeats_all(unsaid)] if unsaid else []

    @cached_property
    def added(self) -> Ints:
        """New tokens of each prompt: as given, else what is not repeated."""
        new = self.arrays["new"]
        return np.where(new == NONE, self.inputs - self.kept, new)

    @cached_property
    def gap_kind(self) -> str:
        """What the gaps are measured from: `reply` (think time) or `start` (of the request)."""
        rows = self.children
        return "reply" if (self.arrays["think"][rows] != NONE).any() else "start"

    @cached_property
    def gaps(self) -> tuple[Ints, Ints]:
        """(rows, nanoseconds) of later turns whose gap is known; negative ones left out."""
        rows = self.children
        if self.gap_kind == "reply":
            values = self.arrays["think"][rows]
        else:
            arrival = self.arrays["arrival"]
            parents = self.parent[rows]
            between = arrival[rows] - arrival[parents]
            timed = (arrival[rows] != NONE) & (arrival[parents] != NONE)
            values = np.where(timed, between, NONE)
            given = self.arrays["gap"][rows]
            values = np.where(given != NONE, given, values)
        known = values >= 0
        return rows[known], values[known]

    def gaps_by_stop(self) -> dict[str | None, Ints]:
        """Gaps by how the reply before ended; None: not said."""
        rows, values = self.gaps
        codes = self.arrays["stop"][self.parent[rows]]
        named: dict[str | None, Ints] = {
            name: values[codes == code] for code, name in enumerate(self.stops)
        }
        named[None] = values[codes == NONE]
        return {name: part for name, part in named.items() if part.size}

    @cached_property
    def arrivals(self) -> Ints:
        """Known arrivals in order of time: of every request in an open workload, of sessions in
        others."""
        arrival = self.arrays["arrival"]
        if self.header.timing != "open":
            arrival = arrival[self.first]
        return np.sort(arrival[arrival != NONE])

    @cached_property
    def starts(self) -> Ints:
        """Known arrivals of sessions, in order of time."""
        arrival = self.arrays["arrival"][self.first]
        return np.sort(arrival[arrival != NONE])

    def quantities(self) -> dict[str, Floats]:
        """What two workloads are compared by; those that are not known left out."""
        later = self.children
        found = {
            "turns": self.turns,
            "first prompt tokens": self.inputs[self.first],
            "later new tokens": self.added[later],
            "reply tokens": self.outputs,
            "gaps s": self.gaps[1] / NS,
            "inter-arrivals s": np.diff(self.starts) / NS,
        }
        return {name: np.asarray(v, dtype=np.float64) for name, v in found.items() if v.size}

    def select(self, sessions: Ints) -> Columns:
        """The rows of these sessions (by digest) alone."""
        mine = np.isin(self.arrays["session"], sessions)
        arrays = {name: column[mine] for name, column in self.arrays.items()}
        return Columns(self.header, self.stops, arrays)
