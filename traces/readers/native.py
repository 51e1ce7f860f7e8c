"""This project's own workload format: JSONL, one header line, one turn per line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from policy.errors import ConfigError
from traces.strict import Place, count_of, nanoseconds_of, open_lines, parse_json, text_of
from traces.workload import FORMAT, TURN_FIELDS, VERSION, Header, Turn, Workload

_HEADER_KEYS = {*Header.__dataclass_fields__, "format"}
#: Columns that files give in seconds.
_SECONDS = {
    "arrival_s": "arrival_ns",
    "think_s": "think_ns",
    "gap_s": "gap_ns",
    "cancel_s": "cancel_ns",
    "slo_ttft_s": "slo_ttft_ns",
    "slo_tbt_s": "slo_tbt_ns",
    "service_s": "service_ns",
}
_TEXTS = ("parent_id", "client_id", "model", "kind", "stop")
_COUNTS = ("parent_prefix_tokens", "new_input_tokens")
_KNOWN = {
    *_SECONDS,
    *_TEXTS,
    *_COUNTS,
    "request_id",
    "session_id",
    "turn",
    "input_tokens",
    "output_tokens",
    "priority",
    "priority_process",
    "hash_ids",
    "components",
}


class NativeReader:
    """Reads the header's own word on timing; a file without a header must be open loop."""

    name = "native"

    def claims(self, first_line: str) -> bool:
        """A header, or a row of the schema."""
        return f'"{FORMAT}' in first_line or (
            '"request_id"' in first_line and '"input_tokens"' in first_line
        )

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        place = Place(path)
        lines = open_lines(path, place)
        first = next(lines, None)
        if first is None:
            place.fail("empty file")
        data = parse_json(first, place)
        if not isinstance(data, dict):
            place.fail("not a JSON object")
        has_header = "format" in data
        header = _header(data, place) if has_header else Header(timing="open")

        def turns() -> Iterator[Turn]:
            if not has_header:
                yield _turn(data, place)
            for line in lines:
                row = parse_json(line, place)
                if not isinstance(row, dict):
                    place.fail("not a JSON object")
                yield _turn(row, place)

        return header, turns()


def _header(data: dict[str, Any], place: Place) -> Header:
    for key in data:
        if key not in _HEADER_KEYS:
            place.fail("unknown header key", key)
    name, _, version = str(data["format"]).partition("/")
    if name != FORMAT or version != str(VERSION):
        place.fail(f"{data['format']!r:.60}, this program reads {FORMAT}/{VERSION}", "format")
    given = {k: v for k, v in data.items() if k != "format" and v is not None}
    if given.get("timing", "open") not in ("open", "closed", "gap"):
        place.fail(f"{given['timing']!r:.40} is not open, closed or gap", "timing")
    for key in ("composed_from", "lost"):
        if key in given:
            if not isinstance(given[key], list):
                place.fail("not a list", key)
            given[key] = tuple(map(str, given[key]))
    return Header(**given)


def _turn(row: dict[str, Any], place: Place) -> Turn:
    for key in row:
        if key not in _KNOWN:
            place.fail("unknown column", key)
    for key in ("request_id", "input_tokens", "output_tokens"):
        if key not in row:
            place.fail("missing", key)
    values: dict[str, Any] = {}
    for key, value in row.items():
        if value is None or key == "priority_process":
            continue
        if key in _SECONDS:
            values[_SECONDS[key]] = nanoseconds_of(value, key, place)
        elif key in _TEXTS:
            values[key] = text_of(value, key, place)
        elif key in _COUNTS:
            values[key] = count_of(value, key, place)
    request_id = text_of(row["request_id"], "request_id", place)
    session = row.get("session_id")
    values["session_id"] = request_id if session is None else text_of(session, "session_id", place)
    turn = row.get("turn")
    values["turn"] = 1 if turn is None else count_of(turn, "turn", place, low=1)
    priority = row.get("priority")
    if priority is not None:
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 1 << 31:
            place.fail(f"{priority!r:.40} is not a whole number", "priority")
        values["priority"] = priority
    if row.get("hash_ids") is not None:
        values["hash_ids"] = _hash_ids(row["hash_ids"], place)
    if row.get("components") is not None:
        values["components"] = _components(row["components"], place)
    return Turn(
        request_id=request_id,
        input_tokens=count_of(row["input_tokens"], "input_tokens", place),
        output_tokens=count_of(row["output_tokens"], "output_tokens", place),
        **values,
    )


def _hash_ids(value: Any, place: Place) -> tuple[int, ...]:
    if not isinstance(value, list):
        place.fail("not a list", "hash_ids")
    return tuple(count_of(i, "hash_ids", place, limit=1 << 62) for i in value)


def _components(value: Any, place: Place) -> tuple[tuple[str, str, int], ...]:
    if not isinstance(value, list) or not all(isinstance(c, list) and len(c) == 3 for c in value):
        place.fail("not a list of [kind, id, tokens]", "components")
    return tuple(
        (
            text_of(kind, "components", place),
            text_of(ident, "components", place),
            count_of(tokens, "components", place),
        )
        for kind, ident, tokens in value
    )


def turn_as_json(turn: Turn) -> dict[str, Any]:
    """One row of a file: nulls left out, times in seconds."""
    names = {ns: seconds for seconds, ns in _SECONDS.items()}
    row: dict[str, Any] = {}
    for name in TURN_FIELDS:
        value = getattr(turn, name)
        if value is None or (name == "priority" and value == 0):
            continue
        if name in names:
            row[names[name]] = value / 1_000_000_000
        elif isinstance(value, tuple):
            row[name] = [list(v) if isinstance(v, tuple) else v for v in value]
        else:
            row[name] = value
    return row


def write(workload: Workload, path: Path, turns: Iterable[Turn] | None = None) -> int:
    """Write a workload as JSONL, gzip if the name ends in .gz; how many turns.

    Written under a temporary name and renamed, so that a failure leaves nothing behind.
    """
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else part.open("w", encoding="utf-8") as file
        ):
            file.write(json.dumps(workload.header.as_json()) + "\n")
            for turn in workload if turns is None else turns:
                file.write(json.dumps(turn_as_json(turn), separators=(",", ":")) + "\n")
                count += 1
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return count
