"""Stretches of time, and how much of them lies before a moment."""

from __future__ import annotations

import numpy as np

from runs.metrics.stats import Ints


class Stretches:
    """Disjoint stretches of nanoseconds, in order. Those given may overlap: their union is meant."""

    def __init__(self, begins: Ints, ends: Ints) -> None:
        keep = ends > begins
        begins, ends = begins[keep], ends[keep]
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], np.maximum.accumulate(ends[order])
        if begins.size:
            first = np.append(True, begins[1:] > ends[:-1])
            last = np.append(first[1:], True)
            begins, ends = begins[first], ends[last]
        self.begins, self.ends = begins, ends
        self._until = np.concatenate([[0], np.cumsum(ends - begins)]).astype(np.int64)

    @property
    def total(self) -> int:
        """Nanoseconds in all of them."""
        return int(self._until[-1])

    def before(self, times: Ints) -> Ints:
        """Nanoseconds of them that lie before each of these moments."""
        index = np.searchsorted(self.begins, times, side="right")
        if not self.begins.size:
            return np.zeros_like(index)
        cut = np.maximum(self.ends[np.maximum(index, 1) - 1] - times, 0)
        found: Ints = self._until[index] - np.where(index > 0, cut, 0)
        return found

    def within(self, begins: Ints, ends: Ints) -> Ints:
        """Nanoseconds of them that lie within each of these stretches; none where one is empty."""
        return self.before(np.maximum(ends, begins)) - self.before(begins)
