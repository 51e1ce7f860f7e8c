"""What a run leaves behind: a folder of tables, the same from every machine.

    run.json               summary and provenance
    scenario.yaml          resolved
    workload.parquet       the rows served
    decisions.jsonl        one line per step, when asked for
    requests.parquet  steps.parquet  spans.parquet  preemptions.parquet  copies.parquet

Times are integer nanoseconds. Rows are flushed in chunks of constant size, so memory does not grow
with output tokens; a span stands for all tokens between two interruptions.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policy.errors import ConfigError, InputError

#: Rows are turned into columns while they are still in the processor's cache, and written in
#: groups of many such chunks.
CHUNK_ROWS = 1 << 12
CHUNKS_PER_GROUP = 16

_INT = pa.int64()
_STR = pa.string()

SCHEMAS: dict[str, pa.Schema] = {
    "requests": pa.schema(
        [
            ("request_id", _STR),
            ("session_id", _STR),
            ("turn", _INT),
            ("client_id", _STR),
            ("arrival_ns", _INT),
            ("input_tokens", _INT),
            ("cached_tokens", _INT),
            ("output_tokens", _INT),
            ("first_token_ns", _INT),
            ("finish_ns", _INT),
            ("cancel_ns", _INT),
            ("cancel_seen_step", _INT),
            ("preemptions", _INT),
            ("status", _STR),
            ("reason", _STR),
        ]
    ),
    "steps": pa.schema(
        [
            ("step", _INT),
            ("start_ns", _INT),
            ("end_ns", _INT),
            ("stall_ns", _INT),
            ("prefill_tokens", _INT),
            ("batch", _INT),
            ("kv_tokens", _INT),
            ("free_blocks", _INT),
            ("free_host_blocks", _INT),
            ("wait_cost", _INT),
            ("overlap_cost", _INT),
        ]
    ),
    "spans": pa.schema(
        [
            ("request_id", _STR),
            ("kind", _STR),
            ("first_step", _INT),
            ("last_step", _INT),
            ("tokens", _INT),
        ]
    ),
    "preemptions": pa.schema([("request_id", _STR), ("step", _INT), ("mode", _STR)]),
    "copies": pa.schema(
        [
            ("copy_id", _INT),
            ("request_id", _STR),
            ("direction", _STR),
            ("blocks", _INT),
            ("runs", _INT),
            ("calls", _INT),
            ("bytes", _INT),
            ("submit_ns", _INT),
            ("start_ns", _INT),
            ("end_ns", _INT),
            ("seen_step", _INT),
            ("ok", pa.bool_()),
            ("waited_for", pa.bool_()),
        ]
    ),
    "workload": pa.schema(
        [
            ("request_id", _STR),
            ("session_id", _STR),
            ("turn", _INT),
            ("input_tokens", _INT),
            ("output_tokens", _INT),
            ("arrival_s", pa.float64()),
            ("think_s", pa.float64()),
            ("gap_s", pa.float64()),
            ("parent_id", _STR),
            ("parent_prefix_tokens", _INT),
            ("client_id", _STR),
            ("priority", _INT),
            ("cancel_s", pa.float64()),
        ]
    ),
}


class _Sink:
    """Where full chunks of a table go: memory, or a Parquet file."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.schema = SCHEMAS[name]
        self._chunks: list[pa.RecordBatch] = []
        self._path = None if folder is None else folder / f"{name}.parquet"
        self._writer: pq.ParquetWriter | None = None

    def write(self, arrays: list[pa.Array]) -> None:
        """One chunk."""
        self._chunks.append(pa.record_batch(arrays, schema=self.schema))
        if self._path is not None and len(self._chunks) >= CHUNKS_PER_GROUP:
            self._write_group()

    def close(self) -> pa.Table | None:
        """The whole table, or None if it is on disk now."""
        if self._path is None:
            return pa.Table.from_batches(self._chunks, schema=self.schema)
        self._write_group()
        if self._writer is not None:
            self._writer.close()
        return None

    def _write_group(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, self.schema, compression="zstd", write_statistics=False
            )
        if self._chunks:
            self._writer.write_table(pa.Table.from_batches(self._chunks, schema=self.schema))
            self._chunks.clear()


class Table:
    """Rows of one schema. `append` takes a tuple."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self._sink = _Sink(name, folder)
        self._rows: list[tuple[Any, ...]] = []
        self.append = self._rows.append
        self.extend = self._rows.extend

    def flush_if_full(self) -> None:
        """Move buffered rows out once there are enough of them."""
        if len(self._rows) >= CHUNK_ROWS:
            self._flush()

    def close(self) -> pa.Table | None:
        """The whole table, or None if it is on disk now."""
        self._flush()
        return self._sink.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            schema = self._sink.schema
            self._sink.write(
                [pa.array(cells, type=f.type) for cells, f in zip(columns, schema, strict=True)]
            )
            self._rows.clear()


class IntTable:
    """A table of integers alone, eight bytes a cell; NULL stands for a missing one."""

    NULL = -1

    def __init__(self, name: str, folder: Path | None) -> None:
        self._sink = _Sink(name, folder)
        self._cells = array("q")
        self.append = self._cells.extend  # takes a row, as many integers as there are columns

    def flush_if_full(self) -> None:
        """Move buffered rows out once there are enough of them."""
        if len(self._cells) >= CHUNK_ROWS * len(self._sink.schema):
            self._flush()

    def close(self) -> pa.Table | None:
        """The whole table, or None if it is on disk now."""
        self._flush()
        return self._sink.close()

    def _flush(self) -> None:
        if self._cells:
            cells = np.array(self._cells, dtype=np.int64).reshape(-1, len(self._sink.schema))
            columns = [np.ascontiguousarray(cells[:, i]) for i in range(cells.shape[1])]
            self._sink.write([pa.array(column, mask=column == self.NULL) for column in columns])
            del self._cells[:]


@dataclass
class Recording:
    """A finished run: tables in memory, or a folder that they are read from when asked for."""

    summary: dict[str, Any]
    folder: Path | None = None
    tables: dict[str, pa.Table] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One table, or some of its columns. Raises InputError if the folder lacks it."""
        if name in self.tables:
            return self.tables[name].select(columns) if columns else self.tables[name]
        assert self.folder is not None
        path = self.folder / f"{name}.parquet"
        try:
            return pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None

    def decision_lines(self) -> Iterator[str]:
        """Lines of decisions.jsonl, without their ends."""
        if self.folder is None:
            yield from self.decisions
            return
        path = self.folder / "decisions.jsonl"
        if not path.exists():
            raise InputError(f"{path}: the run was made without --decisions")
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")


def load(folder: Path) -> Recording:
    """A recording from its folder. Raises InputError naming what is missing."""
    path = folder / "run.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(summary, dict):
        raise InputError(f"{path}: not a JSON object")
    return Recording(summary, folder)


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """A new, empty folder to record into; it gets the name `folder` if all goes well, replacing an
    earlier recording, and vanishes if not.

    Raises ConfigError if `folder` exists and is not an earlier recording, or cannot be made.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "run.json").exists():
        raise ConfigError(f"{folder}: exists and is not a recording; it is left alone")
    part = folder.with_name(f".{folder.name}.part")
    try:
        if part.exists():
            _remove(part)
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield part
        if folder.exists():
            _remove(folder)
        part.rename(folder)
    except BaseException:
        _remove(part)
        raise


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def write_summary(folder: Path, scenario: Any, summary: dict[str, Any]) -> None:
    """run.json and scenario.yaml of a recording."""
    (folder / "scenario.yaml").write_text(scenario.as_yaml(), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
