"""ServeGen: what single clients of a service send, as laws per window. A generator's input.

Source: alibaba/ServeGen, data/*/chunk-N-trace.csv and chunk-N-dataset.json (Apache-2.0), one pair of
files per client N: the trace has (start, rate, cv, law, shape, scale) of every window of 600 s
without a header, the dataset the histograms of lengths of every window of six hours. The same as
tables of all clients, with a header, where a histogram is its mean and quantiles, is read too.
These are no requests, so this is no Reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from traces.readers.base import has_columns, table_rows
from traces.strict import (
    MAX_SECONDS,
    Place,
    count_of,
    csv_rows,
    nanoseconds_of,
    open_lines,
    parse_json,
    quoted,
    read_document,
    shown,
    shown_path,
)
from traces.workload import MAX_TOKENS

Law = Literal["gamma", "weibull"]

RATES = ("client_id", "timestamp", "rate", "cv", "pat", "param1", "param2")
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95}
QUANTILES |= {"p99": 0.99, "max": 1.0}
LENGTHS = ("client_id", "timestamp", "field", "n_support", "mean", *QUANTILES)
FIELDS = ("input_tokens", "output_tokens", "reason_ratio")
_LAWS: dict[str, Law | None] = {"Gamma": "gamma", "Weibull": "weibull", "": None}
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
#: More values of one histogram, a greater rate, CV or parameter: a broken file.
_MAX_SUPPORT = 1 << 20
_MAX_VALUE = 1e9
_FILE = re.compile(r"chunk-([0-9]{1,9})-(?:trace\.csv|dataset\.json)")


@dataclass(frozen=True, slots=True)
class RateWindow:
    """Arrivals of a window: requests per second, CV of the gaps, and the law of the gaps fitted to
    them with its shape and scale (seconds). With no requests there is no law."""

    start_s: float
    rate: float
    cv: float
    law: Law | None
    shape: float
    scale: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long something is: the mean, quantiles as (share, value), and the histogram as (value,
    share) where the source has one, else ()."""

    mean: float
    quantiles: tuple[tuple[float, float], ...]
    histogram: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class LengthWindow:
    """Tokens of prompts and replies in a window, and the share of a reply that is reasoning."""

    start_s: float
    inputs: Lengths | None
    outputs: Lengths | None
    reason_ratio: Lengths | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """One client: windows in order of time. Some have windows of one kind only."""

    client_id: str
    rates: tuple[RateWindow, ...]
    lengths: tuple[LengthWindow, ...]


def is_servegen(head: str) -> bool:
    """Whether a file that begins so holds such distributions."""
    return has_columns(head, RATES) or has_columns(head, LENGTHS)


def read_tables(rates: Path, lengths: Path) -> tuple[Client, ...]:
    """All clients of the two tables, by number. Raises InputError."""
    of_rates = dict(_rate_table(rates))
    of_lengths = dict(_length_table(lengths))
    return tuple(
        Client(str(name), of_rates.get(name, ()), of_lengths.get(name, ()))
        for name in sorted({*of_rates, *of_lengths})
    )


def read_client(trace: Path, dataset: Path) -> Client:
    """A client from its two original files. Raises InputError."""
    match = _FILE.match(trace.name[trace.name.find("chunk-") :])
    name = match[1] if match else trace.name
    return Client(name, tuple(_original_rates(trace)), tuple(_original_lengths(dataset)))


def read_folder(folder: Path) -> tuple[tuple[Client, ...], tuple[str, ...]]:
    """All clients of a folder of original files, by number, and which files lack their other half,
    whose clients are left out. Raises InputError."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("*chunk-*")):
        match = _FILE.match(path.name[path.name.find("chunk-") :])
        if match:
            kind = "trace" if "-trace.csv" in path.name else "dataset"
            if kind in found.setdefault(int(match[1]), {}):
                Place(path).fail("the client has another such file")
            found[int(match[1])][kind] = path
    whole = [number for number in sorted(found) if len(found[number]) == 2]
    if not whole:
        Place(folder).fail("no chunk-N-trace.csv with chunk-N-dataset.json")
    clients = tuple(read_client(found[n]["trace"], found[n]["dataset"]) for n in whole)
    halves = sorted(n for n in found if len(found[n]) < 2)
    return clients, tuple(shown_path(next(iter(found[n].values()))) for n in halves)


# ---------------------------------------------------------------------- values


def _number(text: Any, field: str, place: Place, most: float = _MAX_VALUE) -> float:
    """A number from 0 to `most`. Raises InputError."""
    if not isinstance(text, str) or len(text) > 64 or not _NUMBER.fullmatch(text):
        place.fail(f"{quoted(text)} is not a number >= 0", field)
    value = float(text)
    if not value <= most:
        place.fail(f"{shown(text, 40)} is not in 0 to {most:g}", field)
    return value


def _window(cells: tuple[str, ...], before: float | None, place: Place) -> RateWindow:
    stamp, rate, cv, law, shape, scale = cells
    nanoseconds_of(stamp, "timestamp", place)
    start = float(stamp)
    if before is not None and start <= before:
        place.fail("time does not go on", "timestamp")
    if law not in _LAWS:
        place.fail(f"{quoted(law)} is not Gamma or Weibull", "pat")
    values = [
        _number(text, name, place)
        for name, text in (("rate", rate), ("cv", cv), ("param1", shape), ("param2", scale))
    ]
    if values[0] and (_LAWS[law] is None or not values[2] or not values[3]):
        place.fail("a rate without a law of its gaps", "pat")
    return RateWindow(start, values[0], values[1], _LAWS[law], values[2], values[3])


def _windows(rows: Iterable[tuple[str, ...]], place: Place) -> Iterator[RateWindow]:
    before: float | None = None
    for cells in rows:
        window = _window(cells, before, place)
        before = window.start_s
        yield window


# ---------------------------------------------------------------------- the tables


def _by_client(
    path: Path, columns: tuple[str, ...], place: Place
) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Rows of a table client by client; a client's rows must be together."""
    seen: set[int] = set()
    for cell, rows in groupby(table_rows(path, columns, place), itemgetter(0)):
        name = count_of(cell, "client_id", place)
        if name in seen:
            place.fail(f"{name} came before, its rows must be together", "client_id")
        seen.add(name)
        yield name, rows


