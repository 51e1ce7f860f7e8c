"""ShareGPT turn lengths: conversation_id, turn, user_tokens, assistant_tokens.

A table of lengths only, one row per turn, turns of a conversation together and in order. Context
only grows: a prompt is all that was said before plus the user's new words. Times are not recorded;
the scenario composes arrivals and think time, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import id_within, table_rows
from traces.strict import Place, count_of, text_of
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
        session: str | None = None
        due = history = 0
        seen: set[str] = set()
        for name, turn, user_tokens, assistant_tokens in table_rows(path, COLUMNS, place):
            if name != session:
                text_of(name, "conversation_id", place)
                if name in seen:
                    place.fail(
                        f"{name!r} came before, its rows must be together", "conversation_id"
                    )
                seen.add(name)
                session, due, history = name, 0, 0
            due += 1
            if count_of(turn, "turn", place) != due:
                place.fail(f"{turn} where {due} was due", "turn")
            user = count_of(user_tokens, "user_tokens", place)
            reply = count_of(assistant_tokens, "assistant_tokens", place)
            prompt = count_of(history + user, "user_tokens plus history", place)
            request_id = id_within(name, due, "conversation_id", place)
            yield Turn(request_id, name, due, prompt, reply, new_input_tokens=user)
            history += user + reply
