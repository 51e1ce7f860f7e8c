"""Small sweeps, and an engine that runs nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from explore.studies import engine as module
from explore.studies.semantics import canonical
from explore.studies.store import LOCK, STUDY
from explore.studies.sweep import Sweep, sweep
from tests.helpers.made import METRICS

#: A scenario of a dozen conversations that takes some ten milliseconds.
SCENARIO: dict[str, Any] = {
    "workload": {
        "generator": "chat",
        "conversations": 12,
        "rate": 2.0,
        "context_cap": 600,
        "think": "none",
    },
    "profile": "a10-llama-3-8b",
    "pool": {"device_blocks": 60, "host_blocks": 400, "aging": "none"},
    "limits": {"max_model_len": 600},
    "priority": {"pattern": "markov", "frequency": 0.2},
}

#: Two systems, two points, two runs.
SMALL: dict[str, Any] = {
    "name": "small",
    "scenario": SCENARIO,
    "systems": ["vllm-0.3.3-keep", "fastswitch"],
    "runs": 2,
    "grid": {"workload.rate": [1.0, 4.0]},
}

#: 500 trials of some ten milliseconds each.
MANY: dict[str, Any] = {
    **SMALL,
    "name": "many",
    "runs": 5,
    "grid": {"workload.rate": [0.5, 1.0, 2.0, 4.0, 8.0]},
    "sobol": {
        "points": 10,
        "parameters": {
            "pool.device_blocks": {"low": 50, "high": 200},
            "pool.host_blocks": {"low": 100, "high": 1000, "scale": "log"},
        },
    },
}


def written(folder: Path, spec: dict[str, Any]) -> Path:
    """A sweep as a file."""
    path = folder / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def made_result(key: str, **metrics: Any) -> dict[str, Any]:
    """A result that no simulation gave; different for every key."""
    return {
        "system": "fastswitch",
        "order": "markov",
        "planner": "rules",
        "verdict": None,
        "warnings": [],
        "metrics": {**METRICS, "ttft_p95_s": int(key[:6], 16) / 1e6, **metrics},
    }


Reply = Callable[[str], dict[str, Any]]


class Pretend:
    """An engine whose replies are made up, in an order of its own."""

    def __init__(self, reply: Reply, *, backwards: bool = False) -> None:
        self.reply = reply
        self.backwards = backwards
        self.asked: list[str] = []

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        for ask in sorted(asks, reverse=self.backwards):
            key = json.loads(ask)["key"]
            self.asked.append(key)
            yield canonical({"key": key, **self.reply(key)})

    def close(self) -> None:
        pass


def well(key: str) -> dict[str, Any]:
    """A reply with a result."""
    return {"result": made_result(key)}


def pretending(reply: Reply = well, *, backwards: bool = False) -> AbstractContextManager[Any]:
    """Sweeps run on `Pretend`; gives the function that makes engines."""
    engine = Pretend(reply, backwards=backwards)
    return patch.object(module, "make_workers", lambda *_: engine)


def pretend(
    spec: Any, out: Path, reply: Reply = well, *, backwards: bool = False, **options: Any
) -> Sweep:
    """A sweep whose simulations are made up."""
    with pretending(reply, backwards=backwards):
        return sweep(spec, out, **options)


def tree(folder: Path) -> dict[str, bytes]:
    """All that a study's folder has and that must not depend on how it was run: its tables as files,
    and plan, results and failures."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (STUDY, LOCK)
    }
    with closing(sqlite3.connect(folder / STUDY)) as held:
        for table in ("plan", "result", "failure"):
            rows = held.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            files[f"{STUDY}:{table}"] = repr(rows).encode()
    return files


def damage(folder: Path, change: str, *values: Any) -> int:
    """Change a study's file behind its back; how many rows were."""
    with closing(sqlite3.connect(folder / STUDY)) as held, held:
        return held.execute(change, values).rowcount


def keys(folder: Path, table: str = "result") -> list[str]:
    """Of what a study holds, in order."""
    with closing(sqlite3.connect(folder / STUDY)) as held:
        return [key for (key,) in held.execute(f"SELECT key FROM {table} ORDER BY key")]


@contextmanager
def full_after(pages: int) -> Iterator[None]:
    """A disk that has room for so many pages of a study's file."""
    connect = sqlite3.connect

    def limited(*given: Any, **more: Any) -> sqlite3.Connection:
        made = connect(*given, **more)
        made.execute(f"PRAGMA max_page_count={pages}")
        return made

    with patch.object(sqlite3, "connect", limited):
        yield
