"""Real text to serve: one JSON line per turn, so that a person can read what a run answered.

`{"session": "a", "text": "...", "arrival_s": 0.0, "max_tokens": 40}` for a first turn; later turns of the
session have `think_s` instead of `arrival_s`. Replies end where the model ends them, at the latest
after `max_tokens`.
"""

from __future__ import annotations

from pathlib import Path

from realrun.tokenizer import Tokenizer
from traces.strict import Place, json_count_of, json_nanoseconds_of, open_lines, parse_json, text_of
from traces.workload import Header, Turn, Workload

_KEYS = {"session", "text", "arrival_s", "think_s", "max_tokens"}
MAX_TOKENS = 64


def read_conversation(
    path: Path, tokenizer: Tokenizer, max_tokens: int = MAX_TOKENS
) -> tuple[Workload, dict[str, str]]:
    """The turns, with the lengths of their own texts, and request id -> text. `max_tokens`: of a reply
    where a row names no other.

    `input_tokens` of a later turn is what the user adds; the engine puts the real history before it.
    Raises InputError naming file, line and field.
    """
    place = Place(path)
    turns: list[Turn] = []
    texts: dict[str, str] = {}
    counts: dict[str, int] = {}
    for line in open_lines(path, place):
        row = parse_json(line, place)
        if not isinstance(row, dict):
            place.fail("not a JSON object")
        for key in row:
            if key not in _KEYS:
                place.fail("unknown key", key)
        for key in ("session", "text"):
            if key not in row:
                place.fail("missing", key)
        session = text_of(row["session"], "session", place)
        text = row["text"]
        if not isinstance(text, str) or not text:
            place.fail("must be text", "text")
        counts[session] = index = counts.get(session, 0) + 1
        timing = "arrival_s" if index == 1 else "think_s"
        at = json_nanoseconds_of(row.get(timing, 0), timing, place)
        name = f"{session}/{index}"
        texts[name] = text
        turns.append(
            Turn(
                name,
                session,
                index,
                len(tokenizer.encode(text)),
                json_count_of(row.get("max_tokens", max_tokens), "max_tokens", place),
                arrival_ns=at if index == 1 else None,
                think_ns=at if index > 1 else None,
            )
        )
    if not turns:
        place.fail("empty file")
    return Workload.of(
        turns, Header(source=f"conversations of {path.name}", timing="closed")
    ), texts
