"""Measured times of a model's operations on one GPU, and how a step's time is put together from them.

The rule, written down before anything was fitted to it: matrix products and what goes with them by
all new tokens of the step, straight between measured rows; the output head by its rows; attention of
all layers; under tensor parallelism two all-reduces a layer of tokens * hidden elements.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from calibrate.machines.shapes import Shape
from calibrate.machines.steps import Step, Timed


class Line(NamedTuple):
    """Times at rising numbers, straight in between; the first value before, and beyond the last the slope
    over the upper half, since two rows that lie close together tell none."""

    at: tuple[int, ...]
    ns: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The time there."""
        at, ns = self.at, self.ns
        if value <= at[0] or len(at) == 1:
            return ns[0]
        if value > at[-1]:
            half = max(at[0], at[-1] / 2)
            return ns[-1] + (ns[-1] - self(half)) * (value - at[-1]) / (at[-1] - half)
        index = min(bisect_right(at, value), len(at) - 1)
        left, right = at[index - 1], at[index]
        return ns[index - 1] + (ns[index] - ns[index - 1]) * (value - left) / (right - left)


def line(rows: Iterable[tuple[int, float]]) -> Line:
    """From pairs in any order; of equal numbers the mean."""
    found: dict[int, list[float]] = {}
    for at, ns in rows:
        found.setdefault(at, []).append(ns)
    rising = sorted(found)
    return Line(tuple(rising), tuple(sum(found[one]) / len(found[one]) for one in rising))


class Attention(Protocol):
    """Attention of one layer."""

    #: Whether prompts beside decoding requests were measured together.
    has_mixed: bool

    @property
    def rows(self) -> Sequence[Timed]:
        """Steps that were measured, each with the time of one layer, ns."""

    def __call__(self, step: Step) -> float:
        """One layer's time, ns, from the rows around."""


class OpTables(NamedTuple):
    """One GPU's tables of one model's share. `tokens`: everything but head and attention, all layers,
    by new tokens; `head` by rows; `reduce`: all-reduces of a step by new tokens, 0 alone.
    `assumed`: what the tables lack, in words."""

    shape: Shape
    machine: str
    source: str
    licence: str
    tokens: Line
    head: Line
    attention: Attention
    reduce: Callable[[float], float]
    assumed: tuple[str, ...]

    def linear_ns(self, step: Step) -> float:
        """All but attention."""
        return self.tokens(step.tokens) + self.head(step.outputs) + self.reduce(step.tokens)

    def step_ns(self, step: Step) -> float:
        """A whole step on the GPU, without the host."""
        return self.linear_ns(step) + self.shape.layers * self.attention(step)

    def points(self) -> list[Timed]:
        """Whole steps whose attention is a measured row."""
        return [
            Timed(row.step, self.linear_ns(row.step) + self.shape.layers * row.ns, row.skewed)
            for row in self.attention.rows
        ]


def alone(_: float) -> float:
    """The all-reduce of one GPU."""
    return 0.0
