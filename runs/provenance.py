"""Where a result comes from: versions, commit, hashes, machine. Excepted from byte equality."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from runs.scenario import Scenario
from runs.user_order import UserOrder
from traces.workload_spec import is_generator_file

_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("simpy", "numpy", "pandas", "pyarrow", "pydantic")


def provenance(scenario: Scenario, profile: Any, order: UserOrder | None = None) -> dict[str, Any]:
    """Everything needed to know which program made which numbers from what. `profile` is None for a
    real machine, `order` for one that is built in."""
    return {
        "commit": commit(),
        "python": sys.version.split()[0],
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "machine": platform.machine(),
        "system": platform.system(),
        "seed": scenario.seed,
        "run": scenario.run,
        "scenario_hash": _hash(scenario.model_dump(mode="json")),
        "profile_hash": None if profile is None else profile.hash,
        "workload_hash": workload_hash(scenario),
        "order": None if order is None else order.facts,
    }


def workload_hash(scenario: Scenario) -> str:
    """Of the file's bytes and those of its companions, or of the generator's numbers and seeds; a generator's own file counts by its
    bytes, not by its name. Raises OSError."""
    spec = scenario.workload
    if spec.file is not None:
        found = [_file_hash(path) for path in (spec.path, *map(Path, spec.companions))]
        return found[0] if len(found) == 1 else _hash(found)
    numbers = spec.model_dump(mode="json")
    if is_generator_file(spec.generator):
        numbers["generator"] = _file_hash(Path(str(spec.generator)))
    return _hash([numbers, scenario.seed, scenario.run])


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def commit() -> str:
    """The checkout's commit, read from its files; `unknown` outside a checkout."""
    try:
        git = _git_folder(_ROOT / ".git")
        text = (git / "HEAD").read_text().strip()
        if not text.startswith("ref: "):
            return text[:12]
        name = text.removeprefix("ref: ")
        common = git / "commondir"  # a worktree's branches are the repository's
        refs = git / common.read_text().strip() if common.exists() else git
        if (refs / name).exists():
            return (refs / name).read_text().strip()[:12]
        for line in (refs / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line[:12]
    except OSError:
        pass
    return "unknown"


def _git_folder(entry: Path) -> Path:
    """What `.git` is, or, in a worktree, names. Raises OSError."""
    if not entry.is_file():
        return entry
    return entry.parent / entry.read_text().strip().removeprefix("gitdir: ")


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
