"""ShareGPT: the conversations as text, or a table of their turn lengths.

The text is the file that everyone downloads, ShareGPT_V3_unfiltered_cleaned_split.json: a JSON list
of {id, conversations: [{from, value}]}. It was split for training, so an id is `base_offset`; what
has one base is one conversation again, in the order of the offsets. Records without a message, some
of which have the id of one with messages, are left out and counted. Consecutive messages of one role
are one message; its length is the sum of theirs, without a chat template. The same as JSON lines,
with `messages` for `conversations` and with OpenAI's `role` and `content` is read too.

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

from traces.json_list import documents
from traces.readers.base import (
    Aids,
    Encode,
    encoded,
    has_columns,
    id_of,
    id_within,
    needs_tokenizer,
    row_name,
    table_rows,
)
from traces.strict import Place, count_of, quoted, text_of
from traces.workload import Header, Turn

COLUMNS = ("conversation_id", "turn", "user_tokens", "assistant_tokens")
#: Who speaks: to the model, or as the model.
USER, ASSISTANT = 0, 1
ROLES = {
    "human": USER,
    "user": USER,
    "system": USER,
    "developer": USER,
    "tool": USER,
    "function": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
}
#: What records call their messages, and messages their role and their text.
_MESSAGES = ("conversations", "messages", "conversation")
_ROLE, _TEXT = ("from", "role"), ("value", "content")
EMPTY = "record without a message"


def _turns_of(
    name: str, lengths: Iterable[tuple[int, int]], field_name: str, place: Place
) -> Iterator[Turn]:
    """Turns of a conversation from the tokens of the user and of the assistant."""
    history = 0
    for number, (user, reply) in enumerate(lengths, 1):
        prompt = count_of(history + user, "user_tokens plus history", place)
        request_id = id_within(name, number, field_name, place)
        kept = history if number > 1 else None
        yield Turn(
            *(request_id, name, number, prompt, reply),
            parent_prefix_tokens=kept,
            new_input_tokens=user,
        )
        history += user + reply


class ShareGptReader:
    """The table. A conversation that comes back after another one has begun is an error."""

    name = "sharegpt"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return has_columns(head, COLUMNS)

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
        """Records with messages, in a list or one after another."""
        says = any(f'"{key}"' in head for key in ("from", *_ROLE))
        return says and any(f'"{key}"' in head for key in _MESSAGES)

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
        for number, record in enumerate(documents(place.path, place, inside_lists=True)):
            where = "" if place.line else f"[{number}]."
            said = _messages(record, where, place, encode)
            if not said:
                self.left_out[EMPTY] += 1
                continue
            base, offset = _identity(record.get("id"), number, f"{where}id", place)
            of_base = chunks.setdefault(base, {})
            if offset in of_base:
                place.fail(f"{quoted(record['id'])} came before", f"{where}id")
            of_base[offset] = said
        for base, of_base in chunks.items():
            joined = array("i")
            for offset in sorted(of_base):
                joined.extend(of_base[offset])
            yield from _turns_of(base, _paired(joined), "id", place)


def _identity(value: Any, number: int, where: str, place: Place) -> tuple[str, int]:
    """`base_12` as base and 12; an id without a number is a whole conversation. A record of a line
    of its own may have no id."""
    if value is None and place.line:
        return row_name(number), -1
    name = id_of(value, where, place)
    base, _, offset = name.rpartition("_")
    if base and offset.isascii() and offset.isdigit() and len(offset) <= 9:
        return base, int(offset)
    return name, -1


def _messages(record: dict[str, Any], where: str, place: Place, encode: Encode) -> array[int]:
    """Lengths of messages; the assistant's are below zero, as -1 - tokens."""
    key = next((key for key in _MESSAGES if key in record), _MESSAGES[0])
    value = record.get(key)
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", f"{where}{key}")
    found = array("i")
    for number, message in enumerate(value):
        inside = f"{where}{key}[{number}]"
        if not isinstance(message, dict):
            place.fail(f"{quoted(message)} is not an object", inside)
        role_key = next((key for key in _ROLE if key in message), _ROLE[0])
        text_key = next((key for key in _TEXT if key in message), _TEXT[0])
        role = message.get(role_key)
        if text_key not in message:
            place.fail("missing", f"{inside}.{text_key}")
        if not isinstance(role, str) or role not in ROLES:
            place.fail(f"{quoted(role)} is not one of {', '.join(ROLES)}", f"{inside}.{role_key}")
        parts = _texts(message.get(text_key), f"{inside}.{text_key}", place)
        tokens = sum(len(encoded(text, f"{inside}.{text_key}", place, encode)) for text in parts)
        found.append(tokens if ROLES[role] == USER else -1 - tokens)
    return found


def _texts(value: Any, field_name: str, place: Place) -> list[Any]:
    """The text of a message: a string, or OpenAI's list of parts, of which others than text have no
    tokens that could be counted; null beside a tool call is none."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [value]
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            place.fail("a part that is no text has no tokens that can be counted", field_name)
        texts.append(part.get("text"))
    return texts


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
