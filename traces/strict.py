"""Strict, streaming input: every way a file can be broken ends in one InputError that names it.

Limits: a line of 1 MiB (JSON documents 256 MiB, items of a JSON list 16 MiB), 4 GiB unpacked, 200:1
after the first MiB, ids of 128 characters, 2**24 tokens, numbers of 32 digits, spans of ten years,
moments up to the year 2262. Files may be plain, gzip or zstd; which they are is told by their first
bytes. A file may end in empty lines.

JSON is as Python's own library and many servers write it: `NaN` and `Infinity` may stand in fields
that nobody needs; whatever is read of a row refuses them by the name of its field.

`count_of` and `nanoseconds_of` also take the text of a CSV cell; in JSON a number in quotes is not
a number, so readers of JSON use `json_count_of`, `json_nanoseconds_of` and `block_ids_of`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any, NoReturn

from policy.errors import InputError
from traces.workload import MAX_ID, MAX_TOKENS

MAX_LINE = 1 << 20
MAX_DOCUMENT = 1 << 28
MAX_UNPACKED = 1 << 32
MAX_RATIO = 200
MAX_DIGITS = 32
MAX_SECONDS = 10 * 366 * 86400
#: Latest moment, in nanoseconds since 1970.
MAX_STAMP = (1 << 63) - 1
#: Longest span, in nanoseconds.
MAX_SPAN = MAX_SECONDS * 1_000_000_000
MAX_BLOCK_ID = 1 << 62
#: Most tokens of one block of a prompt.
MAX_BLOCK_SIZE = 1 << 16
#: Bytes read at a time.
CHUNK = 1 << 16

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SECOND = 1_000_000_000
#: A time in CSV: no sign, no blanks, no underscores, ASCII digits alone; no exponent that overflows.
_DECIMAL = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
#: Digits enough that a product of any such time is exact, and is rounded once.
_EXACT = Context(prec=4 * MAX_DIGITS)


def shown(text: str, limit: int = 80) -> str:
    """`text` as a message may quote it: on one line, in at most `limit` characters."""
    if len(text) <= limit and text.isprintable():
        return text
    escaped = text if text.isprintable() else repr(text[: limit + 1])[1:-1]
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 3]}..."


def quoted(value: Any) -> str:
    """A value as a message names it. Lists and objects are not spelled out: they may be deep."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return shown(repr(value), 40)


def shown_path(path: Path) -> str:
    """A path as a message names it."""
    return shown(str(path), 1000)


def reason(error: Exception) -> str:
    """What the system says of a file that cannot be used, on one line."""
    return shown((isinstance(error, OSError) and error.strerror) or str(error), 200)


class Place:
    """Where in which file we are, for messages."""

    __slots__ = ("line", "path")

    def __init__(self, path: Path, line: int = 0) -> None:
        self.path = path
        self.line = line

    def fail(self, problem: str, field: str = "") -> NoReturn:
        """Raise InputError: file, line, field, what is wrong with it; on one line, whatever the
        file has in it."""
        where = shown_path(self.path) + (f":{self.line}" if self.line else "")
        named = f"{shown(field)}: " if field else ""
        raise InputError(f"{where}: {named}{shown(problem, 300)}")


class _Guarded(io.RawIOBase):
    """Bytes of an open file, plain, gzip or zstd, that stop at the unpacking limits."""

    def __init__(self, raw: io.BufferedReader, place: Place) -> None:
        super().__init__()
        self._place = place
        self._packed = os.fstat(raw.fileno()).st_size
        self._unpacked = 0
        begin = raw.peek(4)[:4]
        self._kind = ""
        self._file: Any = raw
        if begin[:2] == _GZIP:
            self._kind = "gzip"
            self._file = gzip.GzipFile(fileobj=raw)
        elif begin == _ZSTD:
            import pyarrow as pa  # noqa: PLC0415  # slow to import, and seldom needed

            self._kind = "zstd"
            self._file = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._file.read(min(len(buffer), CHUNK))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._place.fail(f"broken gzip after {self._unpacked} bytes: {error}")
        except OSError as error:  # pyarrow raises nothing narrower
            if self._kind != "zstd":
                raise
            self._place.fail(f"broken zstd after {self._unpacked} bytes: {error}")
        self._unpacked += len(data)
        if self._unpacked > MAX_UNPACKED:
            self._place.fail(f"unpacks to more than {MAX_UNPACKED} bytes")
        if self._unpacked > MAX_LINE and self._unpacked > MAX_RATIO * self._packed:
            self._place.fail(f"unpacks to more than {MAX_RATIO} times its {self._packed} bytes")
        buffer[: len(data)] = data
        return len(data)


