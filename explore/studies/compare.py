"""Systems side by side: same workload, same priority trace, same random streams, several runs.

A *terminating* study counts the whole of every run, from an empty machine until all are served. A
*steady-state* study counts what comes after a warm-up that is found first (explore.studies.warm_up)
and is the same for all systems. `explore.studies.estimates` has what is told of several runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from explore.studies import precision, warm_up
from explore.studies.comparison import STUDIES, Comparison, Load
from explore.studies.engine import NO_LIMITS, Engine, Grow, check_where
from explore.studies.measure import Measure
from explore.studies.notes import notes_of
from explore.studies.plan import Plan, expand
from explore.studies.semantics import Inputs, key_of
from explore.studies.spec import MAX_RUNS, Source, SweepSpec
from explore.studies.store import STUDY, Store, claimed
from explore.studies.sweep import differs
from explore.studies.sweep_tables import results_of
from explore.studies.warm_up import WarmUp
from explore.studies.workers.base import WorkerSettings
from policy.errors import ConfigError
from policy.systems import BASELINE_NAMES, BASELINES
from runs.metrics.goodput import Slo
from runs.provenance import provenance
from runs.scenario import Scenario
from runs.user_order import OrderLike, UserOrder, user_order
from runs.user_system import SystemLike, asked_systems
from traces.strict import shown_path

#: The file that says it all, beside the store of runs.
RESULT = "compare.json"
#: How often the arrival rate is doubled in search of the baseline's capacity.
MAX_DOUBLINGS = 5


def compare(
    scenario: Scenario,
    systems: Sequence[SystemLike] | None = None,
    runs: int = 3,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
    order: OrderLike | None = None,
    *,
    study: str = "terminating",
    until_precise: bool = False,
    slo: Slo | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Run every system `runs` times on the same inputs. Deterministic for any number of workers.

    `systems`: names, files or mappings of switches (`runs.user_system`); default: the scenario's own.
    `order`: the user's own in place of the scenario's. One given by name travels to the workers; an
    object (an Order, a class of a notebook's cell) stays, and all runs are made in this process.
    `study`: one of STUDIES. `until_precise`: runs are added until every interval is narrow enough
    (explore.studies.precision). `slo` asks for goodput. `out`: runs are kept in this folder, where an
    earlier comparison of the same scenario is gone on with and another one refused, unless
    `overwrite`. Raises ConfigError, also where no steady state is seen, and what a run raised; what was
    finished by then is kept.
    """
    if study not in STUDIES:
        raise ConfigError(f"study: {study!r} is not one of {', '.join(STUDIES)}")
    own = None if order is None else user_order(order)
    is_object = own is not None and own.text is None
    asked = systems_of(scenario, systems)
    names = tuple(asked)
    here = is_object or (workers or os.cpu_count() or 1) == 1
    settings = WorkerSettings("here" if here else "local", workers)
    check_where(own, settings, NO_LIMITS)
    kept = _free(own) if own is not None and is_object and out is None else own
    point = _Point(scenario, asked, kept, study, slo)
    with _store(out, overwrite=overwrite) as store:
        _adopt(store, point.named(point.plan(names, runs, Measure(slo))))
        with Engine(store, settings, order=own, progress=progress, stops=True) as engine:
            cut = _warm_up(engine, point, names) if study == "steady-state" else None
            measure = Measure(slo, None if cut is None else cut.cut_s)
            source = point.source(names, runs, replace(measure, keeps="series"))
            plan, grow = precision.planned(source, None, point.order, until_precise=until_precise)
            plan = engine.run_all(point.named(plan), None if grow is None else point.grown(grow))
            results = _of_one_point(plan, store)
            load = _load(engine, point, results, names)
    profile = profiles.load(scenario.profile).drawn(scenario.profile_draw)
    profile = profile.with_values(dict(scenario.profile_values))
    comparison = Comparison(
        scenario,
        names,
        len(results[names[0]]),
        results,
        load,
        {name: q.model_dump(mode="json") for name, q in profile.assumptions().items()},
        provenance(scenario, profile, own),
        measure=measure,
        warm_up=cut,
        until_precise=until_precise,
        warnings=engine.notes,
    )
    comparison.notes.extend(notes_of(comparison, plan.unread))
    return comparison


def systems_of(
    scenario: Scenario, systems: Sequence[SystemLike] | None
) -> dict[str, str | dict[str, Any]]:
    """The systems that are compared, by name: those asked for, else the scenario's, else the usual
    ones. Raises ConfigError."""
    return asked_systems(systems or scenario.systems or _DEFAULT)


@dataclass(frozen=True)
class _Point:
    """The scenario as the only point of a plan."""

    scenario: Scenario
    systems: Mapping[str, str | dict[str, Any]]
    order: UserOrder | None
    study: str
    slo: Slo | None

    def source(self, systems: Sequence[str], runs: int, measure: Measure, **values: Any) -> Source:
        """As a sweep's. Raises ConfigError."""
        if runs > MAX_RUNS:
            raise ConfigError(f"{runs} runs, limit {MAX_RUNS}")
        scenario = self.scenario.with_values(values) if values else self.scenario
        spec = SweepSpec(
            scenario={
                **scenario.model_dump(mode="json", exclude_unset=True),
                "name": scenario.name,
            },
            systems=tuple([self.systems[name] for name in systems]),
            runs=runs,
            slo=measure.slo,
            warm_up_s=measure.warm_up_s,
        )
        return Source(spec, None, kind="scenario", keeps=measure.keeps)

    def plan(self, systems: Sequence[str], runs: int, measure: Measure, **values: Any) -> Plan:
        """Paired runs of systems. Raises ConfigError or InputError."""
        return expand(self.source(systems, runs, measure, **values), None, self.order)

    @cached_property
    def _purpose(self) -> dict[str, str]:
        """What an earlier comparison must have been of to be gone on with, whatever its systems and
        number of runs."""
        asked = Measure(self.slo).as_json()
        order = {} if self.order is None else {"order": self.order.sources()}
        key = key_of(self.scenario, Inputs(), {**asked, **order, "name": self.scenario.name})
        return {"scenario": key[:12], "study": self.study}

    def named(self, plan: Plan) -> Plan:
        """The plan as this comparison's."""
        return replace(plan, name=self.scenario.name, purpose=self._purpose)

    def grown(self, grow: Grow) -> Grow:
        """The same of all that it grows to."""

        def grown(plan: Plan, store: Store) -> Plan | None:
            larger = grow(plan, store)
            return None if larger is None else self.named(larger)

        return grown


