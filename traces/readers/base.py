"""What a reader is, and what several of them need: ids, tables, blocks, order in time."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from policy.errors import ConfigError
from traces.strict import (
    MAX_BLOCK_ID,
    MAX_BLOCK_SIZE,
    MAX_LINE,
    MAX_SECONDS,
    MAX_SPAN,
    MAX_STAMP,
    Place,
    columns_of,
    count_of,
    csv_rows,
    ended,
    json_nanoseconds_of,
    nanoseconds_of,
    open_lines,
    parse_json,
    quoted,
    text_of,
)
from traces.workload import MAX_ID, Header, Turn

#: Most blocks of one prompt.
MAX_BLOCKS = 1 << 20
#: Prompts from which the size of a block is told.
_SIZED_PROMPTS = 256
#: Most rows that a reader sorts by time in memory: about half a gigabyte.
MAX_SORTED = 1 << 20

#: Names of rows, and what stands for such names of sessions: one `s` more keeps all apart.
_ROW_NAME = re.compile(r"s*r[0-9]{7,}")

Encode = Callable[[str], Sequence[int]]


class Aids(NamedTuple):
    """What a file alone does not say.

    `companions`: files of the publisher beside it. `columns`: which column is what, for tables of no
    known format. `turns`: whether later rows of a session count only what is new. `block_size`:
    tokens of a block of ids.
    """

    tokenizer: Encode | None = None
    companions: tuple[Path, ...] = ()
    columns: str | None = None
    turns: Literal["increments", "whole"] | None = None
    block_size: int | None = None


class Reader(Protocol):
    """One format. Readers are stateless; `read` streams."""

    @property
    def name(self) -> str:
        """What the format is called."""

    def claims(self, head: str) -> bool:
        """Whether a file that begins with this line is of this format."""

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """Header and turns. Raises InputError for anything that is not the format, and for a
        request id that came before; no row is dropped."""


def needs_tokenizer(tokenizer: Encode | None, what: str) -> Encode:
    """The tokenizer. Raises ConfigError if there is none."""
    if tokenizer is None:
        raise ConfigError(
            f"tokenizer: {what} is text, its tokens must be counted; convert it once with"
            " fastswitch trace convert FILE --tokenizer tokenizer.json -o OUT"
        )
    return tokenizer


def encoded(text: Any, field: str, place: Place, encode: Encode) -> Sequence[int]:
    """The tokens of a text. Raises InputError for what is none, or is too long."""
    if not isinstance(text, str):
        place.fail(f"{quoted(text)} is not a string", field)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        place.fail("has half a character", field)
    tokens = encode(text)
    count_of(len(tokens), field, place)
    return tokens


# ---------------------------------------------------------------------- ids


def unique(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Raise InputError for an id that came before. Costs a set entry per row, so only for formats
    whose ids are not unique by how they are made."""
    seen: set[str] = set()
    for turn in turns:
        if turn.request_id in seen:
            place.fail(f"{turn.request_id!r} came before", "request_id")
        seen.add(turn.request_id)
        yield turn


def row_name(number: int) -> str:
    """The id of a request whose source has none: the number of its row."""
    return f"r{number:07d}"


def id_of(value: Any, field: str, place: Place) -> str:
    """An id that a source gives as text or as a whole number."""
    return text_of(str(value) if type(value) is int else value, field, place)


def session_of(value: Any, field: str, place: Place) -> str:
    """A session's name; one that looks like the name of a row gets an `s` in front, so that a row
    without a session, which is its own, is never taken for it."""
    name = id_of(value, field, place)
    if _ROW_NAME.fullmatch(name):
        name = f"s{name}"
    return text_of(name, field, place)


def id_within(name: str, part: int | str, field: str, place: Place) -> str:
    """`name/part`, the id of a part of what `name` is. Raises InputError if it is longer than an
    id may be: the workload could be written and not read back."""
    made = f"{name}/{part}"
    if len(made) > MAX_ID:
        place.fail(f"{made!r} has {len(made)} characters, must be 1 to {MAX_ID}", field)
    return made


def optional_ns(value: Any, field: str, place: Place) -> int | None:
    """A time in seconds that may be null."""
    return None if value is None else json_nanoseconds_of(value, field, place)


