"""Records of requests as AIPerf's profile_export.jsonl has them, and as `fastswitch export` writes them.

One JSON object a line: `metadata` with times in nanoseconds, conversation and ids, `metrics` with
{value, unit}. A request that failed has its prompt's length as `error_isl`, and no reply; one whose
client left has none either, and keeps the time of it. Records of AIPerf's warm-up, and those that
know no length, are left out and counted. Turns of a `conversation_id` are a session, in order of
time. Source: AIPerf 0.13.0, docs/tutorials/working-with-profile-exports.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.readers.base import (
    Aids,
    id_of,
    in_time_order,
    json_rows,
    numbered,
    row_name,
    session_of,
    unique,
    within_reach,
)
from traces.strict import MAX_STAMP, Place, json_count_of, json_nanoseconds_of, quoted
from traces.workload import Header, Turn

#: Most bytes of a line, which holds the gaps between a reply's tokens.
_MAX_RECORD = 1 << 24
_MS = 1_000_000


@dataclass(frozen=True)
class AiperfReader:
    """Arrivals are when requests were sent."""

    name: str = "aiperf-export"
    left_out: Counter[str] = field(default_factory=Counter)

    def aided(self, _: Aids) -> AiperfReader:
        """With a count of its own of what is left out."""
        return AiperfReader()

    def claims(self, head: str) -> bool:
        """A record with both parts."""
        return all(f'"{key}"' in head for key in ("metadata", "metrics", "request_start_ns"))

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        self.left_out.clear()
        header = Header(
            source="AIPerf records of requests",
            timing="open",
            lost=("the prompts", "lengths of replies that failed or that clients left"),
        )
        place = Place(path)
        turns = in_time_order(unique(self._turns(place), place), place)
        return header, numbered(within_reach(turns, place))

    def _turns(self, place: Place) -> Iterator[Turn]:
        for number, row in enumerate(json_rows(place.path, place, _MAX_RECORD)):
            metadata, metrics = (_section(row, name, place) for name in ("metadata", "metrics"))
            if metadata.get("benchmark_phase") == "warmup":
                self.left_out["record of the warm-up"] += 1
                continue
            given = _value(metrics, "input_sequence_length")
            if given is None:
                given = _value(metrics, "error_isl")
            if given is None:
                self.left_out["record without a prompt's length"] += 1
                continue
            yield _turn_of(number, metadata, metrics, given, place)


def _turn_of(
    number: int, metadata: dict[str, Any], metrics: dict[str, Any], given: Any, place: Place
) -> Turn:
    name = metadata.get("x_request_id")
    request_id = row_name(number) if name is None else id_of(name, "x_request_id", place)
    session = metadata.get("conversation_id")
    begin = _ns(metadata.get("request_start_ns"), "request_start_ns", place)
    left = metadata.get("cancellation_time_ns")
    cancel = None if left is None else _ns(left, "cancellation_time_ns", place) - begin
    if cancel is not None and cancel < 0:
        place.fail("before the request's start", "cancellation_time_ns")
    got = _value(metrics, "output_sequence_length")
    latency = _value(metrics, "request_latency")
    return Turn(
        request_id,
        request_id if session is None else session_of(session, "conversation_id", place),
        1,
        json_count_of(given, "input_sequence_length", place),
        0 if got is None else json_count_of(got, "output_sequence_length", place),
        arrival_ns=begin,
        cancel_ns=cancel,
        service_ns=None
        if latency is None
        else json_nanoseconds_of(latency, "request_latency", place, _MS),
    )


def _section(row: dict[str, Any], name: str, place: Place) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        place.fail(f"{quoted(value)} is not an object", name)
    return value


def _value(metrics: dict[str, Any], name: str) -> Any:
    metric = metrics.get(name)
    return metric.get("value") if isinstance(metric, dict) else None


def _ns(value: Any, name: str, place: Place) -> int:
    return json_count_of(value, name, place, MAX_STAMP)
