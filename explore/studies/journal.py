"""journal.jsonl: what happened when, for people. Nothing is decided by it, so it is not synced.

Each line carries the CRC of itself. A line that a crash has torn is closed, reported and left in
place.
"""

from __future__ import annotations

import datetime
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from explore.studies.semantics import canonical
from explore.studies.store import writing

NAME = "journal.jsonl"


class Journal:
    """Appends lines. Raises FaultError where they cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / NAME
        with writing(folder):
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            self.was_torn = bool(size) and os.pread(self._file, 1, size - 1) != b"\n"
            if self.was_torn:
                os.write(self._file, b"\n")

    def note(self, event: str, **facts: Any) -> None:
        """Append a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, **facts}
        line["crc"] = _crc(line)
        with writing(self._folder):
            os.write(self._file, (canonical(line) + "\n").encode())

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)


def read(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Every line; None for one that is not whole."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        yield _parsed(line)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        crc = found.pop("crc")
        return found if crc == _crc(found) else None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _crc(line: dict[str, Any]) -> str:
    return f"{zlib.crc32(canonical(line).encode()):08x}"
