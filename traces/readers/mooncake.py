"""Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids of 512-token blocks.

Source: kvcache-ai/Mooncake, FAST25-release/traces (Apache-2.0). The same rows are written and read
by AIPerf, guidellm, NVIDIA Dynamo and SGLang, some as `input_tokens`, `output_tokens`,
`created_time` and `delay_ms`; `session_id`, `delay` and `request_id` are theirs. A `delay` is
counted from the end of the session's last reply, so a file that has one, or begins without a time,
is a closed loop, and the rows of a session must be together; a later row with only a timestamp then
comes that long after the start of the row before it. Some tools write blocks of another size, which
the lengths tell, and a `priority`, of which a lower one is taken for more urgent. AIPerf's
multi-turn rows count only what is new in a prompt, which the file does not say: `--turns increments`
does (`traces.readers.growth`). Rows without a session are conversations of one turn, named by their
row, `r0000000`; a session that the file itself calls so gets an `s` before its name. Prefix ids are
global; what a turn repeats of the one before it is read from them.

As a companion the table that infers sessions of the published conversation trace is taken: row,
timestamp, session, turn, parent_row, matched_blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import InputError
from traces.readers.base import (
    Aids,
    Prompts,
    block_size_of,
    id_of,
    json_rows,
    row_name,
    session_of,
    table_rows,
    unique,
    within_reach,
)
from traces.readers.rows import PRIORITY_LIMIT
from traces.rules import check_blocks
from traces.strict import (
    MAX_SPAN,
    MAX_STAMP,
    Place,
    block_ids_of,
    count_of,
    json_count_of,
    json_nanoseconds_of,
    nanoseconds_of,
    open_lines,
)
from traces.workload import Header, Turn

BLOCK = 512
_ALIASES = {
    "input_tokens": "input_length",
    "output_tokens": "output_length",
    "created_time": "timestamp",
    "delay_ms": "delay",
}
_KEYS = ("timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay")
_KNOWN = {*_KEYS, "request_id", "priority"}
#: What other tools put in such rows and a request's shape does not need.
_LOST = {
    "extra": "additions to the request's body",
    "tools": "tool definitions",
    "output_token_ids": "the reply's tokens",
    "policy_class": "a router's policy class",
}
_TABLE = ("row", "timestamp", "session", "turn", "parent_row", "matched_blocks")
_MS = 1_000_000
_URGENT = "a lower priority is more urgent"


@dataclass(frozen=True)
class MooncakeReader:
    """Timestamps of the published conversation trace sit on a 3 s grid; nothing smooths them."""

    name: str = "mooncake"
    companions: tuple[Path, ...] = field(default=())
    block_size: int | None = None

    def aided(self, aids: Aids) -> MooncakeReader:
        """With a table of sessions and a size of blocks, if they are given."""
        return MooncakeReader(companions=aids.companions, block_size=aids.block_size)

    def claims(self, head: str) -> bool:
        """A JSON object with the two lengths and no other publisher's keys."""
        lengths = ('"input_length"', '"output_length"')
        others = ('"input_tokens"', '"output_tokens"')
        return (
            (all(key in head for key in lengths) or all(key in head for key in others))
            and head.lstrip().startswith("{")
            and not any(key in head for key in ('"chat_id"', '"sys_prompt"', '"fastswitch-'))
            and ('"request_id"' not in head or '"timestamp"' in head or '"created_time"' in head)
        )

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader. The file is gone through twice: its timing depends on all of it."""
        keys = _rare_keys(path)
        is_closed = "delay" in keys or not _begins_timed(path)
        size = block_size_of(_sizes(path), BLOCK, self.block_size, Place(path))
        header = Header(
            source="Mooncake trace (FAST'25)",
            licence="Apache-2.0",
            timing="closed" if is_closed else "open",
            time_resolution_s=1e-3,
            block_size=size,
            hash_scope="global",
            lost=tuple(f"{key}: {what}" for key, what in _LOST.items() if key in keys),
            assumed=(_URGENT,) if "priority" in keys else (),
        )
        place = Place(path)
        turns = self._turns(path, place, size, is_closed=is_closed)
        turns = within_reach(turns, place)
        return header, unique(turns, place) if "request_id" in keys else turns

    def _turns(self, path: Path, place: Place, size: int, *, is_closed: bool) -> Iterator[Turn]:
        table = _sessions(self.companions)
        last: dict[str, tuple[int, int | None]] = {}  # session -> its turns, its last timestamp
        prompts = Prompts(size)
        before = 0
        current = ""
        for number, raw in enumerate(json_rows(path, place)):
            row = _canonical(raw, place)
            turn = _Row(row, number, place, size)
            if table is None:
                link = _Link(turn.session, None, None)
            else:
                found = next(table, None)
                if found is None:
                    place.fail("no such row in the table of sessions")
                link = found
            session = link.session
            reached, before_ns = last.get(session, (0, None))
            if reached and is_closed and session != current:
                place.fail(f"{session!r} came before, its rows must be together", "session_id")
            current = session
            is_first = not reached
            times = turn.times(before_ns, is_first=is_first, is_closed=is_closed)
            arrival = times.get("arrival_ns")
            if arrival is not None:
                if arrival < before:
                    place.fail("time runs backwards", "timestamp")
                before = arrival
            shared = None
            if not is_first and turn.ids is not None:
                shared = prompts.shared(session, turn.tokens, turn.ids)
                if link.matched is not None:
                    shared = min(link.matched * size, turn.tokens)
            if session != turn.request_id:
                last[session] = (reached + 1, turn.at_ns)
                if turn.ids is not None:
                    prompts.keep(session, turn.tokens, turn.ids)
            yield Turn(
                turn.request_id,
                session,
                reached + 1,
                turn.tokens,
                turn.reply,
                arrival_ns=arrival,
                think_ns=times.get("think_ns"),
                gap_ns=times.get("gap_ns"),
                parent_id=link.parent,
                priority=turn.priority,
                parent_prefix_tokens=shared,
                hash_ids=turn.ids,
            )
        if table is not None and next(table, None) is not None:
            place.fail("the table of sessions has more rows")


class _Link(NamedTuple):
    """A row's place: its session, the row it extends, and how many of that one's blocks."""

    session: str
    parent: str | None
    matched: int | None


class _Row:
    """Checked values of a row."""

    def __init__(self, row: dict[str, Any], number: int, place: Place, size: int) -> None:
        for key in ("input_length", "output_length"):
            if row.get(key) is None:
                place.fail("missing", key)
        self._place = place
        self.tokens = json_count_of(row["input_length"], "input_length", place)
        self.reply = json_count_of(row["output_length"], "output_length", place)
        self.ids: tuple[int, ...] | None = None
        if row.get("hash_ids") is not None:
            self.ids = block_ids_of(row["hash_ids"], "hash_ids", place)
            check_blocks(self.ids, self.tokens, size, "hash_ids", place, may_lack_last=False)
        name = row.get("request_id")
        self.request_id = row_name(number) if name is None else id_of(name, "request_id", place)
        session = row.get("session_id")
        self.session = (
            self.request_id if session is None else session_of(session, "session_id", place)
        )
        self.priority = 0
        if row.get("priority") is not None:
            limit = PRIORITY_LIMIT
            self.priority = json_count_of(row["priority"], "priority", place, limit, -limit)
        self.at_ns = _ms(row.get("timestamp"), "timestamp", place, MAX_STAMP)
        self._delay_ns = _ms(row.get("delay"), "delay", place)

    def times(
        self, before_ns: int | None, *, is_first: bool, is_closed: bool
    ) -> dict[str, int | None]:
        """What drives the turn. `before_ns`: when the session's last row began."""
        if is_first and self._delay_ns:
            self._place.fail("given of the first row of a session", "delay")
        if self.at_ns is None and not is_closed:
            self._place.fail("missing", "timestamp")
        if is_first or not is_closed:
            return {"arrival_ns": self.at_ns}
        if self._delay_ns is not None:
            return {"think_ns": self._delay_ns}
        if self.at_ns is None:
            return {}
        if before_ns is None or self.at_ns < before_ns:
            self._place.fail("not after the row before it in its session", "timestamp")
        return {"gap_ns": self.at_ns - before_ns}


