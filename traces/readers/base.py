"""What a reader is, and checks that every row goes through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from traces.strict import Place, csv_rows, open_lines
from traces.workload import MAX_ID, Header, Turn


class Reader(Protocol):
    """One format. Readers are stateless; `read` streams."""

    name: str

    def claims(self, first_line: str) -> bool:
        """Whether a file that begins with this line is of this format."""

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """Header and turns. Raises InputError for anything that is not the format, and for a
        request id that came before; no row is dropped."""


def unique(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Raise InputError for an id that came before. Costs a set entry per row, so only for formats
    whose ids are not unique by how they are made."""
    seen: set[str] = set()
    for turn in turns:
        if turn.request_id in seen:
            place.fail(f"{turn.request_id!r} came before", "request_id")
        seen.add(turn.request_id)
        yield turn


def id_within(name: str, part: int | str, field: str, place: Place) -> str:
    """`name/part`, the id of a part of what `name` is. Raises InputError if it is longer than an
    id may be: the workload could be written and not read back."""
    made = f"{name}/{part}"
    if len(made) > MAX_ID:
        place.fail(f"{made!r} has {len(made)} characters, must be 1 to {MAX_ID}", field)
    return made


def check_blocks(
    ids: tuple[int, ...], tokens: int, size: int, field: str, place: Place, *, may_lack_last: bool
) -> None:
    """Raise InputError unless the block ids cover a prompt of `tokens` in blocks of `size`.
    `may_lack_last`: the last block may have no id if it is not full."""
    most = -(-tokens // size)
    least = tokens // size if may_lack_last else most
    if not least <= len(ids) <= most:
        wanted = f"{least} or {most}" if least < most else f"{most}"
        place.fail(f"{len(ids)} ids for {tokens} tokens of {size} a block, not {wanted}", field)


def table_rows(path: Path, columns: tuple[str, ...], place: Place) -> Iterator[tuple[str, ...]]:
    """Rows of a CSV file with these columns and no others, in any order; the cells of a row come in
    the order of `columns`. Raises InputError."""
    rows = csv_rows(open_lines(path, place), place)
    names = next(rows, None)
    if names is None:
        place.fail("empty file")
    cells = itemgetter(*_column_indexes(names, columns, place))
    for row in rows:
        if len(row) != len(names):
            place.fail(f"{len(row)} fields, the header has {len(names)}")
        yield cells(row)


def _column_indexes(header: list[str], wanted: tuple[str, ...], place: Place) -> list[int]:
    """Where each wanted column is. Raises InputError naming one that is missing, doubled or more
    than is known: what it says of a row must not be dropped in silence."""
    found: dict[str, int] = {}
    for index, name in enumerate(header):
        if name in found:
            place.fail("column given twice", name)
        found[name] = index
    for name in wanted:
        if name not in found:
            place.fail(f"column missing; columns are {', '.join(header)}", name)
    for name in found:
        if name not in wanted:
            place.fail(f"unknown column; columns are {', '.join(wanted)}", name)
    return [found[name] for name in wanted]
