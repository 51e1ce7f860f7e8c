"""Strict, streaming input: every way a file can be broken ends in one InputError that names it.

Limits: a line of 1 MiB (JSON documents 256 MiB), 4 GiB unpacked, 200:1 after the first MiB, ids of
128 characters, 2**24 tokens, numbers of 32 digits.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
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

_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"


class Place:
    """Where in which file we are, for messages."""

    __slots__ = ("line", "path")

    def __init__(self, path: Path, line: int = 0) -> None:
        self.path = path
        self.line = line

    def fail(self, problem: str, field: str = "") -> NoReturn:
        """Raise InputError: file, line, field, what is wrong with it."""
        where = f"{self.path}:{self.line}" if self.line else f"{self.path}"
        raise InputError(f"{where}: {field + ': ' if field else ''}{problem}")


class _Guarded(io.RawIOBase):
    """Bytes of a file, gzip or plain, that stop at the unpacking limits."""

    def __init__(self, path: Path, place: Place) -> None:
        super().__init__()
        self._place = place
        self._packed = path.stat().st_size
        self._unpacked = 0
        raw = path.open("rb")
        self._raw = raw
        is_gzip = raw.read(2) == _GZIP
        raw.seek(0)
        self._file: Any = gzip.GzipFile(fileobj=raw) if is_gzip else raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._file.read(min(len(buffer), _CHUNK))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._place.fail(f"broken gzip after {self._unpacked} bytes: {error}")
        self._unpacked += len(data)
        if self._unpacked > MAX_UNPACKED:
            self._place.fail(f"unpacks to more than {MAX_UNPACKED} bytes")
        if self._unpacked > MAX_LINE and self._unpacked > MAX_RATIO * self._packed:
            self._place.fail(f"unpacks to more than {MAX_RATIO} times its {self._packed} bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._raw.close()
        super().close()


def open_lines(path: Path, place: Place, limit: int = MAX_LINE) -> Iterator[str]:
    """Lines of a UTF-8 file, gzip or plain, without their ends; `place.line` follows."""
    try:
        guarded = _Guarded(path, place)
    except OSError as error:
        place.fail(f"cannot be read: {error.strerror}")
    with io.BufferedReader(guarded, _CHUNK) as reader:
        first = True
        while True:
            raw = reader.readline(limit + 1)
            if not raw:
                return
            place.line += 1
            if len(raw) > limit:
                place.fail(f"line is longer than {limit} bytes")
            try:
                text = raw.decode("utf-8-sig" if first else "utf-8")
            except UnicodeDecodeError as error:
                place.fail(f"not UTF-8: {error.reason} at byte {error.start}")
            first = False
            yield text.rstrip("\r\n")


def csv_rows(lines: Iterator[str], place: Place) -> Iterator[list[str]]:
    """Rows of a CSV whose fields contain no line breaks; empty lines are refused."""
    for line in lines:
        try:
            row = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            place.fail(f"not CSV: {error}")
        if not row:
            place.fail("empty line")
        yield row


def parse_json(text: str, place: Place) -> Any:
    """One JSON value: no NaN, no infinities, no duplicate keys, no numbers beyond sense."""
    try:
        return json.loads(
            text,
            parse_constant=lambda word: place.fail(f"{word} is not a number"),
            parse_int=lambda digits: _integer(digits, place),
            parse_float=lambda digits: _float(digits, place),
            object_pairs_hook=lambda pairs: _object(pairs, place),
        )
    except json.JSONDecodeError as error:
        place.fail(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        place.fail("nested too deeply")


def _integer(digits: str, place: Place) -> int:
    if len(digits) > MAX_DIGITS:
        place.fail(f"a number of {len(digits)} digits, limit {MAX_DIGITS}")
    return int(digits)


def _float(digits: str, place: Place) -> float:
    if len(digits) > 2 * MAX_DIGITS:
        place.fail(f"a number of {len(digits)} digits, limit {2 * MAX_DIGITS}")
    value = float(digits)
    if not math.isfinite(value):
        place.fail(f"{digits} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]], place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            place.fail("given twice", field=key[:MAX_ID])
        found[key] = value
    return found


def text_of(value: Any, field: str, place: Place) -> str:
    """An id: a string of 1 to 128 printable characters."""
    if not isinstance(value, str):
        place.fail(f"{value!r:.40} is not a string", field)
    if not 1 <= len(value) <= MAX_ID:
        place.fail(f"{len(value)} characters, must be 1 to {MAX_ID}", field)
    if not value.isprintable():
        place.fail(f"{value!r:.40} has unprintable characters", field)
    return value


def count_of(value: Any, field: str, place: Place, limit: int = MAX_TOKENS, low: int = 0) -> int:
    """A whole number in low..limit, from JSON or from CSV text."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
            place.fail(f"{value!r:.40} is not a whole number", field)
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        place.fail(f"{value!r:.40} is not a whole number", field)
    if not low <= value <= limit:
        place.fail(f"{value} is not in {low} to {limit}", field)
    return int(value)


def nanoseconds_of(value: Any, field: str, place: Place, per_unit: int = 1_000_000_000) -> int:
    """A time >= 0 in whole nanoseconds, from a JSON number or CSV text in units of `per_unit` ns.

    CSV text is read as a decimal, so no precision is lost before the one rounding.
    """
    if isinstance(value, str):
        if len(value) > 2 * MAX_DIGITS:
            place.fail(f"a number of {len(value)} digits, limit {2 * MAX_DIGITS}", field)
        try:
            exact = Decimal(value)
        except InvalidOperation:
            place.fail(f"{value!r:.40} is not a number", field)
        if not exact.is_finite():
            place.fail(f"{value!r:.40} is not a finite number", field)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        place.fail(f"{value!r:.40} is not a number", field)
    else:
        exact = Decimal(repr(value))
    if exact < 0:
        place.fail(f"{value} is negative", field)
    if exact * per_unit > MAX_SECONDS * 1_000_000_000:
        place.fail(f"{value} is more than {MAX_SECONDS} seconds", field)
    return int((exact * per_unit).to_integral_value())
