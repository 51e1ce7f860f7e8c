"""RAGPulse: timestamp (s, as text), lengths, session_id, and the ids of the prompt's parts.

Source: flashserve/RAGPulse, data/0_trace.jsonl (MIT). `hash_ids` names, in this order, parts of the
system prompt, passages, history, web search results and the user's words. How long a part is stands
in five files beside it (1_sys_prompt.jsonl ...), or in one table of them (file, hash_id,
token_length): as companions they make the parts components, and what a turn repeats of the one
before it is the parts that both begin with. A chat template adds 6 to 12 tokens that no part has.
Without them it is not known, and a prompt made of passages does not grow: nothing is taken to be
repeated. One pair of the published rows is out of order; rows are sorted by time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from traces.readers.base import (
    Aids,
    common,
    in_time_order,
    json_rows,
    numbered,
    row_name,
    session_of,
    stamp_of,
    table_rows,
    within_reach,
)
from traces.strict import (
    MAX_BLOCK_ID,
    Place,
    block_ids_of,
    count_of,
    head_of,
    json_count_of,
)
from traces.workload import Header, Turn

KINDS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
_KEYS = ("timestamp", "input_length", "output_length", "hash_ids", "session_id")
_TABLE = ("file", "hash_id", "token_length")
_WINDOW = 1 << 12

_NOTHING = "no prompt repeats anything of the one before it (the length files would say)"
_Part = tuple[str, str, int]


@dataclass(frozen=True)
class RagPulseReader:
    """Arrivals are the trace's own; without companions what turns repeat is lost."""

    name: str = "ragpulse"
    companions: tuple[Path, ...] = ()

    def aided(self, aids: Aids) -> RagPulseReader:
        """With the lengths of the parts."""
        return RagPulseReader(companions=aids.companions)

    def claims(self, head: str) -> bool:
        """A JSON object with the parts of a prompt."""
        return '"sys_prompt"' in head and '"input_length"' in head

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        lost = "the parts of prompts and what turns repeat of them (needs the length files)"
        header = Header(
            source="RAGPulse",
            licence="MIT",
            timing="open",
            time_resolution_s=1.0,
            lost=() if self.companions else (lost,),
            assumed=() if self.companions else (_NOTHING,),
        )
        place = Place(path)
        turns = numbered(within_reach(in_time_order(self._turns(place), place, _WINDOW), place))
        return header, _repeating(turns)

    def _turns(self, place: Place) -> Iterator[Turn]:
        lengths = lengths_of(self.companions)
        for number, row in enumerate(json_rows(place.path, place)):
            for key in row:
                if key not in _KEYS:
                    place.fail("unknown key", key)
            for key in _KEYS:
                if row.get(key) is None:
                    place.fail("missing", key)
            yield Turn(
                row_name(number),
                session_of(row["session_id"], "session_id", place),
                1,
                json_count_of(row["input_length"], "input_length", place),
                json_count_of(row["output_length"], "output_length", place),
                arrival_ns=stamp_of(row["timestamp"], "timestamp", place),
                components=_parts(row["hash_ids"], lengths, place),
            )


def _parts(ids: Any, lengths: dict[int, int], place: Place) -> tuple[_Part, ...] | None:
    """The parts of a prompt in order; None if no length is known."""
    if not isinstance(ids, dict) or not set(ids) <= set(KINDS):
        place.fail(f"not an object of {', '.join(KINDS)}", "hash_ids")
    found: list[_Part] = []
    for kind in KINDS:
        for part in block_ids_of(ids.get(kind, []), f"hash_ids.{kind}", place):
            if not lengths:
                continue
            if part not in lengths:
                place.fail(f"{part} is in none of the length files", f"hash_ids.{kind}")
            found.append((kind, str(part), lengths[part]))
    return tuple(found) if lengths else None


def _repeating(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Turns with what they repeat of the one before them in their session."""
    last: dict[str, tuple[_Part, ...]] = {}
    for turn in turns:
        parts = turn.components or ()
        before = last.get(turn.session_id)
        last[turn.session_id] = parts
        if before is None:
            yield turn
        else:
            same = sum(tokens for _, _, tokens in parts[: common(before, parts)])
            yield replace(turn, parent_prefix_tokens=same)


def lengths_of(companions: tuple[Path, ...]) -> dict[int, int]:
    """Tokens of every part, by its id. Raises InputError."""
    found: dict[int, int] = {}
    for path in companions:
        place = Place(path)
        for part, tokens in _length_rows(path, place):
            if part in found:
                place.fail(f"{part} came before", "hash_id")
            found[part] = tokens
    return found


def _length_rows(path: Path, place: Place) -> Iterator[tuple[int, int]]:
    if (head_of(path, Place(path)) or "").startswith("{"):
        for row in json_rows(path, place):
            names = [key for key in row if key != "token_length"]
            if len(names) != 1 or len(row) != 2:
                place.fail("not an object of an id and token_length")
            part = json_count_of(row[names[0]], names[0], place, MAX_BLOCK_ID)
            yield part, json_count_of(row["token_length"], "token_length", place)
        return
    for _, name, tokens in table_rows(path, _TABLE, place):
        part = count_of(name, "hash_id", place, MAX_BLOCK_ID)
        yield part, count_of(tokens, "token_length", place)
