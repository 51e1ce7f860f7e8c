"""Any CSV or JSON of requests, by naming its columns: `arrival=ts:ms,input=prompt,output=reply`.

What can be named, each at most once:

    input, output                          tokens of prompt and reply; these two are needed
    arrival, think, gap, cancel, service   times, in the unit behind the colon
    slo_ttft, slo_tbt                      limits, likewise
    session, client, id, parent            names; without a session every row is one
    prefix, new, priority                  tokens repeated of the turn before, tokens added, urgency
    model, kind, stop                      words

Units: s (if none is given), ms, us, ns, min, h; for an arrival also `iso`, a date and time. A column
is a CSV's (commas, semicolons or tabs), or a key of JSON objects, on a line each, one after another
or in one list; `usage.prompt_tokens` is a key inside an object. Other columns are not read, and the
header says so. With an arrival the loop is open and rows are put in order of time, up to a million;
with `think` or `gap` it is closed, where a session's first arrival counts, and its rows are brought
together. A session's turns are its rows in that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import ConfigError
from traces.json_list import documents
from traces.readers.base import (
    MAX_SORTED,
    Aids,
    id_of,
    in_time_order,
    numbered,
    row_name,
    session_of,
    unique,
    within_reach,
)
from traces.readers.rows import PRIORITY_LIMIT
from traces.strict import (
    MAX_SPAN,
    MAX_STAMP,
    Place,
    count_of,
    csv_rows,
    head_of,
    json_count_of,
    moment_of,
    nanoseconds_of,
    open_lines,
    shown,
)
from traces.workload import Header, Turn

UNITS = {
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TIMES = ("arrival", "think", "gap", "cancel", "service", "slo_ttft", "slo_tbt")
_TOKENS = ("input", "output", "prefix", "new")
_NAMES = ("session", "client", "id", "parent", "model", "kind", "stop")
FIELDS = ("input", "output", *_TIMES, *_NAMES, "prefix", "new", "priority")
_EXAMPLE = "arrival=ts:ms,input=prompt_tokens,output=completion_tokens,session=chat,client=user"
_SIGNED = re.compile(r"-?[0-9]{1,10}")
_DELIMITERS = (",", ";", "\t")


class Column(NamedTuple):
    """A column, or a path of keys, and its unit."""

    name: str
    unit: str = "s"


def parse_columns(text: str) -> dict[str, Column]:
    """`arrival=ts:ms,input=...`. Raises ConfigError."""
    found: dict[str, Column] = {}
    for part in text.split(","):
        field, equals, name = part.strip().partition("=")
        if not equals or field not in FIELDS or field in found:
            raise ConfigError(
                f"columns: {shown(part, 60)!r} must be one of {', '.join(FIELDS)}, once, and a"
                f" column, like {_EXAMPLE}"
            )
        column, colon, unit = name.rpartition(":")
        if field not in _TIMES or not colon:
            found[field] = Column(name)
        elif unit in UNITS or (unit == "iso" and field == "arrival"):
            found[field] = Column(column, unit)
        else:
            raise ConfigError(
                f"columns: {field}: {shown(unit, 20)!r} is no unit; give {', '.join(UNITS)}"
                + (" or iso" if field == "arrival" else "")
            )
        if not found[field].name:
            raise ConfigError(f"columns: {field}: names no column")
    for field in ("input", "output"):
        if field not in found:
            raise ConfigError(f"columns: {field} is needed, like {_EXAMPLE}")
    if "think" in found and "gap" in found:
        raise ConfigError("columns: think and gap: only one drives a turn")
    return found


@dataclass(frozen=True)
class NamedColumnsReader:
    """`columns`: as `parse_columns` takes them."""

    name: str = "columns"
    columns: str | None = None

    def aided(self, aids: Aids) -> NamedColumnsReader:
        """With the columns."""
        return NamedColumnsReader(columns=aids.columns)

    def claims(self, head: str) -> bool:  # noqa: ARG002
        """Never by itself."""
        return False

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader. Raises ConfigError for columns that cannot be."""
        if self.columns is None:
            raise ConfigError(f"format columns needs --columns (workload.columns), like {_EXAMPLE}")
        columns = parse_columns(self.columns)
        place = Place(path)
        others, rows = _table(path, columns, place)
        driver = next((name for name in ("think", "gap") if name in columns), None)
        is_open = driver is None and "arrival" in columns
        header = Header(
            source=f"{shown(path.name)}, by its columns",
            timing="open" if is_open else "gap" if driver == "gap" else "closed",
            lost=tuple(f"{shown(name)}: not named" for name in others),
        )
        turns: Iterator[Turn] = (
            _turn_of(number, cells, columns, place, is_open=is_open)
            for number, cells in enumerate(rows)
        )
        if "id" in columns:
            turns = unique(turns, place)
        if is_open:
            return header, numbered(within_reach(in_time_order(turns, place), place))
        return header, within_reach(_closed(turns, place), place)


