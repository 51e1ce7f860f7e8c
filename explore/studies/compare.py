"""Systems side by side: same workload, same priority trace, same random streams, several runs.

A *terminating* study counts the whole of every run, from an empty machine until all are served. A
*steady-state* study counts what comes after a warm-up that is found first (explore.studies.warm_up)
and is the same for all systems. `explore.studies.estimates` has what is told of several runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibrate import profile as profiles
from explore.studies import precision, warm_up
from explore.studies.estimates import (
    Estimate,
    Ratio,
    are_one,
    difference_of,
    estimate_of,
    family_of,
    speedup_of,
)
from explore.studies.jobs import Job, job_for, run_job, run_jobs
from explore.studies.measure import WHOLE_RUN, Measure
from explore.studies.warm_up import WarmUp
from policy.errors import ConfigError
from policy.systems import BASELINE_NAMES, BASELINES, named_system
from runs.metrics.goodput import Slo
from runs.metrics.served import little_served
from runs.obeyed import UNREAD
from runs.provenance import provenance
from runs.scenario import Scenario
from runs.user_order import OrderLike, UserOrder, user_order

if TYPE_CHECKING:
    import pandas

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
) -> Comparison:
    """Run every system `runs` times on the same inputs. Deterministic for any number of workers.

    `order`: the user's own in place of the scenario's. One given by name travels to the workers; an
    object (an Order, a class of a notebook's cell) stays, and all runs are made in this process.
    `study`: one of STUDIES. `until_precise`: runs are added until every interval is narrow enough
    (explore.studies.precision). `slo` asks for goodput. Raises ConfigError, also where no steady
    state is seen.
    """
    if study not in STUDIES:
        raise ConfigError(f"study: {study!r} is not one of {', '.join(STUDIES)}")
    own = None if order is None else user_order(order)
    if own is not None and own.text is None:
        if workers is not None and workers > 1:
            raise ConfigError(
                f"order {own.name}: an object cannot go to {workers} workers; name it as module:MyOrder"
                " or file.py:MyOrder, or leave workers out"
            )
        workers = 1
    names = names_of(scenario, systems)

    def replicated(begin: int, end: int, **asked: Any) -> dict[str, list[dict[str, Any]]]:
        jobs = [
            job_for(scenario, name, scenario.run + run, order=own, **_asked(run, asked))
            for run in range(begin, end)
            for name in names
        ]
        return _by_system(names, jobs, workers, progress)

    warmed = _warm_up(replicated) if study == "steady-state" else None
    measure = Measure(slo, None if warmed is None else warmed.cut_s)
    if until_precise:
        results = precision.replicate(
            lambda begin, end: replicated(begin, end, measure=measure), runs
        )
    else:
        results = replicated(0, runs, measure=measure)
    profile = profiles.load(scenario.profile).drawn(scenario.profile_draw)
    profile = profile.with_values(dict(scenario.profile_values))
    comparison = Comparison(
        scenario,
        names,
        len(results[names[0]]),
        results,
        _load(scenario, results, names, own),
        {name: q.model_dump(mode="json") for name, q in profile.assumptions().items()},
        provenance(scenario, profile, own),
        measure=measure,
        warm_up=warmed,
        until_precise=until_precise,
    )
    comparison.notes.extend(_notes(comparison))
    return comparison


def names_of(scenario: Scenario, systems: Sequence[str] | None) -> tuple[str, ...]:
    """The systems that are compared: those named, else the scenario's, else the usual ones."""
    names = (named_system(name).name for name in (systems or scenario.systems or _DEFAULT))
    return tuple(dict.fromkeys(names))


def _asked(run: int, asked: dict[str, Any]) -> dict[str, Any]:
    return asked if "with_waits" in asked else {"with_timeline": run == 0, **asked}


def _by_system(
    names: Sequence[str],
    jobs: Sequence[Job],
    workers: int | None,
    progress: Callable[[], None] | None,
) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index, result in enumerate(run_jobs(jobs, workers, progress)):
        results[names[index % len(names)]].append(result)
    return results


def _warm_up(replicated: Callable[..., dict[str, list[dict[str, Any]]]]) -> WarmUp:
    """From pilot runs of all systems."""
    pilots = replicated(0, warm_up.PILOTS, with_waits=True)
    return warm_up.find(
        {
            name: [warm_up.Waits(**result["series"]["waits"]) for result in found]
            for name, found in pilots.items()
        }
    )


_DEFAULT = (*BASELINES, "+groups", "+reuse", "fastswitch", "+block-major", "+batched")


def num_jobs(
    scenario: Scenario, systems: Sequence[str] | None, runs: int, study: str = "terminating"
) -> int:
    """How many simulations `compare` will run, for a progress bar."""
    pilots = warm_up.PILOTS if study == "steady-state" else 0
    return len(dict.fromkeys(systems or scenario.systems or _DEFAULT)) * (runs + pilots)


# ---------------------------------------------------------------------- load


def _load(
    scenario: Scenario,
    results: dict[str, list[dict[str, Any]]],
    names: Sequence[str],
    own: UserOrder | None,
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
        capacity = _search_capacity(scenario, baseline, own)
    return Load(mean, capacity, baseline, _load_in_words(mean, capacity, metrics))


def _search_capacity(scenario: Scenario, baseline: str, own: UserOrder | None) -> float | None:
    """The baseline was not pushed to its capacity: double a generator's rate until it is."""
    rate = scenario.workload.rate
    if scenario.workload.generator is None or rate is None:
        return None
    for _ in range(MAX_DOUBLINGS):
        rate *= 2
        harder = scenario.with_values({"workload.rate": rate})
        job = job_for(harder, baseline, scenario.run, order=own)
        found = run_job(job)["metrics"]["capacity_tok_s"]
        if found is not None:
            return float(found)
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
    if len(set(planners.values())) > 1:
        follow = ", ".join(name for name, kind in planners.items() if kind == "release")
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
            " say how far another trace of the same kind may be off."
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
