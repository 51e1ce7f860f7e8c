"""What the lane view of a run is drawn from: lives in lanes, as few bytes as they need.

A lane holds one request at a time; each takes the lowest lane that is free when it arrives, so there are
as many lanes as requests lived at once. Slices follow each other without gaps, so a slice is its state and
its length: eight states and microseconds in one number of seven bits a byte.
"""

from __future__ import annotations

import heapq
import json
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from explore.report.lives import Life
from runs.metrics.stats import Ints

#: States of `explore.report.lives`; their places here are their numbers in the page.
STATES = ("queued", "prefill", "decode", "stalled", "paused", "parked", "swap-out", "swap-in")
NUMBERS = {name: number for number, name in enumerate(STATES)}

#: Most requests and slices in one page: some two megabytes.
MAX_REQUESTS = 20_000
MAX_SLICES = 600_000

#: Columns of a request that travel as they are, and as places in a list of distinct values.
_PLAIN = ("request_id", "turn", "input_tokens", "cached_tokens", "output_tokens", "preemptions")
_CODED = ("session_id", "client_id", "status", "reason")


def chosen(requests: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Rows that a page has room for: all, or the slowest (a quarter by first token, a quarter by end)
    and others spread evenly over the rest."""
    total = len(requests["request_id"])
    if total <= MAX_REQUESTS:
        return np.ones(total, dtype=bool)
    found = np.zeros(total, dtype=bool)
    for column in ("first_token_ns", "finish_ns"):
        taken = np.where(requests[column] >= 0, requests[column] - requests["arrival_ns"], -1)
        found[np.argsort(-taken, kind="stable")[: MAX_REQUESTS // 4]] = True
    others = np.flatnonzero(~found)
    left = MAX_REQUESTS - int(found.sum())
    found[others[np.arange(left) * others.size // left]] = True
    return found


class Lanes:
    """Lives of a run, added one by one."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._begins = array("q")
        self._ends = array("q")
        self._counts = array("q")
        self._kinds = array("B")
        self._lengths = array("q")  # microseconds

    def add(self, number: int, life: Life) -> None:
        """`number`: of the request's row. One that never lived is left out."""
        if not life.slices:
            return
        self._rows.append((number, life.row))
        edge = begin = _microseconds(life.slices[0].begin)
        for one in life.slices:
            end = _microseconds(one.end)
            self._kinds.append(NUMBERS[one.name])
            self._lengths.append(end - edge)
            edge = end
        self._begins.append(begin)
        self._ends.append(edge)
        self._counts.append(len(life.slices))

    def packed(self, facts: dict[str, Any]) -> tuple[dict[str, bytes], int]:
        """Data blocks `requests` (JSON, with `facts`) and `slices`, and the length in microseconds
        below which slices were joined to the one before, 0 if none was."""
        begins, ends = np.array(self._begins), np.array(self._ends)
        lanes = _lanes(begins, ends)
        order = np.lexsort((begins, lanes))
        kinds = np.array(self._kinds, dtype=np.int64)
        lengths = np.array(self._lengths, dtype=np.int64)
        counts = np.array(self._counts, dtype=np.int64)
        kinds, lengths, counts = _in_order(kinds, lengths, counts, order)
        kinds, lengths, counts, limit = _fewer(kinds, lengths, counts)
        table = {
            **facts,
            "lanes": int(lanes.max(initial=-1)) + 1,
            "lane": lanes[order].tolist(),
            "begin": begins[order].tolist(),
            "count": counts.tolist(),
            **self._columns(order.tolist()),
        }
        text = json.dumps(table, separators=(",", ":"), allow_nan=False)
        return {"requests": text.encode(), "slices": varints(lengths * 8 + kinds)}, limit

    def _columns(self, order: list[int]) -> dict[str, Any]:
        rows = [self._rows[i] for i in order]
        found: dict[str, Any] = {"row": [number for number, _ in rows]}
        for name in _PLAIN:
            found[name] = [row[name] for _, row in rows]
        for name in _CODED:
            codes: dict[Any, int] = {}
            found[name] = [codes.setdefault(row[name], len(codes)) for _, row in rows]
            found[f"{name}_names"] = list(codes)
        for name, column in (("ttft", "first_token_ns"), ("e2e", "finish_ns")):
            found[name] = [
                None if row[column] is None else _microseconds(row[column] - row["arrival_ns"])
                for _, row in rows
            ]
        return found


def _microseconds(nanoseconds: int) -> int:
    return (nanoseconds + 500) // 1000


def _lanes(begins: Ints, ends: Ints) -> Ints:
    """The lowest lane that is free at each beginning."""
    found = np.zeros(begins.size, dtype=np.int64)
    free: list[int] = []
    taken: list[tuple[int, int]] = []  # (until, lane)
    count = 0
    for i in np.lexsort((ends, begins)).tolist():
        while taken and taken[0][0] <= begins[i]:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        found[i] = lane
        heapq.heappush(taken, (int(ends[i]), lane))
    return found


def _in_order(kinds: Ints, lengths: Ints, counts: Ints, order: Ints) -> tuple[Ints, Ints, Ints]:
    """Slices of the requests in another order of requests."""
    starts = np.cumsum(counts) - counts
    index = np.repeat(starts[order] - (np.cumsum(counts[order]) - counts[order]), counts[order])
    index += np.arange(index.size)
    return kinds[index], lengths[index], counts[order]


def _fewer(kinds: Ints, lengths: Ints, counts: Ints) -> tuple[Ints, Ints, Ints, int]:
    """At most MAX_SLICES, by joining those below a length to the one before; that length."""
    limit = 0
    while kinds.size > MAX_SLICES and counts.size < kinds.size:
        limit = 2 * limit or 1000
        kinds, lengths, counts = _joined(kinds, lengths, counts, lengths >= limit)
        differs = np.concatenate([[True], kinds[1:] != kinds[:-1]])
        kinds, lengths, counts = _joined(kinds, lengths, counts, differs)
    return kinds, lengths, counts, limit


def _joined(
    kinds: Ints, lengths: Ints, counts: Ints, kept: npt.NDArray[np.bool_]
) -> tuple[Ints, Ints, Ints]:
    """Every slice that is not kept becomes part of the one before; the first of a request is kept."""
    kept = kept.copy()
    starts = np.cumsum(counts) - counts
    kept[starts] = True
    index = np.flatnonzero(kept)
    return kinds[index], np.add.reduceat(lengths, index), np.add.reduceat(kept.astype(int), starts)


def varints(values: Ints) -> bytes:
    """Numbers of seven bits a byte, the lowest first; the eighth bit says that more follow."""
    sizes = np.ones(values.size, dtype=np.int64)
    rest = values >> 7
    while rest.any():
        sizes += rest > 0
        rest >>= 7
    places = np.cumsum(sizes) - sizes
    found = np.zeros(int(sizes.sum()), dtype=np.uint8)
    for k in range(int(sizes.max(initial=0))):
        mine = sizes > k
        more = np.where(sizes[mine] > k + 1, 128, 0)
        found[places[mine] + k] = ((values[mine] >> (7 * k)) & 127) | more
    return found.tobytes()
