"""Systems side by side: same workload, same priority trace, same random streams, several runs.

A *terminating* study counts the whole of every run, from an empty machine until all are served. A
*steady-state* study counts what comes after a warm-up that is found first (explore.studies.warm_up)
and is the same for all systems. `explore.studies.estimates` has what is told of several runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate import profile as profiles
from explore.studies import precision, warm_up
from explore.studies.engine import NO_LIMITS, Engine, check_where
from explore.studies.estimates import (
    Estimate,
    Ratio,
    are_one,
    difference_of,
    estimate_of,
    family_of,
    speedup_of,
)
from explore.studies.measure import WHOLE_RUN, Measure
from explore.studies.plan import Plan, expand
from explore.studies.semantics import Inputs, key_of
from explore.studies.spec import MAX_RUNS, Source, SweepSpec
from explore.studies.store import STUDY, Store, claimed
from explore.studies.sweep import differs, planned
from explore.studies.sweep_tables import results_of
from explore.studies.warm_up import WarmUp
from explore.studies.workers.base import WorkerSettings
from policy.errors import ConfigError
from policy.systems import BASELINE_NAMES, BASELINES, V1, named_system
from runs.metrics.goodput import Slo
from runs.metrics.served import little_served
from runs.obeyed import UNREAD
from runs.provenance import provenance
from runs.scenario import Scenario
from runs.user_order import OrderLike, UserOrder, user_order
from traces.strict import shown_path

if TYPE_CHECKING:
    import pandas

#: The file that says it all, beside the store of runs.
RESULT = "compare.json"
STUDIES = ("terminating", "steady-state")

#: How often the arrival rate is doubled in search of the baseline's capacity.
MAX_DOUBLINGS = 5


@dataclass(frozen=True)
class Load:
    """Offered and possible output tokens per second of the baseline."""

    offered: float | None
    capacity: float | None
    baseline: str
    words: str

    @property
    def share(self) -> float | None:
        """Offered over capacity."""
        return self.offered / self.capacity if self.offered and self.capacity else None


@dataclass
class Comparison:
    """Everything `compare` found out."""

    scenario: Scenario
    systems: tuple[str, ...]
    runs: int
    results: dict[str, list[dict[str, Any]]]
    load: Load
    profile_assumptions: dict[str, Any]
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    measure: Measure = WHOLE_RUN
    warm_up: WarmUp | None = None
    until_precise: bool = False
    #: What whoever asked should know of the folder, and no reader of the result.
    warnings: list[str] = field(default_factory=list, compare=False)

    @property
    def all_metrics(self) -> list[dict[str, Any]]:
        """Of every run of every system."""
        return [result["metrics"] for runs in self.results.values() for result in runs]

    @property
    def is_one_run(self) -> bool:
        """Of every system all runs are the same: there is no interval."""
        return all(len(runs) < 2 or are_one(runs) for runs in self.results.values())

    @property
    def study(self) -> str:
        """One of STUDIES."""
        return STUDIES[self.warm_up is not None]

    def estimate(self, system: str, metric: str) -> Estimate:
        """Mean over runs of a metric."""
        return estimate_of(self.results[system], metric)

    def speedup(self, system: str, baseline: str, metric: str) -> Ratio:
        """How many times better `system` is than `baseline`, paired by run; its `p` is corrected for
        all systems compared with that baseline in this metric."""
        others = [name for name in self.systems if name != baseline]
        if system == baseline:
            return speedup_of(self.results[system], self.results[baseline], metric)
        theirs = self.results[baseline]
        family = family_of([speedup_of(self.results[name], theirs, metric) for name in others])
        return family[others.index(system)]

    def difference(self, system: str, baseline: str, metric: str) -> Estimate:
        """Mean of `system` minus `baseline` in the metric's unit, paired by run."""
        return difference_of(self.results[system], self.results[baseline], metric)

    def verdict(self, system: str) -> str | None:
        """Where vLLM 0.3.3 would have stopped, in any of the runs."""
        for result in self.results[system]:
            if result["verdict"]:
                return str(result["verdict"])
        return None

    def frame(self) -> pandas.DataFrame:
        """One row per system and run, one column per metric; NaN where there were too few
        samples."""
        from explore.studies import frames  # noqa: PLC0415  pandas is slow to import

        return frames.of_comparison(self)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of the two baselines that were run."""
        return tuple(name for name in BASELINE_NAMES if name in self.results)

    @property
    def telling(self) -> tuple[str, ...]:
        """The two systems that a picture has room for: the baseline that keeps KV and fastswitch, or
        what there is."""
        wanted = ("vllm-0.3.3-keep", "paged-keep", "fastswitch")
        return tuple(name for name in wanted if name in self.results) or self.systems[:2]


def compare(
    scenario: Scenario,
    systems: Sequence[str] | None = None,
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
    names = names_of(scenario, systems)
    here = is_object or (workers or os.cpu_count() or 1) == 1
    settings = WorkerSettings("here" if here else "local", workers)
    check_where(own, settings, NO_LIMITS)
    point = _Point(scenario, _free(own) if own is not None and is_object and out is None else own)
    purpose = point.purpose(study, slo)

    def named(plan: Plan) -> Plan:
        return replace(plan, name=scenario.name, purpose=purpose)

    def grown(plan: Plan, store: Store) -> Plan | None:
        larger = None if grow is None else grow(plan, store)
        return None if larger is None else named(larger)

    with _store(out, overwrite=overwrite) as store:
        _adopt(store, named(point.plan(names, runs, Measure(slo))))
        with Engine(store, settings, order=own, progress=progress, stops=True) as engine:
            cut = _warm_up(engine, point, names) if study == "steady-state" else None
            measure = Measure(slo, None if cut is None else cut.cut_s)
            source = point.source(names, runs, replace(measure, keeps="series"))
            plan, grow = planned(source, None, point.order, until_precise=until_precise)
            plan = engine.run_all(named(plan), grown)
            results = _of_one_point(plan, store)
            load = _load(engine, point, results, names)
    for runs_of in results.values():
        for result in runs_of[1:]:  # a figure has room for one
            result["series"].pop("timeline", None)
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
    comparison.notes.extend(_notes(comparison))
    return comparison


def names_of(scenario: Scenario, systems: Sequence[str] | None) -> tuple[str, ...]:
    """The systems that are compared: those named, else the scenario's, else the usual ones."""
    names = (named_system(name).name for name in (systems or scenario.systems or _DEFAULT))
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class _Point:
    """The scenario as the only point of a plan."""

    scenario: Scenario
    order: UserOrder | None

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
            systems=tuple(systems),
            runs=runs,
            slo=measure.slo,
            warm_up_s=measure.warm_up_s,
        )
        return Source(spec, None, kind="scenario", keeps=measure.keeps, heeds=False)

    def plan(self, systems: Sequence[str], runs: int, measure: Measure, **values: Any) -> Plan:
        """Paired runs of systems. Raises ConfigError or InputError."""
        return expand(self.source(systems, runs, measure, **values), None, self.order)

    def purpose(self, study: str, slo: Slo | None) -> dict[str, str]:
        """What an earlier comparison must have been of to be gone on with, whatever its systems and
        number of runs."""
        asked = Measure(slo).as_json()
        order = {} if self.order is None else {"order": self.order.sources()}
        key = key_of(self.scenario, Inputs(), {**asked, **order, "name": self.scenario.name})
        return {"scenario": key[:12], "study": study}


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
    """System -> its runs in order."""
    (systems,) = results_of(plan, store).values()
    return {name: [run for run in runs if run is not None] for name, runs in systems.items()}


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
    scenario: Scenario, systems: Sequence[str] | None, runs: int, study: str = "terminating"
) -> int:
    """How many simulations `compare` will run, for a progress bar."""
    pilots = warm_up.PILOTS if study == "steady-state" else 0
    return len(dict.fromkeys(systems or scenario.systems or _DEFAULT)) * (runs + pilots)


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


