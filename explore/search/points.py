"""Points of a search and how they compare: which may be an answer, which is best, which is a front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from explore.search.recipes import Bound, Objective, excesses, told
from explore.studies.estimates import LEVEL, Estimate
from explore.studies.plan import Plan, Trial
from explore.studies.sweep_tables import results_of
from runs.metrics.stats import holm, mean_and_half_width, p_of_zero_mean


@dataclass(frozen=True)
class Point:
    """One point after its runs. `objectives`: every run's value of each; None if they cannot be
    told. `problems`: why it cannot be an answer; empty if it can. `excess`: of every limit, how far
    beyond it; above 0 or None: not kept. `unsure`: limits that hold by the mean, not by the whole
    interval. `limited`: of every limited metric its mean."""

    index: int
    values: dict[str, Any]
    system: str
    objectives: tuple[list[float] | None, ...]
    excess: dict[str, float | None] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    limited: dict[str, Estimate] = field(default_factory=dict)

    @property
    def slack(self) -> float:
        """How far inside its limits it is on the mean, each beside its size; below 0: beyond them."""
        told = [-value for value in self.excess.values() if value is not None]
        return math.fsum(told) / len(told) if told else 0.0

    @property
    def is_feasible(self) -> bool:
        """It keeps all limits, and its objectives are known."""
        return not self.problems

    def estimate(self, which: int) -> Estimate:
        """Mean of an objective over runs."""
        values = self.objectives[which]
        return Estimate(None) if not values else Estimate(*mean_and_half_width(values))


def points_of(
    plan: Plan,
    store: Any,
    objectives: Sequence[Objective],
    limits: Mapping[str, Bound],
    knobs: Sequence[str],
) -> list[Point]:
    """Every point of a plan, in order, from what the store has."""
    first: dict[int, Trial] = {}
    for trial in plan.trials:
        first.setdefault(trial.point, trial)
    found = results_of(plan, store)
    made = []
    for index, trial in first.items():
        runs = found[index][trial.system]
        values = {path: _knob(trial, path) for path in knobs}
        whole = [run for run in runs if run is not None]
        if len(whole) < len(runs):
            failures = [store.failure(t.key) for t in plan.trials_of(index)]
            why = next((reason for reason in failures if reason), "not run")
            nothing = (None,) * len(objectives)
            made.append(Point(index, values, trial.system, nothing, {}, (f"failed: {why}",)))
        else:
            made.append(_judged(index, values, trial.system, told(whole), objectives, limits))
    return made


def _knob(trial: Trial, path: str) -> Any:
    return trial.system if path == "system" else trial.values[path]


def _judged(
    index: int,
    values: dict[str, Any],
    system: str,
    runs: Sequence[dict[str, Any]],
    objectives: Sequence[Objective],
    limits: Mapping[str, Bound],
) -> Point:
    asked = tuple(one.values(values, runs) for one in objectives)
    found = excesses(limits, runs)
    problems = [
        f"{metric}: n too small" if excess is None else f"{metric} {estimate.value:g}"
        for metric, (estimate, excess) in found.items()
        if excess is None or excess > 0
    ]
    problems += [
        f"{one.name}: n too small" for one, v in zip(objectives, asked, strict=True) if v is None
    ]
    unsure = tuple(
        metric
        for metric, (estimate, excess) in found.items()
        if excess is not None and excess <= 0 and not limits[metric].holds_surely(estimate)
    )
    return Point(
        index,
        values,
        system,
        asked,
        {metric: value for metric, (_, value) in found.items()},
        tuple(dict.fromkeys(problems)),
        unsure,
        {metric: estimate for metric, (estimate, _) in found.items()},
    )


# ---------------------------------------------------------------------- the best


def best_of(points: Sequence[Point], objective: Objective) -> Point | None:
    """The feasible point with the best mean; of several the one furthest inside its limits, then the
    first."""
    feasible = [point for point in points if point.is_feasible]
    return max(
        feasible, key=lambda p: (_mean(p, 0) * objective.sign, p.slack, -p.index), default=None
    )


def as_good(points: Sequence[Point], best: Point) -> list[Point]:
    """Other feasible points whose difference from the best may be chance: paired t tests over runs,
    corrected by Holm for all of them."""
    others = [point for point in points if point.is_feasible and point is not best]
    ps = [_p_of_difference(point, best, 0) for point in others]
    if any(p is None for p in ps):
        return []
    corrected = holm([p for p in ps if p is not None])
    return [point for point, p in zip(others, corrected, strict=True) if p >= LEVEL]


def _p_of_difference(one: Point, other: Point, which: int) -> float | None:
    mine, theirs = one.objectives[which], other.objectives[which]
    assert mine is not None and theirs is not None
    return p_of_zero_mean([a - b for a, b in zip(mine, theirs, strict=True)])


def _mean(point: Point, which: int) -> float:
    value = point.estimate(which).value
    assert value is not None
    return value


# ---------------------------------------------------------------------- the front


def front_of(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    """Feasible points that no other is at least as good as in all objectives and better in one."""
    feasible = [point for point in points if point.is_feasible]
    scores = {point.index: _scores(point, objectives) for point in feasible}
    # sorted best first: whoever beats a point stands before it, and a front point beats it too
    ordered = sorted(feasible, key=lambda p: ([-s for s in scores[p.index]], p.index))
    front: list[Point] = []
    for point in ordered:
        mine = scores[point.index]
        if not any(_dominates(scores[other.index], mine) for other in front):
            front.append(point)
    return sorted(front, key=lambda point: point.index)


def near_front(
    points: Sequence[Point], front: Sequence[Point], objectives: Sequence[Objective]
) -> list[Point]:
    """Feasible points behind the front that chance may have put there: no front point that beats
    them is surely better in any objective (paired t test over runs)."""
    on = {point.index for point in front}
    found = []
    for point in points:
        if not point.is_feasible or point.index in on:
            continue
        mine = _scores(point, objectives)
        beaten_by = [f for f in front if _dominates(_scores(f, objectives), mine)]
        if not any(_is_surely_better(f, point, objectives) for f in beaten_by):
            found.append(point)
    return found


def _is_surely_better(one: Point, other: Point, objectives: Sequence[Objective]) -> bool:
    ps = (_p_of_difference(one, other, which) for which in range(len(objectives)))
    return any(p is not None and p < LEVEL for p in ps)


def _scores(point: Point, objectives: Sequence[Objective]) -> list[float]:
    return [_mean(point, which) * one.sign for which, one in enumerate(objectives)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def violation_of(point: Point) -> float:
    """All that is beyond limits together; what cannot be told counts as a whole limit. Of a point without
    a result nothing is known, so nothing is further off."""
    if not point.excess:
        return math.inf
    return math.fsum(1.0 if e is None else max(0.0, e) for e in point.excess.values())
