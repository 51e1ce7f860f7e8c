"""Splitwise-sim: request_id, request_type, application_id, arrival_timestamp, sizes of prompt and reply.

Source: Mutinifni/splitwise-sim, traces/*.csv (MIT). Times are seconds. A `batch_size` above 1 would
be several requests in one row, which no published file has. `application_id` is the client. No
sessions: every row is a conversation of one turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import has_columns, id_of, stamp_of, table_rows, unique, within_reach
from traces.strict import Place, count_of
from traces.workload import Header, Turn

COLUMNS = (
    "request_id",
    "request_type",
    "application_id",
    "arrival_timestamp",
    "batch_size",
    "prompt_size",
    "token_size",
)


class SplitwiseReader:
    """Time may not run backwards."""

    name = "splitwise-sim"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return has_columns(head, COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(source="splitwise-sim trace", licence="MIT", lost=("request_type",))
        place = Place(path)
        return header, unique(within_reach(self._turns(place), place), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        before = 0
        for name, _, application, stamp, batch, given, got in table_rows(
            place.path, COLUMNS, place
        ):
            arrival = stamp_of(stamp, "arrival_timestamp", place)
            if arrival < before:
                place.fail("time runs backwards", "arrival_timestamp")
            before = arrival
            count_of(batch, "batch_size", place, limit=1, low=1)
            request_id = id_of(name, "request_id", place)
            yield Turn(
                request_id,
                request_id,
                1,
                count_of(given, "prompt_size", place),
                count_of(got, "token_size", place),
                arrival_ns=arrival,
                client_id=id_of(application, "application_id", place),
            )
