"""The result file of `vllm bench serve --save-result --save-detailed`, as JSON.

Aggregates are milliseconds with the unit in the key, `duration` and the arrays per request seconds.
Source: vLLM, vllm/benchmarks/serve.py. Percentiles are null where `runs.metrics.stats` says n is too small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from explore.exports.samples import Samples, finished_of
from explore.report.lives import Lives
from runs.metrics.stats import Ints
from runs.recording import Recording

_MS = 1_000_000
_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_MISSING = (
    "date",
    "label",
    "tokenizer_id",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "request_goodput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "generated_texts",
)


#: Beside vLLM's: turns that had to wait for their conversation's turn before, which no latency counts.
_OURS = ("waited_for_parent", "waited_for_parent_s", "preemptions", "parkings")


def pieces(recording: Recording) -> Iterator[str]:
    """The file's text, in pieces: gaps between tokens are many."""
    facts = {**_aggregates(recording), **_per_request(list(recording.rows("requests")))}
    yield "{"
    for name, value in facts.items():
        yield f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n"
    yield '"itls": ['
    for number, (_, times) in enumerate(Lives(recording).with_token_times()):
        yield (",\n" if number else "") + json.dumps(_gaps(times))
    yield "]}\n"


def _aggregates(recording: Recording) -> dict[str, Any]:
    summary, done = recording.summary, finished_of(recording)
    inputs = int(done.input_tokens.values.sum())
    outputs = int(done.output_tokens.values.sum())
    facts: dict[str, Any] = {
        "backend": "fastswitch",
        "endpoint_type": "fastswitch",
        "model_id": summary.get("model"),
        "num_prompts": done.total,
        **dict.fromkeys(_MISSING),
        **{f"fastswitch_{name}": summary.get(name) for name in ("scenario", "system", "order")},
        **{f"fastswitch_{name}": summary.get("metrics", {}).get(name) for name in _OURS},
        "duration": done.seconds,
        "completed": done.ttft.count,
        "failed": done.total - done.ttft.count,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": done.rate(done.ttft.count),
        "output_throughput": done.rate(outputs),
        "total_token_throughput": done.rate(inputs + outputs),
    }
    for name, samples in (
        ("ttft", done.ttft),
        ("tpot", done.tpot),
        ("itl", done.itl),
        ("e2el", done.e2e),
    ):
        facts.update(_statistics(name, samples))
    return facts


def _statistics(name: str, samples: Samples) -> dict[str, float | None]:
    found = {
        f"mean_{name}_ms": samples.mean,
        f"median_{name}_ms": samples.percentile(50.0),
        f"std_{name}_ms": samples.deviation,
    }
    found.update({f"p{q:g}_{name}_ms": samples.percentile(q) for q in _PERCENTILES})
    return {key: None if value is None else value / _MS for key, value in found.items()}


def _per_request(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """One entry per request each, in the order they ended; `itls` is in the same order."""
    return {
        "input_lens": [row["input_tokens"] for row in rows],
        "output_lens": [row["output_tokens"] for row in rows],
        "start_times": [row["arrival_ns"] / 1e9 for row in rows],
        "ttfts": [
            None
            if row["first_token_ns"] is None
            else (row["first_token_ns"] - row["arrival_ns"]) / 1e9
            for row in rows
        ],
        "errors": [
            "" if row["status"] == "finished" else f"{row['status']}: {row['reason']}"
            for row in rows
        ],
    }


def _gaps(times: Ints) -> list[float]:
    return [gap / 1e9 for gap in (times[1:] - times[:-1]).tolist()]
