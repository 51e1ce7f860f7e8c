"""Systems side by side: same workload, same priority trace, same random streams, several runs.

Every number is a mean over runs with the half width of its 95 % t interval; every ratio is the
geometric mean of ratios paired by run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibrate import profile as profiles
from explore.jobs import job_for, run_job, run_jobs
from policy.errors import ConfigError
from policy.systems import BASELINES, named_system
from traces.orders import OrderLike, UserOrder, user_order
from traces.provenance import provenance
from traces.scenario import Scenario
from traces.stats import mean_and_half_width, ratio_and_factor

if TYPE_CHECKING:
    import pandas

#: What `compare` gives speed-ups of.
SPEEDUPS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_p999_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "tbt_in_batch_p999_s",
    "throughput_tok_s",
)
#: Of all other metrics less is better.
MORE_IS_BETTER = frozenset(
    {
        "throughput_tok_s",
        "io_utilisation",
        "gpu_utilisation",
        "token_efficiency_p99_tok_s",
        "token_efficiency_p999_tok_s",
    }
)

#: A ratio nearer to one than this is called no difference, however narrow its interval.
NOTABLE = 1.02

#: How often the arrival rate is doubled in search of the baseline's capacity.
MAX_DOUBLINGS = 5


@dataclass(frozen=True)
class Estimate:
    """A mean over runs. `half` is half of its 95 % interval, None for one run; `value` None: some
    run had too few samples."""

    value: float | None
    half: float | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times better, and the factor its 95 % interval spans up and down."""

    value: float | None
    factor: float | None = None

    @property
    def is_better(self) -> bool:
        """The whole interval says better, and the difference is worth naming."""
        return bool(
            self.value and self.factor and self.value / self.factor > 1 and self.value >= NOTABLE
        )

    @property
    def is_worse(self) -> bool:
        """The whole interval says worse, and the difference is worth naming."""
        return bool(
            self.value
            and self.factor
            and self.value * self.factor < 1
            and self.value <= 1 / NOTABLE
        )


def estimate_of(results: Sequence[dict[str, Any]], metric: str) -> Estimate:
    """Mean of a metric over the runs of one system."""
    values = [result["metrics"].get(metric) for result in results]
    if any(value is None for value in values):
        return Estimate(None)
    return Estimate(*mean_and_half_width([float(value) for value in values]))


