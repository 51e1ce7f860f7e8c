"""The search file: a recipe, a space of dotted paths, and limits that an answer must keep.

YAML by the rules of scenarios and sweeps. A space of at most 5,000 points is run whole; a larger one,
or one with ranges of fractions, is sampled: by Sobol points up to 5,000, or by Optuna.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from explore.search.recipes import METRICS, RATE, RECIPES, Bound, Objective
from explore.studies.sobol import MAX_DIMENSIONS
from explore.studies.spec import (
    Path_,
    Range,
    SobolSpec,
    Source,
    SweepSpec,
    Values,
    checked,
    failure,
    read,
    validated,
)
from policy.errors import ConfigError
from runs.metrics.goodput import Slo
from runs.scenario import SCENARIOS
from traces.strict import quoted
from traces.workload_spec import Section

SEARCHES = SCENARIOS / "searches"
#: Most points of a space that is run whole, and most Sobol points.
MAX_EXHAUSTIVE = 5000
#: Most trials of a search.
MAX_TRIALS = 100_000

Method = Literal["exhaustive", "sobol", "optuna"]


class SearchSpec(Section):
    """A whole search. `points`: how many are tried, where the space is sampled. `batch`: how many
    Optuna is asked for at a time; whatever the number of workers, so that the answer is the same."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = "search"
    recipe: Literal["max-goodput-under-slo", "max-rate-under-sla", "pareto"]
    scenario: str | dict[str, Any]
    set: dict[Path_, Any] = Field(default={})
    runs: Annotated[int, Field(ge=1, le=1000)] = 3
    space: Annotated[dict[Path_, Range | Values], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    limits: dict[Path_, Bound] = Field(default={})
    slo: Slo | None = None
    attainment: Annotated[float, Field(gt=0, le=1)] = 0.9
    warm_up_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    method: Method | None = None
    points: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    batch: Annotated[int, Field(ge=1, le=1000)] = 8
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _is_whole(self) -> SearchSpec:
        unknown = [name for name in self.limits if name not in METRICS]
        if unknown:
            raise ValueError(f"limits: {unknown[0]!r} is not one of {', '.join(sorted(METRICS))}")
        if self.recipe == "max-goodput-under-slo" and self.slo is None:
            raise ValueError("recipe max-goodput-under-slo needs slo")
        if self.recipe == "max-rate-under-sla":
            if RATE not in self.space:
                raise ValueError(f"recipe max-rate-under-sla needs {RATE} in its space")
            if not self.limits:
                raise ValueError("recipe max-rate-under-sla needs limits, the SLA")
        if self.slo is None and any("slo" in name or "goodput" in name for name in self.limits):
            raise ValueError("limits on attainment or goodput need slo")
        return self

    @property
    def size(self) -> int | None:
        """Points of the space; None with a range of fractions."""
        sizes = [_size(parameter) for parameter in self.space.values()]
        return math.prod(size for size in sizes if size) if all(sizes) else None

    @property
    def how(self) -> Method:
        """The method asked for, else the whole space if it is small enough, else Optuna."""
        if self.method is not None:
            return self.method
        return "exhaustive" if self.size and self.size <= MAX_EXHAUSTIVE else "optuna"

    @property
    def budget(self) -> int:
        """Points that are tried."""
        return (self.size or 0) if self.how == "exhaustive" else (self.points or 0)


def _size(parameter: Range | list[Any]) -> int | None:
    if isinstance(parameter, list):
        return len(parameter)
    whole = isinstance(parameter.low, int) and isinstance(parameter.high, int)
    return int(parameter.high) - int(parameter.low) + 1 if whole else None


@dataclass(frozen=True)
class Search:
    """A search as it was given, and where."""

    spec: SearchSpec
    path: Path | None
    text: str = ""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is to be made large or small."""
        return RECIPES[self.spec.recipe]

    def fail(self, problem: str, *field: str | int) -> ConfigError:
        """An error at a field, with file and line."""
        return failure("search", self.path, self.text, problem, *field)

    def sweep(self, points: list[dict[str, Any]] | None = None) -> Source:
        """The sweep of these points, or of all that are known from the beginning. Raises
        ConfigError for what is no space."""
        spec = self.spec
        parts: dict[str, Any] = {}
        if points is not None:
            parts["zip"] = {path: [point[path] for point in points] for path in spec.space}
        elif spec.how == "exhaustive":
            parts["grid"] = {path: _listed(one) for path, one in spec.space.items()}
        else:
            parts["sobol"] = SobolSpec(points=spec.budget, seed=spec.seed, parameters=spec.space)
        made = SweepSpec(
            name=spec.name,
            scenario=spec.scenario,
            set=spec.set,
            runs=spec.runs,
            slo=spec.slo,
            warm_up_s=spec.warm_up_s,
            **parts,
        )
        return checked(Source(made, self.path, self.text, has_one_system=True))

    def choices(self) -> Source | None:
        """The sweep of every choice but those between numbers, on which no reader of a field
        hangs: what none of it reads, no point reads. None if there are too many."""
        told = {path: _choices(one) for path, one in self.spec.space.items()}
        if math.prod(map(len, told.values())) > MAX_EXHAUSTIVE:
            return None
        points = [
            dict(zip(told, point, strict=True)) for point in itertools.product(*told.values())
        ]
        return replace(self, spec=self.spec.model_copy(update={"runs": 1})).sweep(points)


def _choices(parameter: Range | list[Any]) -> list[Any]:
    if isinstance(parameter, Range):
        return [parameter.low]
    return [one for one in parameter if type(one) not in (int, float)] or parameter[:1]


def _listed(parameter: Range | list[Any]) -> list[Any]:
    if isinstance(parameter, list):
        return parameter
    return list(range(int(parameter.low), int(parameter.high) + 1))


def load(given: str | Path | Mapping[str, Any]) -> Search:
    """A search that ships (by name), a file, or the same as a mapping. Raises ConfigError."""
    data, path, text = read(given, SEARCHES, "search")
    found = Search(validated(SearchSpec, data, path, text, "search"), path, text)
    _check(found)
    return found


def _check(search: Search) -> None:
    """What goes together. Raises ConfigError."""
    spec = search.spec
    if spec.how == "exhaustive" and spec.points is not None:
        raise search.fail("the whole space is run; leave it out, or name a method", "points")
    if spec.how == "exhaustive" and not (spec.size and spec.size <= MAX_EXHAUSTIVE):
        size = "without end" if spec.size is None else f"of {spec.size} points"
        raise search.fail(f"exhaustive: a space {size}, limit {MAX_EXHAUSTIVE}", "method")
    if spec.how != "exhaustive" and spec.points is None:
        raise search.fail(f"{spec.how}: say how many points may be tried", "points")
    if spec.how == "sobol" and spec.budget > MAX_EXHAUSTIVE:
        raise search.fail(f"sobol: at most {MAX_EXHAUSTIVE}", "points")
    if spec.budget * spec.runs > MAX_TRIALS:
        raise search.fail(f"{spec.budget * spec.runs} trials, limit {MAX_TRIALS}", "points")
    search.sweep([dict.fromkeys(spec.space, 0)])
    _check_rates(search)
    for path, parameter in spec.space.items():
        if isinstance(parameter, list):
            doubled = [a for a, b in itertools.combinations(parameter, 2) if a == b]
            if doubled:
                raise search.fail(f"{doubled[0]!r} is there twice", "space", path)


def _check_rates(search: Search) -> None:
    """A knob that is an objective has numbers to compare."""
    for objective in search.objectives:
        listed = search.spec.space.get(objective.name) if objective.is_knob else None
        for value in listed if isinstance(listed, list) else ():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise search.fail(f"{quoted(value)} is no rate", "space", objective.name)