def _rate_table(path: Path) -> Iterator[tuple[int, tuple[RateWindow, ...]]]:
    place = Place(path)
    for name, rows in _by_client(path, RATES, place):
        yield name, tuple(_windows((cells[1:] for cells in rows), place))


def _length_table(path: Path) -> Iterator[tuple[int, tuple[LengthWindow, ...]]]:
    place = Place(path)
    for name, rows in _by_client(path, LENGTHS, place):
        yield name, tuple(_length_windows(rows, place))


def _length_windows(rows: Iterable[tuple[Any, ...]], place: Place) -> Iterator[LengthWindow]:
    before: float | None = None
    for stamp, fields in groupby(rows, itemgetter(1)):
        nanoseconds_of(stamp, "timestamp", place)
        start = float(stamp)
        if before is not None and start <= before:
            place.fail("time does not go on", "timestamp")
        before = start
        found: dict[str, Lengths] = {}
        for _, _, kind, support, mean, *values in fields:
            if kind not in FIELDS or kind in found:
                place.fail(f"{quoted(kind)} is not one of {', '.join(FIELDS)}, once", "field")
            count_of(support, "n_support", place)
            numbers = [
                _number(value, column, place, MAX_TOKENS)
                for column, value in zip(QUANTILES, values, strict=True)
            ]
            if numbers != sorted(numbers):
                place.fail("quantiles that do not grow", kind)
            points = tuple(zip(QUANTILES.values(), numbers, strict=True))
            found[kind] = Lengths(_number(mean, "mean", place, MAX_TOKENS), points)
        yield LengthWindow(start, *(found.get(kind) for kind in FIELDS))


# ---------------------------------------------------------------------- the original files


def _original_rates(path: Path) -> Iterator[RateWindow]:
    place = Place(path)

    def rows() -> Iterator[tuple[str, ...]]:
        for row in csv_rows(open_lines(path, place), place):
            if len(row) != 6:
                place.fail(f"{len(row)} fields, must be 6")
            yield tuple(row)

    found = 0
    for window in _windows(rows(), place):
        yield window
        found += 1
    if not found:
        place.fail("empty file")


def _original_lengths(path: Path) -> Iterator[LengthWindow]:
    place = Place(path)
    data = parse_json(read_document(path, place), place)
    if not isinstance(data, dict):
        place.fail("not a JSON object")
    starts = {key: count_of(key, "window", place, MAX_SECONDS) for key in data}
    for key in sorted(starts, key=lambda name: starts[name]):
        fields = data[key]
        if not isinstance(fields, dict) or not set(fields) <= set(FIELDS):
            place.fail(f"not an object of {', '.join(FIELDS)}", key)
        found = [_histogram(fields.get(kind, "{}"), f"{key}.{kind}", place) for kind in FIELDS]
        yield LengthWindow(float(starts[key]), *found)


def _histogram(text: Any, field: str, place: Place) -> Lengths | None:
    """`{378: 0.25, 387: 0.75}` as it is written there, which is no JSON; None for an empty one."""
    if not isinstance(text, str) or not (text.startswith("{") and text.endswith("}")):
        place.fail(f"{quoted(text)} is not a histogram in braces", field)
    inner = text[1:-1].strip()
    if not inner:
        return None
    parts = inner.split(",")
    if len(parts) > _MAX_SUPPORT:
        place.fail(f"{len(parts)} values, limit {_MAX_SUPPORT}", field)
    pairs: list[tuple[float, float]] = []
    for part in parts:
        value, colon, share = part.partition(":")
        if not colon:
            place.fail(f"{quoted(part)} is not a value and its share", field)
        pairs.append(
            (
                _number(value.strip(), field, place, MAX_TOKENS),
                _number(share.strip(), field, place, 1.0),
            )
        )
    pairs.sort(key=itemgetter(0))
    total = sum(share for _, share in pairs)
    if len({value for value, _ in pairs}) != len(pairs):
        place.fail("a value given twice", field)
    if not 0.99 <= total <= 1.01:
        place.fail(f"shares add up to {total:g}, not 1", field)
    mean = sum(value * share for value, share in pairs) / total
    return Lengths(mean, tuple(_quantiles(pairs, total)), tuple(pairs))


def _quantiles(pairs: list[tuple[float, float]], total: float) -> Iterator[tuple[float, float]]:
    """The smallest value at which the shares reach each quantile."""
    reached = 0.0
    wanted = list(QUANTILES.values())
    last = max(value for value, share in pairs if share)
    for value, share in pairs:
        reached += share / total
        while wanted and wanted[0] < 1.0 and reached >= wanted[0]:
            yield wanted.pop(0), value
    for quantile in wanted:
        yield quantile, last
