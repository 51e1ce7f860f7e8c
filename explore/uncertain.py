"""Does a verdict survive what is not known about the machine? Two systems on machines drawn from a
profile's ranges, the same ones for both, and which numbers the difference hangs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibrate import profile as profiles
from policy.errors import ConfigError
from runs.scenario import Scenario
from sim.simulate import simulate

Floats = npt.NDArray[np.float64]
#: So many numbers are named.
NAMED = 2
#: Fewer draws say nothing about which number matters.
LEAST = 8


class Verdict(NamedTuple):
    """`metric` of two systems by draw, draw 0 first; `numbers`: those that the ratio moves with most,
    and their rank correlation with it."""

    metric: str
    systems: tuple[str, str]
    values: tuple[tuple[float, float], ...]
    numbers: tuple[tuple[str, float], ...]

    @property
    def ratios(self) -> list[float]:
        """Second over first."""
        return [second / first for first, second in self.values]

    @property
    def agreeing(self) -> float:
        """Share of drawn machines on which the same one is ahead as on the profile itself."""
        first, *others = self.ratios
        return sum((ratio < 1) == (first < 1) for ratio in others) / len(others)


def judge(
    scenario: Scenario,
    systems: tuple[str, str],
    metric: str,
    draws: int,
    progress: Callable[[], None] | None = None,
) -> Verdict:
    """Raises ConfigError for a system or a metric that there is not, too few draws, or a machine without ranges."""
    if draws < LEAST:
        raise ConfigError(f"--draws: {draws}; {LEAST} are the least that say anything")
    machine = profiles.load(scenario.profile)
    if not machine.ranged():
        raise ConfigError(f"profile {machine.name}: no number of it has a range to draw from")
    both = [scenario.with_values({"system": system}) for system in systems]
    values = []
    for draw in range(draws + 1):
        pair = []
        for one in both:
            run = one.with_values({"profile_draw": draw})
            pair.append(_metric(simulate(run, check="off").summary["metrics"], metric))
            if progress is not None:
                progress()
        values.append((pair[0], pair[1]))
    verdict = Verdict(metric, systems, tuple(values), ())
    return verdict._replace(numbers=_numbers(machine, np.array(verdict.ratios[1:])))


def _metric(metrics: dict[str, Any], name: str) -> float:
    value: Any = metrics
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"--metric: {name}: not a number above 0 in these runs, as ttft_p99_s is")
    return float(value)


def _numbers(machine: profiles.Profile, ratios: Floats) -> tuple[tuple[str, float], ...]:
    """By |Spearman's rank correlation| of a number with the ratio, over the draws."""
    drawn = [machine.drawn(draw + 1).ranged() for draw in range(len(ratios))]
    told = []
    for name in machine.ranged():
        values = np.array([one[name].value for one in drawn])
        found = np.corrcoef(_ranks(values), _ranks(ratios))[0, 1] if np.ptp(ratios) else 0.0
        told.append((name, float(found)))
    return tuple(sorted(told, key=lambda one: (-abs(one[1]), one[0]))[:NAMED])


def _ranks(values: Floats) -> Floats:
    return np.argsort(np.argsort(values, kind="stable")).astype(np.float64)


def as_text(verdict: Verdict) -> str:
    """In words."""
    first, *others = verdict.ratios
    low, middle, high = np.percentile(others, (5, 50, 95))
    one, two = verdict.systems
    ahead = two if first < 1 else one
    lines = [
        f"{verdict.metric}: {one} {verdict.values[0][0]:.4g}, {two} {verdict.values[0][1]:.4g},"
        f" ratio {first:.3f}",
        f"over {len(others)} machines within the profile's ranges: ratio {middle:.3f}"
        f" ({low:.3f} to {high:.3f}, 5th to 95th percentile)",
        f"less with {ahead} on {100 * verdict.agreeing:.0f} % of them"
        + ("" if verdict.agreeing >= 0.95 else ": the verdict does not survive"),
    ]
    hangs = ", ".join(f"{name} (rank correlation {rho:+.2f})" for name, rho in verdict.numbers)
    return "\n".join([*lines, f"it hangs most on {hangs}"])
