"""A fitted generator as a YAML file: what `trace fit` writes and `trace generate` reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from policy.errors import ConfigError
from traces.atomic import whole
from traces.generators.sessions import SessionModel
from traces.strict import reason, shown_path
from traces.workload_spec import ArrivalSpec, Positive, Rate, Section, first_problem
from traces.yaml import MAX_BYTES, dump_yaml, parse_yaml


class GeneratorFile(Section):
    """A model, and the numbers of the data that it was fitted on: so many sessions, at this rate."""

    format: Literal["fastswitch-generator/1"] = "fastswitch-generator/1"
    fitted_on: str
    notes: tuple[str, ...] = ()
    conversations: Positive
    rate: Rate | None = None
    arrivals: ArrivalSpec = ArrivalSpec()
    context_cap: Positive | None = None
    model: SessionModel


def load_generator(path: Path) -> GeneratorFile:
    """Read a generator. Raises ConfigError naming file and field."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    data = parse_yaml(text, str(path))
    try:
        return GeneratorFile.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError(f"{shown_path(path)}: {first_problem(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{shown_path(path)}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown_path(path)}: {reason(error)}") from None


def save_generator(generator: GeneratorFile, path: Path) -> None:
    """Write a generator, whole or not at all. Raises ConfigError."""
    with whole(path) as part:
        part.write_text(dump_yaml(_plain(generator)), encoding="utf-8")


def _plain(generator: GeneratorFile) -> dict[str, Any]:
    """Lists and mappings alone, what is None left out."""
    data = generator.model_dump(mode="json", exclude={"model"})
    data["model"] = dataclasses.asdict(generator.model)
    kept: dict[str, Any] = _without_nulls(data)
    return kept


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value