def open_lines(path: Path, place: Place, limit: int = MAX_LINE) -> Iterator[str]:
    """Lines of a UTF-8 file, packed or plain, without their ends; `place.line` follows.

    Raises InputError for a file that cannot be read, and for a line of more than `limit` bytes.
    """
    with opened(path, place) as reader:
        first = True
        while line := reader.readline(limit + 1):
            place.line += 1
            if len(line) > limit:
                place.fail(f"line is longer than {limit} bytes")
            try:
                text = line.decode("utf-8-sig" if first else "utf-8")
            except UnicodeDecodeError as error:
                place.fail(f"not UTF-8: {error.reason} at byte {error.start}")
            first = False
            yield text.rstrip("\r\n")


def read_document(path: Path, place: Place, limit: int = MAX_DOCUMENT) -> str:
    """All of a UTF-8 file, packed or plain, for formats that are not read line by line.

    Raises InputError for what `open_lines` does, and for more than `limit` characters.
    """
    lines = []
    size = 0
    for line in open_lines(path, place, limit):
        lines.append(line)
        size += len(line) + 1
        if size > limit:
            place.fail(f"document is longer than {limit} bytes")
    place.line = 0
    return "\n".join(lines)


def head_of(path: Path, place: Place, limit: int = MAX_LINE) -> str | None:
    """What a file's format is told by: its first line, and up to 127 more where that one begins a
    JSON value and does not end it, in at most twice `limit` bytes. None for an empty file. Raises
    InputError as `open_lines`.
    """
    with opened(path, place) as reader:
        line = reader.readline(limit)
        begun = line.strip(b"\xef\xbb\xbf \t\r\n")
        if begun[:1] in (b"{", b"[") and begun[-1:] not in (b"}", b"]"):
            line += b"".join(reader.readline(limit // 128) for _ in range(127))
    if not line:
        return None
    place.line = 1
    is_whole = line.count(b"\n") < 2 and (line.endswith(b"\n") or len(line) < limit)
    try:
        text = line.decode("utf-8-sig", "strict" if is_whole else "ignore")
    except UnicodeDecodeError as error:
        place.fail(f"not UTF-8: {error.reason} at byte {error.start}")
    return text.rstrip("\r\n")


def columns_of(head: str) -> list[str]:
    """The column names that the first line of a CSV file gives, [] if it is none."""
    try:
        return next(csv.reader([head.partition("\n")[0]], strict=True), [])
    except csv.Error:
        return []


@contextmanager
def opened(path: Path, place: Place) -> Iterator[io.BufferedReader[_Guarded]]:
    """A file's bytes, unpacked, within the limits. Raises InputError."""
    try:
        with path.open("rb") as raw, io.BufferedReader(_Guarded(raw, place), CHUNK) as reader:
            yield reader
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        place.fail(f"cannot be read: {reason(error)}")


def csv_rows(lines: Iterator[str], place: Place, delimiter: str = ",") -> Iterator[list[str]]:
    """Rows of a CSV whose fields contain no line breaks; empty lines may only end it."""
    for line in ended(lines, place):
        try:
            row = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            place.fail(f"not CSV: {error}")
        yield row


def ended(lines: Iterator[str], place: Place) -> Iterator[str]:
    """Lines without the empty ones that may end a file. Raises InputError for one before that."""
    blank = 0
    for line in lines:
        if not line.strip():
            blank = blank or place.line
        elif blank:
            place.line = blank
            place.fail("empty line that does not end the file")
        else:
            yield line


def parse_json(text: str, place: Place, several: str = "") -> Any:
    """One JSON value: no duplicate keys, no numbers beyond sense but NaN and the infinities.

    `text` is the line that `place` is at, or a whole document if that has no line. `several`: what
    to say of a document that another one follows.
    """
    try:
        return json.loads(text, **json_hooks(place))
    except json.JSONDecodeError as error:
        place.line = place.line or error.lineno  # a document knows its line only now
        if several and error.msg == "Extra data":
            place.fail(several)
        place.fail(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        place.fail("nested too deeply")


def json_hooks(place: Place) -> dict[str, Any]:
    """What makes the standard library's JSON strict."""
    return {
        "parse_constant": float,
        "parse_int": lambda digits: _integer(digits, place),
        "parse_float": lambda digits: _float(digits, place),
        "object_pairs_hook": lambda pairs: _object(pairs, place),
    }


def _integer(digits: str, place: Place) -> int:
    if len(digits) > MAX_DIGITS:
        place.fail(f"a number of {len(digits)} digits, limit {MAX_DIGITS}")
    return int(digits)


def _float(digits: str, place: Place) -> float:
    if len(digits) > 2 * MAX_DIGITS:
        place.fail(f"a number of {len(digits)} digits, limit {2 * MAX_DIGITS}")
    return float(digits)


def _object(pairs: list[tuple[str, Any]], place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            place.fail("given twice", field=key)
        found[key] = value
    return found


def text_of(value: Any, field: str, place: Place) -> str:
    """An id: a string of 1 to 128 printable characters."""
    if not isinstance(value, str):
        place.fail(f"{quoted(value)} is not a string", field)
    if not 1 <= len(value) <= MAX_ID:
        place.fail(f"{len(value)} characters, must be 1 to {MAX_ID}", field)
    if not value.isprintable():
        place.fail(f"{quoted(value)} has unprintable characters", field)
    return value


def count_of(value: Any, field: str, place: Place, limit: int = MAX_TOKENS, low: int = 0) -> int:
    """A whole number in low..limit, from JSON or from CSV text."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
            place.fail(f"{quoted(value)} is not a whole number", field)
        value = int(value)
    return json_count_of(value, field, place, limit, low)


def json_count_of(
    value: Any, field: str, place: Place, limit: int = MAX_TOKENS, low: int = 0
) -> int:
    """A whole number in low..limit, from JSON: not a string, not 1.0, not true."""
    if isinstance(value, bool) or not isinstance(value, int):
        place.fail(f"{quoted(value)} is not a whole number", field)
    if not low <= value <= limit:
        place.fail(f"{value} is not in {low} to {limit}", field)
    return value


def block_ids_of(value: Any, field: str, place: Place) -> tuple[int, ...]:
    """Ids of a prompt's blocks, from a JSON list of whole numbers."""
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", field)
    return tuple(json_count_of(i, field, place, MAX_BLOCK_ID) for i in value)


def nanoseconds_of(
    value: Any, field: str, place: Place, per_unit: int = _SECOND, limit: int = MAX_SPAN
) -> int:
    """A time of 0 to `limit` ns (ten years) in whole nanoseconds, from a JSON number or CSV text in
    units of `per_unit` ns.

    CSV text is read as a decimal, so no precision is lost before the one rounding.
    """
    if not isinstance(value, str):
        return json_nanoseconds_of(value, field, place, per_unit, limit)
    if len(value) > 2 * MAX_DIGITS:
        place.fail(f"a number of {len(value)} digits, limit {2 * MAX_DIGITS}", field)
    if not _DECIMAL.fullmatch(value):
        place.fail(f"{quoted(value)} is not a number >= 0", field)
    return _in_ns(Decimal(value), field, place, per_unit, limit)


def json_nanoseconds_of(
    value: Any, field: str, place: Place, per_unit: int = _SECOND, limit: int = MAX_SPAN
) -> int:
    """A time of 0 to `limit` ns (ten years) in whole nanoseconds, from a JSON number in units of
    `per_unit` ns: not a string, not true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        place.fail(f"{quoted(value)} is not a number", field)
    if isinstance(value, float):
        if not math.isfinite(value):
            place.fail(f"{value} is not a finite number", field)
        return _in_ns(Decimal(repr(value)), field, place, per_unit, limit)
    return _in_ns(Decimal(value), field, place, per_unit, limit)


def _in_ns(time: Decimal, field: str, place: Place, per_unit: int, limit: int) -> int:
    if not 0 <= time <= limit // per_unit:
        place.fail(f"{shown(str(time), 40)} is not in 0 to {limit // per_unit}", field)
    return int(_EXACT.multiply(time, Decimal(per_unit)).to_integral_value())


_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?\s?(Z|UTC|[-+]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)


def moment_of(text: Any, field: str, place: Place) -> int:
    """Nanoseconds since 1970 of a date and time, up to nine fractional digits kept exactly; without
    a zone it is UTC."""
    match = _MOMENT.fullmatch(text) if isinstance(text, str) else None
    try:
        if match is None:
            raise ValueError
        day, time, fraction, zone = match.groups()
        zone = "+00:00" if zone is None or zone[0] not in "+-" else zone
        moment = datetime.fromisoformat(f"{day}T{time}{zone}")
    except ValueError:  # no such form, day or hour
        place.fail(f"{quoted(text)} is not a time like 2023-11-16 18:15:46.6805900", field)
    since = int(moment.timestamp()) * _SECOND + int((fraction or "0").ljust(9, "0"))
    if not 0 <= since <= MAX_STAMP:
        place.fail(f"{quoted(text)} is not between 1970 and 2262", field)
    return since
