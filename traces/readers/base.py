"""What a reader is, and checks that every row goes through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from traces.strict import Place
from traces.workload import Header, Turn


class Reader(Protocol):
    """One format. Readers are stateless; `read` streams."""

    name: str

    def claims(self, first_line: str) -> bool:
        """Whether a file that begins with this line is of this format."""

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """Header and turns. Raises InputError for anything that is not the format; no row is
        dropped."""


def unique(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Raise InputError for an id that came before. Costs a set entry per row."""
    seen: set[str] = set()
    for turn in turns:
        if turn.request_id in seen:
            place.fail(f"{turn.request_id!r} came before", "request_id")
        seen.add(turn.request_id)
        yield turn


def column_indexes(header: list[str], wanted: Iterable[str], place: Place) -> dict[str, int]:
    """Where each wanted column is. Raises InputError naming a missing or doubled one."""
    found: dict[str, int] = {}
    for index, name in enumerate(header):
        if name in found:
            place.fail("column given twice", name)
        found[name] = index
    for name in wanted:
        if name not in found:
            place.fail(f"column missing; columns are {', '.join(header)[:200]}", name)
    return found
