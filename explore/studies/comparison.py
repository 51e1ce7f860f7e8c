"""What a comparison of systems found: its runs, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from explore.studies.warm_up import WarmUp
from policy.systems import BASELINE_NAMES
from runs.scenario import Scenario

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

STUDIES = ("terminating", "steady-state")


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

    def figure(self, name: str = "speedups", width: str = "double") -> Figure:
        """One of its figures (explore.report.figures.FIGURES), as wide as a paper's `single` column or as
        its `double` one: `found.figure("tails").savefig("tails.pdf")`. Raises ConfigError."""
        from explore.report import figures, plot  # noqa: PLC0415  matplotlib is slow to import

        return plot.figure(figures.pictures(self, name), width)

    def figure_csv(self, name: str = "speedups") -> str:
        """The numbers behind a figure, as CSV. Raises ConfigError."""
        from explore.report import figures  # noqa: PLC0415

        return figures.as_csv(figures.pictures(self, name))

    def latex(self) -> str:
        """The headline numbers as a table for a paper, to be used with booktabs."""
        from explore.studies import latex  # noqa: PLC0415  it reads what is defined here

        return latex.table(self)

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
