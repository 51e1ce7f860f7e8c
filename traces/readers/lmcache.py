"""LMCache agent logs: timestamp (microseconds), input, output, session_id; real text.

Source: LMCache/lmcache-agent-trace (Apache-2.0), taubench/*.jsonl and miniswe/*.jsonl, one session a
file or several after another. Lengths and shared prefixes are counted with a tokenizer. A session
may mix calls that do not follow from one another (tau-bench: those of the simulated user and of the
agent), so it is taken apart into chains: a call belongs to the chain whose last call shares the
longest prefix of tokens with it, if that is half of the shorter prompt or more, else it begins a
new chain. Chains are called `session/1`, `session/2`, ... Within a session rows are ordered by
time; sessions need not be, and are brought in order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.readers.base import (
    Aids,
    Encode,
    encoded,
    from_the_first,
    id_within,
    in_time_order,
    json_rows,
    needs_tokenizer,
    row_name,
)
from traces.strict import Place, json_count_of, text_of
from traces.workload import Header, Turn

_KEYS = ("timestamp", "input", "output", "session_id")
_MICROSECOND = 1_000
_MAX_MICROSECONDS = 1 << 53
#: Most bytes of a row, which holds a whole prompt, and most tokens of prompts that are compared.
_MAX_ROW = 1 << 24
_ROOM = 1 << 25


@dataclass(eq=False)
class _Chain:
    """Calls that follow from one another: how many, and the tokens of the last one's context."""

    turns: int
    prompt: int
    context: array[int]


@dataclass
class _Session:
    at: int = 0
    chains: list[_Chain] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(len(chain.context) for chain in self.chains)


@dataclass(frozen=True)
class LmCacheReader:
    """Arrivals count from the first call of the whole file."""

    name: str = "lmcache-agent"
    tokenizer: Encode | None = None

    def aided(self, aids: Aids) -> LmCacheReader:
        """With a tokenizer."""
        return LmCacheReader(tokenizer=aids.tokenizer)

    def claims(self, head: str) -> bool:
        """A JSON object with a call's two texts."""
        return all(f'"{key}"' in head for key in _KEYS) and head.lstrip().startswith("{")

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        encode = needs_tokenizer(self.tokenizer, "an agent's log")
        header = Header(
            source="LMCache agent trace",
            licence="Apache-2.0",
            timing="open",
            time_resolution_s=1e-6,
            notes="sessions taken apart into chains of calls that share a prefix",
            lost=("the text", "when a reply ended"),
        )
        place = Place(path)
        return header, from_the_first(in_time_order(self._turns(place, encode), place), place)

    def _turns(self, place: Place, encode: Encode) -> Iterator[Turn]:
        sessions: dict[str, _Session] = {}
        forgotten: set[str] = set()
        room = _ROOM
        for number, row in enumerate(json_rows(place.path, place, _MAX_ROW)):
            at, name, prompt, reply = _cells(row, place, encode)
            if name in forgotten:
                place.fail(f"{name!r} comes back after {_ROOM} tokens of others", "session_id")
            session = sessions.pop(name, None) or _Session()
            sessions[name] = session  # the latest is last
            if at < session.at:
                place.fail("time runs backwards within a session", "timestamp")
            session.at = at
            room += session.size
            yield _turn_of(row_name(number), name, session, prompt, reply, place)
            room -= session.size
            while room < 0 and len(sessions) > 1:
                oldest = next(iter(sessions))
                room += sessions.pop(oldest).size
                forgotten.add(oldest)


def _turn_of(
    request_id: str,
    name: str,
    session: _Session,
    prompt: array[int],
    reply: array[int],
    place: Place,
) -> Turn:
    """The turn of a call, which joins a chain of its session."""
    shares = [(_common(chain.context, prompt), chain) for chain in session.chains]
    shared, chain = max(shares, key=lambda pair: pair[0], default=(0, None))
    is_new = chain is None or 2 * shared < min(chain.prompt, len(prompt)) or not shared
    if chain is None or is_new:
        chain = _Chain(0, 0, array("I"))
        session.chains.append(chain)
    chain.turns += 1
    chain.prompt = len(prompt)
    chain.context = prompt + reply
    number = session.chains.index(chain) + 1
    return Turn(
        request_id,
        id_within(name, number, "session_id", place),
        chain.turns,
        len(prompt),
        len(reply),
        arrival_ns=session.at * _MICROSECOND,
        parent_prefix_tokens=None if is_new else shared,
        kind="agent",
    )


def _cells(
    row: dict[str, Any], place: Place, encode: Encode
) -> tuple[int, str, array[int], array[int]]:
    for key in row:
        if key not in _KEYS:
            place.fail("unknown key", key)
    for key in _KEYS:
        if key not in row:
            place.fail("missing", key)
    at = json_count_of(row["timestamp"], "timestamp", place, _MAX_MICROSECONDS)
    name = text_of(row["session_id"], "session_id", place)
    prompt, reply = (
        array("I", encoded(row[key], key, place, encode)) for key in ("input", "output")
    )
    return at, name, prompt, reply


def _common(before: array[int], after: array[int]) -> int:
    """How many leading tokens are equal, found by halving: whole pieces compare quickly."""
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == after[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
