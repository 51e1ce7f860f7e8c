"""A prediction beside what was measured: real runs, and the simulator given the same to serve.

Memory sizes come from the runs, costs from a profile, everything else from the runs' own scenario. Runs
of one system and scenario are repeats: their mean is what was measured, and largest minus smallest is
its spread, below which no error means anything.

A step a little longer or shorter lets other arrivals in, and from there on all decisions differ: under
preemption one simulation is one draw of many. So a measured profile is played several times, each with all steps as much longer or shorter as
the profile's own error leaves open; their mean is the prediction, and smallest and largest are told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

from calibrate import profile as profiles
from calibrate.profile import Profile
from explore.validation.blame import PARTS, Cause, divided, responsible, unbiased
from explore.validation.divergence import Divergence, diverges
from explore.validation.step_replay import Compared, CostErrors, compare, errors, merged
from explore.validation.validate import replay
from policy.errors import ConfigError
from runs import recording, scenario
from runs.recording import Recording
from runs.scenario import Scenario
from sim.simulate import simulate
from traces.strict import shown, shown_path

METRICS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_p999_s",
    "tbt_p50_s",
    "tbt_p95_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "throughput_live_tok_s",
    "stall_share",
    "preemptions",
    "blocks_out",
    "blocks_in",
    "copy_bytes",
)
#: Those that a ratio between two systems is told for.
RATIOS = METRICS[:9]
#: Simulations that make a prediction.
DRAWS = 9
#: An error is within its bar up to this share of what was measured, or so many spreads.
BAR_SHARE, BAR_SPREADS = 0.10, 1.5


@dataclass(frozen=True)
class Line:
    """One number twice: the mean of what was measured, with the smallest and largest of the runs, and
    that of what was predicted, likewise. None: too few samples; for ends also, only one run."""

    system: str
    metric: str
    measured: float | None
    low: float | None
    high: float | None
    predicted: float | None
    predicted_low: float | None = None
    predicted_high: float | None = None

    @property
    def spread(self) -> float | None:
        """Largest minus smallest of the repeats; None for a single run."""
        if self.low is None or self.high is None:
            return None
        return self.high - self.low

    @property
    def error(self) -> float | None:
        """Predicted less measured, as a share of measured."""
        if self.measured is None or self.predicted is None:
            return None
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else None
        return (self.predicted - self.measured) / self.measured

    @property
    def bar(self) -> float | None:
        """How large an error may be, as a share of measured."""
        if not self.measured:
            return None
        return max(BAR_SHARE, BAR_SPREADS * (self.spread or 0.0) / self.measured)

    @property
    def is_within(self) -> bool | None:
        """The error is within its bar."""
        if self.error is None or self.bar is None:
            return None
        return abs(self.error) <= self.bar


@dataclass(frozen=True)
class Prediction:
    """One scenario. Systems in the order given; `ratios` against the first of them. `replays`: whether
    every decision of a system's first run could be made again, None without what a replay needs.
    `costs`: each system's steps and copies alone; `causes`: of the lines outside their bars."""

    scenario: str
    repeats: dict[str, int]
    lines: tuple[Line, ...]
    ratios: tuple[Line, ...]
    divergences: tuple[Divergence, ...]
    replays: dict[str, bool | None]
    costs: dict[str, tuple[CostErrors, ...]]
    causes: tuple[Cause, ...]
    #: Every step and copy compared, for figures.
    compared: dict[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Validation:
    """All scenarios that there are runs of, with one profile."""

    profile: str
    predictions: tuple[Prediction, ...]
    warnings: tuple[str, ...]


def predict(
    runs: Sequence[Path], profile: str, progress: Callable[[], None] | None = None
) -> Validation:
    """Simulate what each group of real runs served. Raises ConfigError, InputError."""
    loaded = profiles.load(profile).with_python()  # the runs are our own executor's
    predictions, warnings = [], loaded.warnings()
    for name, groups in _by_scenario(runs).items():
        systems = [_System(system, found, loaded) for system, found in groups.items()]
        for one in systems:
            one.predict()
            warnings += [f"{name}, {one.name}: {text}" for text in one.warnings()]
            if progress is not None:
                progress()
        predictions.append(_prediction(name, systems))
    return Validation(profile, tuple(predictions), tuple(dict.fromkeys(warnings)))


def as_simulated(recorded: Recording, profile: Profile) -> Scenario:
    """The scenario of a real run, with the run's own memory sizes and limits and this profile's name;
    numbers that it put over another profile's are not this one's."""
    summary = recorded.summary
    assert recorded.folder is not None
    return scenario.load(
        str(recorded.folder / "scenario.yaml"),
        {
            "profile": profile.name,
            "profile_values": {},
            "pool.device_blocks": summary["device_blocks"],
            "pool.host_blocks": summary["host_blocks"],
            "limits.max_model_len": summary["max_model_len"],
            "limits.max_num_seqs": summary["max_num_seqs"],
            "limits.max_num_batched_tokens": summary["max_num_batched_tokens"],
        },
    )


def within_its_error(profile: Profile) -> list[Profile]:
    """The profile with all steps longer or shorter by what its own error leaves open of their level: the
    standard error of the mean over the points held out, at even quantiles of a normal law, the middle
    one left out. None of a profile without points."""
    if profile.fit is None:
        return []
    errors = profile.fit.steps
    # the mean of |N(0, s)| is s * sqrt(2 / pi)
    level = errors.mean * math.sqrt(math.pi / 2 / max(1, errors.points))
    quantiles = ((index + 0.5) / DRAWS for index in range(DRAWS) if 2 * index + 1 != DRAWS)
    offs = [level * NormalDist().inv_cdf(quantile) for quantile in quantiles]
    return [divided(profile, decode=off, prefill=off) for off in offs]


# ---------------------------------------------------------------------- one system


class _System:
    """The real runs of one system, and the same simulated."""

    def __init__(self, name: str, runs: list[Recording], profile: Profile) -> None:
        self.name = name
        self.runs = runs
        self.measured: list[dict[str, Any]] = [one.summary["metrics"] for one in runs]
        self.predicted: list[dict[str, Any]] = []
        self.costs: tuple[CostErrors, ...] = ()
        self.compared: list[Compared] = []
        self.divergence: Divergence | None = None
        self.replay_is_exact: bool | None = None
        self._profile = profile
        self._scenario = as_simulated(runs[0], profile)
        self._warnings: list[str] = []

    def predict(self) -> None:
        """Simulate, compare, and look for causes."""
        simulated = simulate(self._scenario, decisions=True, profile=self._profile)
        for one in self.runs:
            _check_served(one, simulated)
        self.predicted = [simulated.summary["metrics"], *self._draws(self._profile)]
        of_profile = self._profile.warnings()
        self._warnings = [w for w in simulated.summary["warnings"] if w not in of_profile]
        self._warnings += _unlike(self.runs, self._profile)
        self.divergence = diverges(self.name, self.runs[0], simulated)
        self.replay_is_exact = _replays(self.runs[0])
        system = self._scenario.resolve_system()
        self.compared = merged([compare(one, self._profile, system) for one in self.runs])
        spans = [float(one.summary["metrics"]["makespan_s"]) * 1e9 for one in self.runs]
        self.costs = tuple(errors(self.compared, round(sum(spans))))

    def _draws(self, profile: Profile) -> list[dict[str, Any]]:
        """What the profile predicts besides, within its own error."""
        return [
            dict(simulate(self._scenario, profile=one).summary["metrics"])
            for one in within_its_error(profile)
        ]

    @cached_property
    def without(self) -> dict[str, list[dict[str, Any]]]:
        """What would be predicted with the bias of one part's costs taken out."""
        found = {}
        for part in PARTS:
            profile = unbiased(self._profile, self.costs, part)
            found[part] = [simulate(self._scenario, profile=profile).summary["metrics"]]
            found[part] += self._draws(profile)
        return found

    def warnings(self) -> list[str]:
        """What the simulation warned of, and how the runs differ from the calibration."""
        return self._warnings

    def lines(self) -> list[Line]:
        """One for every metric."""
        return [
            _line(self.name, metric, _of(self.measured, metric), _of(self.predicted, metric))
            for metric in METRICS
        ]

    def causes(self) -> list[Cause]:
        """Of the errors that are outside their bars."""
        found = []
        for line in self.lines():
            if line.is_within is not False or line.error is None or line.bar is None:
                continue
            without = {
                part: _line(
                    line.system, line.metric, [line.measured], _of(drawn, line.metric)
                ).error
                for part, drawn in self.without.items()
            }
            who = responsible(line.error, line.bar, without, replay_is_exact=self.replay_is_exact)
            found.append(Cause(self.name, line.metric, line.error, without, who))
        return found


def _prediction(name: str, systems: Sequence[_System]) -> Prediction:
    return Prediction(
        name,
        {one.name: len(one.runs) for one in systems},
        tuple(line for one in systems for line in one.lines()),
        tuple(_ratios(systems)),
        tuple(one.divergence for one in systems if one.divergence is not None),
        {one.name: one.replay_is_exact for one in systems},
        {one.name: one.costs for one in systems},
        tuple(cause for one in systems for cause in one.causes()),
        {one.name: one.compared for one in systems},
    )


def _replays(recorded: Recording) -> bool | None:
    assert recorded.folder is not None
    if not all((recorded.folder / f"{name}.jsonl").is_file() for name in ("decisions", "replay")):
        return None
    return replay(recorded.folder).difference is None


def _unlike(runs: Sequence[Recording], profile: Profile) -> list[str]:
    """How the machine of the runs is not the one that was calibrated."""
    found = []
    known = profile.provenance or {}
    for key in ("threads", "torch", "cuda"):
        there = {str(one.summary.get("provenance", {}).get(key)) for one in runs} - {"None"}
        if key in known and there and there != {known[key]}:
            found.append(f"{key}: runs had {', '.join(sorted(there))}, the profile {known[key]}")
    return found


# ---------------------------------------------------------------------- groups of runs


def _by_scenario(runs: Sequence[Path]) -> dict[str, dict[str, list[Recording]]]:
    """Scenario name -> system -> its runs, in the order given. Raises ConfigError for runs that cannot
    be compared."""
    found: dict[str, dict[str, list[Recording]]] = {}
    for run in runs:
        one = recording.load(run)
        if one.summary.get("machine") != "real" or one.summary.get("was_stopped"):
            raise ConfigError(f"{shown_path(run)}: is no whole run of a real machine")
        if (one.summary.get("provenance") or {}).get("order") is not None:
            raise ConfigError(
                f"{shown_path(run)}: was made with the user's order"
                f" {shown(str(one.summary.get('order')))}; only built-in ones are predicted so far"
            )
        groups = found.setdefault(str(one.summary["scenario"]), {})
        groups.setdefault(str(one.summary["system"]), []).append(one)
    for groups in found.values():
        _check_alike([one for group in groups.values() for one in group])
    return found


def _check_alike(recordings: Sequence[Recording]) -> None:
    """Raise ConfigError unless all were made from one scenario, the system apart."""
    first = None
    for one in recordings:
        assert one.folder is not None
        described = scenario.load(str(one.folder / "scenario.yaml")).model_dump(mode="json")
        described.pop("system")
        if first is None:
            first = described
        names = [name for name in first if first[name] != described[name]]
        if names:
            raise ConfigError(
                f"{shown_path(one.folder)}: differs from the first run of {described['name']} in"
                f" {', '.join(names)}; runs that are compared differ in their system alone"
            )


def _check_served(recorded: Recording, simulated: Recording) -> None:
    """Raise ConfigError if the run served something else than its scenario names, as a run with
    --conversation does."""
    names = ["request_id", "input_tokens", "output_tokens"]
    left, right = (
        {tuple(row.values()) for row in one.table("workload", names).to_pylist()}
        for one in (recorded, simulated)
    )
    if left != right:
        assert recorded.folder is not None
        raise ConfigError(
            f"{shown_path(recorded.folder)}: served other turns than its scenario's workload; it"
            " cannot be predicted"
        )


# ---------------------------------------------------------------------- lines


def _of(runs: Sequence[dict[str, Any]], metric: str) -> list[float | None]:
    return [run.get(metric) for run in runs]


def _line(
    system: str,
    metric: str,
    measured: Sequence[float | None],
    predicted: Sequence[float | None],
) -> Line:
    return Line(system, metric, *_mean_and_ends(measured), *_mean_and_ends(predicted))


def _mean_and_ends(
    values: Sequence[float | None],
) -> tuple[float | None, float | None, float | None]:
    """None where one had too few samples; ends of several alone."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None, None
    mean = sum(known) / len(known)
    return (mean, min(known), max(known)) if len(known) > 1 else (mean, None, None)


def _ratios(systems: Sequence[_System]) -> list[Line]:
    """Every system against the first: its metric as a multiple of that one's, repeat by repeat and
    simulation by simulation."""
    base, *others = systems
    found = []
    for one in others:
        for metric in RATIOS:
            measured, predicted = (
                [
                    _quotient(above, below)
                    for above, below in zip(_of(left, metric), _of(right, metric), strict=False)
                ]
                for left, right in (
                    (one.measured, base.measured),
                    (one.predicted, base.predicted),
                )
            )
            found.append(_line(f"{one.name} / {base.name}", metric, measured, predicted))
    return found


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
