"""Tables of a sweep, made anew from its results in the order of its plan.

results.csv    one row per trial: what was swept, status, verdict, every metric
estimates.csv  one row per point, system and metric: mean over runs, t times its standard error, its
               95 % interval, and what it is above where a percentile fell among clients that left
ratios.csv     one row per point, system and metric: times better than the point's first system,
               paired by run, the factor its 95 % interval spans up and down, the p of the
               paired t test, corrected by Holm for the point's systems, and what it is above or below
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explore.studies.estimates import SPEEDUPS, Estimate, Ratio, estimate_of, family_of, speedup_of
from explore.studies.plan import Plan, Trial
from explore.studies.semantics import digest
from explore.studies.store import Corrupt, Store

RESULTS, ESTIMATES, RATIOS = "results.csv", "estimates.csv", "ratios.csv"


@dataclass(frozen=True)
class Tables:
    """The text of each table by file name, and how the trials (not keys) of the plan ended."""

    texts: dict[str, str]
    done: int
    failed: int

    @property
    def digest(self) -> str:
        """Of results.csv: equal sweeps have equal ones."""
        return digest(self.texts[RESULTS])


@dataclass(frozen=True)
class Held:
    """What a store has of every key of a plan."""

    results: Mapping[str, dict[str, Any]]
    failures: Mapping[str, str]
    corrupt: Sequence[str]


def write(store: Store, plan: Plan) -> Tables:
    """Make the tables and keep them. Raises FaultError."""
    made = make(store, plan)
    for name, text in made.texts.items():
        store.write_table(name, text)
    return made


def make(store: Store, plan: Plan) -> Tables:
    """The tables of what has been run; trials still to run have no row."""
    return made(plan, read(store, plan))


def made(plan: Plan, held: Held) -> Tables:
    """As `make`, of what was read already."""
    trials = [t for t in plan.trials if t.key in held.results or t.key in held.failures]
    metrics = sorted({name for result in held.results.values() for name in result["metrics"]})
    texts = {
        RESULTS: csv_text(_results(plan, trials, metrics, held)),
        ESTIMATES: csv_text(_estimates(plan, trials, metrics, held)),
        RATIOS: csv_text(_ratios(plan, trials, held)),
    }
    failed = sum(trial.key in held.failures for trial in trials)
    return Tables(texts, len(trials) - failed, failed)


def read(store: Store, plan: Plan) -> Held:
    """Everything of a plan that there is; what is corrupt is still to run."""
    results, failures, corrupt = {}, {}, []
    for key in plan.keys:
        try:
            result = store.result(key)
        except Corrupt:
            corrupt.append(key)
            continue
        if result is not None:
            results[key] = result
        elif (why := store.failure(key)) is not None:
            failures[key] = why
    return Held(results, failures, corrupt)


def results_of(plan: Plan, store: Store) -> dict[int, dict[str, list[dict[str, Any] | None]]]:
    """Point -> system -> its runs in order; None for a run without a result."""
    found = read(store, plan).results
    points: dict[int, dict[str, list[dict[str, Any] | None]]] = {}
    for trial in plan.trials:
        runs = points.setdefault(trial.point, {}).setdefault(trial.system, [])
        runs.append(found.get(trial.key))
    return points


def _results(
    plan: Plan, trials: Sequence[Trial], metrics: Sequence[str], held: Held
) -> Iterator[Sequence[Any]]:
    yield [
        *_head(plan),
        "system",
        "run",
        "status",
        "reason",
        "verdict",
        "warnings",
        "drawn",
        *metrics,
    ]
    for trial in trials:
        start = [*_place(plan, trial), trial.system, trial.run]
        result = held.results.get(trial.key)
        if result is None:
            yield [*start, "failed", held.failures[trial.key], "", "", "", *("" for _ in metrics)]
            continue
        values = (result["metrics"].get(name) for name in metrics)
        drawn = (result.get("workload") or {}).get("drawn")
        warned = "; ".join(result["warnings"])
        yield [*start, "ok", "", result["verdict"], warned, drawn, *values]


def _estimates(
    plan: Plan, trials: Sequence[Trial], metrics: Sequence[str], held: Held
) -> Iterator[Sequence[Any]]:
    yield [*_head(plan), "system", "metric", "mean", "half", "low", "high", "above", "runs"]
    for start, system, runs in _groups(plan, trials, held):
        for metric in metrics:
            estimate = Estimate(None) if runs is None else estimate_of(runs, metric)
            count = 0 if runs is None else len(runs)
            low, high = estimate.interval or (None, None)
            told = [estimate.value, estimate.half, low, high, estimate.above]
            yield [*start, system, metric, *told, count]


def _ratios(plan: Plan, trials: Sequence[Trial], held: Held) -> Iterator[Sequence[Any]]:
    yield [
        *_head(plan),
        "system",
        "against",
        "metric",
        "ratio",
        "factor",
        "p",
        "above",
        "below",
        "runs",
    ]
    groups = itertools.groupby(_groups(plan, trials, held), key=lambda group: group[0][0])
    for _, of_point in groups:
        (_, baseline, theirs), *others = of_point
        families = {
            metric: family_of([_ratio(ours, theirs, metric) for _, _, ours in others])
            for metric in SPEEDUPS
        }
        for index, (start, system, ours) in enumerate(others):
            count = len(ours) if ours is not None and theirs is not None else 0
            for metric in SPEEDUPS:
                ratio = families[metric][index]
                told = [ratio.value, ratio.factor, ratio.p, ratio.above, ratio.below]
                yield [*start, system, baseline, metric, *told, count]


def _ratio(
    ours: list[dict[str, Any]] | None, theirs: list[dict[str, Any]] | None, metric: str
) -> Ratio:
    if ours is None or theirs is None or len(ours) != len(theirs):
        return Ratio(None)
    return speedup_of(ours, theirs, metric)


def _groups(
    plan: Plan, trials: Sequence[Trial], held: Held
) -> Iterator[tuple[list[Any], str, list[dict[str, Any]] | None]]:
    """Place, system and its runs, for every point and system; None unless every run of the plan has
    a result."""
    planned: dict[tuple[int, str], list[Trial]] = {}
    for trial in plan.trials:
        planned.setdefault((trial.point, trial.system), []).append(trial)
    for which in dict.fromkeys((trial.point, trial.system) for trial in trials):
        group = planned[which]
        runs = [held.results.get(trial.key) for trial in group]
        whole = [result for result in runs if result is not None]
        yield _place(plan, group[0]), which[1], whole if len(whole) == len(runs) else None


def _head(plan: Plan) -> list[str]:
    return ["point", *(["scenario"] if plan.has_labels else []), *plan.paths]


def _place(plan: Plan, trial: Trial) -> list[Any]:
    label = [trial.label] if plan.has_labels else []
    return [trial.point, *label, *(cell(trial.values[path]) for path in plan.paths)]


def cell(value: Any) -> Any:
    """A swept value as tables have it: lists, mappings and null as JSON, which pandas reads as nothing
    where it is null."""
    return value if isinstance(value, (str, int, float)) else json.dumps(value, sort_keys=True)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; nothing where a cell is None."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
