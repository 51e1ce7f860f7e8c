"""Which reader reads a file: named, or found from its first line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from policy.errors import ConfigError
from traces.readers import named, parquet, servegen
from traces.readers.aiperf import AiperfReader
from traces.readers.azure import AzureReader
from traces.readers.base import Aids, Reader
from traces.readers.burstgpt import BurstGptReader
from traces.readers.growth import added_up, whole_prompts
from traces.readers.kv_cache_tester import KvCacheTesterReader, KvCacheTesterTableReader
from traces.readers.lmcache import LmCacheReader
from traces.readers.mooncake import MooncakeReader
from traces.readers.named import NamedColumnsReader
from traces.readers.native import NativeReader, as_it_went, recorded_in
from traces.readers.otel import OtelReader
from traces.readers.qwen import QwenReader
from traces.readers.ragpulse import RagPulseReader
from traces.readers.sharegpt import ShareGptReader, ShareGptTextReader
from traces.readers.splitwise import SplitwiseReader
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
    SplitwiseReader(),
    AiperfReader(),
    VllmBenchReader(),
    OtelReader(),
    NamedColumnsReader(),
)


#: What begins like this holds no requests: what it is, and the way out.
_NO_REQUESTS = (
    (
        ('"traceEvents"',),
        "a timeline, for looking at; the folder of the run that it was made of is a workload",
    ),
    (
        ('"request_performance"',),
        "a report of sums; the folder of the run, or its export as vllm or aiperf, is a workload",
    ),
)


@runtime_checkable
class _Aided(Protocol):
    """A reader that can use more than the file."""

    def aided(self, aids: Aids) -> Reader:
        """The reader with it."""


def reader_for(path: Path, name: str | None = None) -> Reader:
    """The reader of that name, or the one that claims the file's first line; a recording's folder
    holds the rows that were served."""
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
    place.line = 0
    for marks, what in _NO_REQUESTS:
        if all(mark in head for mark in marks):
            place.fail(what)
    for reader in READERS:
        if reader.claims(head):
            return reader
    if servegen.is_servegen(head):
        place.fail("ServeGen's laws of single clients, which are no requests: generate from them")
    return place.fail(named.hint(head))


def read_workload(path: Path, name: str | None = None, aids: Aids | None = None) -> Workload:
    """A workload file of any known format, or the rows that a recording's folder holds. Its turns
    are read anew at every iteration.

    Raises InputError, naming file, line and field, at the first row that is not right, and for a
    file without a request; ConfigError for a format or an aid that does not fit, or a text without
    a tokenizer.
    """
    aids = aids or Aids()
    folder = path if path.is_dir() else None
    if folder is not None:
        path = recorded_in(path)
    if aids.columns is not None:
        if name not in (None, "columns"):
            raise ConfigError(f"columns: {name} has its own; give one of the two")
        name = "columns"
    reader = reader_for(path, name)
    if isinstance(reader, _Aided):
        reader = reader.aided(aids)
    for aid, what in (("companions", "companion"), ("block_size", "block_size")):
        if getattr(aids, aid) and not getattr(reader, aid, None):
            raise ConfigError(f"{what}: {reader.name} takes none")
    header, _ = reader.read(path)
    left_out = getattr(reader, "left_out", None)
    counted = left_out if isinstance(left_out, Counter) else Counter()

    def turns() -> Iterator[Turn]:
        place = Place(path)
        rows = reader.read(path)[1]
        if folder is not None:
            rows = as_it_went(folder, rows)
        if aids.turns == "increments":
            rows = added_up(rows, place)
        elif aids.turns is None and not isinstance(reader, NativeReader):
            rows = whole_prompts(rows, place)
        return _some(rows, place, counted)

    if aids.turns is not None:
        words = "only what is new" if aids.turns == "increments" else "the whole prompt"
        header = replace(header, assumed=(*header.assumed, f"a turn's length is {words}, as told"))
    return Workload(header, turns, counted)


def _some(turns: Iterator[Turn], place: Place, left_out: Counter[str]) -> Iterator[Turn]:
    """The turns. Raises InputError if there is none."""
    first = next(turns, None)
    if first is None:
        place.line = 0
        why = "; ".join(f"left out: {n} x {what}" for what, n in sorted(left_out.items()))
        place.fail(f"no requests in it{f' ({why})' if why else ''}")
    yield first
    yield from turns
