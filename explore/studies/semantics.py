"""What makes a stored result the result of a trial: everything it depends on, hashed.

The key of a trial covers the scenario with every default written out, the switches of its system,
the bytes of its profile and workload, and SEMANTICS. It holds no path, date, host or file name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from policy.errors import InputError
from runs.provenance import workload_hash
from runs.scenario import Scenario, system_of
from traces.strict import reason, shown_path
from traces.workload_spec import is_generator_file

#: Raise it by one with every change after which a simulation may give other numbers: results kept
#: under the old number are then not taken for new ones. tests/unit/test_semantics.py notices.
SEMANTICS = 4

#: Of a scenario, what no result depends on; a file counts by its bytes, not by its name.
_NAMES = ("name", "description", "systems", "system", "profile")


class Inputs:
    """Hashes of profiles and workload files, each read once."""

    def __init__(self) -> None:
        self._profiles: dict[str, str] = {}
        self._files: dict[tuple[str, ...], str] = {}

    def profile(self, name: str) -> str:
        """Hash of a profile's content. Raises ConfigError."""
        if name not in self._profiles:
            self._profiles[name] = profiles.load(name).hash
        return self._profiles[name]

    def workload(self, scenario: Scenario) -> str:
        """Hash of a workload's bytes, or of its generator's numbers. Raises InputError."""
        spec = scenario.workload
        if spec.file is None:
            return _hashed(scenario)
        paths = (spec.file, *spec.companions)
        if paths not in self._files:
            self._files[paths] = _hashed(scenario)
        return self._files[paths]


def _hashed(scenario: Scenario) -> str:
    try:
        return workload_hash(scenario)
    except OSError as error:
        path = Path(str(scenario.workload.file or scenario.workload.generator))
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None


def canonical(value: Any) -> str:
    """JSON with one spelling. Raises ValueError for what JSON has no word for."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(scenario: Scenario, inputs: Inputs, beside: Mapping[str, Any] | None = None) -> str:
    """The trial's key. `beside`: what else the result depends on, a user's order (name and hash of
    its source) and what is asked of the run. Raises ConfigError or InputError where an input cannot
    be read."""
    content = scenario.model_dump(mode="json")
    for name in _NAMES:
        del content[name]
    for name in ("file", "companions"):
        del content["workload"][name]
    if is_generator_file(scenario.workload.generator):
        del content["workload"]["generator"]
    system = scenario.resolve_system()
    return digest(
        canonical(
            {
                "semantics": SEMANTICS,
                "scenario": content,
                "system": {"name": system.name, **system.switches()},
                "profile": inputs.profile(scenario.profile),
                "workload": inputs.workload(scenario),
                **({"replicas": _replicas(scenario, inputs)} if scenario.replicas else {}),
                **(beside or {}),
            }
        )
    )


def _replicas(scenario: Scenario, inputs: Inputs) -> list[Any]:
    """Profile and switches of each group, as far as it has its own."""
    return [
        [
            None if group.profile is None else inputs.profile(group.profile),
            None if group.system is None else system_of(group.system).switches(),
        ]
        for group in scenario.replicas
    ]


def portable(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data that means the same in another working directory."""
    data = scenario.model_dump(mode="json", exclude_unset=True)
    if scenario.workload.file is not None:
        data["workload"]["file"] = os.path.abspath(scenario.workload.file)
    if scenario.workload.companions:
        data["workload"]["companions"] = [os.path.abspath(p) for p in scenario.workload.companions]
    if is_generator_file(scenario.workload.generator):
        data["workload"]["generator"] = os.path.abspath(str(scenario.workload.generator))
    if scenario.profile not in profiles.names():
        data["profile"] = os.path.abspath(scenario.profile)
    for group, told in zip(scenario.replicas, data.get("replicas", ()), strict=True):
        if group.profile is not None and group.profile not in profiles.names():
            told["profile"] = os.path.abspath(group.profile)
    return data
