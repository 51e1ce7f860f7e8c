"""From operating points to trials of a sweep, and from its results back to places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from explore.reproduce.data import Group, Points, Variant
from explore.studies import sweep_tables
from explore.studies.plan import Plan, Trial
from explore.studies.semantics import Inputs, key_of, portable
from explore.studies.store import Store
from policy.errors import ConfigError
from policy.systems import SYSTEMS, custom_system
from runs import scenario as scenarios

Result = dict[str, Any]


class Place(NamedTuple):
    """Where systems meet: a set-up under a variant of a group."""

    group: str
    setup: str
    variant: str = ""

    @property
    def label(self) -> str:
        """`dispatch 8b-markov 10 us`."""
        return " ".join(filter(None, self))


@dataclass
class Study:
    """A plan, and the keys of every place and system in the order of its runs."""

    plan: Plan
    keys: dict[Place, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    variants: dict[str, tuple[Variant, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # systems that this version does not know


def study_of(points: Points, parts: Sequence[str], values: dict[str, Any] | None = None) -> Study:
    """Every trial of the groups that have one of `parts`; `values` are put over every scenario.

    Raises ConfigError for a scenario or set-up that is not there.
    """
    known, left_out = _systems(points)
    inputs = Inputs()
    bases: dict[str, dict[str, Any]] = {}
    trials: list[Trial] = []
    study = Study(Plan("reproduce", (), ()))
    order: dict[Place, int] = {}
    for group in points.groups:
        if not set(group.parts) & set(parts):
            continue
        names = [name for name in _named(group.systems, points) if name in known]
        study.variants[group.name] = group.variants
        for place, data in _places(group, points, bases, values or {}):
            held = study.keys.setdefault(place, {})
            index = order.setdefault(place, len(order))
            for name in names:
                keys = []
                for run in range(group.runs):
                    made = scenarios.build(
                        {**data, "system": known[name], "run": run}, f"reproduce: {place.label}"
                    )
                    key = key_of(made, inputs)
                    keys.append(key)
                    trials.append(Trial(index, place.label, {}, name, run, key, portable(made)))
                held[name] = tuple(keys)
    trials.sort(key=lambda trial: trial.point)
    study.plan = Plan("reproduce", (), tuple(trials))
    study.left_out = left_out
    return study


def _systems(points: Points) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a scenario takes for every system by name, and the names nobody knows here."""
    known: dict[str, Any] = {name: name for name in SYSTEMS}
    for name, switches in points.custom.items():
        given = {**switches, "name": name}
        try:
            custom_system(given)
        except ConfigError:
            continue
        known[name] = given
    asked = {
        name
        for group in points.groups
        for name in _named(group.systems, points)
        if name not in known
    }
    return known, tuple(sorted(asked))


def _named(names: Sequence[str], points: Points) -> list[str]:
    """Lists replaced by what they hold."""
    found: list[str] = []
    for name in names:
        found += _named(points.lists[name], points) if name in points.lists else [name]
    return list(dict.fromkeys(found))


def _places(
    group: Group, points: Points, bases: dict[str, dict[str, Any]], over: dict[str, Any]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    for name in group.setups:
        if name not in points.setups:
            raise ConfigError(f"reproduce: group {group.name}: no set-up {name!r}")
        setup = points.setups[name]
        if setup.scenario not in bases:
            loaded = scenarios.load(setup.scenario)
            bases[setup.scenario] = loaded.model_dump(mode="json", exclude_unset=True)
        for variant in group.variants:
            values: dict[str, Any] = {
                "workload.conversations": group.conversations
                or setup.conversations
                or points.conversations,
                "workload.rate": points.rate,
                **setup.set,
                **group.set,
                **variant.set,
            }
            if variant.load is not None:
                values["workload.rate"] = round(variant.load * setup.saturation, 6)
            data = scenarios.merge(bases[setup.scenario], {**values, **over})
            yield Place(group.name, name, variant.name), data


@dataclass(frozen=True)
class Found:
    """Results by place and system; only where all its runs are there."""

    results: dict[Place, dict[str, list[Result]]]
    variants: dict[str, tuple[Variant, ...]]
    missing: int = 0
    left_out: tuple[str, ...] = ()

    def of(self, place: Place, system: str) -> list[Result] | None:
        """The runs of a system, in order."""
        return self.results.get(place, {}).get(system)

    def places(self, group: str) -> list[Place]:
        """Places of a group, in the order of the plan."""
        return [place for place in self.results if place.group == group]


def found_in(store: Store, study: Study) -> Found:
    """What a folder holds of a study."""
    read = sweep_tables.read(store, study.plan).results
    results: dict[Place, dict[str, list[Result]]] = {}
    for place, systems in study.keys.items():
        held = results[place] = {}
        for name, keys in systems.items():
            runs = [result for key in keys if (result := read.get(key)) is not None]
            if len(runs) == len(keys):
                held[name] = runs
    missing = len(study.plan.keys) - len(read)
    return Found(results, study.variants, missing, study.left_out)
