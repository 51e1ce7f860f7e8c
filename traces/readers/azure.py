"""Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens.

Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace_{conv,code}.csv (2023) and their week of
2024, AzureLLMInferenceTrace_{conv,code}_1week.csv (CC-BY-4.0; cite Splitwise, ISCA'24, and
DynamoLLM, HPCA'25). Both have the same columns; the second writes its times with an offset. Files
that were saved again have other forms of the time. No sessions: every row is a conversation of one
turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import from_the_first, has_columns, row_name, table_rows
from traces.strict import Place, count_of, moment_of
from traces.workload import Header, Turn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class AzureReader:
    """Arrivals become seconds after the first row; time may not run backwards."""

    name = "azure"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return has_columns(first_line, COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        first = next(table_rows(path, COLUMNS, Place(path)), ("",))
        year = "2024" if str(first[0]).startswith("2024") else "2023"
        header = Header(
            source=f"Azure LLM inference trace {year}",
            licence="CC-BY-4.0",
            timing="open",
            time_resolution_s=1e-6 if year == "2024" else 1e-7,
        )
        place = Place(path)
        return header, from_the_first(self._turns(place), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        before = 0
        for number, (stamp, given, got) in enumerate(table_rows(place.path, COLUMNS, place)):
            at = moment_of(stamp, "TIMESTAMP", place)
            if at < before:
                place.fail("time runs backwards", "TIMESTAMP")
            before = at
            request_id = row_name(number)
            yield Turn(
                request_id,
                request_id,
                1,
                count_of(given, "ContextTokens", place),
                count_of(got, "GeneratedTokens", place),
                arrival_ns=at,
            )
