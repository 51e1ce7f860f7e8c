"""ShareGPT: the conversations as text, or a table of their turn lengths.

The text is the file that everyone downloads, ShareGPT_V3_unfiltered_cleaned_split.json: a JSON list
of {id, conversations: [{from, value}]}. It was split for training, so an id is `base_offset`; what
has one base is one conversation again, in the order of the offsets. Consecutive messages of one
role are one message; its length is the sum of theirs, without a chat template.

The table has conversation_id, turn, user_tokens, assistant_tokens, one row per turn, turns of a
conversation together and in order.

Context only grows: a prompt is all that was said before plus the user's new words. Times are not
recorded; the scenario composes arrivals and think time, and says so.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from traces.json_list import array_items
from traces.readers.base import Aids, Encode, encoded, id_within, needs_tokenizer, table_rows
from traces.strict import Place, count_of, quoted, text_of
from traces.workload import Header, Turn

COLUMNS = ("conversation_id", "turn", "user_tokens", "assistant_tokens")
#: Who speaks: to the model, or as the model.
USER, ASSISTANT = 0, 1
ROLES = {
    "human": USER,
    "user": USER,
    "system": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
}
EMPTY = "conversation without a message"


def _turns_of(
    name: str, lengths: Iterable[tuple[int, int]], field_name: str, place: Place
) -> Iterator[Turn]:
    """Turns of a conversation from the tokens of the user and of the assistant."""
    history = 0
    for number, (user, reply) in enumerate(lengths, 1):
        prompt = count_of(history + user, "user_tokens plus history", place)
        request_id = id_within(name, number, field_name, place)
        yield Turn(request_id, name, number, prompt, reply, new_input_tokens=user)
        history += user + reply


class ShareGptReader:
    """The table. A conversation that comes back after another one has begun is an error."""

    name = "sharegpt"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return head.split(",") == list(COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        lost = ("when anything was said", "the text")
        header = Header(source="ShareGPT turn lengths", timing="closed", lost=lost)
        return header, self._turns(path)

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        seen: set[str] = set()
        for name, rows in groupby(table_rows(path, COLUMNS, place), itemgetter(0)):
            text_of(name, "conversation_id", place)
            if name in seen:
                place.fail(f"{name!r} came before, its rows must be together", "conversation_id")
            seen.add(name)
            yield from _turns_of(name, _lengths(rows, place), "conversation_id", place)


def _lengths(rows: Iterable[tuple[Any, ...]], place: Place) -> Iterator[tuple[int, int]]:
    """Tokens of the user and of the assistant, from the rows of a conversation."""
    for due, (_, turn, user, reply) in enumerate(rows, 1):
        if count_of(turn, "turn", place) != due:
            place.fail(f"{turn} where {due} was due", "turn")
        yield count_of(user, "user_tokens", place), count_of(reply, "assistant_tokens", place)


@dataclass(frozen=True)
class ShareGptTextReader:
    """The text. Only lengths are kept while the file is read: 8 bytes a message."""

    name: str = "sharegpt-text"
    tokenizer: Encode | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def aided(self, aids: Aids) -> ShareGptTextReader:
        """With a tokenizer."""
        return ShareGptTextReader(tokenizer=aids.tokenizer)

    def claims(self, head: str) -> bool:
        """A list of records with conversations."""
        return head.lstrip().startswith("[") and '"conversations"' in head

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        encode = needs_tokenizer(self.tokenizer, "ShareGPT")
        header = Header(
            source="ShareGPT",
            timing="closed",
            notes="lengths without a chat template; chunks of a conversation joined",
            lost=("when anything was said", "the text"),
        )
        self.left_out.clear()
        return header, self._turns(Place(path), encode)

    def _turns(self, place: Place, encode: Encode) -> Iterator[Turn]:
        chunks: dict[str, dict[int, array[int]]] = {}
        for number, record in array_items(place.path, place):
            where = f"[{number}]"
            base, offset = _identity(record.get("id"), f"{where}.id", place)
            of_base = chunks.setdefault(base, {})
            if offset in of_base:
                place.fail(f"{quoted(record['id'])} came before", f"{where}.id")
            of_base[offset] = _messages(record.get("conversations"), where, place, encode)
        for base, of_base in chunks.items():
            said = array("i")
            for offset in sorted(of_base):
                said.extend(of_base[offset])
            if not said:
                self.left_out[EMPTY] += 1
            yield from _turns_of(base, _paired(said), "id", place)


def _identity(value: Any, where: str, place: Place) -> tuple[str, int]:
    """`base_12` as base and 12; an id without a number is a whole conversation."""
    name = text_of(value, where, place)
    base, _, offset = name.rpartition("_")
    if base and offset.isascii() and offset.isdigit() and len(offset) <= 9:
        return base, int(offset)
    return name, -1


def _messages(value: Any, where: str, place: Place, encode: Encode) -> array[int]:
    """Lengths of messages; the assistant's are below zero, as -1 - tokens."""
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", f"{where}.conversations")
    found = array("i")
    for number, message in enumerate(value):
        inside = f"{where}.conversations[{number}]"
        if not isinstance(message, dict):
            place.fail(f"{quoted(message)} is not an object", inside)
        role, text = message.get("from"), message.get("value")
        if not isinstance(role, str) or role not in ROLES:
            place.fail(f"{quoted(role)} is not one of {', '.join(ROLES)}", f"{inside}.from")
        tokens = len(encoded(text, f"{inside}.value", place, encode))
        found.append(tokens if ROLES[role] == USER else -1 - tokens)
    return found


def _paired(said: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Tokens of the user and of the reply, turn by turn. What begins with the assistant, or ends
    with the user, has 0 for the side that is missing."""
    user = reply = 0
    begun = answered = False
    for tokens in said:
        if tokens < 0:
            reply += -1 - tokens
            answered = begun = True
        else:
            if answered:
                yield user, reply
                user = reply = 0
                answered = False
            user += tokens
            begun = True
    if begun:
        yield user, reply
