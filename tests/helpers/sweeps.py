"""Small sweeps, and an engine that runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from explore.studies import sweep as module
from explore.studies.semantics import canonical
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
    return patch.object(module, "make_engine", lambda _settings: engine)


def pretend(
    spec: Any, out: Path, reply: Reply = well, *, backwards: bool = False, **options: Any
) -> Sweep:
    """A sweep whose simulations are made up."""
    with pretending(reply, backwards=backwards):
        return sweep(spec, out, **options)


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a sweep's folder that must not depend on how it was run."""
    free = {"journal.jsonl", "lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in free
    }
