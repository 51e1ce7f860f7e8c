"""Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens.

Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace_{conv,code}.csv (2023) and their week of
2024, AzureLLMInferenceTrace_{conv,code}_1week.csv (CC-BY-4.0; cite Splitwise, ISCA'24, and
DynamoLLM, HPCA'25). Both have the same columns; the second writes its times with an offset, which
is always zero. No sessions: every row is a conversation of one turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from traces.readers.base import row_name, table_rows
from traces.strict import MAX_SECONDS, Place, count_of, quoted
from traces.workload import Header, Turn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:\+00:00)?", re.ASCII
)


class AzureReader:
    """Arrivals become seconds after the first row; time may not run backwards."""

    name = "azure"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return first_line.split(",")[:3] == list(COLUMNS)

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
        return header, self._turns(path)

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        start: int | None = None
        before = 0
        for number, (stamp, given, got) in enumerate(table_rows(path, COLUMNS, place)):
            at = _nanoseconds(stamp)
            if at is None:
                problem = f"{quoted(stamp)} is not a time like 2023-11-16 18:15:46.6805900"
                place.fail(problem, "TIMESTAMP")
            if start is None:
                start = before = at
            if at < before:
                place.fail("time runs backwards", "TIMESTAMP")
            if at - start > MAX_SECONDS * 1_000_000_000:
                place.fail(f"more than {MAX_SECONDS} seconds after the first row", "TIMESTAMP")
            before = at
            request_id = row_name(number)
            yield Turn(
                request_id,
                request_id,
                1,
                count_of(given, "ContextTokens", place),
                count_of(got, "GeneratedTokens", place),
                arrival_ns=at - start,
            )


def _nanoseconds(text: str) -> int | None:
    """`2023-11-16 18:15:46.6805900`, UTC: up to nine fractional digits, kept exactly. None if it is
    no time."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # no such day, or no such hour
        return None
    return int(moment.timestamp()) * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))
