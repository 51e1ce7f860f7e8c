"""From a sweep to its trials: one scenario, one system, one run number each, in one total order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from explore.studies import semantics, sobol
from explore.studies.semantics import Inputs, canonical, digest, key_of, portable
from explore.studies.spec import Range, Source
from policy.errors import ConfigError, FastSwitchError
from policy.systems import System
from runs import scenario as scenarios
from runs.obeyed import Heeded, in_vain
from runs.user_order import UserOrder
from runs.user_system import asked_system, is_file
from traces.randomness import Streams
from traces.strict import quoted, shown

MAX_TRIALS = 100_000
#: Digits that a number drawn from a range keeps, so that it is the same on every machine.
DIGITS = 6


@dataclass(frozen=True)
class Trial:
    """One simulation. `scenario` is plain data for a worker; everything else is the same on every
    machine and is what the plan keeps."""

    point: int
    label: str
    values: dict[str, Any]
    system: str
    run: int
    key: str
    scenario: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """A row of the plan."""
        names = ("point", "label", "values", "system", "run", "key")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, in the order of its tables. A key may occur twice: it runs once.

    `beside`: what their keys depend on beside the scenarios (`key_of`). `purpose`: what else makes
    it this plan and no other. `grown_from`: the digest of the plan from which it grew, as results
    came in. `order`: the user's own, for whoever runs them. `unread`: fields that are asked for and that
    none of the trials reads, and why.
    """

    name: str
    paths: tuple[str, ...]
    trials: tuple[Trial, ...]
    semantics: int = field(default_factory=lambda: semantics.SEMANTICS)
    beside: Mapping[str, Any] = field(default_factory=dict)
    purpose: Mapping[str, Any] = field(default_factory=dict)
    grown_from: str = ""
    order: UserOrder | None = field(default=None, compare=False, repr=False)
    unread: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def digest(self) -> str:
        """Equal for equal plans, wherever they were made."""
        return digest(canonical(self.as_json()))

    @property
    def origin(self) -> str:
        """Equal for all that grew from one plan."""
        return self.grown_from or self.digest

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every key once, in order."""
        return tuple(dict.fromkeys(trial.key for trial in self.trials))

    @cached_property
    def has_labels(self) -> bool:
        """Whether any scenario has a name of its own."""
        return any(trial.label for trial in self.trials)

    def trials_of(self, point: int) -> tuple[Trial, ...]:
        """All trials of one point."""
        return tuple(trial for trial in self.trials if trial.point == point)

    def shard(self, index: int, count: int) -> tuple[str, ...]:
        """Keys of shard `index` of 1..count, divided by their own digits, so by nobody's order."""
        return tuple(key for key in self.keys if int(key[:16], 16) % count == index - 1)

    def as_json(self) -> dict[str, Any]:
        """The plan as the store keeps it."""
        return {
            "name": self.name,
            "semantics": self.semantics,
            **({"beside": dict(self.beside)} if self.beside else {}),
            **({"purpose": dict(self.purpose)} if self.purpose else {}),
            "paths": list(self.paths),
            "trials": [trial.as_json() for trial in self.trials],
        }


def expand(
    source: Source,
    values: dict[str, Any] | None = None,
    order: UserOrder | None = None,
    runs: Mapping[int, int] | None = None,
    known: dict[str, System] | None = None,
) -> Plan:
    """Every trial of a sweep; `values` are put over its scenario (`--set`), the user's own `order` in
    place of the scenario's. `runs`: of single points, in place of the sweep's. `known`: systems by
    name, of this plan and others that it is to be one with; in place.

    Raises ConfigError or InputError before anything runs, naming the point that is wrong.
    """
    spec = source.spec
    beside = source.measure.as_json()
    if order is not None:
        if "order" in {*spec.swept, *(path for one in spec.scenarios for path in one.set)}:
            raise source.fail("swept, and --order is given too", "order")
        beside["order"] = order.sources()
    base = _base(source)
    inputs = Inputs()
    trials: list[Trial] = []
    known = {} if known is None else known
    swept = {*source.spec.set, *(values or {}), *source.spec.swept}
    swept |= {path for one in source.spec.scenarios for path in one.set}
    heeded = Heeded(own_order=order is not None, chosen=swept)
    _refuse_two_choices(source, values or {})
    _refuse_too_many(source)
    for point, (label, chosen) in enumerate(_points(source)):
        given = {**spec.set, **(values or {}), **chosen}
        data = scenarios.merge(base, given)
        if source.path is not None:
            scenarios.find_beside(data, source.path)
        replications = range((runs or {}).get(point, spec.runs))
        for system, run in itertools.product(_systems(data, source, given), replications):
            try:
                made = _scenario(data, system, run)
                name = _name_of(made.resolve_system(), known)
                key = key_of(made, inputs, beside)
                heeded.add(made)
            except FastSwitchError as error:
                told = ", ".join(f"{path}={quoted(value)}" for path, value in chosen.items())
                at = f"point {point} ({shown(told, 200)}): " if told else ""
                message = str(error).removeprefix("sweep: ")
                raise type(error)(str(source.fail(at + message))) from None
            trials.append(
                Trial(point, label, _told(source, chosen), name, run, key, portable(made))
            )
    return Plan(
        spec.name,
        _columns(source),
        tuple(trials),
        beside=beside,
        order=order,
        unread=heeded.unread,
    )


