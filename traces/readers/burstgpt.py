"""BurstGPT: Timestamp, Session ID, Elapsed time, Model, request and response tokens, Log Type.

Source: HPMLL/BurstGPT (CC-BY-4.0). BurstGPT_3.csv has all eight columns, with a session on its
conversation rows alone; the earlier releases have neither sessions nor times of serving. Times are
in seconds and begin late in the collection. Failed requests have 0 response tokens and are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import (
    from_the_first,
    has_columns,
    numbered,
    row_name,
    session_of,
    stamp_of,
    table_rows,
)
from traces.strict import Place, count_of, nanoseconds_of, text_of
from traces.workload import Header, Turn

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
SESSION = ("Session ID", "Elapsed time")


class BurstGptReader:
    """Arrivals become seconds after the first row; time may not run backwards."""

    name = "burstgpt"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return has_columns(head, COLUMNS, SESSION)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(
            source="BurstGPT",
            licence="CC-BY-4.0",
            timing="open",
            time_resolution_s=1.0,
            lost=("what a turn repeats of the one before it (not recorded)",),
        )
        place = Place(path)
        return header, from_the_first(numbered(self._turns(place)), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        before = 0
        for number, cells in enumerate(table_rows(place.path, COLUMNS, place, SESSION)):
            stamp, model, given, got, total, kind, session, elapsed = cells
            arrival = stamp_of(stamp, "Timestamp", place)
            if arrival < before:
                place.fail("time runs backwards", "Timestamp")
            before = arrival
            count_of(total, "Total tokens", place)
            request_id = row_name(number)
            yield Turn(
                request_id,
                session_of(session, "Session ID", place) if session else request_id,
                1,
                count_of(given, "Request tokens", place),
                count_of(got, "Response tokens", place),
                arrival_ns=arrival,
                service_ns=nanoseconds_of(elapsed, "Elapsed time", place) if elapsed else None,
                model=text_of(model, "Model", place),
                kind=text_of(kind, "Log Type", place),
            )