def optional_text(value: Any, field: str, place: Place) -> str | None:
    """A text that may be null or empty, which says as little."""
    return None if value is None or value == "" else text_of(value, field, place)


def stamp_of(value: Any, field: str, place: Place, per_unit: int = 1_000_000_000) -> int:
    """A moment in units of `per_unit` ns, from a trace's own start or from 1970, from JSON or a CSV
    cell."""
    return nanoseconds_of(value, field, place, per_unit, MAX_STAMP)


def json_stamp_of(value: Any, field: str, place: Place, per_unit: int = 1_000_000_000) -> int:
    """`stamp_of`, from JSON."""
    return json_nanoseconds_of(value, field, place, per_unit, MAX_STAMP)


# ---------------------------------------------------------------------- blocks


def expand_ranges(text: str, place: Place, field: str) -> tuple[int, ...]:
    """`1-3;9` is 1, 2, 3, 9. Raises InputError."""
    ids: list[int] = []
    for part in text.split(";") if text else ():
        first, dash, last = part.partition("-")
        low = count_of(first, field, place, MAX_BLOCK_ID)
        high = count_of(last, field, place, MAX_BLOCK_ID) if dash else low
        if high < low or high - low > MAX_BLOCKS:
            place.fail(f"{quoted(part)} is not a range", field)
        ids.extend(range(low, high + 1))
        if len(ids) > MAX_BLOCKS:
            place.fail(f"more than {MAX_BLOCKS} blocks", field)
    return tuple(ids)