def refuse_unread(plan: Plan, source: Source) -> None:
    """Raise ConfigError for what is asked for and changes no trial of a plan that has all there will be."""
    for field_, why in plan.unread.items():
        raise source.fail(in_vain(field_, why))


def _base(source: Source) -> dict[str, Any]:
    given = source.spec.scenario
    if isinstance(given, dict):
        return {"name": source.spec.name, **given}
    path = Path(given)
    if source.path is not None and not path.exists() and (source.path.parent / path).is_file():
        path = source.path.parent / path
        given = str(path)
    return scenarios.load(given).model_dump(mode="json", exclude_unset=True)


def _scenario(data: dict[str, Any], system: Any, run: int) -> scenarios.Scenario:
    first = data.get("run", 0)
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"run: {quoted(first)} is not a whole number")
    chosen = {"run": first + run} if system is None else {"system": system, "run": first + run}
    return scenarios.build({**data, **chosen}, "sweep")


def _systems(data: dict[str, Any], source: Source, given: dict[str, Any]) -> tuple[Any, ...]:
    """The sweep's systems, else the scenario's; one where `system`, or a switch of it, is given."""
    if source.spec.systems:
        return tuple([asked_system(s) if is_file(s) else s for s in source.spec.systems])
    listed = data.get("systems")
    if source.has_one_system or _is_chosen(given) or not listed:
        return (None,)
    return tuple(listed) if isinstance(listed, (list, tuple)) else (None,)


def _is_chosen(given: Mapping[str, Any]) -> bool:
    return any(path == "system" or path.startswith("system.") for path in given)


def _refuse_two_choices(source: Source, values: Mapping[str, Any]) -> None:
    if source.spec.systems and _is_chosen(values):
        raise source.fail("listed here, and --set says another", "systems")


def _name_of(system: System, known: dict[str, System]) -> str:
    """By which tables tell it from others. Raises ConfigError for another one's."""
    if known.setdefault(system.name, system) != system:
        raise ConfigError(
            f"system: two that differ are called {quoted(system.name)}; name them apart"
        )
    return system.name


def _columns(source: Source) -> tuple[str, ...]:
    return tuple(path for path in source.spec.swept if path != "system")


def _told(source: Source, chosen: dict[str, Any]) -> dict[str, Any]:
    return {path: chosen[path] for path in _columns(source)}


def _refuse_too_many(source: Source) -> None:
    spec = source.spec
    rows = max((len(values) for values in spec.zip.values()), default=1)
    drawn = spec.sobol.points if spec.sobol is not None else 1
    points = math.prod(map(len, spec.grid.values())) * rows * drawn * max(1, len(spec.scenarios))
    total = points * spec.runs * max(1, len(spec.systems))
    if total > MAX_TRIALS:
        raise source.fail(f"{total} trials, limit {MAX_TRIALS}")


def _points(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and values of every point; the last part turns fastest."""
    spec = source.spec
    named = [(one.name, one.set) for one in spec.scenarios] or [("", {})]
    grid = [
        dict(zip(spec.grid, row, strict=True)) for row in itertools.product(*spec.grid.values())
    ]
    zipped = [dict(zip(spec.zip, row, strict=True)) for row in zip(*spec.zip.values(), strict=True)]
    drawn = list(_drawn(source))
    for (label, together), one, two, three in itertools.product(
        named, grid, zipped or [{}], drawn or [{}]
    ):
        yield label, {**together, **one, **two, **three}


def _drawn(source: Source) -> Iterator[dict[str, Any]]:
    spec = source.spec.sobol
    if spec is None:
        return
    streams = Streams(spec.seed)
    shifts = [streams("sweep.sobol", path, 0) >> (64 - sobol.BITS) for path in spec.parameters]
    for row in sobol.points(spec.points, shifts):
        yield {
            path: _value(parameter, bits)
            for (path, parameter), bits in zip(spec.parameters.items(), row, strict=True)
        }


def _value(parameter: Range | list[Any], bits: int) -> Any:
    """What a Sobol number means: an element of a list, or a place in a range."""
    if isinstance(parameter, list):
        return parameter[bits * len(parameter) >> sobol.BITS]
    low, high = parameter.low, parameter.high
    whole = isinstance(low, int) and isinstance(high, int)
    if whole and parameter.scale == "linear":
        return low + (bits * (int(high) - int(low) + 1) >> sobol.BITS)
    share = (bits + 0.5) / (1 << sobol.BITS)
    if parameter.scale == "log":
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    value = min(max(float(f"{value:.{DIGITS}g}"), low), high)
    return round(value) if whole else value