def speedup_of(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], metric: str
) -> Ratio:
    """How many times better our runs are than theirs, paired in their order."""
    ratios = []
    for our, their in zip(ours, theirs, strict=True):
        mine, other = our["metrics"].get(metric), their["metrics"].get(metric)
        if not mine or not other:
            return Ratio(None)
        ratios.append(mine / other if metric in MORE_IS_BETTER else other / mine)
    return Ratio(*ratio_and_factor(ratios))


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

    def estimate(self, system: str, metric: str) -> Estimate:
        """Mean over runs of a metric."""
        return estimate_of(self.results[system], metric)

    def speedup(self, system: str, baseline: str, metric: str) -> Ratio:
        """How many times better `system` is than `baseline`, paired by run."""
        return speedup_of(self.results[system], self.results[baseline], metric)

    def verdict(self, system: str) -> str | None:
        """Where vLLM 0.3.3 would have stopped, in any of the runs."""
        for result in self.results[system]:
            if result["verdict"]:
                return str(result["verdict"])
        return None

    def frame(self) -> pandas.DataFrame:
        """One row per system and run, one column per metric; NaN where there were too few
        samples."""
        from explore import frames  # noqa: PLC0415  pandas is slow to import

        return frames.of_comparison(self)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of the two baselines that were run."""
        return tuple(name for name in BASELINES if name in self.results)


def compare(
    scenario: Scenario,
    systems: Sequence[str] | None = None,
    runs: int = 3,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
    order: OrderLike | None = None,
) -> Comparison:
    """Run every system `runs` times on the same inputs. Deterministic for any number of workers.

    `order`: the user's own in place of the scenario's. One given by name travels to the workers; an
    object (an Order, a class of a notebook's cell) stays, and all runs are made in this process.
    """
    own = None if order is None else user_order(order)
    if own is not None and own.text is None:
        if workers is not None and workers > 1:
            raise ConfigError(
                f"order {own.name}: an object cannot go to {workers} workers; name it as module:MyOrder"
                " or file.py:MyOrder, or leave workers out"
            )
        workers = 1
    names = tuple(named_system(name).name for name in (systems or scenario.systems or _DEFAULT))
    names = tuple(dict.fromkeys(names))
    jobs = [
        job_for(scenario, name, scenario.run + run, with_timeline=run == 0, order=own)
        for run in range(runs)
        for name in names
    ]
    found = run_jobs(jobs, workers, progress)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index, result in enumerate(found):
        results[names[index % len(names)]].append(result)
    profile = profiles.load(scenario.profile).with_values(dict(scenario.profile_values))
    comparison = Comparison(
        scenario,
        names,
        runs,
        results,
        _load(scenario, results, names, own),
        {name: q.model_dump(mode="json") for name, q in profile.assumptions().items()},
        provenance(scenario, profile, own),
    )
    comparison.notes.extend(_notes(comparison))
    return comparison


_DEFAULT = (*BASELINES, "+groups", "+reuse", "fastswitch", "+block-major", "+batched")


def num_jobs(scenario: Scenario, systems: Sequence[str] | None, runs: int) -> int:
    """How many simulations `compare` will run, for a progress bar."""
    return len(dict.fromkeys(systems or scenario.systems or _DEFAULT)) * runs


# ---------------------------------------------------------------------- load


def _load(
    scenario: Scenario,
    results: dict[str, list[dict[str, Any]]],
    names: Sequence[str],
    own: UserOrder | None,
) -> Load:
    """Offered load against what the baseline makes of a backlog; the drop-in baseline with kept KV
    if it was run."""
    baseline = next((name for name in reversed(BASELINES) if name in names), names[0])
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
        if name in BASELINES and not any(m["preemptions"] for m in metrics):
            notes.append(
                f"ATTENTION: {name} never preempts here. Speed-ups over it say nothing about"
                " swapping."
            )
    for result in comparison.results[comparison.systems[0]][:1]:
        notes.extend(f"Warning: {line}." for line in result["warnings"])
    if comparison.runs < 5:
        notes.append(
            f"{comparison.runs} runs: intervals are wide and P99.9 of TTFT rests on few turns."
        )
    return notes


@dataclass(frozen=True)
class Worth:
    """What one mechanism is worth: the system that has it against the one that lacks it."""

    mechanism: str
    system: str
    against: str
    ratios: dict[str, Ratio]
    words: str


_MECHANISMS = (
    ("block groups", "+groups", "vllm-0.3.3-keep"),
    ("KV reuse", "+reuse", "+groups"),
    ("asynchronous swapping", "fastswitch", "+reuse"),
    ("asynchronous swapping", "fastswitch", "fastswitch-no-async"),
    ("KV reuse", "fastswitch", "fastswitch-no-reuse"),
    ("block groups", "fastswitch", "fastswitch-no-groups"),
    ("block-major layout alone", "+block-major", "vllm-0.3.3-keep"),
    ("batched submission alone", "+batched", "vllm-0.3.3-keep"),
    ("block groups instead of a block-major layout", "+groups", "+block-major"),
    ("all three on a block-major layout", "fastswitch-block-major", "+block-major"),
    ("keeping KV between turns", "vllm-0.3.3-keep", "vllm-0.3.3"),
)
_WORTH_METRICS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "throughput_tok_s",
)


def worth(comparison: Comparison) -> list[Worth]:
    """Every mechanism for which both systems were run."""
    found = []
    for mechanism, system, against in _MECHANISMS:
        if system not in comparison.results or against not in comparison.results:
            continue
        ratios = {m: comparison.speedup(system, against, m) for m in _WORTH_METRICS}
        found.append(Worth(mechanism, system, against, ratios, _worth_in_words(ratios)))
    return found


def _worth_in_words(ratios: dict[str, Ratio]) -> str:
    better = ", ".join(_told(name, ratio) for name, ratio in ratios.items() if ratio.is_better)
    worse = ", ".join(_told(name, ratio) for name, ratio in ratios.items() if ratio.is_worse)
    if better and not worse:
        return f"pays: {better}"
    if worse and not better:
        return f"does not pay: worse in {worse}"
    if better:
        return f"mixed: better in {better}; worse in {worse}"
    if all(ratio.factor is None for ratio in ratios.values()):
        return "one run, so no interval: nothing can be said"
    return "no difference shown with these runs"


def _told(name: str, ratio: Ratio) -> str:
    return f"{_PLAIN[name]} {ratio.value:.2f}x"


_PLAIN = {
    "ttft_p50_s": "TTFT P50",
    "ttft_p95_s": "TTFT P95",
    "ttft_p99_s": "TTFT P99",
    "tbt_p99_s": "TBT P99",
    "tbt_p999_s": "TBT P99.9",
    "throughput_tok_s": "throughput",
}
