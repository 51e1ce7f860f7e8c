"""Tables of lengths as Sarathi-Serve and Vidur keep them: num_prefill_tokens, num_decode_tokens.

Source: microsoft/sarathi-serve and microsoft/vidur, data/processed_traces (Apache-2.0, MIT). The
total and the ratio of the two are in most files, `arrived_at` (seconds) in some. No sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import row_name, table_rows
from traces.strict import Place, count_of, head_of, nanoseconds_of
from traces.workload import Header, Turn

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
OPTIONAL = ("num_total_tokens", "pd_ratio", "arrived_at")


class TokenLengthsReader:
    """Every row is a conversation of one turn; without `arrived_at` the scenario says when."""

    name = "token-lengths"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return set(COLUMNS) <= set(head.split(","))

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        is_timed = "arrived_at" in (head_of(path, Place(path)) or "").split(",")
        header = Header(
            source="processed trace of Sarathi-Serve or Vidur",
            timing="open" if is_timed else "closed",
            lost=() if is_timed else ("when requests arrived",),
        )
        return header, self._turns(Place(path))

    def _turns(self, place: Place) -> Iterator[Turn]:
        before = 0
        rows = table_rows(place.path, COLUMNS, place, OPTIONAL)
        for number, (given, got, total, ratio, stamp) in enumerate(rows):
            tokens = count_of(given, "num_prefill_tokens", place)
            reply = count_of(got, "num_decode_tokens", place)
            if total is not None and count_of(total, "num_total_tokens", place) != tokens + reply:
                place.fail(f"{total} is not {tokens} + {reply}", "num_total_tokens")
            if ratio is not None and reply:
                nanoseconds_of(ratio, "pd_ratio", place)
            arrival = None if stamp is None else nanoseconds_of(stamp, "arrived_at", place)
            if arrival is not None:
                if arrival < before:
                    place.fail("time runs backwards", "arrived_at")
                before = arrival
            request_id = row_name(number)
            yield Turn(request_id, request_id, 1, tokens, reply, arrival_ns=arrival)
