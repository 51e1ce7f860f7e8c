"""How many replicas keep a service level: the fewest, run by run, and what one less and one more do.

The size is doubled until it keeps every limit, then halved in on. That more replicas never serve worse is
taken for granted, and looked at: the answer's own neighbours are simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from calibrate import profile as profiles
from explore.plan.candidates import Candidate
from policy.errors import ConfigError
from runs.metrics.columns import columns_of
from runs.metrics.fleet import summarise_fleet
from runs.scenario import Scenario
from runs.serving import Kept
from sim.fleet.simulate import simulate_fleet
from traces.strict import quoted

Limits = dict[str, float]
#: Metrics that a service level may limit.
LIMITED = tuple(
    f"{name}_{q}_s"
    for name, qs in (
        ("ttft", ("p50", "p95", "p99", "p999")),
        ("tbt", ("p50", "p95", "p99", "p999")),
        ("tpot", ("p50", "p99")),
        ("e2e", ("p50", "p99")),
    )
    for q in qs
)
#: Of a month, for what a user costs.
HOURS = 730


@dataclass(frozen=True)
class Point:
    """One size in one run. `metrics`: of the steady window; `busy`: share of time in which a GPU computes,
    mean over replicas; `kv`: largest share of KV blocks taken; `preempted`, `link`: as in recordings."""

    replicas: int
    metrics: dict[str, Any]
    busy: float
    kv: float
    preempted: int
    link: float

    def keeps(self, limits: Limits) -> bool:
        """Every limit. What too few turns tell, or turns whose clients left, does not."""
        return all(
            self.metrics.get(name) is not None and self.metrics[name] <= limit
            for name, limit in limits.items()
        )


@dataclass(frozen=True)
class Sized:
    """The answer for one candidate. `needed`: by run, None beyond `most`. `points`: by size, of each run."""

    candidate: Candidate
    needed: tuple[int | None, ...] = ()
    points: dict[int, list[Point]] = field(default_factory=dict)

    @property
    def answer(self) -> int | None:
        """Replicas that are enough in every run; None if it is not known."""
        if not self.needed or None in self.needed:
            return None
        return max(count for count in self.needed if count is not None)

    def worst(self, replicas: int, metric: str) -> float | None:
        """Over runs, at a size that was simulated in all; None if it was not, or too few turns tell."""
        values = [one.metrics.get(metric) for one in self.points.get(replicas, ())]
        known = [value for value in values if value is not None]
        return max(known) if known and len(known) == len(values) == len(self.needed) else None


@dataclass(frozen=True)
class Asked:
    """What a plan is of. `most`: replicas tried at most."""

    scenario: Scenario
    limits: Limits
    runs: int
    warm_up_s: float
    most: int

    def __post_init__(self) -> None:
        for name in self.limits:
            if name not in LIMITED:
                raise ConfigError(f"--slo: {quoted(name)} is not one of {', '.join(LIMITED)}")


def size(
    asked: Asked, candidate: Candidate, advance: Callable[[], None], kept: Kept | None = None
) -> Sized:
    """The fewest replicas, and their neighbours. Raises ConfigError where runs are too short to tell."""
    if candidate.profile is None:
        return Sized(candidate)
    kept = Kept() if kept is None else kept
    known: dict[tuple[int, int], Point] = {}

    def at(replicas: int, run: int) -> Point:
        if (replicas, run) not in known:
            known[replicas, run] = simulated(asked, candidate, replicas, run, kept)
            advance()
        return known[replicas, run]

    needed = [_fewest(asked, run, at) for run in range(asked.runs)]
    found = [count for count in needed if count is not None]
    if len(found) == len(needed):
        for count in (max(found) - 1, max(found), max(found) + 1):
            for run in range(asked.runs):
                if count:
                    at(count, run)
    points: dict[int, list[Point]] = {}
    for (count, _), point in sorted(known.items()):
        points.setdefault(count, []).append(point)
    return Sized(candidate, tuple(needed), points)


def _fewest(asked: Asked, run: int, at: Callable[[int, int], Point]) -> int | None:
    """The fewest replicas that keep every limit in a run, None if `most` do not."""
    low, high = 0, 1
    while not at(high, run).keeps(asked.limits):
        if high == asked.most:
            return None
        low, high = high, min(2 * high, asked.most)
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle, run).keeps(asked.limits):
            high = middle
        else:
            low = middle
    return high


def simulated(asked: Asked, candidate: Candidate, replicas: int, run: int, kept: Kept) -> Point:
    """One size in one run."""
    scenario = asked.scenario.with_values(
        {
            "profile": candidate.profile,
            "replicas": [{"count": replicas, "gpus": candidate.gpus}],
            "run": asked.scenario.run + run,
        }
    )
    fleet = simulate_fleet(scenario, check="off", kept=kept)
    metrics = summarise_fleet(fleet, warm_up_s=asked.warm_up_s)
    members = [one.summary["metrics"] for one in fleet.members]
    largest = [
        1
        - int(columns_of(one, "steps")["free_blocks"].min(initial=1 << 40))
        / one.summary["device_blocks"]
        for one in fleet.members
        if one.table("steps").num_rows
    ]
    return Point(
        replicas,
        metrics,
        sum(_busy(one) for one in members) / len(members),
        max(largest, default=0.0),
        sum(one["preemptions"] for one in members),
        max(one[f"link_busy_{way}"] or 0.0 for one in members for way in ("h2d", "d2h")),
    )


def _busy(metrics: dict[str, Any]) -> float:
    if not metrics["makespan_s"]:
        return 0.0
    return float((metrics["gpu_utilisation"] or 0.0) * metrics["live_s"] / metrics["makespan_s"])


def bottleneck(sized: Sized) -> str:
    """What the size below the answer lacks, or what the answer itself uses most if one replica is enough."""
    answer = sized.answer
    assert answer is not None
    at = answer - 1 if answer > 1 else answer
    points = sized.points[at]
    kv, busy = max(p.kv for p in points), max(p.busy for p in points)
    preempted, link = max(p.preempted for p in points), max(p.link for p in points)
    uneven = max(p.metrics["idle_while_others_wait"] for p in points)
    told = (
        f"at {at}: KV blocks taken up to {100 * kv:.0f} %, {preempted} preemptions, GPU busy"
        f" {100 * busy:.0f} %, link {100 * link:.0f} %"
    )
    if preempted:
        return f"KV room ({told})"
    if link > 0.5:
        return f"link ({told})"
    if uneven > 0.2:
        return (
            f"router: a replica idle while another had turns waiting {100 * uneven:.0f} % ({told})"
        )
    return f"compute ({told})"


def gpus_of(sized: Sized) -> int | None:
    """GPUs in all."""
    return None if sized.answer is None else sized.answer * sized.candidate.gpus


def hours_per_million(sized: Sized) -> float | None:
    """GPU hours of a million output tokens at the answer, mean over runs."""
    gpus = gpus_of(sized)
    if gpus is None or sized.answer is None:
        return None
    rates = [p.metrics["throughput_tok_s"] for p in sized.points[sized.answer]]
    if None in rates or not sum(rates):
        return None
    return float(gpus * len(rates) / sum(rates) / 3600 * 1e6)


def kind_of(name: str) -> str:
    """How a profile is known."""
    return profiles.load(name).kind
