"""VTC Arena: req_id, req_time, adapter_dir, prompt_len, output_len.

Source: Ying1123/VTC-artifact, fair_bench/real_trace.pkl (Apache-2.0), five attributes of each
request as a table. `adapter_dir` is the Chatbot Arena model that a user talked to; the paper takes
it as the client. Times were rescaled to 600 s by the publisher. No sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import has_columns, id_of, stamp_of, table_rows, unique, within_reach
from traces.strict import Place, count_of, text_of
from traces.workload import Header, Turn

COLUMNS = ("req_id", "req_time", "adapter_dir", "prompt_len", "output_len")


class VtcArenaReader:
    """Every row is a conversation of one turn; time may not run backwards."""

    name = "vtc-arena"

    def claims(self, head: str) -> bool:
        """The header line is the format."""
        return has_columns(head, COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(
            source="VTC Chatbot Arena trace",
            licence="Apache-2.0",
            timing="open",
            notes="times were rescaled to 600 s by the publisher",
            lost=("the prompts (filler in the source)",),
        )
        place = Place(path)
        return header, unique(within_reach(self._turns(place), place), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        before = 0
        for name, stamp, client, given, got in table_rows(place.path, COLUMNS, place):
            arrival = stamp_of(stamp, "req_time", place)
            if arrival < before:
                place.fail("time runs backwards", "req_time")
            before = arrival
            request_id = id_of(name, "req_id", place)
            yield Turn(
                request_id,
                request_id,
                1,
                count_of(given, "prompt_len", place),
                count_of(got, "output_len", place),
                arrival_ns=arrival,
                client_id=text_of(client, "adapter_dir", place),
            )
