"""The glossary as the command shows it: the tables of docs/glossary.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from policy.errors import ConfigError, did_you_mean
from traces.strict import quoted

PAGE = Path(__file__).resolve().parent.parent / "docs/glossary.md"


class Entry(NamedTuple):
    """A row: its first cell, what it means, and the code names that it mentions."""

    word: str
    meaning: str
    names: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The words of its first cell, which may hold several."""
        return [part.strip().lower() for part in re.split(r"[,;/]", self.word)]


@cache
def entries() -> tuple[Entry, ...]:
    """Every row of every table of the page, without Markdown."""
    found, is_head = [], True
    for line in PAGE.read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        if not is_head and cells and not set(line) <= set("|- "):
            meaning = "; ".join(_plain(cell) for cell in cells[1:])
            found.append(Entry(_plain(cells[0]), meaning, tuple(re.findall(r"`([^`]+)`", line))))
        is_head = not cells
    return tuple(found)


def lookup(term: str) -> list[Entry]:
    """Entries of that word; else those that mention a name; else those whose word has it in it.
    Raises ConfigError with the nearest."""
    asked = term.strip().lower()
    rows = entries()
    found = [one for one in rows if asked == one.word.lower() or asked in one.words]
    found = found or [one for one in rows if asked in one.names]
    found = found or [one for one in rows if asked and asked in one.word.lower()]
    if not found:
        known = [word for one in rows for word in one.words]
        raise ConfigError(f"glossary: {quoted(term)} is not in it" + did_you_mean(asked, known))
    return found


def _plain(cell: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", cell.replace("\\|", "|"))
    return re.sub(r"[`*]", "", text).strip()
