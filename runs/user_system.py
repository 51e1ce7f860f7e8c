"""Systems that are asked for: by a name, as a mapping of switches, or in a file that holds one.

A mapping is what a scenario's `system` is: `base`, a named system, `name`, and switches. A file ends
in .yaml, .yml or .json. Data alone: whose code decides is an order's business (`runs.user_order`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from policy.errors import ConfigError
from policy.systems import System, custom_system, named_system
from runs.scenario import read_mapping
from traces.strict import shown, shown_path

#: A name, the path of a file, or a mapping of switches.
SystemLike = str | Mapping[str, Any]
_FILES = (".yaml", ".yml", ".json")


def is_file(given: SystemLike) -> bool:
    """It is the path of a file, and no name."""
    return isinstance(given, str) and given.endswith(_FILES)


def asked_system(given: SystemLike) -> str | dict[str, Any]:
    """As a scenario's `system` says it: a full name, or a mapping with its name. A file's system is
    called what the file is, if it does not say. Raises ConfigError."""
    if isinstance(given, str) and not is_file(given):
        return named_system(given).name
    where = shown_path(Path(given)) if isinstance(given, str) else "system"
    switches = read_mapping(Path(given))[0] if isinstance(given, str) else dict(given)
    try:
        return {**switches, "name": system_of(switches).name}
    except ConfigError as error:
        raise ConfigError(f"{where}: {shown(str(error), 500)}") from None


def system_of(given: str | Mapping[str, Any]) -> System:
    """The system of a name or a mapping. Raises ConfigError."""
    return named_system(given) if isinstance(given, str) else custom_system(dict(given))


def asked_systems(given: Iterable[SystemLike]) -> dict[str, str | dict[str, Any]]:
    """By name, each once, in order. Raises ConfigError for two that differ and have one name."""
    found: dict[str, str | dict[str, Any]] = {}
    for one in given:
        asked = asked_system(one)
        name = asked if isinstance(asked, str) else str(asked["name"])
        if system_of(found.setdefault(name, asked)) != system_of(asked):
            raise ConfigError(
                f"system: two that differ are called {shown(name)}; name them apart by `name`"
            )
    return found
