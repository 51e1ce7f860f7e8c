"""Items of a file that is one long JSON list, one at a time: strict, and in bounded memory."""

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


def array_items(path: Path, place: Place, limit: int = MAX_ITEM) -> Iterator[tuple[int, Any]]:
    """Items of a file that is one JSON list of objects, with their numbers, one at a time.

    Raises InputError for what `parse_json` does, for anything but a list of objects, and for an
    item of more than `limit` characters.
    """
    decoder = json.JSONDecoder(**json_hooks(place))
    with opened(path, place) as reader:
        text = _Text(io.TextIOWrapper(reader, "utf-8-sig"), place)
        if text.skip_blanks() != "[":
            place.fail("not a JSON list")
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
            yield number, text.item(decoder, number, limit)
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
        self.at = 0

    def _more(self, size: int) -> bool:
        """Read on by `size` characters; False at the end of the file."""
        try:
            piece = self._file.read(size)
        except UnicodeDecodeError as error:
            self._place.fail(f"not UTF-8: {error.reason}")
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

    def item(self, decoder: json.JSONDecoder, number: int, limit: int) -> Any:
        """The object that begins here. A piece that is no whole object is tried again only when
        there is twice as much of it, so the work stays in proportion."""
        while True:
            try:
                value, self.at = decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                have = len(self._text) - self.at
                if have > limit:
                    self._place.fail(f"item is longer than {limit} characters", f"[{number}]")
                if not self._more(max(have, CHUNK)):
                    self._place.fail(f"not JSON: {error.msg}", f"[{number}]")
            except RecursionError:
                self._place.fail("nested too deeply", f"[{number}]")
            else:
                return value
