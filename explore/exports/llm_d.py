"""llm-d Benchmark Report v0.2, as JSON or YAML: every statistic carries its units.

What is not known is absent, as the schema's own tools write it: wall-clock times, the load's token
source, a percentile with too few samples. `observability`, which the schema leaves open, has our own
metrics under `fastswitch`, units in their names. Source: llm-d/llm-d-benchmark,
benchmark_report/schema_v0_2.py at 2c1e326.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

from explore.exports.samples import Finished, Samples, finished_of
from runs.recording import Recording

_S = 1e9
_PERCENTILES = (
    ("p0p1", 0.1),
    ("p1", 1.0),
    ("p5", 5.0),
    ("p10", 10.0),
    ("p25", 25.0),
    ("p50", 50.0),
    ("p75", 75.0),
    ("p90", 90.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99p9", 99.9),
)


def pieces(recording: Recording) -> Iterator[str]:
    """The report as JSON."""
    yield json.dumps(report(recording), indent=1, allow_nan=False) + "\n"


def yaml_pieces(recording: Recording) -> Iterator[str]:
    """The report as YAML."""
    yield yaml.safe_dump(report(recording), sort_keys=False, allow_unicode=True)


def report(recording: Recording) -> dict[str, Any]:
    """The report as plain data."""
    summary, done = recording.summary, finished_of(recording)
    made = summary.get("provenance", {})
    run: dict[str, Any] = {"uid": _uid(summary)}
    if done.seconds is not None:
        run["time"] = {"duration": f"PT{done.makespan_ns // 10**9}.{done.makespan_ns % 10**9:09d}S"}
    own = {name: value for name, value in summary.get("metrics", {}).items() if value is not None}
    return {
        "version": "0.2",
        "run": run,
        "scenario": {"stack": [_component(summary, made)]},
        "results": {
            "request_performance": {"aggregate": _aggregate(done)},
            "observability": {"fastswitch": own},
        },
    }


def _uid(summary: dict[str, Any]) -> str:
    """Of what run.json says: the same run has the same id wherever it is exported."""
    text = json.dumps(summary, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _component(summary: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    names = ("machine", "scenario", "system", "order", "model", "profile", "profile_kind")
    facts = {name: summary[name] for name in names if summary.get(name) is not None}
    return {
        "metadata": {
            "label": "fastswitch",
            "cfg_id": str(made.get("scenario_hash", "unknown")),
        },
        "standardized": {
            "kind": "generic",
            "tool": "fastswitch",
            "tool_version": str(made.get("commit", "unknown")),
            **facts,
        },
        "native": {"config": summary.get("switches", {})},
    }


def _aggregate(done: Finished) -> dict[str, Any]:
    inputs = int(done.input_tokens.values.sum())
    outputs = int(done.output_tokens.values.sum())
    requests = {"total": done.total, "failures": done.rejected, "incomplete": done.incomplete}
    return {
        "requests": {
            **requests,
            **_known(
                input_length=_statistics(done.input_tokens, "count", 1),
                output_length=_statistics(done.output_tokens, "count", 1),
            ),
        },
        "latency": _known(
            time_to_first_token=_statistics(done.ttft, "s", _S),
            normalized_time_per_output_token=_statistics(done.ntpot, "s/token", _S),
            time_per_output_token=_statistics(done.tpot, "s/token", _S),
            inter_token_latency=_statistics(done.itl, "s/token", _S),
            request_latency=_statistics(done.e2e, "s", _S),
        ),
        "throughput": _known(
            input_token_rate=_rate(done.rate(inputs), "tokens/s"),
            output_token_rate=_rate(done.rate(outputs), "tokens/s"),
            total_token_rate=_rate(done.rate(inputs + outputs), "tokens/s"),
            request_rate=_rate(done.rate(done.ttft.count), "queries/s"),
        ),
    }


def _statistics(samples: Samples, units: str, per_unit: float) -> dict[str, Any] | None:
    if not samples.count:
        return None
    found = {
        "mean": samples.mean,
        "stddev": samples.deviation,
        "min": samples.least,
        **{name: samples.percentile(q) for name, q in _PERCENTILES},
        "max": samples.most,
    }
    values = {name: value / per_unit for name, value in found.items() if value is not None}
    return {"units": units, **values}


def _rate(value: float | None, units: str) -> dict[str, Any] | None:
    return None if value is None else {"units": units, "mean": value}


def _known(**parts: dict[str, Any] | None) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part is not None}
