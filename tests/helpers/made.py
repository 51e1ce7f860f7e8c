"""Comparisons out of made-up results, so that words and tables are tested without simulating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from explore.studies import compare as module
from explore.studies.compare import Comparison
from explore.studies.jobs import Job
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
    **scenario: Any,
) -> Comparison:
    """What `compare` makes of runs whose metrics and facts are those of METRICS, changed. Runs differ a
    very little: those that are the same tell no interval."""

    def run_jobs(jobs: list[Job], *_rest: Any) -> list[dict[str, Any]]:
        found = []
        for job in jobs:
            system, run = str(job.scenario["system"]), int(job.scenario["run"])
            one = result(system, change(system, run), **facts(system, run))
            one["metrics"] = {
                name: value * (1 + 1e-9 * run) if isinstance(value, float) else value
                for name, value in one["metrics"].items()
            }
            found.append(one)
        return found

    with patch.object(module, "run_jobs", run_jobs):
        return module.compare(scenario_of(**scenario), systems, runs)
