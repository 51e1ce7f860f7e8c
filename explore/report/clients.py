"""Latency client by client: how TTFT and the gaps between tokens are spread, up to the last 0.01 %."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from explore.report.looks import COLOURS
from explore.studies.series import TAIL
from runs.metrics.latency import censored
from runs.metrics.stats import MIN_SAMPLES, Ints

#: Neighbouring buckets differ by 0.2 %, so a value read from one is off by 0.1 % at most.
_RATIO = math.log(1.002)
_BUCKETS = math.ceil(math.log(1e19) / _RATIO)
ALL, OTHERS, UNNAMED = "all", "all others", "(no client)"


class Spread:
    """Counts of nanoseconds in buckets: memory does not grow with samples."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self.count = 0

    def add(self, values: Ints) -> None:
        if values.size:
            places = np.log(np.maximum(values, 1)) / _RATIO
            low = int(places.min())
            found = np.bincount(places.astype(np.int64) - low)
            self._counts[low : low + found.size] += found
            self.count += int(values.size)

    def percentile(self, q: float) -> tuple[float | None, None]:
        """In seconds, and what it is above: nothing. (None, None) with too few samples."""
        if self.count < MIN_SAMPLES.get(q, 1):
            return None, None
        position = (self.count - 1) * q / 100
        low, high = self._at([math.floor(position), math.ceil(position)])
        return low + (high - low) * (position - math.floor(position)), None

    def tail(self) -> list[tuple[float, float]]:
        """(seconds, share of samples that take longer), as far as the samples tell them apart."""
        shares = [share for share in TAIL if (1 - share) * self.count >= 1]
        ranks = [min(int(share * self.count), self.count - 1) for share in shares]
        return [(x, 1 - share) for x, share in zip(self._at(ranks), shares, strict=True)]

    def _at(self, ranks: Sequence[int]) -> list[float]:
        ends = np.cumsum(self._counts)
        buckets = np.searchsorted(ends, np.array(ranks), side="right")
        return [math.exp((bucket + 0.5) * _RATIO) / 1e9 for bucket in buckets.tolist()]


class Exact:
    """As Spread, of so few samples that all are kept: one a request."""

    def __init__(self) -> None:
        self._values = array("q")
        self._left = array("q")

    def add(self, value: int) -> None:
        self._values.append(value)

    def add_left(self, wait: int) -> None:
        """Count one in that left after so long: longer than all others, by how much nobody knows."""
        self._left.append(wait)

    @property
    def count(self) -> int:
        """How many."""
        return len(self._values) + len(self._left)

    def percentile(self, q: float) -> tuple[float | None, float | None]:
        """In seconds, as `runs.metrics.latency.censored`."""
        values, left = (np.array(one, dtype=np.int64) for one in (self._values, self._left))
        value, above = censored(values, left, q)
        return _seconds(value), _seconds(above)

    def tail(self) -> list[tuple[float, float]]:
        """As Spread's, as far as values are known."""
        ordered = np.sort(np.array(self._values, dtype=np.int64))
        shares = [share for share in TAIL if (1 - share) * self.count >= 1]
        ranks = [min(int(share * self.count), self.count - 1) for share in shares]
        return [
            (int(ordered[i]) / 1e9, 1 - s)
            for i, s in zip(ranks, shares, strict=True)
            if i < ordered.size
        ]


def _seconds(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


class Clients:
    """Spreads of the clients with most requests, of all others, and of all."""

    def __init__(self, names: Sequence[str | None]) -> None:
        counted = Counter(UNNAMED if name is None else name for name in names)
        self.num_clients = len(counted)
        self.is_named = set(counted) - {UNNAMED} != set()
        largest = sorted(counted, key=lambda name: (-counted[name], name))
        kept = largest[: len(COLOURS) - 2] if len(largest) > len(COLOURS) - 1 else largest
        self._shown = set(kept)
        groups = [ALL]
        if self.num_clients > 1:
            groups += [_told(name) for name in kept]
            groups += [OTHERS] if len(kept) < len(largest) else []
        self.ttft = {name: Exact() for name in groups}
        self.tbt = {name: Spread() for name in groups}

    def add(self, row: dict[str, Any], times: Ints) -> None:
        """Count a request and the times of its tokens in, unless it was rejected."""
        if row["status"] == "rejected":
            return
        name = UNNAMED if row["client_id"] is None else row["client_id"]
        group = _told(name) if name in self._shown else OTHERS
        gaps = np.diff(times)
        for key in (ALL, group) if self.num_clients > 1 else (ALL,):
            self.tbt[key].add(gaps)
            if row["first_token_ns"] is not None:
                self.ttft[key].add(row["first_token_ns"] - row["arrival_ns"])
            else:
                left = row["end_ns"] if row["cancel_ns"] is None else row["cancel_ns"]
                self.ttft[key].add_left(left - row["arrival_ns"])


def _told(name: str) -> str:
    """A client's name that is not one of ours."""
    return f"client {name}" if name in (ALL, OTHERS) else name
