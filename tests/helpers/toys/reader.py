"""A table of seconds, prompt, reply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from traces.readers.base import has_columns, row_name, stamp_of, table_rows
from traces.strict import Place, count_of
from traces.workload import Header, Turn

COLUMNS = ("seconds", "prompt", "reply")


class ToyReader:
    """See traces.readers.base.Reader."""

    name = "toy"

    def claims(self, head: str) -> bool:
        return has_columns(head, COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        return Header(source="toy"), self._turns(Place(path))

    def _turns(self, place: Place) -> Iterator[Turn]:
        for number, (stamp, prompt, reply) in enumerate(table_rows(place.path, COLUMNS, place)):
            name = row_name(number)
            lengths = count_of(prompt, "prompt", place), count_of(reply, "reply", place)
            yield Turn(name, name, 1, *lengths, arrival_ns=stamp_of(stamp, "seconds", place))