def _free(order: UserOrder) -> UserOrder:
    """An order as results depend on it that nobody keeps: none can be taken for another's."""
    return replace(order, holds=(), source_hash=order.source_hash or "unknown", _module=None)


@contextmanager
def _store(out: Path | None, *, overwrite: bool) -> Iterator[Store]:
    """Raises ConfigError for a folder that holds a comparison that cannot be gone on with."""
    if out is None:
        yield Store()
        return
    if (out / RESULT).exists() and not (overwrite or (out / STUDY).exists()):
        raise ConfigError(
            f"{shown_path(out)}: holds a comparison without its runs; give another folder,"
            " or --overwrite"
        )
    with claimed(out, overwrite=overwrite, beside=True) as store:
        yield store


def _adopt(store: Store, plan: Plan) -> None:
    """Make the folder this comparison's. Raises ConfigError if it holds another one."""
    if store.has_plan:
        held = store.plan()
        if (held.name, held.semantics, held.purpose) != (plan.name, plan.semantics, plan.purpose):
            assert store.folder is not None
            raise ConfigError(
                f"{shown_path(store.folder)}: holds {differs(held, plan)}; give another folder,"
                " or --overwrite"
            )
    store.write_plan(plan)


def _of_one_point(plan: Plan, store: Store) -> dict[str, list[dict[str, Any]]]:
    """System -> its runs in order, the first with its timeline: a figure has room for one."""
    (systems,) = results_of(plan, store).values()
    found = {name: [run for run in runs if run is not None] for name, runs in systems.items()}
    for runs in found.values():
        for result in runs[1:]:
            result.get("series", {}).pop("timeline", None)
    return found


def _warm_up(engine: Engine, point: _Point, names: Sequence[str]) -> WarmUp:
    """From pilot runs of all systems."""
    plan = point.plan(names, warm_up.PILOTS, Measure(keeps="waits"))
    engine.run(plan)
    return warm_up.find(
        {
            name: [warm_up.Waits(**result["series"]["waits"]) for result in runs]
            for name, runs in _of_one_point(plan, engine.store).items()
        }
    )


_DEFAULT = (*BASELINES, "+groups", "+reuse", "fastswitch", "+block-major", "+batched")


def num_trials(
    scenario: Scenario, systems: Sequence[SystemLike] | None, runs: int, study: str = "terminating"
) -> int:
    """How many simulations `compare` will run, for a progress bar."""
    pilots = warm_up.PILOTS if study == "steady-state" else 0
    return len(systems_of(scenario, systems)) * (runs + pilots)


# ---------------------------------------------------------------------- load


def _load(
    engine: Engine,
    point: _Point,
    results: dict[str, list[dict[str, Any]]],
    names: Sequence[str],
) -> Load:
    """Offered load against what the baseline makes of a backlog; the drop-in baseline with kept KV
    if it was run."""
    baseline = next((name for name in reversed(BASELINE_NAMES) if name in names), names[0])
    metrics = [result["metrics"] for result in results[baseline]]
    offered = [m["offered_tok_s"] for m in metrics if m["offered_tok_s"] is not None]
    if not offered:
        return Load(None, None, baseline, "all turns arrive at once: no load can be stated")
    mean = math.fsum(offered) / len(offered)
    reached = [m["capacity_tok_s"] for m in metrics]
    if all(value is not None for value in reached):
        capacity: float | None = math.fsum(reached) / len(reached)
    else:
        capacity = _search_capacity(engine, point, baseline)
    return Load(mean, capacity, baseline, _load_in_words(mean, capacity, metrics))


def _search_capacity(engine: Engine, point: _Point, baseline: str) -> float | None:
    """The baseline was not pushed to its capacity: double a generator's rate until it is."""
    rate = point.scenario.workload.rate
    if point.scenario.workload.generator is None or rate is None:
        return None
    for _ in range(MAX_DOUBLINGS):
        rate *= 2
        plan = point.plan((baseline,), 1, Measure(), **{"workload.rate": rate})
        engine.run(plan)
        ((found,),) = _of_one_point(plan, engine.store).values()
        if found["metrics"]["capacity_tok_s"] is not None:
            return float(found["metrics"]["capacity_tok_s"])
    return None


def _load_in_words(
    offered: float, capacity: float | None, metrics: Sequence[dict[str, Any]]
) -> str:
    moved = sum(m["blocks_in"] + m["blocks_out"] for m in metrics)
    if not moved and not any(m["preemptions"] for m in metrics):
        return "the baseline never swaps at this load: swapping cannot matter here"
    if capacity is None:
        return "the baseline never reached its capacity, so the share is not known"
    share = offered / capacity
    if share < 0.6:
        return "light load: there is room for nearly everybody, so swapping can hardly matter"
    if share < 0.9:
        return "below saturation"
    if share < 1.3:
        return "near saturation, where memory management decides the tail"
    return "overload: the queue grows as long as turns arrive, so mostly the backlog is measured"
