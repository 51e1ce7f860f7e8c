"""Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens.

Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace_{conv,code}.csv (2023, CC-BY-4.0). No
sessions: every row is a conversation of one turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from traces.readers.base import column_indexes
from traces.strict import Place, count_of, csv_rows, open_lines
from traces.workload import Header, Turn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class AzureReader:
    """Arrivals become seconds after the first row; time may not run backwards."""

    name = "azure"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return first_line.split(",")[:3] == list(COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(
            source="Azure LLM inference trace 2023",
            licence="CC-BY-4.0",
            timing="open",
            time_resolution_s=1e-7,
        )
        return header, self._turns(path)

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        rows = csv_rows(open_lines(path, place), place)
        names = next(rows, None)
        if names is None:
            place.fail("empty file")
        index = column_indexes(names, COLUMNS, place)
        start: int | None = None
        before = 0
        for number, row in enumerate(rows):
            if len(row) != len(names):
                place.fail(f"{len(row)} fields, the header has {len(names)}")
            stamp = _nanoseconds(row[index["TIMESTAMP"]], place)
            start = stamp if start is None else start
            if stamp < before:
                place.fail("time runs backwards", "TIMESTAMP")
            before = stamp
            request_id = f"r{number:07d}"
            yield Turn(
                request_id,
                request_id,
                1,
                count_of(row[index["ContextTokens"]], "ContextTokens", place),
                count_of(row[index["GeneratedTokens"]], "GeneratedTokens", place),
                arrival_ns=stamp - start,
            )


def _nanoseconds(text: str, place: Place) -> int:
    """`2023-11-16 18:15:46.6805900`: up to nine fractional digits, kept exactly."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.removesuffix("+00:00")
    try:
        moment = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        place.fail(f"{text!r:.40} is not a time like 2023-11-16 18:15:46.6805900", "TIMESTAMP")
    if fraction and not (fraction.isascii() and fraction.isdigit() and len(fraction) <= 9):
        place.fail(f"{text!r:.40} has a bad fraction of a second", "TIMESTAMP")
    return int(moment.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0") or "0")
