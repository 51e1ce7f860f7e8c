"""A prediction beside what was measured: real runs, and the simulator given the same to serve.

Memory sizes come from the runs, costs from a profile, everything else from the runs' own scenario. Runs
of one system and scenario are repeats: their mean is what was measured, and largest minus smallest is
its spread, below which no error means anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policy.errors import ConfigError
from sim.simulate import simulate
from traces import recording, scenario
from traces.recording import Recording
from traces.scenario import Scenario
from traces.strict import shown_path

METRICS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_p999_s",
    "tbt_p50_s",
    "tbt_p95_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "throughput_makespan_tok_s",
    "stall_share",
    "preemptions",
    "blocks_out",
    "blocks_in",
    "copy_bytes",
)
#: Those that a ratio between two systems is told for.
RATIOS = METRICS[:9]
#: An error is within its bar up to this share of what was measured, or so many spreads.
BAR_SHARE, BAR_SPREADS = 0.10, 1.5


@dataclass(frozen=True)
class Line:
    """One number twice. None: too few samples. `spread` None: a single run."""

    system: str
    metric: str
    measured: float | None
    spread: float | None
    predicted: float | None

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
class Divergence:
    """How far the simulated decisions are the recorded ones, times aside. `first`: the first line
    that is not, with what it holds that the other does not."""

    system: str
    equal_lines: int
    lines: int
    first: str


@dataclass(frozen=True)
class Prediction:
    """Systems in the order given; `ratios` against the first of them."""

    profile: str
    repeats: dict[str, int]
    lines: tuple[Line, ...]
    ratios: tuple[Line, ...]
    divergences: tuple[Divergence, ...]
    warnings: tuple[str, ...]


def predict(
    runs: Sequence[Path], profile: str, progress: Callable[[], None] | None = None
) -> Prediction:
    """Simulate what each group of real runs served. Raises ConfigError, InputError."""
    groups = _groups(runs)
    measured: dict[str, list[dict[str, Any]]] = {}
    predicted: dict[str, dict[str, Any]] = {}
    divergences, warnings = [], []
    for system, recordings in groups.items():
        measured[system] = [one.summary["metrics"] for one in recordings]
        simulated = simulate(as_simulated(recordings[0], profile), decisions=True)
        for one in recordings:
            _check_served(one, simulated)
        predicted[system] = simulated.summary["metrics"]
        warnings += [f"{system}: {text}" for text in simulated.summary["warnings"]]
        found = diverges(system, recordings[0], simulated)
        if found is not None:
            divergences.append(found)
        if progress is not None:
            progress()
    lines = [
        _line(system, metric, [m.get(metric) for m in found], predicted[system].get(metric))
        for system, found in measured.items()
        for metric in METRICS
    ]
    return Prediction(
        profile,
        {system: len(found) for system, found in measured.items()},
        tuple(lines),
        tuple(_ratios(measured, predicted)),
        tuple(divergences),
        tuple(dict.fromkeys(warnings)),
    )


def as_simulated(recorded: Recording, profile: str) -> Scenario:
    """The scenario of a real run, with the run's own memory sizes and this profile."""
    summary = recorded.summary
    assert recorded.folder is not None
    return scenario.load(
        str(recorded.folder / "scenario.yaml"),
        {
            "profile": profile,
            "pool.device_blocks": summary["device_blocks"],
            "pool.host_blocks": summary["host_blocks"],
            "limits.max_model_len": summary["max_model_len"],
        },
    )


def _groups(runs: Sequence[Path]) -> dict[str, list[Recording]]:
    found: dict[str, list[Recording]] = {}
    for run in runs:
        one = recording.load(run)
        if one.summary.get("machine") != "real" or one.summary.get("was_stopped"):
            raise ConfigError(f"{shown_path(run)}: is no whole run of a real machine")
        found.setdefault(str(one.summary["system"]), []).append(one)
    _check_alike([one for group in found.values() for one in group])
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
                f"{shown_path(one.folder)}: differs from the first run in {', '.join(names)};"
                " runs that are compared differ in their system alone"
            )