def block_size_of(
    pairs: Iterable[tuple[int, int]], usual: int, given: int | None, place: Place
) -> int:
    """Tokens of a block, of which a file gives the ids alone, from the (tokens, ids) of its first
    prompts: as `given`, else the `usual` size if it can be, else the power of two that it must be.
    Raises InputError if several can be."""
    low, high = 1, MAX_BLOCK_SIZE
    for tokens, ids in islice(pairs, _SIZED_PROMPTS):
        if ids:
            low = max(low, -(-tokens // ids))
        if ids > 1:
            high = min(high, (tokens - 1) // (ids - 1))
    if given is not None or low <= usual <= high or low > high:
        return given or usual
    sizes = [1 << k for k in range(17) if low <= 1 << k <= high]
    if len(sizes) != 1:
        place.fail(
            f"blocks are of {low} to {high} tokens; say of how many: --block-size,"
            " workload.block_size",
            "hash_ids",
        )
    return sizes[0]


def common(before: Sequence[Any], after: Sequence[Any]) -> int:
    """How many leading entries are equal."""
    shared = 0
    for left, right in zip(before, after, strict=False):
        if left != right:
            break
        shared += 1
    return shared


class Prompts:
    """The block ids of prompts that may be repeated, the latest `limit` ids of them; what is older
    is forgotten, so memory is bounded."""

    def __init__(self, size: int, limit: int = 1 << 22) -> None:
        self._size = size
        self._room = limit
        self._kept: dict[str, tuple[int, array[int]]] = {}

    def keep(self, name: str, tokens: int, ids: tuple[int, ...]) -> None:
        """Remember the prompt that `name` (a session, a request) has now."""
        self._drop(name)
        self._kept[name] = (tokens, array("q", ids))
        self._room -= len(ids)
        while self._room < 0:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        _, ids = self._kept.pop(name, (0, ()))
        self._room += len(ids)

    def linked(self, turn: Turn) -> Turn:
        """The turn with what it repeats of the prompt before it in its session, if both have ids."""
        if turn.hash_ids is None or turn.session_id == turn.request_id:
            return turn
        tokens, ids = turn.input_tokens, turn.hash_ids
        shared = self.shared(turn.session_id, tokens, ids) if turn.turn > 1 else None
        self.keep(turn.session_id, tokens, ids)
        return turn if shared is None else replace(turn, parent_prefix_tokens=shared)

    def shared(self, name: str, tokens_now: int, ids: tuple[int, ...]) -> int | None:
        """How many tokens of that prompt a prompt of these blocks repeats from its start; None:
        forgotten."""
        if name not in self._kept:
            return None
        tokens, before = self._kept[name]
        return min(common(before, ids) * self._size, tokens, tokens_now)


# ---------------------------------------------------------------------- rows


def json_rows(path: Path, place: Place, limit: int = MAX_LINE) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, each an object. Raises InputError, also for an empty file."""
    seen = False
    for line in ended(open_lines(path, place, limit), place):
        row = parse_json(line, place)
        if not isinstance(row, dict):
            place.fail("not a JSON object")
        yield row
        seen = True
    if not seen:
        place.fail("empty file")


def table_rows(
    path: Path, columns: tuple[str, ...], place: Place, optional: tuple[str, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Rows of a CSV file with these columns and no others, in any order, but for a table's own
    numbers of its rows; the cells of a row come in the order of `columns` and then `optional`, None
    for one that the file has not. Raises InputError."""
    rows = csv_rows(open_lines(path, place), place)
    names = next(rows, None)
    if names is None:
        place.fail("empty file")
    indexes = _column_indexes(names, columns, optional, place)
    lacks = None in indexes
    width = len(names)
    cells = itemgetter(*(width if index is None else index for index in indexes))
    for row in rows:
        if len(row) != width:
            place.fail(f"{len(row)} fields, the header has {width}")
        yield cells([*row, None] if lacks else row)


#: What pandas calls the numbers of the rows, when a table that has them is saved again.
_ROW_NUMBERS = ("", "Unnamed: 0")


def has_columns(head: str, columns: Iterable[str], optional: Iterable[str] = ()) -> bool:
    """Whether a file that begins so is a CSV of these columns, in any order."""
    found = set(columns_of(head)).difference(_ROW_NUMBERS)
    return set(columns) <= found <= {*columns, *optional}


def _column_indexes(
    header: list[str], wanted: tuple[str, ...], optional: tuple[str, ...], place: Place
) -> list[int | None]:
    """Where each wanted column is. Raises InputError naming one that is missing, doubled or more
    than is known: what it says of a row must not be dropped in silence."""
    found: dict[str, int] = {}
    for index, name in enumerate(header):
        if name in found:
            place.fail("column given twice", name)
        found[name] = index
    known = wanted + optional
    for name in wanted:
        if name not in found:
            place.fail(f"column missing; columns are {', '.join(header)}", name)
    for name in found:
        if name not in known and name not in _ROW_NUMBERS:
            place.fail(f"unknown column; columns are {', '.join(known)}", name)
    return [found.get(name) for name in known]


# ---------------------------------------------------------------------- order in time


def in_time_order(turns: Iterable[Turn], place: Place, window: int = MAX_SORTED) -> Iterator[Turn]:
    """Turns with an arrival in its order, the source's order among equals, holding `window` of them
    back. Raises InputError for one that comes later than that."""
    heap: list[tuple[int, int, Turn]] = []
    reached = 0
    for number, turn in enumerate(turns):
        arrival = turn.arrival_ns or 0
        if arrival < reached:
            place.fail(f"time runs backwards by more than {window} rows")
        heappush(heap, (arrival, number, turn))
        if len(heap) > window:
            reached, _, first = heappop(heap)
            yield first
    while heap:
        yield heappop(heap)[2]


def from_the_first(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Turns in order of time, whose arrivals become those since the first. Raises InputError for
    one that comes more than ten years after it."""
    return _since_first(turns, place, at_least=0)


def within_reach(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Turns whose arrivals become those since the first if that one is beyond ten years: a clock that
    counts from 1970. Raises InputError for one that comes more than ten years after it."""
    return _since_first(turns, place, at_least=MAX_SPAN + 1)


def _since_first(turns: Iterable[Turn], place: Place, at_least: int) -> Iterator[Turn]:
    start: int | None = None
    for turn in turns:
        arrival = turn.arrival_ns
        if arrival is None:
            yield turn
            continue
        if start is None:
            start = arrival if arrival >= at_least else 0
        if not start <= arrival <= start + MAX_SPAN:
            place.fail(f"not within {MAX_SECONDS} seconds after the first row", "arrival")
        yield replace(turn, arrival_ns=arrival - start) if start else turn


def numbered(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Turns of a session count from 1, in the order in which they come. A row whose session is its
    own name has no other turn, and is not remembered."""
    reached: dict[str, int] = {}
    for turn in turns:
        session = turn.session_id
        if session == turn.request_id:
            yield turn
            continue
        number = reached[session] = reached.get(session, 0) + 1
        yield turn if number == turn.turn else replace(turn, turn=number)
