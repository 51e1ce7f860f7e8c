"""Claims and operating points as they are written in scenarios/reproduce/*.yaml."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from policy.errors import ConfigError
from runs.scenario import SCENARIOS
from traces.workload_spec import first_problem
from traces.yaml import parse_yaml

FOLDER = SCENARIOS / "reproduce"

Part = Literal["ttft", "tbt", "throughput", "breakdown", "groups", "async", "reuse", "sensitivity"]
PARTS: tuple[Part, ...] = (
    "ttft",
    "tbt",
    "throughput",
    "breakdown",
    "groups",
    "async",
    "reuse",
    "sensitivity",
)
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Setup(_Section):
    """A scenario and what is set over it. `saturation`: conversations per second at which the offered
    load is what the baseline makes of a backlog."""

    scenario: str
    set: dict[str, Any] = {}
    saturation: float
    conversations: Positive | None = None


class Variant(_Section):
    """A setting of a group; `load` is a share of the set-up's saturation."""

    name: str
    set: dict[str, Any] = {}
    load: float | None = None


class Group(_Section):
    """Set-ups times variants times systems, `runs` paired runs of each."""

    name: str
    parts: tuple[Part, ...]
    setups: tuple[str, ...]
    systems: tuple[str, ...]
    runs: Positive
    conversations: Positive | None = None
    set: dict[str, Any] = {}
    variants: tuple[Variant, ...] = (Variant(name=""),)


class Points(_Section):
    """A file of operating points. `custom`: systems as a base and switches; `lists`: several systems
    under a name."""

    conversations: Positive
    rate: float
    setups: dict[str, Setup]
    custom: dict[str, dict[str, Any]] = {}
    lists: dict[str, tuple[str, ...]] = {}
    groups: tuple[Group, ...]


class Claim(_Section):
    """A claim and how it is read; see the head of claims.yaml."""

    id: str
    part: Part
    row: str
    said: str
    source: str
    kind: Literal["ratio", "value", "flat", "grows", "steps", "overhead"]
    metrics: tuple[str, ...] = ()
    pairs: tuple[tuple[str, ...], ...] = ()
    setups: tuple[str, ...]
    group: str = "turns"
    low: float = 0.0
    high: float = 0.0
    best: bool = False
    show: Literal["times", "less", "more", "share", "unknown"] = "times"
    note: str = ""


class _Claims(_Section):
    claims: tuple[Claim, ...]


def _load(name: str, kind: type[Any]) -> Any:
    path = FOLDER / f"{name}.yaml"
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        return kind.model_validate_json(json.dumps(data))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the table."""
    found: tuple[Claim, ...] = _load("claims", _Claims).claims
    return found


@cache
def points(*, full: bool) -> Points:
    """Operating points; with `full` also all other readings, loads, ablations and sweeps, which know
    the set-ups, systems and lists of the points."""
    base: Points = _load("points", Points)
    if not full:
        return base
    more: Points = _load("full", Points)
    return Points(
        conversations=more.conversations,
        rate=more.rate,
        setups={**base.setups, **more.setups},
        custom={**base.custom, **more.custom},
        lists={**base.lists, **more.lists},
        groups=(
            *(_with_count(group, base.conversations) for group in base.groups),
            *more.groups,
        ),
    )


def _with_count(group: Group, conversations: int) -> Group:
    return group.model_copy(
        update={"conversations": group.conversations or conversations},
    )
