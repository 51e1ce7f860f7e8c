"""Per-request records as in AIPerf's profile_export.jsonl: one JSON object a line, units beside values.

AIPerf's `inter_token_latency` is the mean of one request (TPOT here); its `inter_chunk_latency` are the
gaps (TBT here). Times in `metadata` are nanoseconds since the run began, not since 1970. `fastswitch_due_ns` is before
`request_start_ns` where a turn had to wait for its conversation's turn before. Source: AIPerf 0.13.0, docs/tutorials/working-with-profile-exports.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from explore.report.lives import Lives
from runs.metrics.stats import Ints
from runs.recording import Recording


def pieces(recording: Recording) -> Iterator[str]:
    """The file's lines."""
    for number, (row, times) in enumerate(Lives(recording).with_token_times()):
        record = {
            "metadata": _metadata(row, number),
            "metrics": _metrics(row, times),
            "error": None
            if row["status"] == "finished"
            else {"code": None, "type": row["status"], "message": row["reason"]},
        }
        yield json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def _metadata(row: dict[str, Any], number: int) -> dict[str, Any]:
    cancelled = row["status"] == "cancelled"
    return {
        "session_num": number,
        "x_request_id": row["request_id"],
        "x_correlation_id": None,
        "conversation_id": row["session_id"],
        "turn_index": row["turn"] - 1,
        "fastswitch_due_ns": row["due_ns"],
        "request_start_ns": row["arrival_ns"],
        "request_ack_ns": None,
        "request_end_ns": row["cancel_ns"] if cancelled else row["end_ns"],
        "worker_id": "fastswitch",
        "record_processor_id": "fastswitch",
        "benchmark_phase": "profiling",
        "was_cancelled": cancelled,
        "cancellation_time_ns": row["cancel_ns"] if cancelled else None,
    }


def _metrics(row: dict[str, Any], times: Ints) -> dict[str, Any]:
    if row["status"] != "finished":
        return {"error_isl": _value(row["input_tokens"], "tokens")}
    tokens = row["output_tokens"]
    arrival, first, finish = row["arrival_ns"], row["first_token_ns"], row["finish_ns"]
    found = {
        "input_sequence_length": _value(row["input_tokens"], "tokens"),
        "output_sequence_length": _value(tokens, "tokens"),
        "output_token_count": _value(tokens, "tokens"),
        "time_to_first_token": _ms(first - arrival),
        "request_latency": _ms(finish - arrival),
    }
    if tokens > 1:
        gaps = (times[1:] - times[:-1]).tolist()
        found["time_to_second_token"] = _ms(gaps[0])
        found["inter_chunk_latency"] = _value([gap / 1e6 for gap in gaps], "ms")
        mean = (finish - first) / (tokens - 1)
        found["inter_token_latency"] = _ms(mean)
        if mean:
            found["output_token_throughput_per_user"] = _value(1e9 / mean, "tokens/sec/user")
    return found


def _ms(nanoseconds: float) -> dict[str, Any]:
    return _value(nanoseconds / 1e6, "ms")


def _value(value: Any, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}
