"""What every request of a recording was doing at every moment: its life, cut into slices.

queued    arrived, no token yet          prefill  its prompt, or lost KV, is computed
decode    in the decode batch            stalled  its step waits for copies
paused    on the device, not computed: others' prompts go first
parked    preempted; its KV is on the host, on the way there, or lost
swap-out, swap-in  a copy of its KV moves, and it does not compute

Slices of one request never overlap and leave no gap: together they are its time from arrival to end.
Memory: 32 bytes a step, the copies, and one request's slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from runs.metrics.columns import columns_of
from runs.metrics.stats import Ints
from runs.recording import Recording


class Slice(NamedTuple):
    """A stretch of nanoseconds in one state. `tokens` were prefilled in it."""

    begin: int
    end: int
    name: str
    tokens: int = 0


@dataclass(frozen=True)
class Life:
    """One request: its row of requests.parquet, and its slices in order."""

    row: dict[str, Any]
    slices: list[Slice]


class _Span(NamedTuple):
    kind: str
    first_step: int
    last_step: int
    tokens: int


class Lives:
    """Lives of a recording, in the order they ended."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        steps = recording.table("steps", ["step", "start_ns", "end_ns", "stall_ns"])
        self._ids, self._start, self._end, stall = (
            column.to_numpy() for column in steps.itercolumns()
        )
        self._compute: Ints = self._start + stall
        self._stalled: Ints = np.flatnonzero(stall > 0)
        self.copies = columns_of(recording, "copies")
        self._copies_of = _Rows(self.copies["request_id"])
        preemptions = columns_of(recording, "preemptions")
        self._parked_steps: Ints = preemptions["step"]
        self._parkings_of = _Rows(preemptions["request_id"])

    @property
    def end_ns(self) -> int:
        """When the last step ended."""
        return int(self._end[-1]) if self._end.size else 0

    def __iter__(self) -> Iterator[Life]:
        spans = _spans(self._recording)
        name, mine = next(spans, (None, []))
        for row in self._recording.rows("requests"):
            found: list[_Span] = []
            if name == row["request_id"]:
                found = mine
                name, mine = next(spans, (None, []))
            yield Life(row, self._slices(row, found))

    def token_times(self, spans: Sequence[_Span]) -> Ints:
        """When each output token of a request was there."""
        parts = [self._end[self._at(s.first_step) : self._at(s.last_step) + 1] for s in spans]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def with_token_times(self) -> Iterator[tuple[dict[str, Any], Ints]]:
        """Every row of requests.parquet with the times of its output tokens."""
        spans = _spans(self._recording)
        name, mine = next(spans, (None, []))
        for row in self._recording.rows("requests"):
            found: list[_Span] = []
            if name == row["request_id"]:
                found = [span for span in mine if span.kind == "token"]
                name, mine = next(spans, (None, []))
            yield row, self.token_times(found)

    # ------------------------------------------------------------------ one life

    def _at(self, step: int) -> int:
        return int(np.searchsorted(self._ids, step))

    def _slices(self, row: dict[str, Any], spans: Sequence[_Span]) -> list[Slice]:
        found: list[Slice] = []
        name = row["request_id"]
        copies = [
            Slice(
                int(self.copies["start_ns"][i]),
                int(self.copies["end_ns"][i]),
                "swap-in" if self.copies["direction"][i] == "h2d" else "swap-out",
            )
            for i in self._copies_of[name]
        ]
        parkings = [
            int(self._start[self._at(int(self._parked_steps[i]))]) for i in self._parkings_of[name]
        ]
        cursor = int(row["arrival_ns"])
        has_begun = False
        for stall, work in self._working(spans):
            found += _gap(cursor, work[0].begin, stall, copies, parkings, has_begun=has_begun)
            found += work
            cursor = work[-1].end
            has_begun = True
        end = max(cursor, self._ended(row))
        found += _gap(cursor, end, None, copies, parkings, has_begun=has_begun)
        return [one for one in found if one.end > one.begin]

    def _ended(self, row: dict[str, Any]) -> int:
        if row["finish_ns"] is not None:
            return int(row["finish_ns"])
        if row["cancel_ns"] is not None:
            return int(row["cancel_ns"])
        return self.end_ns if row["status"] == "unfinished" else 0

    def _working(self, spans: Sequence[_Span]) -> Iterator[tuple[Slice, list[Slice]]]:
        """Stretches in which it computes, each after the stall that its first step began with."""
        prefilled = {span.first_step for span in spans if span.kind == "prefill"}
        for span in spans:
            first = self._at(span.first_step)
            if span.kind == "prefill":
                work = [
                    Slice(int(self._compute[first]), int(self._end[first]), "prefill", span.tokens)
                ]
                yield self._stall(first), work
                continue
            first += span.first_step in prefilled  # that step's token came with the prefill
            last = self._at(span.last_step)
            if first <= last:
                yield self._stall(first), self._decoding(first, last)

    def _stall(self, at: int) -> Slice:
        return Slice(int(self._start[at]), int(self._compute[at]), "stalled")

    def _decoding(self, first: int, last: int) -> list[Slice]:
        """Decode from one step to another, cut where a step in between waited for copies."""
        found = []
        begin = int(self._compute[first])
        low, high = np.searchsorted(self._stalled, [first + 1, last + 1])
        for at in self._stalled[low:high].tolist():
            stall = self._stall(at)
            found += [Slice(begin, stall.begin, "decode"), stall]
            begin = stall.end
        found.append(Slice(begin, int(self._end[last]), "decode"))
        return found


