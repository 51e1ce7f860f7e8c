"""What is best: objectives to be made large or small, and limits that an answer must keep.

    max-goodput-under-slo  most turns per second that kept the SLO, attainment being high enough
    max-rate-under-sla     the highest arrival rate under which the limits hold
    pareto                 P99 of TTFT, P99.9 of TBT and throughput: the points that none beats in all

Every recipe also asks that all turns are served (`completion`), unless a limit says how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from explore.studies.estimates import Estimate, estimate_of
from explore.words import HEADINGS
from traces.workload_spec import Section

if TYPE_CHECKING:
    from explore.search.spec import SearchSpec

RATE = "workload.rate"
_SLO = ("goodput_per_s", "slo_attainment", "slo_attainment_min")
#: What may be limited: what tables show, what an SLO asks for, and the share of turns served.
METRICS = frozenset({*HEADINGS, *_SLO, "completion"})

Number = Annotated[float, Field(allow_inf_nan=False)]


class Bound(Section):
    """A limit of a metric's mean over runs."""

    at_most: Number | None = None
    at_least: Number | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Bound:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give at_most or at_least, one of the two")
        return self

    def excess(self, value: float) -> float:
        """How far a value is beyond the limit, beside the limit's size; not above 0 if it holds."""
        limit = self.at_most if self.at_most is not None else self.at_least
        assert limit is not None
        beyond = value - limit if self.at_most is not None else limit - value
        return beyond / (abs(limit) or 1.0)

    def holds_surely(self, found: Estimate) -> bool:
        """Whether the whole interval keeps the limit."""
        if found.interval is None:
            return False
        low, high = found.interval
        return self.excess(high if self.at_most is not None else low) <= 0


@dataclass(frozen=True)
class Objective:
    """A metric, or the value of a knob, and which way is better."""

    name: str
    way: Literal["max", "min"]
    is_knob: bool = False

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return 1 if self.way == "max" else -1

    def values(
        self, point: Mapping[str, Any], runs: Sequence[dict[str, Any]]
    ) -> list[float] | None:
        """Of every run; None if some run has too few samples to tell."""
        if self.is_knob:
            return [float(point[self.name])] * len(runs)
        found = [run["metrics"].get(self.name) for run in runs]
        return None if None in found else [float(value) for value in found if value is not None]


RECIPES: dict[str, tuple[Objective, ...]] = {
    "max-goodput-under-slo": (Objective("goodput_per_s", "max"),),
    "max-rate-under-sla": (Objective(RATE, "max", is_knob=True),),
    "pareto": (
        Objective("ttft_p99_s", "min"),
        Objective("tbt_p999_s", "min"),
        Objective("throughput_tok_s", "max"),
    ),
}


def limits_of(spec: SearchSpec) -> dict[str, Bound]:
    """Those given, and those that belong to the recipe."""
    own = {"completion": Bound(at_least=1.0)}
    if spec.recipe == "max-goodput-under-slo":
        own["slo_attainment"] = Bound(at_least=spec.attainment)
    return {**own, **spec.limits}


def told(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results with the share of turns served among their metrics; a turn whose client left counts
    for neither side."""
    found = []
    for run in runs:
        metrics = run["metrics"]
        wanted = metrics["rows"] - metrics["cancelled"]
        completion = metrics["finished"] / wanted if wanted else None
        found.append({**run, "metrics": {**metrics, "completion": completion}})
    return found


def excesses(
    limits: Mapping[str, Bound], runs: Sequence[dict[str, Any]]
) -> dict[str, tuple[Estimate, float | None]]:
    """Of every limited metric its mean, and how far it is beyond the limit; None if n is too small."""
    found = {}
    for metric, bound in limits.items():
        estimate = estimate_of(runs, metric)
        found[metric] = (estimate, None if estimate.value is None else bound.excess(estimate.value))
    return found
