"""JSON values of a file one at a time: items of one long list, or values that follow one another.

Strict, and in bounded memory. Values may be spread over lines or share one.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.strict import CHUNK, Place, json_hooks, opened, quoted

#: Most characters of one item.
MAX_ITEM = 1 << 24
_BLANKS = re.compile(r"[ \t\r\n]*")


def documents(
    path: Path, place: Place, limit: int = MAX_ITEM, *, inside_lists: bool = False
) -> Iterator[dict[str, Any]]:
    """Objects that follow one another in a file, on one line or over many; `place.line` is where an
    object begins. `inside_lists`: the file may be one list of objects instead; those have no line.

    Raises InputError for what `parse_json` does, for anything but objects, for one of more than
    `limit` characters, and for a file without a value.
    """
    decoder = json.JSONDecoder(**json_hooks(place))
    with opened(path, place) as reader:
        text = _Text(io.TextIOWrapper(reader, "utf-8-sig"), place)
        mark = text.skip_blanks()
        if not mark:
            place.fail("empty file")
        if mark == "[" and inside_lists:
            yield from _items(text, decoder, place, limit)
            return
        while mark:
            place.line = text.line
            if mark != "{":
                place.fail("not a JSON object")
            yield text.item(decoder, "", limit)
            mark = text.skip_blanks()


def _items(text: _Text, decoder: json.JSONDecoder, place: Place, limit: int) -> Iterator[Any]:
    """Items of the list that begins here, with which the file ends."""
    text.at += 1
    number = 0
    while (mark := text.skip_blanks()) != "]":
        if number:
            if mark != ",":
                place.fail(f"{quoted(mark)} where a comma was due after item {number - 1}")
            text.at += 1
            mark = text.skip_blanks()
        if mark != "{":
            place.fail(f"{quoted(mark)} where an object was due", f"[{number}]")
        yield text.item(decoder, f"[{number}]", limit)
        number += 1
    text.at += 1
    if text.skip_blanks():
        place.fail("more after the end of the list")


class _Text:
    """Text of a file that is looked at piece by piece; what was taken is forgotten."""

    def __init__(self, file: io.TextIOWrapper, place: Place) -> None:
        self._file = file
        self._place = place
        self._text = ""
        self._lines = 1  # before what is held
        self.at = 0

    @property
    def line(self) -> int:
        """The line that we are at, counted from 1."""
        return self._lines + self._text.count("\n", 0, self.at)

    def _more(self, size: int) -> bool:
        """Read on by `size` characters; False at the end of the file."""
        try:
            piece = self._file.read(size)
        except UnicodeDecodeError as error:
            self._place.fail(f"not UTF-8: {error.reason}")
        self._lines = self.line
        self._text = self._text[self.at :] + piece
        self.at = 0
        return bool(piece)

    def skip_blanks(self) -> str:
        """The next character that is no blank, which stays; "" at the end of the file."""
        while True:
            match = _BLANKS.match(self._text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more(CHUNK):
                return ""

    def item(self, decoder: json.JSONDecoder, where: str, limit: int) -> Any:
        """The value that begins here, called `where`. A piece that is no whole value is tried again only when there
        is twice as much of it, so the work stays in proportion."""
        while True:
            try:
                value, self.at = decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                have = len(self._text) - self.at
                if have > limit:
                    self._place.fail(f"longer than {limit} characters", where)
                if not self._more(max(have, CHUNK)):
                    self._place.fail(f"not JSON: {error.msg}", where)
            except RecursionError:
                self._place.fail("nested too deeply", where)
            else:
                return value
