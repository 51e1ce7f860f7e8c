"""What a run leaves behind: a folder of tables, the same from every machine.

    run.json               summary and provenance
    scenario.yaml          resolved
    workload.parquet       the rows served, which are a workload again
    decisions.jsonl        one line per step, when asked for
    replay.jsonl           what a replay needs beyond the tables, with decisions.jsonl
    requests.parquet  steps.parquet  waits.parquet  spans.parquet  preemptions.parquet
    copies.parquet

Times are integer nanoseconds. Rows are flushed in chunks of constant size, so memory does not grow
with output tokens; a span stands for all tokens between two interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policy.errors import ConfigError, InputError
from traces.readers import parquet
from traces.strict import quoted, reason, shown, shown_path

#: Rows are turned into columns while they are still in the processor's cache, and written in
#: groups of many such chunks.
CHUNK_ROWS = 1 << 12
CHUNKS_PER_GROUP = 16

#: Of run.json. Raised whenever tables gain or lose a column, or a column another meaning.
FORMAT = "fastswitch-run/2"

_INT = pa.int64()
_STR = pa.string()

SCHEMAS: dict[str, pa.Schema] = {
    "requests": pa.schema(
        [
            ("request_id", _STR),
            ("session_id", _STR),
            ("turn", _INT),
            ("client_id", _STR),
            ("due_ns", _INT),
            ("arrival_ns", _INT),
            ("input_tokens", _INT),
            ("cached_tokens", _INT),
            ("output_tokens", _INT),
            ("first_token_ns", _INT),
            ("finish_ns", _INT),
            ("cancel_ns", _INT),
            ("cancel_seen_step", _INT),
            ("end_ns", _INT),
            ("preemptions", _INT),
            ("parkings", _INT),
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
    "waits": pa.schema([("before_step", _INT), ("start_ns", _INT), ("end_ns", _INT)]),
    "preemptions": pa.schema([("request_id", _STR), ("step", _INT), ("mode", _STR), ("was", _STR)]),
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
    "workload": parquet.recorded_schema(),
}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A place that cannot be written is the user's to change: a ConfigError that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None


class _Sink:
    """Where full chunks of a table go: memory, or a Parquet file."""

    def __init__(
        self,
        name: str,
        folder: Path | None,
        metadata: dict[bytes, bytes] | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        self.schema = (SCHEMAS[name] if schema is None else schema).with_metadata(metadata)
        self._chunks: list[pa.RecordBatch] = []
        self._path = None if folder is None else folder / f"{name}.parquet"
        self._writer: pq.ParquetWriter | None = None

    def write(self, arrays: list[pa.Array]) -> None:
        self._chunks.append(pa.record_batch(arrays, schema=self.schema))
        if self._path is not None and len(self._chunks) >= CHUNKS_PER_GROUP:
            self._write_group(self._path)

    def close(self) -> pa.Table | None:
        """The whole table, or None if it is on disk now. Raises ConfigError if it cannot be."""
        if self._path is None:
            return pa.Table.from_batches(self._chunks, schema=self.schema)
        self._write_group(self._path)
        if self._writer is not None:
            with _writing(self._path):
                self._writer.close()
        return None

    def _write_group(self, path: Path) -> None:
        with _writing(path):
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    path, self.schema, compression="zstd", write_statistics=False
                )
            if self._chunks:
                self._writer.write_table(pa.Table.from_batches(self._chunks, schema=self.schema))
                self._chunks.clear()


class Table:
    """Rows of one schema, of a recording's table unless another is given. `append` takes a tuple.
    `metadata`: of its file, beside the columns."""

    def __init__(
        self,
        name: str,
        folder: Path | None,
        metadata: dict[bytes, bytes] | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        self._sink = _Sink(name, folder, metadata, schema)
        self._rows: list[tuple[Any, ...]] = []
        self.append = self._rows.append
        self.extend = self._rows.extend

    def flush_if_full(self) -> None:
        """Move buffered rows out once there are enough of them."""
        if len(self._rows) >= CHUNK_ROWS:
            self.flush()

    def close(self) -> pa.Table | None:
        """The whole table, or None if it is on disk now."""
        self.flush()
        return self._sink.close()

    def flush(self) -> None:
        """Move buffered rows out."""
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
    notes: list[str] = field(default_factory=list)

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One table, or some of its columns. Raises InputError if the folder lacks it."""
        if name in self.tables:
            return self.tables[name].select(columns) if columns else self.tables[name]
        assert self.folder is not None
        path = self.folder / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                _check_columns(file.schema_arrow, name, path)
                table = file.read(columns)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
        return table.select(columns) if columns else table

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a table, of which no more than CHUNK_ROWS are in memory if it is on disk. Raises
        InputError if the folder lacks it."""
        if name in self.tables:
            for batch in self.tables[name].to_batches(CHUNK_ROWS):
                yield from batch.to_pylist()
            return
        assert self.folder is not None
        path = self.folder / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                _check_columns(file.schema_arrow, name, path)
                for batch in file.iter_batches(CHUNK_ROWS):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None

    def decision_lines(self) -> Iterator[str]:
        """Lines of decisions.jsonl, without their ends."""
        return self._lines("decisions.jsonl", self.decisions)

    def replay_lines(self) -> Iterator[str]:
        """Lines of replay.jsonl, without their ends."""
        return self._lines("replay.jsonl", self.notes)

    def _lines(self, name: str, kept: list[str]) -> Iterator[str]:
        if self.folder is None:
            yield from kept
            return
        path = self.folder / name
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield line.rstrip("\n")
        except FileNotFoundError:
            raise InputError(f"{shown_path(path)}: the run was made without --decisions") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None


def _check_columns(found: pa.Schema, name: str, path: Path) -> None:
    """Raise InputError naming the first column that is not what this table has there."""
    columns = [[f"{f.name} {f.type}" for f in schema] for schema in (found, SCHEMAS[name])]
    for have, want in zip_longest(*columns, fillvalue="nothing"):
        if have != want:
            raise InputError(f"{shown_path(path)}: column {shown(have)} where {want} was due")


#: One line of JSON per ended request, written while a real run lasts.
JOURNAL = "requests.journal.jsonl"


def load(folder: Path) -> Recording:
    """A recording from its folder. Raises InputError naming what is missing.

    A real run that was killed left no run.json. Its requests that had ended are there all the same,
    from its journal, and `summary["is_complete"]` is false.
    """
    path = folder / "run.json"
    if not path.exists() and (folder / JOURNAL).is_file():
        return Recording({"is_complete": False}, folder, {"requests": _from_journal(folder)})
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    if not isinstance(summary, dict):
        raise InputError(f"{shown_path(path)}: {quoted(summary)} is not a JSON object")
    made = summary.get("format", FORMAT)
    if made != FORMAT:
        raise InputError(
            f"{shown_path(path)}: its format is {quoted(made)}, this program reads {FORMAT}; make the"
            " run again with the scenario.yaml beside it"
        )
    return Recording(summary, folder)


def _from_journal(folder: Path) -> pa.Table:
    """requests.parquet as far as it got; a last line torn by the kill is dropped."""
    path = folder / JOURNAL
    schema = SCHEMAS["requests"]
    rows = []
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or set(row) != set(schema.names):
                raise InputError(f"{shown_path(path)}:{number}: is not a request's row")
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=schema)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None


# ---------------------------------------------------------------------- a folder to record into


@contextmanager
def claimed(folder: Path, mark: str = "run.json") -> Iterator[Path]:
    """A new, empty folder to record into; it gets the name `folder` if all goes well, replacing an
    earlier recording, and vanishes if not. A link is followed.

    Raises ConfigError, before anything is recorded, if `folder` exists and is not an earlier
    recording, or cannot be made. `mark`: the file that makes a folder one of its kind, `fleet.json` of a
    fleet's, which holds a folder for each replica.
    """
    if folder.name in ("", ".."):
        raise ConfigError(f"{folder}: is not the name of a new folder; give one, like runs/first")
    with _writing(folder):
        final = Path(os.path.realpath(folder))
        _refuse_what_is_not_a_recording(final, folder, mark)
        part = _beside(final, "part")
        _clear_what_a_killed_run_left(final)
        part.mkdir(parents=True)
    try:
        yield part
        with _writing(folder):
            _publish(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_what_is_not_a_recording(folder: Path, named: Path, mark: str) -> None:
    if not folder.exists():
        return
    inside = list(folder.iterdir()) if folder.is_dir() else [folder]
    if inside and folder / mark not in inside:
        raise ConfigError(f"{shown_path(named)}: exists and is not a recording; it is left alone")
    for path in inside:
        if path.is_dir() and not (mark != "run.json" and (path / "run.json").is_file()):
            raise ConfigError(
                f"{shown_path(named)}: holds the folder {shown(path.name)}, which no recording has;"
                " it is left alone"
            )


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _clear_what_a_killed_run_left(folder: Path) -> None:
    part, earlier = _beside(folder, "part"), _beside(folder, "earlier")
    if earlier.exists():
        if folder.exists():
            shutil.rmtree(earlier)
        else:  # killed between the two renames
            earlier.rename(folder)
    if part.exists():
        shutil.rmtree(part)


def _publish(part: Path, folder: Path) -> None:
    """Two renames, so that an earlier recording is there as a whole or not at all."""
    earlier = _beside(folder, "earlier")
    if folder.exists():
        folder.rename(earlier)
    part.rename(folder)
    if earlier.exists():
        shutil.rmtree(earlier)


def begin(folder: Path, scenario: Any) -> None:
    """Make the folder and put the resolved scenario there. Raises ConfigError."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.yaml").write_text(scenario.as_yaml(), encoding="utf-8")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """run.json, with which a recording is complete. Raises ConfigError if it cannot be written."""
    with _writing(folder):
        text = json.dumps(summary, indent=1) + "\n"
        (folder / "run.json").write_text(text, encoding="utf-8")
