"""What the slowest requests and the longest gaps between tokens are made of, state by state."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from explore.report.lanes import NUMBERS, STATES
from explore.report.lives import Life
from runs.metrics.stats import Ints

#: How many of the slowest requests, and of the longest gaps, are named.
NAMED = 10


class Late(NamedTuple):
    """A gap between two tokens of a request, in nanoseconds, and the states within it."""

    gap: int
    number: int
    request_id: str
    begin: int
    states: tuple[int, ...]


@dataclass(frozen=True)
class Slow:
    """A request's time in each state of STATES, until its first token or until its end."""

    number: int
    request_id: str
    total: int
    states: tuple[int, ...]


class Parts:
    """Time of finished requests by state: one row a request. `column`: until when."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._ids: list[str] = []
        self._numbers = array("q")
        self._totals = array("q")
        self._cells = array("q")

    def add(self, number: int, life: Life) -> None:
        """Count a request in, if it finished."""
        row = life.row
        if row["finish_ns"] is None or row[self._column] is None:
            return
        self._ids.append(row["request_id"])
        self._numbers.append(number)
        self._totals.append(row[self._column] - row["arrival_ns"])
        self._cells.extend(within(life, row["arrival_ns"], row[self._column]))

    @property
    def count(self) -> int:
        return len(self._ids)

    def slowest(self) -> list[Slow]:
        """The slowest 1 %, at least one, the slowest first."""
        order = np.argsort(-np.array(self._totals, dtype=np.int64), kind="stable")
        return [self._slow(i) for i in order[: -(-self.count // 100)].tolist()]

    def means(self) -> list[float]:
        """Mean nanoseconds in each state over all requests."""
        return _mean(np.array(self._cells, dtype=np.int64))

    def _slow(self, i: int) -> Slow:
        cells = tuple(self._cells[i * len(STATES) : (i + 1) * len(STATES)])
        return Slow(self._numbers[i], self._ids[i], self._totals[i], cells)


def means_of(found: list[Slow]) -> list[float]:
    """Mean nanoseconds in each state."""
    return _mean(np.array([one.states for one in found], dtype=np.int64))


def _mean(cells: Ints) -> list[float]:
    table = cells.reshape(-1, len(STATES))
    return [float(value) for value in table.mean(axis=0)] if table.size else [0.0] * len(STATES)


class Gaps:
    """Gaps between tokens that are longer than `limit` nanoseconds: their states, and the longest."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.count = 0
        self.states = [0] * len(STATES)
        self._longest: list[tuple[tuple[int, int, int], Late]] = []

    def add(self, number: int, life: Life, times: Ints) -> None:
        """`times`: of the request's tokens."""
        gaps = np.diff(times)
        for i in np.flatnonzero(gaps > self.limit).tolist():
            begin, gap = int(times[i]), int(gaps[i])
            states = within(life, begin, begin + gap)
            self.count += 1
            self.states = [a + b for a, b in zip(self.states, states, strict=True)]
            late = Late(gap, number, life.row["request_id"], begin, tuple(states))
            entry = ((gap, -begin, -number), late)
            if len(self._longest) < 2 * NAMED:
                heapq.heappush(self._longest, entry)
            else:
                heapq.heappushpop(self._longest, entry)

    def longest(self) -> list[Late]:
        return [late for _, late in sorted(self._longest, reverse=True)]


def within(life: Life, begin: int, end: int) -> list[int]:
    """Nanoseconds in each state from `begin` to `end`."""
    found = [0] * len(STATES)
    first = bisect_right(life.slices, begin, key=lambda one: one.end)
    for i in range(first, len(life.slices)):
        one = life.slices[i]
        if one.begin >= end:
            break
        found[NUMBERS[one.name]] += min(one.end, end) - max(one.begin, begin)
    return found
