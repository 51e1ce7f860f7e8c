"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from door.words import Words

#: What a decoder writes for bytes that are no whole character (yet).
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokeniser:
    """The text of one reply. Tokens before `_begin` are told; those from there to `_end` are read again
    with what is new, since a token's text may depend on the one before it."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._ids: list[int] = []
        self._begin = self._end = 0

    def add(self, token: int) -> str:
        """The text that is certain now: none while a character lacks bytes."""
        self._ids.append(token)
        return self._told()

    def rest(self) -> str:
        """At the end: what was held back, broken or not."""
        return self._told(at_end=True)

    def _told(self, *, at_end: bool = False) -> str:
        before = self._words.decode(self._ids[self._begin : self._end])
        text = self._words.decode(self._ids[self._begin :])
        if len(text) <= len(before) or (text.endswith(_BROKEN) and not at_end):
            return ""
        self._begin, self._end = self._end, len(self._ids)
        return text[len(before) :]


class Stops:
    """Stop strings over a text that grows. Holds back what may be the beginning of one."""

    def __init__(self, strings: Sequence[str], *, include: bool) -> None:
        self._strings = strings
        self._include = include
        self._hold = max(map(len, strings)) - 1
        self._text = ""
        self._told = 0
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What may be told now. Sets `found` at the first stop string."""
        if self.found is not None:
            return ""
        searched = max(0, len(self._text) - self._hold)
        self._text += text
        ends = [(at, one) for one in self._strings if (at := self._text.find(one, searched)) >= 0]
        if ends:
            at, self.found = min(ends)
            return self._tell(at + len(self.found) * self._include)
        return self._tell(len(self._text) - self._hold)

    def rest(self) -> str:
        """At the end: what was held back."""
        return "" if self.found is not None else self._tell(len(self._text))

    def _tell(self, upto: int) -> str:
        begin, self._told = self._told, max(self._told, upto)
        return self._text[begin : self._told]