def _ms(value: Any, name: str, place: Place, limit: int = MAX_SPAN) -> int | None:
    return None if value is None else json_nanoseconds_of(value, name, place, _MS, limit)


def _canonical(row: dict[str, Any], place: Place) -> dict[str, Any]:
    """A row under the published names of its keys. Raises InputError for one that is not known."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = _ALIASES.get(key, key)
        if name not in _KNOWN and name not in _LOST:
            place.fail("unknown key", key)
        if name in found:
            place.fail(f"given twice, also as {name}", key)
        found[name] = value
    return found


def _begins_timed(path: Path) -> bool:
    place = Place(path)
    return _canonical(next(json_rows(path, place)), place).get("timestamp") is not None


def _sizes(path: Path) -> Iterator[tuple[int, int]]:
    """Tokens and number of blocks of every prompt that has ids; a row that is broken ends them, and is
    named when it is read."""
    with suppress(InputError):
        for row in json_rows(path, Place(path)):
            ids = row.get("hash_ids")
            tokens = row.get("input_length", row.get("input_tokens"))
            if isinstance(ids, list) and isinstance(tokens, int):
                yield tokens, len(ids)


def _rare_keys(path: Path) -> set[str]:
    """Which keys beyond the published ones a file may have: found as words, which is quick."""
    rare = {f'"{key}"': key for key in (*_LOST, "delay", "request_id", "priority")} | {
        '"delay_ms"': "delay"
    }
    found: set[str] = set()
    for line in open_lines(path, Place(path)):
        if line.count('"') > 8 or '"hash_ids"' not in line or '"timestamp"' not in line:
            found |= {key for word, key in rare.items() if word in line}
    return found


def _sessions(companions: tuple[Path, ...]) -> Iterator[_Link] | None:
    """Session, parent and matched blocks of every row in order, from the companion."""
    if not companions:
        return None
    place = Place(companions[0])
    if len(companions) > 1:
        place.fail("one table of sessions is enough")

    def rows() -> Iterator[_Link]:
        seen: set[str] = set()
        for number, cells in enumerate(table_rows(companions[0], _TABLE, place)):
            row, at, session, turn, parent, matched = cells
            if count_of(row, "row", place) != number:
                place.fail(f"{row} where {number} was due", "row")
            nanoseconds_of(at, "timestamp", place, _MS)
            count_of(turn, "turn", place, low=1)
            name = f"c{count_of(session, 'session', place)}"
            by = None if parent == "-1" else count_of(parent, "parent_row", place)
            if by is not None and (by >= number or name not in seen):
                place.fail(f"{parent} is no earlier row of the session", "parent_row")
            seen.add(name)
            blocks = count_of(matched, "matched_blocks", place)
            yield _Link(name, None if by is None else row_name(by), blocks)

    return rows()
