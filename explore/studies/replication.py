"""Sequential replications of a sweep: points get runs until their intervals are narrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from explore.studies import precision
from explore.studies.plan import Plan, expand
from explore.studies.spec import Source
from explore.studies.store import Store
from explore.studies.sweep_tables import results_of
from runs.user_order import UserOrder

_PURPOSE = {"replications": "until precise"}


def first(source: Source, values: dict[str, Any] | None, order: UserOrder | None) -> Plan:
    """As many runs of every point as are needed to judge at all."""
    least = max(source.spec.runs, precision.FIRST)
    fewer = Source(source.spec.model_copy(update={"runs": least}), source.path, source.text)
    return replace(expand(fewer, values, order), purpose=_PURPOSE)


def grower(
    source: Source, values: dict[str, Any] | None, order: UserOrder | None
) -> Callable[[Plan, Store], Plan | None]:
    """How the plan grows: more runs of every point that has a wide interval. A point with a failed
    trial stays as it is."""

    def grow(plan: Plan, store: Store) -> Plan | None:
        found = results_of(plan, store)
        now = {point: min(map(len, systems.values())) for point, systems in found.items()}
        wanted = {point: _next(systems) for point, systems in found.items()}
        if wanted == now:
            return None
        return replace(expand(source, values, order, wanted), purpose=_PURPOSE)

    return grow


def _next(systems: Mapping[str, list[dict[str, Any] | None]]) -> int:
    """Runs that a point should have."""
    if any(result is None for runs in systems.values() for result in runs):
        return min(map(len, systems.values()))
    return precision.next_runs({s: [r for r in runs if r] for s, runs in systems.items()})
