"""ShareGPT turn lengths: conversation_id, turn, user_tokens, assistant_tokens.

A table of lengths only, one row per turn, turns of a conversation together and in order. Context
only grows: a prompt is all that was said before plus the user's new words. Times are not recorded;
the scenario composes arrivals and think time, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import column_indexes
from traces.strict import Place, count_of, csv_rows, open_lines, text_of
from traces.workload import Header, Turn

COLUMNS = ("conversation_id", "turn", "user_tokens", "assistant_tokens")


class ShareGptReader:
    """A conversation that comes back after another one has begun is an error."""

    name = "sharegpt"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return first_line.split(",") == list(COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        return Header(source="ShareGPT turn lengths", timing="closed"), self._turns(path)

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        rows = csv_rows(open_lines(path, place), place)
        names = next(rows, None)
        if names is None:
            place.fail("empty file")
        index = column_indexes(names, COLUMNS, place)
        session, turn, history = "", 0, 0
        seen: set[str] = set()
        for row in rows:
            if len(row) != len(names):
                place.fail(f"{len(row)} fields, the header has {len(names)}")
            name = text_of(row[index["conversation_id"]], "conversation_id", place)
            if name != session:
                if name in seen:
                    place.fail(
                        f"{name!r} came before, its rows must be together", "conversation_id"
                    )
                seen.add(name)
                session, turn, history = name, 0, 0
            turn += 1
            if count_of(row[index["turn"]], "turn", place) != turn:
                place.fail(f"{row[index['turn']]} where {turn} was due", "turn")
            user = count_of(row[index["user_tokens"]], "user_tokens", place)
            reply = count_of(row[index["assistant_tokens"]], "assistant_tokens", place)
            prompt = count_of(history + user, "user_tokens plus history", place)
            yield Turn(f"{name}/{turn}", name, turn, prompt, reply, new_input_tokens=user)
            history += user + reply
