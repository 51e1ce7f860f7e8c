"""Tables of lengths as Sarathi-Serve, Vidur and Frontier keep them.

num_prefill_tokens, num_decode_tokens; in most files the total and the ratio of the two, in some
`arrived_at` (seconds). Source: microsoft/sarathi-serve and microsoft/vidur, data/processed_traces
(Apache-2.0, MIT). Frontier's tables have `session_id` and `block_hash_ids` too, ids of a prompt's
blocks with bars between them; how many tokens a block has is told by the lengths. A session's rows
are its turns in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from policy.errors import InputError
from traces.readers.base import (
    Aids,
    Prompts,
    block_size_of,
    has_columns,
    numbered,
    row_name,
    session_of,
    stamp_of,
    table_rows,
    within_reach,
)
from traces.rules import check_blocks
from traces.strict import MAX_BLOCK_ID, Place, columns_of, count_of, head_of, nanoseconds_of
from traces.workload import Header, Turn

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
OPTIONAL = ("num_total_tokens", "pd_ratio", "arrived_at", "session_id", "block_hash_ids")
_BLOCK = 16


@dataclass(frozen=True)
class TokenLengthsReader:
    """Without `arrived_at` the scenario says when."""

    name: str = "token-lengths"
    block_size: int | None = None

    def aided(self, aids: Aids) -> TokenLengthsReader:
        """With a size of blocks, if one is given."""
        return TokenLengthsReader(block_size=aids.block_size)

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return has_columns(head, COLUMNS, OPTIONAL)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        place = Place(path)
        names = columns_of(head_of(path, Place(path)) or "")
        is_timed = "arrived_at" in names
        size = None
        if "block_hash_ids" in names:
            size = block_size_of(_sizes(path), _BLOCK, self.block_size, place)
        header = Header(
            source="processed trace of Sarathi-Serve, Vidur or Frontier",
            timing="open" if is_timed else "closed",
            block_size=size,
            hash_scope=None if size is None else "global",
            lost=() if is_timed else ("when requests arrived",),
        )
        return header, _repeating(numbered(within_reach(_turns(place, size), place)), size)


def _sizes(path: Path) -> Iterator[tuple[int, int]]:
    """Tokens and number of blocks of every prompt; a row that is broken ends them, and is named when
    it is read."""
    place = Place(path)
    with suppress(InputError):
        for given, _, *_, ids in table_rows(path, COLUMNS, place, OPTIONAL):
            yield count_of(given, "num_prefill_tokens", place), len(_blocks(ids, place) or ())


def _blocks(cell: str | None, place: Place) -> tuple[int, ...] | None:
    """`31|32|33`; None for an empty cell."""
    if not cell:
        return None
    return tuple(count_of(i, "block_hash_ids", place, MAX_BLOCK_ID) for i in cell.split("|"))


def _turns(place: Place, size: int | None) -> Iterator[Turn]:
    before = 0
    rows = table_rows(place.path, COLUMNS, place, OPTIONAL)
    for number, (given, got, total, ratio, stamp, session, blocks) in enumerate(rows):
        tokens = count_of(given, "num_prefill_tokens", place)
        reply = count_of(got, "num_decode_tokens", place)
        if total is not None and count_of(total, "num_total_tokens", place) != tokens + reply:
            place.fail(f"{total} is not {tokens} + {reply}", "num_total_tokens")
        if ratio is not None and reply:
            nanoseconds_of(ratio, "pd_ratio", place)
        arrival = None if stamp is None else stamp_of(stamp, "arrived_at", place)
        if arrival is not None:
            if arrival < before:
                place.fail("time runs backwards", "arrived_at")
            before = arrival
        ids = _blocks(blocks, place)
        if ids is not None and size is not None:
            check_blocks(ids, tokens, size, "block_hash_ids", place, may_lack_last=False)
        request_id = row_name(number)
        name = session_of(session, "session_id", place) if session else request_id
        yield Turn(request_id, name, 1, tokens, reply, arrival_ns=arrival, hash_ids=ids)


def _repeating(turns: Iterator[Turn], size: int | None) -> Iterator[Turn]:
    """Turns with what they repeat of the one before them, read from the blocks."""
    if size is None:
        yield from turns
        return
    prompts = Prompts(size)
    for turn in turns:
        yield prompts.linked(turn)
