"""Which reader reads a file: named, or found from its first line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policy.errors import ConfigError
from traces.readers.azure import AzureReader
from traces.readers.base import Reader
from traces.readers.kv_cache_tester import KvCacheTesterReader, KvCacheTesterTableReader
from traces.readers.mooncake import MooncakeReader
from traces.readers.native import NativeReader
from traces.readers.sharegpt import ShareGptReader
from traces.strict import MAX_DOCUMENT, Place, open_lines, quoted
from traces.workload import Turn, Workload

READERS: tuple[Reader, ...] = (
    NativeReader(),
    AzureReader(),
    MooncakeReader(),
    ShareGptReader(),
    KvCacheTesterTableReader(),
    KvCacheTesterReader(),
)


def reader_for(path: Path, name: str | None = None) -> Reader:
    """The reader of that name, or the one that claims the file's first line."""
    names = ", ".join(reader.name for reader in READERS)
    if name is not None:
        for reader in READERS:
            if reader.name == name:
                return reader
        raise ConfigError(f"format: {quoted(name)} is not one of {names}")
    place = Place(path)
    first = next(open_lines(path, place, MAX_DOCUMENT), None)
    if first is None:
        place.fail("empty file")
    for reader in READERS:
        if reader.claims(first):
            return reader
    return place.fail(f"begins with {first[:40]!r}, which is none of {names}")


def read_workload(path: Path, name: str | None = None) -> Workload:
    """A workload file of any known format. Its turns are read anew at every iteration.

    Raises InputError, naming file, line and field, at the first row that is not right, and for an
    id given twice.
    """
    reader = reader_for(path, name)
    header, _ = reader.read(path)

    def turns() -> Iterator[Turn]:
        _, rows = reader.read(path)
        return rows

    return Workload(header, turns)