def _check_served(recorded: Recording, simulated: Recording) -> None:
    """Raise ConfigError if the run served something else than its scenario names, as a run with
    --conversation does."""
    columns = ["request_id", "input_tokens", "output_tokens"]
    left, right = (
        {tuple(row.values()) for row in one.table("workload", columns).to_pylist()}
        for one in (recorded, simulated)
    )
    if left != right:
        assert recorded.folder is not None
        raise ConfigError(
            f"{shown_path(recorded.folder)}: served other turns than its scenario's workload; it"
            " cannot be predicted"
        )


def _line(system: str, metric: str, values: list[float | None], predicted: float | None) -> Line:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Line(system, metric, None, None, predicted)
    spread = max(known) - min(known) if len(known) > 1 else None
    return Line(system, metric, sum(known) / len(known), spread, predicted)


def _ratios(
    measured: dict[str, list[dict[str, Any]]], predicted: dict[str, dict[str, Any]]
) -> list[Line]:
    """Every system against the first: its metric as a multiple of that one's, repeat by repeat."""
    base, *others = measured
    found = []
    for system in others:
        for metric in RATIOS:
            pairs = zip(measured[system], measured[base], strict=False)
            values = [_quotient(a.get(metric), b.get(metric)) for a, b in pairs]
            ratio = _quotient(predicted[system].get(metric), predicted[base].get(metric))
            found.append(_line(f"{system} / {base}", metric, values, ratio))
    return found


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


# ---------------------------------------------------------------------- decisions


def diverges(system: str, recorded: Recording, simulated: Recording) -> Divergence | None:
    """Where the two logs part, if the run has one. Times are left out: they always differ."""
    assert recorded.folder is not None
    if not (recorded.folder / "decisions.jsonl").is_file():
        return None
    left = [json.loads(line) for line in recorded.decision_lines()]
    right = [json.loads(line) for line in simulated.decision_lines()]
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        names = [name for name in one if name != "now_ns" and one[name] != other.get(name)]
        if names:
            return Divergence(system, number, len(left), _parting(names, one, other))
    same = min(len(left), len(right))
    return Divergence(system, same, len(left), "" if len(left) == len(right) else "one log ends")


def _parting(names: list[str], recorded: dict[str, Any], simulated: dict[str, Any]) -> str:
    """In words: who is in a list of one log and not of the other's."""
    name = names[0]
    one, other = recorded[name], simulated[name]
    if not isinstance(one, list):
        return f"step {recorded['step']}: {name} is {one}, simulated {other}"
    only_real = [item for item in one if item not in other]
    only_simulated = [item for item in other if item not in one]
    return (
        f"step {recorded['step']}: {name}: really {json.dumps(only_real)},"
        f" simulated {json.dumps(only_simulated)}: something ended or arrived on the other side"
        " of this step's beginning"
    )


# ---------------------------------------------------------------------- as text and data


def as_json(found: Prediction) -> dict[str, Any]:
    """Everything, with each line's error and bar."""

    def one(line: Line) -> dict[str, Any]:
        return {
            **asdict(line),
            "error": line.error,
            "bar": line.bar,
            "is_within": line.is_within,
        }

    return {
        **asdict(found),
        "lines": [one(line) for line in found.lines],
        "ratios": [one(line) for line in found.ratios],
    }


def as_text(found: Prediction) -> str:
    """A table for people."""
    head = f"{'system':34} {'metric':26} {'measured':>11} {'spread':>9} {'predicted':>11} {'error':>8} {'bar':>7}"
    text = [f"profile {found.profile}", "", head, "-" * len(head)]
    for line in (*found.lines, *found.ratios):
        text.append(
            f"{line.system:34} {line.metric:26} {_number(line.measured):>11} {_number(line.spread):>9}"
            f" {_number(line.predicted):>11} {_percent(line.error):>8} {_percent(line.bar, 0):>7}"
            f" {'' if line.is_within is not False else 'outside'}".rstrip()
        )
    inside = [line.is_within for line in (*found.lines, *found.ratios)]
    text += ["", f"{inside.count(True)} within their bars, {inside.count(False)} outside"]
    for one in found.divergences:
        text.append(
            f"{one.system}: {one.equal_lines} of {one.lines} decisions foreseen; {one.first or 'all equal'}"
        )
    return "\n".join([*text, *(f"warning: {warning}" for warning in found.warnings)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
