"""The sweep file: which scenarios to run, in the words `grid`, `zip`, `scenarios`, `sobol`.

YAML by the rules of scenarios (safe, no aliases, no duplicate or unknown keys). The parts multiply:
every named scenario with every point of the grid, with every row of the zip, with every Sobol point.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from explore.studies.measure import Keeps, Measure
from explore.studies.sobol import MAX_DIMENSIONS, MAX_POINTS
from policy.errors import ConfigError
from runs.metrics.goodput import Slo
from runs.scenario import SCENARIOS, read_mapping
from traces.strict import reason, shown, shown_path
from traces.workload_spec import Section

SWEEPS = SCENARIOS / "sweeps"
#: Most replications of a point.
MAX_RUNS = 1000

Path_ = Annotated[str, Field(min_length=1, max_length=200)]
Values = Annotated[list[Any], Field(min_length=1)]
Model = TypeVar("Model", bound=BaseModel)

#: What is not a knob, and what to write instead.
NOT_SWEPT = {
    "run": "replications are `runs: N`",
    "name": "it changes no result",
    "description": "it changes no result",
    "systems": "a sweep has its own `systems`",
}


class Range(Section):
    """From `low` to `high`, both possible. Whole numbers at both ends give whole numbers."""

    low: int | float
    high: int | float
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 on a log scale")
        return self


class SobolSpec(Section):
    """Points spread evenly over ranges and lists; best balanced when `points` is a power of two."""

    points: Annotated[int, Field(ge=1, le=MAX_POINTS)]
    seed: Annotated[int, Field(ge=0)] = 0
    parameters: Annotated[
        dict[Path_, Range | Values], Field(min_length=1, max_length=MAX_DIMENSIONS)
    ]


class NamedScenario(Section):
    """Values that belong together, under a name."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    set: dict[Path_, Any] = Field(default={})


class SweepSpec(Section):
    """A whole sweep. `runs` replications of every point use the same random numbers for every
    system and point (common random numbers). `slo` asks for goodput, `warm_up_s` for the steady
    state after it."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = "sweep"
    scenario: str | dict[str, Any]
    set: dict[Path_, Any] = Field(default={})
    systems: tuple[str | dict[str, Any], ...] = ()
    runs: Annotated[int, Field(ge=1, le=MAX_RUNS)] = 1
    grid: dict[Path_, Values] = Field(default={})
    zip: dict[Path_, Values] = Field(default={})
    scenarios: tuple[NamedScenario, ...] = ()
    sobol: SobolSpec | None = None
    slo: Slo | None = None
    warm_up_s: Annotated[float, Field(ge=0, le=1e9)] | None = None

    @property
    def swept(self) -> tuple[str, ...]:
        """Paths of grid, zip and Sobol points, in the order of their columns."""
        sobol = self.sobol.parameters if self.sobol is not None else {}
        return (*self.grid, *self.zip, *sobol)


@dataclass(frozen=True)
class Source:
    """A sweep as it was given, and where: for messages, and to find files beside it. `has_one_system`:
    each point has one, whatever its scenario lists. `kind`: what messages call it. `keeps`: what is
    kept of every run (`Measure`)."""

    spec: SweepSpec
    path: Path | None
    text: str = ""
    has_one_system: bool = False
    kind: str = "sweep"
    keeps: Keeps = "metrics"

    @property
    def measure(self) -> Measure:
        """What is asked of every run."""
        return Measure(self.spec.slo, self.spec.warm_up_s, self.keeps)

    def fail(self, problem: str, *field: str | int) -> ConfigError:
        """An error at a field, with file and line."""
        return failure(self.kind, self.path, self.text, problem, *field)


def failure(
    kind: str, path: Path | None, text: str, problem: str, *field: str | int
) -> ConfigError:
    """An error in a file of a kind, or in a mapping, at a field."""
    where = kind if path is None else shown_path(path)
    line = line_of(text, field)
    named = f"{shown('.'.join(map(str, field)))}: " if field else ""
    return ConfigError(f"{where}{f':{line}' if line else ''}: {named}{shown(problem, 300)}")


def load(given: str | Path | Mapping[str, Any]) -> Source:
    """A sweep that ships (by name), a file, or the same as a mapping. Raises ConfigError."""
    data, path, text = read(given, SWEEPS, "sweep")
    return checked(Source(validated(SweepSpec, data, path, text, "sweep"), path, text))


def read(
    given: str | Path | Mapping[str, Any], shipped: Path, kind: str
) -> tuple[dict[str, Any], Path | None, str]:
    """A file as a mapping with a name, where it is, and its text. Raises ConfigError."""
    if isinstance(given, Mapping):
        return dict(given), None, ""
    path = _find(str(given), shipped, kind)
    data, text = read_mapping(path)
    return data, path, text


def _find(given: str, folder: Path, kind: str) -> Path:
    shipped = folder / f"{given}.yaml"
    if os.path.isfile(shipped):
        return shipped
    if os.path.isfile(given):
        return Path(given)
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{kind}: {shown(given, 300)!r} is neither a file nor one of {names}")


def validated(
    model: type[Model], data: dict[str, Any], path: Path | None, text: str, kind: str
) -> Model:
    """A mapping as a model. Raises ConfigError at the first field that is wrong."""
    try:
        return model.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        errors = error.errors()
        # of a value that may be a mapping or a list, what is wrong inside it comes first
        inside = (one for one in errors if one["type"] not in ("model_type", "list_type"))
        first = next(inside, errors[0])
        raise failure(kind, path, text, first["msg"], *_plain(first["loc"])) from None
    except (TypeError, ValueError) as error:
        raise failure(kind, path, text, reason(error)) from None


def _plain(loc: Sequence[str | int]) -> Iterator[str | int]:
    """A location without the names that pydantic gives the sides of a union."""
    sides = {"Range", "int", "float", "str"}
    return (part for part in loc if part not in sides and "[" not in str(part))


def checked(source: Source) -> Source:
    """What fields cannot say of each other. Raises ConfigError."""
    spec = source.spec
    rows = {name: len(values) for name, values in spec.zip.items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise source.fail(f"lists must be equally long, not {told}", "zip")
    named = [one.name for one in spec.scenarios]
    if len(set(named)) < len(named):
        raise source.fail("two scenarios have the same name", "scenarios")
    together = {path for one in spec.scenarios for path in one.set}
    paths = [*spec.swept, *sorted(together)]
    for path in [*spec.set, *paths]:
        if path in NOT_SWEPT:
            raise source.fail(f"cannot be swept: {NOT_SWEPT[path]}", path)
    for one in paths:
        for other in paths:
            if other.startswith(f"{one}."):
                raise source.fail(f"{other} is inside it, and both are swept", one)
    for path in paths:
        if paths.count(path) > 1:
            raise source.fail("swept in two places", path)
    if spec.systems and "system" in {*paths, *spec.set}:
        raise source.fail("leave it out: `system` is among the swept values", "systems")
    return source


def line_of(text: str, field: Sequence[str | int]) -> int | None:
    """The line of a field in YAML that `parse_yaml` has accepted; of a mapping's key."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) if text and field else None
    line = None
    for part in field:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(part)]
            if not pairs:
                break
            line = pairs[0][0].start_mark.line + 1
            node = pairs[0][1]
        else:
            break
    return line
