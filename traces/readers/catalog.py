"""Which reader reads a file: named, or found from its first line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from policy.errors import ConfigError
from traces.readers import parquet, servegen
from traces.readers.azure import AzureReader
from traces.readers.base import Aids, Reader
from traces.readers.burstgpt import BurstGptReader
from traces.readers.kv_cache_tester import KvCacheTesterReader, KvCacheTesterTableReader
from traces.readers.lmcache import LmCacheReader
from traces.readers.mooncake import MooncakeReader
from traces.readers.native import NativeReader
from traces.readers.otel import OtelReader
from traces.readers.qwen import QwenReader
from traces.readers.ragpulse import RagPulseReader
from traces.readers.sharegpt import ShareGptReader, ShareGptTextReader
from traces.readers.token_lengths import TokenLengthsReader
from traces.readers.vllm_bench import VllmBenchReader
from traces.readers.vtc import VtcArenaReader
from traces.strict import Place, head_of, quoted
from traces.workload import Turn, Workload

READERS: tuple[Reader, ...] = (
    NativeReader(),
    AzureReader(),
    BurstGptReader(),
    MooncakeReader(),
    QwenReader(),
    RagPulseReader(),
    ShareGptReader(),
    ShareGptTextReader(),
    KvCacheTesterTableReader(),
    KvCacheTesterReader(),
    LmCacheReader(),
    VtcArenaReader(),
    TokenLengthsReader(),
    VllmBenchReader(),
    OtelReader(),
)


@runtime_checkable
class _Aided(Protocol):
    """A reader that can use more than the file."""

    def aided(self, aids: Aids) -> Reader:
        """The reader with it."""


def reader_for(path: Path, name: str | None = None) -> Reader:
    """The reader of that name, or the one that claims the file's first line."""
    names = ", ".join(reader.name for reader in READERS)
    if name is not None:
        for reader in READERS:
            if reader.name == name:
                return reader
        raise ConfigError(f"format: {quoted(name)} is not one of {names}")
    place = Place(path)
    if parquet.is_parquet(path, place):
        return NativeReader()
    head = head_of(path, place)
    if head is None:
        place.fail("empty file")
    for reader in READERS:
        if reader.claims(head):
            return reader
    if servegen.is_servegen(head):
        place.fail("ServeGen's laws of single clients, which are no requests: generate from them")
    return place.fail(f"begins with {head[:40]!r}, which is none of {names}")


def read_workload(path: Path, name: str | None = None, aids: Aids | None = None) -> Workload:
    """A workload file of any known format. Its turns are read anew at every iteration.

    Raises InputError, naming file, line and field, at the first row that is not right, and for an
    id given twice; ConfigError for a format or an aid that does not fit, or a text without a
    tokenizer.
    """
    reader = reader_for(path, name)
    if isinstance(reader, _Aided):
        reader = reader.aided(aids or Aids())
    if aids and aids.companions and not getattr(reader, "companions", None):
        raise ConfigError(f"companion: {reader.name} has none")
    header, _ = reader.read(path)

    def turns() -> Iterator[Turn]:
        _, rows = reader.read(path)
        return rows

    left_out = getattr(reader, "left_out", None)
    return Workload(header, turns, left_out if isinstance(left_out, Counter) else Counter())
