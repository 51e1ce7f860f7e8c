"""Comparisons out of made-up results, so that words and tables are tested without simulating."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

from explore.studies import engine
from explore.studies.compare import compare
from explore.studies.comparison import Comparison
from explore.words import HEADINGS
from policy.systems import SYSTEMS
from runs.scenario import Scenario, build

#: Metrics of a healthy baseline that swaps; `baseline` and `ours` change some.
METRICS: dict[str, Any] = {
    **dict.fromkeys(HEADINGS, 1.0),
    "throughput_tok_s": 1000.0,
    "preemptions": 50,
    "blocks_in": 4000,
    "blocks_out": 5000,
    "offered_tok_s": 1000.0,
    "capacity_tok_s": 1000.0,
}

Change = Callable[[str, int], dict[str, Any]]


def result(system: str, metrics: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """What one run of a system leaves."""
    chosen = SYSTEMS[system]
    return {
        "metrics": {**METRICS, **metrics},
        "verdict": None,
        "order": "markov",
        "planner": "rules",
        "warnings": [],
        "switches": chosen.switches(),
        "priority_updates": 12,
        "workload": {"rows": 70, "source": "made up", "composed_from": ["lengths: by hand"]},
        "profile": "a10-llama-3-8b",
        "profile_kind": "published",
        "device_blocks": 60,
        "host_blocks": 400,
        "series": {"ttft_s": [0.1, 0.5, 1.0], "tbt_s": [0.01, 0.02]},
        **facts,
    }


def scenario_of(**values: Any) -> Scenario:
    """A scenario that nobody runs."""
    data: dict[str, Any] = {
        "name": "made",
        "profile": "a10-llama-3-8b",
        "workload": {"generator": "chat", "conversations": 9, "rate": 1.0},
    }
    return build({**data, **values}, "made")


def compared(
    *systems: str,
    runs: int = 5,
    change: Change = lambda _system, _run: {},
    facts: Change = lambda _system, _run: {},
    pushed: Callable[[float], dict[str, Any]] = lambda _rate: {},
    **scenario: Any,
) -> Comparison:
    """What `compare` makes of runs whose metrics and facts are those of METRICS, changed. `pushed`: in
    runs at another rate than the scenario's. Runs differ a very little: those that are the same tell no
    interval."""
    chosen = scenario_of(**scenario)

    class Made:
        def run(self, asks: Iterable[str]) -> Iterator[str]:
            for text in asks:
                ask = json.loads(text)
                system, run = str(ask["scenario"]["system"]), int(ask["scenario"]["run"])
                metrics = change(system, run)
                rate = ask["scenario"]["workload"].get("rate")
                if rate != chosen.workload.rate:
                    metrics = {**metrics, **pushed(rate)}
                found = result(system, metrics, **facts(system, run))
                found["metrics"] = {
                    name: value * (1 + 1e-9 * run) if isinstance(value, float) else value
                    for name, value in found["metrics"].items()
                }
                yield json.dumps({"key": ask["key"], "result": found})

        def close(self) -> None:
            pass

    with patch.object(engine, "make_workers", lambda *_: Made()):
        return compare(chosen, systems, runs)