def _table(
    path: Path, columns: dict[str, Column], place: Place
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Columns that nobody named, and the cells of every row by what they are; None: empty."""
    head = head_of(path, Place(path)) or ""
    if head.lstrip().startswith(("{", "[")):
        items = documents(path, place, inside_lists=True)
        first = next(items, None)
        if first is None:
            place.fail("no rows")
        named = {column.name.partition(".")[0] for column in columns.values()}
        others = [key for key in first if key not in named]
        for column in columns.values():
            if column.name.partition(".")[0] not in first:
                _missing(column, first, place)
        return others, (
            {field: _inside(row, column.name) for field, column in columns.items()}
            for row in chain([first], items)
        )
    wanted = {column.name for column in columns.values()}
    line = head.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=lambda mark: len(wanted & set(line.split(mark))))
    rows = csv_rows(open_lines(path, place), place, delimiter)
    names = next(rows, None)
    if names is None:
        place.fail("empty file")
    if len(set(names)) < len(names):
        place.fail("a column given twice")
    for column in columns.values():
        if column.name not in names:
            _missing(column, names, place)
    return [name for name in names if name not in wanted], _cells(rows, names, columns, place)


def _cells(
    rows: Iterator[list[str]], names: list[str], columns: dict[str, Column], place: Place
) -> Iterator[dict[str, Any]]:
    indexes = {field: names.index(column.name) for field, column in columns.items()}
    for row in rows:
        if len(row) != len(names):
            place.fail(f"{len(row)} fields, the header has {len(names)}")
        yield {field: row[index] or None for field, index in indexes.items()}


def _missing(column: Column, names: Any, place: Place) -> None:
    place.fail(f"column missing; columns are {', '.join(map(str, names))}", column.name)


def _inside(row: dict[str, Any], path: str) -> Any:
    """The value at a path of keys, or under the whole path as a key; None: not there."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _turn_of(
    number: int,
    cells: dict[str, Any],
    columns: dict[str, Column],
    place: Place,
    *,
    is_open: bool,
) -> Turn:
    def named(field: str) -> str:
        return columns[field].name

    values: dict[str, Any] = {}
    for field, value in cells.items():
        if value is None or value == "":
            continue
        if field in _TIMES:
            values[f"{field}_ns"] = _time(field, value, columns[field], place)
        elif field in _TOKENS:
            values[field] = _tokens(value, named(field), place)
        elif field == "priority":
            values[field] = _urgency(value, named(field), place)
        elif field == "session":
            values[field] = session_of(value, named(field), place)
        else:
            values[field] = id_of(value, named(field), place)
    for field in ("input", "output"):
        if field not in values:
            place.fail("empty", named(field))
    if is_open and "arrival_ns" not in values:
        place.fail("empty", named("arrival"))
    request_id = values.pop("id", None) or row_name(number)
    return Turn(
        request_id,
        values.pop("session", request_id),
        1,
        values.pop("input"),
        values.pop("output"),
        parent_prefix_tokens=values.pop("prefix", None),
        new_input_tokens=values.pop("new", None),
        client_id=values.pop("client", None),
        parent_id=values.pop("parent", None),
        **values,
    )


def _time(field: str, value: Any, column: Column, place: Place) -> int:
    if column.unit == "iso":
        return moment_of(value, column.name, place)
    limit = MAX_STAMP if field == "arrival" else MAX_SPAN
    return nanoseconds_of(value, column.name, place, UNITS[column.unit], limit)


def _tokens(value: Any, name: str, place: Place) -> int:
    """A number of tokens; tables that once had an empty cell write 12 as 12.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.endswith(".0"):
        value = value.removesuffix(".0")
    return count_of(value, name, place)


def _urgency(value: Any, name: str, place: Place) -> int:
    if isinstance(value, str) and _SIGNED.fullmatch(value):
        value = int(value)
    return json_count_of(value, name, place, PRIORITY_LIMIT, -PRIORITY_LIMIT)


def _closed(turns: Iterator[Turn], place: Place) -> Iterator[Turn]:
    """Sessions one after another, in the order of their first rows, driven by think time or gap.
    Holds the rows."""
    sessions: dict[str, list[Turn]] = {}
    for number, turn in enumerate(turns):
        if number >= MAX_SORTED:
            place.fail(
                f"more than {MAX_SORTED} rows, of which each session must be brought together"
            )
        sessions.setdefault(turn.session_id, []).append(turn)
    groups = sorted(sessions.values(), key=lambda rows: rows[0].arrival_ns or 0)
    for rows in groups:
        for number, turn in enumerate(rows, start=1):
            if number == 1:
                yield replace(turn, think_ns=None, gap_ns=None)
            else:
                yield replace(turn, turn=number, arrival_ns=None)


def hint(head: str) -> str:
    """How a file of no known format can be read, in words, with the columns that it shows."""
    return (
        "no known format; any CSV or JSON of requests is read by naming its columns: --columns"
        " (workload.columns) arrival=NAME:ms,input=NAME,output=NAME; it begins"
        f" {shown(repr(head[:120]), 130)}"
    )
