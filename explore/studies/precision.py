"""Enough runs: replications are added until every interval is narrow beside its mean. Runs that are all
the same (a trace without draws) have no interval to narrow, so two are enough to see it.

Targets are half widths of 95 % t intervals over replications, relative to the mean: 5 % of a mean or
median, 10 % of a P95 or P99, 20 % of a P99.9. A metric of which some run has too few samples is not
waited for: more runs of that length would not tell it either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from explore.studies.engine import Grow
from explore.studies.estimates import SPEEDUPS, are_one, estimate_of
from explore.studies.plan import Plan, expand
from explore.studies.spec import Source
from explore.studies.store import Store
from explore.studies.sweep_tables import results_of
from runs.user_order import UserOrder

_PURPOSE = {"replications": "until precise"}

#: Runs before anything is judged, runs added at a time, and most of them.
FIRST, STEP, MOST = 10, 5, 50

Results = Sequence[Mapping[str, Any]]


def target_of(metric: str) -> float:
    """Half width over mean that is narrow enough."""
    if "_p999" in metric:
        return 0.20
    return 0.10 if "_p99" in metric or "_p95" in metric else 0.05


@dataclass(frozen=True)
class Width:
    """How wide an interval is beside its mean. None: n too small, or a mean of zero."""

    system: str
    metric: str
    relative: float | None
    target: float

    @property
    def is_wide(self) -> bool:
        """More runs are needed, and would help."""
        return self.relative is not None and self.relative > self.target


def widths(results: Mapping[str, Results], metrics: Sequence[str] = SPEEDUPS) -> list[Width]:
    """Of every system and metric."""
    found = []
    for system, runs in results.items():
        for metric in metrics:
            estimate = estimate_of(runs, metric)
            relative = None
            if estimate.value and estimate.half is not None:
                relative = estimate.half / abs(estimate.value)
            found.append(Width(system, metric, relative, target_of(metric)))
    return found


def next_runs(results: Mapping[str, Results]) -> int:
    """How many runs of each system there should be, given those there are: as many if that is
    enough, or the most there may be."""
    count = min(map(len, results.values()))
    if all(are_one(runs) for runs in results.values()):
        return count
    if count < FIRST:
        return FIRST
    if count >= MOST or not any(width.is_wide for width in widths(results)):
        return count
    return min(count + STEP, MOST)


def planned(
    source: Source,
    values: dict[str, Any] | None,
    order: UserOrder | None,
    *,
    until_precise: bool,
) -> tuple[Plan, Grow | None]:
    """A plan, and how it grows if its intervals are to be narrow. Raises ConfigError or InputError."""
    if not until_precise:
        return expand(source, values, order), None
    return first(source, values, order), grower(source, values, order)


def first(source: Source, values: dict[str, Any] | None, order: UserOrder | None) -> Plan:
    """As many runs of every point as are needed to judge at all."""
    least = max(source.spec.runs, FIRST)
    fewer = replace(source, spec=source.spec.model_copy(update={"runs": least}))
    return replace(expand(fewer, values, order), purpose=_PURPOSE)


def grower(source: Source, values: dict[str, Any] | None, order: UserOrder | None) -> Grow:
    """How the plan grows: more runs of every point that has a wide interval. A point with a failed
    trial stays as it is. Neither workers nor who ends first change where it stops."""

    def grow(plan: Plan, store: Store) -> Plan | None:
        found = results_of(plan, store)
        now = {point: min(map(len, systems.values())) for point, systems in found.items()}
        wanted = {point: _wanted(systems) for point, systems in found.items()}
        if wanted == now:
            return None
        return replace(expand(source, values, order, wanted), purpose=_PURPOSE)

    return grow


def _wanted(systems: Mapping[str, list[dict[str, Any] | None]]) -> int:
    """Runs that a point should have."""
    if any(result is None for runs in systems.values() for result in runs):
        return min(map(len, systems.values()))
    return next_runs({system: [run for run in runs if run] for system, runs in systems.items()})