# ---------------------------------------------------------------------- words


def _notes(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the table."""
    notes = []
    order = comparison.results[comparison.systems[0]][0]["order"]
    planners = {name: comparison.results[name][0]["planner"] for name in comparison.systems}
    follow = ", ".join(name for name, kind in planners.items() if kind == "release")
    todays = ", ".join(name for name, kind in planners.items() if kind == V1)
    if todays and order not in ("fcfs", "priority"):
        notes.append(f"{todays}: V1's queues under {order}, which the release does not know.")
    if follow and len(set(planners.values())) > 1:
        notes.append(
            f"Under {order} {follow} follow vLLM 0.3.3's own planner and the others the thirteen"
            " rules, so more than memory management differs."
        )
    for name in comparison.systems:
        metrics = [result["metrics"] for result in comparison.results[name]]
        verdict = comparison.verdict(name)
        if verdict is not None:
            notes.append(f"{name} did not finish: {verdict}.")
        if name in BASELINE_NAMES and not any(m["preemptions"] for m in metrics):
            notes.append(
                f"ATTENTION: {name} never preempts here. Speed-ups over it say nothing about"
                " swapping."
            )
        if (told := _little(comparison, name)) is not None:
            notes.insert(0, told)
    for result in comparison.results[comparison.systems[0]][:1]:
        heeded = (
            line for line in result["warnings"] if UNREAD not in line
        )  # by one of the systems
        notes.extend(f"Warning: {line}." for line in heeded)
    notes.extend(_replay_notes(comparison))
    if comparison.until_precise:
        notes.append(_precision_note(comparison))
    if comparison.warm_up is not None:
        cut = comparison.warm_up
        notes.append(
            f"Steady state: turns of the first {cut.cut_s:g} s are not counted (MSER-5 on"
            f" {cut.runs} runs, the same cut for all systems), nor are those after the last session"
            " came. Swapping, utilisation and fairness are of the whole runs."
        )
    if comparison.runs == 1:
        notes.append("One run, no interval: which system is better cannot be said.")
    elif comparison.runs < 5 and not comparison.is_one_run:
        notes.append(
            f"{comparison.runs} runs: intervals are wide and P99.9 of TTFT rests on few turns."
        )
    return notes


def _little(comparison: Comparison, name: str) -> str | None:
    """Where a system served nothing, or little, in its worst run."""
    results = comparison.results[name]
    worst = min(results, key=lambda result: result["metrics"].get("finished") or 0)
    told = little_served(worst["metrics"], worst.get("rejected_because"))
    return None if told is None else f"{name}: {told}"


def _replay_notes(comparison: Comparison) -> list[str]:
    """What several runs over one file say, and what they do not."""
    scenario = comparison.scenario
    if comparison.runs < 2 or scenario.workload.file is None:
        return []
    if scenario.workload.resample:
        return [
            f"One trace, resampled: every run draws {scenario.workload.file}'s sessions anew, so intervals"
            " say how far another trace with the same arrivals may be off."
        ]
    if comparison.is_one_run:
        return [
            f"One trace, no interval: {comparison.runs} runs of {scenario.workload.file} are one run, since"
            " nothing in them is drawn. workload.resample draws its sessions anew for every run."
        ]
    return [
        f"One trace: the runs redraw priorities and the like, not {scenario.workload.file}, so intervals"
        " say how far those draws matter, and nothing of other traces. workload.resample draws its"
        " sessions anew."
    ]


def _precision_note(comparison: Comparison) -> str:
    """Which intervals are narrow, and which are not and why."""
    found = precision.widths(comparison.results)
    wide = [f"{w.system} {w.metric} {w.relative:.0%}" for w in found if w.is_wide]
    unknown = sorted({w.metric for w in found if w.relative is None})
    told = f"{comparison.runs} runs, added until intervals were narrow (5 % of a mean or median,"
    told += " 10 % of a P95 or P99, 20 % of a P99.9)."
    if wide:
        told += f" Still wider after {comparison.runs}, the most: {', '.join(wide[:5])}"
        told += f" and {len(wide) - 5} more." if len(wide) > 5 else "."
    if unknown:
        told += f" n too small in some run: {', '.join(unknown)}; longer runs would tell."
    return told
