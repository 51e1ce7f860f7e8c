"""One request while it is served: what was asked, how far it is, and who listens."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from door.detokenise import Detokeniser, Stops
from door.words import Words


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants of one prompt, checked and filled in. `most`: tokens of the reply, and
    `is_cut` whether that many are less than what the reply would have had. `eos`: what ends it."""

    tokens: array[int]
    most: int
    is_cut: bool = True
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class Listener(Protocol):
    """Who answers the client. `finish`: `stop` or `length` with the last token."""

    def feed(self, ticket: Ticket, text: str, finish: str | None) -> None:
        """One more token, and what may be told of it."""

    def fail(self, ticket: Ticket, status: int, why: str) -> None:
        """No more tokens come."""


@dataclass(slots=True, eq=False)
class Ticket:
    """Changed by the loop's thread alone. Times are of `time.perf_counter`."""

    request_id: str
    number: int
    owner: str
    session_id: str
    turn: int
    wish: Wish
    listener: Listener
    index: int = 0
    count: int = 0
    came: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float = 0.0
    output: array[int] = field(default_factory=lambda: array("q"))
    is_over: bool = False


class Teller:
    """Text of a real reply, as tokens come."""

    def __init__(self, words: Words, wish: Wish) -> None:
        self._text = Detokeniser(words)
        self._stops = Stops(wish.stops, include=wish.include_stop) if wish.stops else None
        self._left = wish.min_tokens  # tokens that no stop string is looked for in

    def add(self, token: int, *, is_last: bool, is_silent: bool) -> str:
        """What may be told now. `is_silent`: the token ends the reply and is no part of it."""
        self._left -= 1
        text = "" if is_silent else self._text.add(token)
        if is_last:
            text += self._text.rest()
        if self._stops is not None and self._left <= 0:
            text = self._stops.add(text)
            if is_last:
                text += self._stops.rest()
        return text


class Ends:
    """Whether a real reply is over, asked in the engine's thread after every token of it."""

    def __init__(self, words: Words, wish: Wish, eos: frozenset[int]) -> None:
        self._wish = wish
        self._ids = wish.stop_ids if wish.ignore_eos else wish.stop_ids | eos
        self._text = Detokeniser(words) if wish.stops else None
        self._stops = Stops(wish.stops, include=True) if wish.stops else None
        self.has_stopped = False

    def __call__(self, produced: int, token: int) -> bool:
        """After the token, the reply's `produced`-th."""
        text = "" if self._text is None else self._text.add(token)
        if produced < self._wish.min_tokens:
            return False
        if self._stops is not None:
            self._stops.add(text)
        self.has_stopped = self.is_end(token) or (
            self._stops is not None and self._stops.found is not None
        )
        return self.has_stopped

    def is_end(self, token: int) -> bool:
        """Whether the token itself ends a reply."""
        return token in self._ids


class Mock:
    """Replies of a machine that makes none: words of one token each, by the number of the request."""

    def __init__(self, words: Words) -> None:
        self._ids = words.mock()
        self._texts = words.pieces(self._ids)

    def _at(self, number: int, k: int) -> int:
        """Which of the words is the `k`-th, counted from 0."""
        return (number * 7919 + k * (number % 5 + 1)) % len(self._ids)

    def text(self, number: int, k: int) -> str:
        """The text of the `k`-th token."""
        return self._texts[self._at(number, k)]

    def tokens(self, number: int, count: int) -> list[int]:
        """The first tokens of a reply."""
        return [self._ids[self._at(number, k)] for k in range(count)]

    def until_stop(self, number: int, most: int, stops: Sequence[str], least: int) -> int | None:
        """How many tokens there are up to the end of the first stop string, None if it does not come;
        looked for from the `least`-th on."""
        find = Stops(stops, include=True)
        for k in range(max(0, least - 1), most):
            find.add(self.text(number, k))
            if find.found is not None:
                return k + 1
        return None


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
