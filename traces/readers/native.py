"""This project's own workload format: JSONL, one header line, one turn per line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from policy.errors import ConfigError
from traces.readers.base import check_blocks, unique
from traces.strict import (
    MAX_BLOCK_SIZE,
    MAX_DIGITS,
    Place,
    block_ids_of,
    json_count_of,
    json_nanoseconds_of,
    open_lines,
    parse_json,
    quoted,
    reason,
    shown_path,
    text_of,
)
from traces.workload import FORMAT, TURN_FIELDS, VERSION, Header, Turn, Workload

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
        data = _object(first, place)
        rows: Iterator[dict[str, Any]] = (_object(line, place) for line in lines)
        if "format" in data:
            header = _header(data, place)
        else:
            header = Header(timing="open")
            rows = chain([data], rows)
        return header, unique(_turns(header, rows, place), place)


def _object(line: str, place: Place) -> dict[str, Any]:
    row = parse_json(line, place)
    if not isinstance(row, dict):
        place.fail("not a JSON object")
    return row


# ---------------------------------------------------------------------- the header


def _words(value: Any, field: str, place: Place) -> str:
    """Free text. Lone surrogates, which JSON can spell, are no text: nothing can print them."""
    if not isinstance(value, str):
        place.fail(f"{quoted(value)} is not a string", field)
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        place.fail(f"{quoted(value)} has half a character", field)
    return value


def _list_of_words(value: Any, field: str, place: Place) -> tuple[str, ...]:
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", field)
    return tuple(_words(item, field, place) for item in value)


def _timing(value: Any, field: str, place: Place) -> str:
    if value not in ("open", "closed", "gap"):
        place.fail(f"{quoted(value)} is not open, closed or gap", field)
    return str(value)


def _hash_scope(value: Any, field: str, place: Place) -> str:
    if value not in ("global", "session"):
        place.fail(f"{quoted(value)} is not global or session", field)
    return str(value)


def _resolution(value: Any, field: str, place: Place) -> float:
    json_nanoseconds_of(value, field, place)
    return float(value)


def _block_size(value: Any, field: str, place: Place) -> int:
    return json_count_of(value, field, place, MAX_BLOCK_SIZE, 1)


def _seed(value: Any, field: str, place: Place) -> int:
    return json_count_of(value, field, place, 10**MAX_DIGITS - 1)


_HEADER: dict[str, Callable[[Any, str, Place], Any]] = {
    "source": _words,
    "licence": _words,
    "tokenizer": _words,
    "timing": _timing,
    "time_resolution_s": _resolution,
    "block_size": _block_size,
    "hash_scope": _hash_scope,
    "composed_from": _list_of_words,
    "seed": _seed,
    "notes": _words,
    "priority_process": _words,
    "lost": _list_of_words,
}


def _header(data: dict[str, Any], place: Place) -> Header:
    if data["format"] != f"{FORMAT}/{VERSION}":
        problem = f"{quoted(data['format'])}, this program reads {FORMAT}/{VERSION}"
        place.fail(problem, "format")
    given: dict[str, Any] = {}
    for key, value in data.items():
        if key == "format":
            continue
        if key not in _HEADER:
            place.fail("unknown header key", key)
        if value is not None:
            given[key] = _HEADER[key](value, key, place)
    return Header(**given)


# ---------------------------------------------------------------------- rows


def _turns(header: Header, rows: Iterable[dict[str, Any]], place: Place) -> Iterator[Turn]:
    """Turns of the rows; what the header says of order and of blocks must hold."""
    is_open, size = header.timing == "open", header.block_size
    before = 0
    for row in rows:
        turn = _turn(row, place)
        if turn.hash_ids is not None and size is not None:
            tokens = turn.input_tokens
            check_blocks(turn.hash_ids, tokens, size, "hash_ids", place, may_lack_last=True)
        is_timed = is_open or (turn.turn == 1 and turn.parent_id is None)
        if is_timed and turn.arrival_ns is not None:
            if turn.arrival_ns < before:
                place.fail("time runs backwards", "arrival_s")
            before = turn.arrival_ns
        yield turn


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
            values[_SECONDS[key]] = json_nanoseconds_of(value, key, place)
        elif key in _TEXTS:
            values[key] = text_of(value, key, place)
        elif key in _COUNTS:
            values[key] = json_count_of(value, key, place)
    request_id = text_of(row["request_id"], "request_id", place)
    session = row.get("session_id")
    values["session_id"] = request_id if session is None else text_of(session, "session_id", place)
    turn = row.get("turn")
    values["turn"] = 1 if turn is None else json_count_of(turn, "turn", place, low=1)
    priority = row.get("priority")
    if priority is not None:
        values["priority"] = json_count_of(priority, "priority", place, 1 << 31, -(1 << 31))
    if row.get("hash_ids") is not None:
        values["hash_ids"] = block_ids_of(row["hash_ids"], "hash_ids", place)
    if row.get("components") is not None:
        values["components"] = _components(row["components"], place)
    return Turn(
        request_id=request_id,
        input_tokens=json_count_of(row["input_tokens"], "input_tokens", place),
        output_tokens=json_count_of(row["output_tokens"], "output_tokens", place),
        **values,
    )


def _components(value: Any, place: Place) -> tuple[tuple[str, str, int], ...]:
    if not isinstance(value, list) or not all(isinstance(c, list) and len(c) == 3 for c in value):
        place.fail("not a list of [kind, id, tokens]", "components")
    return tuple(
        (
            text_of(kind, "components", place),
            text_of(ident, "components", place),
            json_count_of(tokens, "components", place),
        )
        for kind, ident, tokens in value
    )


# ---------------------------------------------------------------------- writing


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

    Written under a temporary name and renamed, so that a failure leaves nothing behind. Raises
    ConfigError for a place that cannot be written, and what the turns raise.
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
        raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None
    finally:
        with suppress(OSError):  # it is there only if something broke, and not if its name did
            part.unlink()
    return count
