"""Rows and headers of this project's own format: one JSON-like object each, in any container.

Checked here is every value by itself; what holds between rows is in `traces.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traces.readers.base import expand_ranges
from traces.strict import (
    MAX_BLOCK_SIZE,
    MAX_DIGITS,
    MAX_SPAN,
    MAX_STAMP,
    Place,
    block_ids_of,
    json_count_of,
    json_nanoseconds_of,
    quoted,
    text_of,
)
from traces.workload import FORMAT, READABLE, TURN_FIELDS, VERSION, Header, Turn

#: Columns that files give in seconds.
SECONDS = {
    "arrival_s": "arrival_ns",
    "think_s": "think_ns",
    "gap_s": "gap_ns",
    "cancel_s": "cancel_ns",
    "slo_ttft_s": "slo_ttft_ns",
    "slo_tbt_s": "slo_tbt_ns",
    "service_s": "service_ns",
}
TEXTS = ("parent_id", "client_id", "model", "kind", "stop", "priority_process")
COUNTS = ("parent_prefix_tokens", "new_input_tokens")
REQUIRED = ("request_id", "input_tokens", "output_tokens")
KNOWN = {*SECONDS, *TEXTS, *COUNTS, *REQUIRED}
KNOWN |= {"session_id", "turn", "priority", "hash_ids", "components"}
PRIORITY_LIMIT = 1 << 31

_SECOND = 1_000_000_000
_NAMES = {ns: seconds for seconds, ns in SECONDS.items()}


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


def _flag(value: Any, field: str, place: Place) -> bool:
    if not isinstance(value, bool):
        place.fail(f"{quoted(value)} is not true or false", field)
    return value


_HEADER: dict[str, Callable[[Any, str, Place], Any]] = {
    "source": _words,
    "licence": _words,
    "tokenizer": _words,
    "timing": _timing,
    "time_resolution_s": _resolution,
    "block_size": _block_size,
    "hash_scope": _hash_scope,
    "may_lack_last_block": _flag,
    "priority_process": _words,
    "composed_from": _list_of_words,
    "seed": _seed,
    "notes": _words,
    "lost": _list_of_words,
    "assumed": _list_of_words,
}


def header_of(data: dict[str, Any], place: Place) -> Header:
    """The header. Raises InputError. Version 1 let every prompt's last block lack its id."""
    versions = {f"{FORMAT}/{version}": version for version in READABLE}
    written = data.get("format")
    if not isinstance(written, str) or written not in versions:
        problem = f"{quoted(written)}, this program reads {FORMAT}/{VERSION} and earlier"
        place.fail(problem, "format")
    given: dict[str, Any] = {}
    for key, value in data.items():
        if key == "format":
            continue
        if key not in _HEADER:
            place.fail("unknown header key", key)
        if value is not None:
            given[key] = _HEADER[key](value, key, place)
    if versions[written] == 1 and "block_size" in given:
        given["may_lack_last_block"] = True
    return Header(**given)


# ---------------------------------------------------------------------- turns


def turn_of(row: dict[str, Any], place: Place) -> Turn:
    """The turn of a row; null is as good as missing. Raises InputError."""
    for key in row:
        if key not in KNOWN:
            place.fail("unknown column", key)
    for key in REQUIRED:
        if key not in row:
            place.fail("missing", key)
    values: dict[str, Any] = {}
    for key, value in row.items():
        if value is None:
            continue
        if key in SECONDS:
            limit = MAX_STAMP if key == "arrival_s" else MAX_SPAN
            values[SECONDS[key]] = json_nanoseconds_of(value, key, place, _SECOND, limit)
        elif key in TEXTS:
            values[key] = text_of(value, key, place)
        elif key in COUNTS:
            values[key] = json_count_of(value, key, place)
    request_id = text_of(row["request_id"], "request_id", place)
    session = row.get("session_id")
    values["session_id"] = request_id if session is None else text_of(session, "session_id", place)
    turn = row.get("turn")
    values["turn"] = 1 if turn is None else json_count_of(turn, "turn", place, low=1)
    priority = row.get("priority")
    if priority is not None:
        limit = PRIORITY_LIMIT
        values["priority"] = json_count_of(priority, "priority", place, limit, -limit)
    if row.get("hash_ids") is not None:
        values["hash_ids"] = _blocks(row["hash_ids"], place)
    if row.get("components") is not None:
        values["components"] = _components(row["components"], place)
    return Turn(
        request_id=request_id,
        input_tokens=json_count_of(row["input_tokens"], "input_tokens", place),
        output_tokens=json_count_of(row["output_tokens"], "output_tokens", place),
        **values,
    )


def _blocks(value: Any, place: Place) -> tuple[int, ...]:
    """A list of ids, or their runs: `1-3;9`."""
    if isinstance(value, str) and value:
        return expand_ranges(value, place, "hash_ids")
    return block_ids_of(value, "hash_ids", place)


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


def row_of(turn: Turn, *, runs: bool = True) -> dict[str, Any]:
    """One row of a file: nulls left out, times in seconds. `runs`: block ids as runs where that is
    shorter."""
    row: dict[str, Any] = {}
    for name in TURN_FIELDS:
        value = getattr(turn, name)
        if value is None or (name == "priority" and value == 0):
            continue
        if name in _NAMES:
            row[_NAMES[name]] = value / _SECOND
        elif name == "hash_ids":
            row[name] = _as_runs(value) if runs else list(value)
        elif isinstance(value, tuple):
            row[name] = [list(v) for v in value]
        else:
            row[name] = value
    return row


def _as_runs(ids: tuple[int, ...]) -> str | list[int]:
    """`1-3;9` if that takes fewer than half as many numbers, else the list."""
    begins = [k for k, i in enumerate(ids) if not k or ids[k - 1] + 1 != i]
    if 4 * len(begins) >= len(ids):
        return list(ids)
    ends = [*begins[1:], len(ids)]
    return ";".join(
        f"{ids[a]}-{ids[b - 1]}" if b - a > 1 else f"{ids[a]}"
        for a, b in zip(begins, ends, strict=True)
    )