def _gap(
    begin: int,
    end: int,
    stall: Slice | None,
    copies: Sequence[Slice],
    parkings: Sequence[int],
    *,
    has_begun: bool,
) -> list[Slice]:
    """A stretch in which it does not compute: its own copies before a stall before what it is."""
    if end <= begin:
        return []
    layers = [one for one in copies if one.end > begin and one.begin < end]
    if stall is not None:
        layers.append(stall)
    parked = min((at for at in parkings if begin <= at < end), default=end)
    if has_begun:
        layers += [Slice(begin, parked, "paused"), Slice(parked, end, "parked")]
    else:
        layers.append(Slice(begin, end, "queued"))
    edges = {begin, end}
    for one in layers:
        edges.update(edge for edge in (one.begin, one.end) if begin < edge < end)
    found: list[Slice] = []
    ordered = sorted(edges)
    for left, right in pairwise(ordered):
        name = next(one.name for one in layers if one.begin <= left and one.end >= right)
        if found and found[-1].name == name:
            found[-1] = Slice(found[-1].begin, right, name)
        else:
            found.append(Slice(left, right, name))
    return found


# ---------------------------------------------------------------------- tables, in pieces


class _Rows:
    """Row numbers by request, in table order."""

    def __init__(self, names: Sequence[str]) -> None:
        codes: dict[str, int] = {}
        found = np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))
        self._codes = codes
        self._order = np.argsort(found, kind="stable")
        self._edges = np.searchsorted(found[self._order], np.arange(len(codes) + 1))

    def __getitem__(self, name: str) -> list[int]:
        code = self._codes.get(name)
        if code is None:
            return []
        rows: list[int] = self._order[self._edges[code] : self._edges[code + 1]].tolist()
        return rows


def _spans(recording: Recording) -> Iterator[tuple[str, list[_Span]]]:
    """Spans of one request after the other: a request's are written together when it ends."""
    name: str | None = None
    mine: list[_Span] = []
    for row in recording.rows("spans"):
        if row["request_id"] != name:
            if name is not None:
                yield name, mine
            name, mine = row["request_id"], []
        mine.append(_Span(row["kind"], row["first_step"], row["last_step"], row["tokens"]))
    if name is not None:
        yield name, mine
