"""Enough runs: replications are added until every interval is narrow beside its mean. Runs that are all
the same (a trace without draws) have no interval to narrow, so two are enough to see it.

Targets are half widths of 95 % t intervals over replications, relative to the mean: 5 % of a mean or
median, 10 % of a P95 or P99, 20 % of a P99.9. A metric of which some run has too few samples is not
waited for: more runs of that length would not tell it either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explore.studies.estimates import SPEEDUPS, are_one, estimate_of

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


def replicate(more: Callable[[int, int], Mapping[str, Results]], first: int) -> dict[str, Any]:
    """Results of every system, `more(begin, end)` being those of runs begin to end - 1; `first` of
    them at least. The batches do not depend on workers, so neither does where it stops."""
    wanted = max(first, FIRST)
    results: dict[str, list[Any]] = {}
    done = 0
    while done < wanted:
        for system, found in more(done, wanted).items():
            results.setdefault(system, []).extend(found)
        done = wanted
        wanted = max(done, next_runs(results))
    return results
