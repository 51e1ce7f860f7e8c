"""What makes a stored result the result of a trial: everything it depends on, hashed.

The key of a trial covers the scenario with every default written out, the switches of its system,
the bytes of its profile and workload, and SEMANTICS. It holds no path, date, host or file name.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from policy.errors import InputError
from traces.provenance import workload_hash
from traces.scenario import Scenario
from traces.strict import reason, shown_path

#: Raise it by one with every change after which a simulation may give other numbers: results kept
#: under the old number are then not taken for new ones. tests/unit/test_semantics.py notices.
SEMANTICS = 2

#: Of a scenario, what no result depends on; a file counts by its bytes, not by its name.
_NAMES = ("name", "description", "systems", "system", "profile")


class Inputs:
    """Hashes of profiles and workload files, each read once."""

    def __init__(self) -> None:
        self._profiles: dict[str, str] = {}
        self._files: dict[str, str] = {}

    def profile(self, name: str) -> str:
        """Hash of a profile's content. Raises ConfigError."""
        if name not in self._profiles:
            self._profiles[name] = profiles.load(name).hash
        return self._profiles[name]

    def workload(self, scenario: Scenario) -> str:
        """Hash of a workload's bytes, or of its generator's numbers. Raises InputError."""
        path = scenario.workload.file
        if path is None:
            return workload_hash(scenario)
        if path not in self._files:
            try:
                self._files[path] = workload_hash(scenario)
            except OSError as error:
                raise InputError(
                    f"{shown_path(Path(path))}: cannot be read: {reason(error)}"
                ) from None
        return self._files[path]


def canonical(value: Any) -> str:
    """JSON with one spelling. Raises ValueError for what JSON has no word for."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(scenario: Scenario, inputs: Inputs) -> str:
    """The trial's key. Raises ConfigError or InputError where an input cannot be read."""
    content = scenario.model_dump(mode="json")
    for name in _NAMES:
        del content[name]
    del content["workload"]["file"]
    system = scenario.resolve_system()
    return digest(
        canonical(
            {
                "semantics": SEMANTICS,
                "scenario": content,
                "system": {"name": system.name, **system.switches()},
                "profile": inputs.profile(scenario.profile),
                "workload": inputs.workload(scenario),
            }
        )
    )


def portable(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data that means the same in another working directory."""
    data = scenario.model_dump(mode="json", exclude_unset=True)
    if scenario.workload.file is not None:
        data["workload"]["file"] = os.path.abspath(scenario.workload.file)
    if scenario.profile not in profiles.names():
        data["profile"] = os.path.abspath(scenario.profile)
    return data
