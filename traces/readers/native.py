"""This project's own workload format: JSONL (plain, gzip, zstd) or Parquet, read and written.

JSONL has one header line, then one turn per line. Parquet has the header in its metadata and one
column per field. Both hold the same rows, which go through the same checks.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from policy.errors import ConfigError, InputError
from traces.atomic import whole
from traces.readers import parquet
from traces.readers.base import MAX_SORTED, json_rows, within_reach
from traces.readers.rows import header_of, row_of, turn_of
from traces.rules import checked
from traces.strict import Place, parse_json, read_document, shown_path
from traces.workload import FORMAT, Header, Turn, Workload

#: Ways to write a workload, by the end of the file's name.
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

_MAX_SUMMARY = 1 << 26


class NativeReader:
    """Reads the header's own word on timing; a file without a header must be open loop."""

    name = "native"

    def claims(self, head: str) -> bool:
        """A header, or a row of the schema."""
        keys = ('"request_id"', '"input_tokens"', '"output_tokens"')
        is_row = all(key in head for key in keys) and '"timestamp"' not in head
        return f'"{FORMAT}' in head or (is_row and '"created_time"' not in head)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        place = Place(path)
        if parquet.is_parquet(path, place):
            data, in_order_seen = parquet.header_of(path, place)
            header = header_of(data, place)
            rows = parquet.rows_of(path, place)
            if in_order_seen:
                rows = _by_session(rows, header, place)
        else:
            rows = json_rows(path, place)
            first = next(rows)  # an empty file is refused by itself
            if "format" in first:
                header = header_of(first, place)
            else:
                header = Header(timing="open", may_lack_last_block=True)
                rows = chain([first], rows)
        turns = within_reach((turn_of(row, place) for row in rows), place)
        return header, checked(turns, header, place)


def recorded_in(folder: Path) -> Path:
    """The rows that a run served, in the folder that it recorded to. Raises InputError."""
    path = folder / "workload.parquet"
    if not path.is_file():
        Place(folder).fail("a folder without workload.parquet, which a recording has")
    return path


def as_it_went(folder: Path, turns: Iterator[Turn]) -> Iterator[Turn]:
    """The turns of a recording; of one whose clients were real, as they turned out to be: replies as long
    as they were, and who left, when. What such clients had wished says little of it. Raises InputError."""
    place = Place(folder / "requests.parquet")
    if not _was_served(folder):
        yield from turns
        return
    columns = ("status", "output_tokens", "arrival_ns", "cancel_ns")
    ended = parquet.columns_by_id(place, columns)
    for turn in turns:
        if turn.request_id not in ended:
            place.fail(f"{turn.request_id!r} of workload.parquet is missing")
        status, produced, arrival_ns, cancel_ns = ended[turn.request_id]
        if status == "finished":
            yield replace(turn, output_tokens=produced)
        elif cancel_ns is not None:
            yield replace(turn, cancel_ns=max(0, cancel_ns - arrival_ns))
        else:
            yield turn


def _was_served(folder: Path) -> bool:
    """Whether real clients made the recording."""
    path = folder / "run.json"
    if not path.is_file():
        return False
    summary = parse_json(read_document(path, Place(path), _MAX_SUMMARY), Place(path))
    return isinstance(summary, dict) and summary.get("served") is True


def _by_session(
    rows: Iterator[dict[str, Any]], header: Header, place: Place
) -> Iterator[dict[str, Any]]:
    """Rows in the order seen, as a closed workload has them: each session's together, and behind
    them the sessions that they launched. Holds them."""
    if header.timing == "open":
        yield from rows
        return
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}  # what began by itself -> its sessions
    of_request: dict[str, str] = {}  # request -> its group
    of_session: dict[str, str] = {}
    for row in rows:
        if place.line > MAX_SORTED:
            place.fail(f"more than {MAX_SORTED} rows in the order seen")
        session = row.get("session_id", "")
        group = of_session.get(session)
        if group is None:
            group = of_session[session] = of_request.get(row.get("parent_id", ""), session)
        of_request[row.get("request_id", "")] = group
        groups.setdefault(group, {}).setdefault(session, []).append(row)
    for sessions in groups.values():
        for kept in sessions.values():
            yield from kept


# ---------------------------------------------------------------------- writing


def write(workload: Workload, path: Path, turns: Iterable[Turn] | None = None) -> int:
    """Write a workload, as Parquet if the name ends in .parquet, else as JSONL, packed if it ends
    in .gz or .zst; how many turns.

    Written under a temporary name and renamed, so that a failure leaves nothing behind. Raises
    ConfigError for a name that ends in none of `SUFFIXES` and for a place that cannot be written,
    InputError for turns that break a rule of `traces.rules`, and what the turns raise.
    """
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"{shown_path(path)}: ends in none of {', '.join(SUFFIXES)}")
    place = Place(path)
    with whole(path) as part, _opened(part, path.suffix, workload.header) as put:
        rows = checked(workload if turns is None else turns, workload.header, place)
        place.line = 1
        for turn in rows:
            put(turn)
            place.line += 1
        if place.line == 1:
            raise InputError(f"{shown_path(path)}: nothing to write: not one request is left")
    return place.line - 1


@contextmanager
def _opened(part: Path, suffix: str, header: Header) -> Iterator[Callable[[Turn], Any]]:
    """A file to write turns to."""
    if suffix == ".parquet":
        with parquet.writer(part, header.as_json()) as put:
            yield lambda turn: put(row_of(turn, runs=False))
        return
    with _text(part, suffix) as file:
        file.write(json.dumps(header.as_json()) + "\n")
        yield lambda turn: file.write(json.dumps(row_of(turn), separators=(",", ":")) + "\n")


@contextmanager
def _text(part: Path, suffix: str) -> Iterator[Any]:
    """A text file, packed as its name says. Equal turns give equal bytes."""
    with part.open("wb") as raw:
        if suffix == ".gz":
            # no name and no time in the file, which would differ from run to run
            with (
                gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
                io.TextIOWrapper(packed, encoding="utf-8") as file,
            ):
                yield file
        elif suffix == ".zst":
            import pyarrow as pa  # noqa: PLC0415  # slow to import

            with (
                pa.CompressedOutputStream(pa.PythonFile(raw, mode="w"), "zstd") as packed,
                io.TextIOWrapper(packed, encoding="utf-8") as file,
            ):
                yield file
        else:
            with io.TextIOWrapper(raw, encoding="utf-8") as file:
                yield file
