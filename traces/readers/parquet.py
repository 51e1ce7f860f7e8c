"""Rows of this project's own format in Parquet: row groups are streamed, never a whole table.

The header is JSON in the file's metadata, under `fastswitch-workload`; a run's record of the rows
that it served, in the order seen, has `fastswitch-recorded` beside it. Columns have the names and
units of the JSONL rows; block ids are a list, components a list of structs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.readers.rows import COUNTS, SECONDS, TEXTS, row_of
from traces.strict import MAX_RATIO, MAX_UNPACKED, Place, parse_json, reason
from traces.workload import FORMAT, MAX_ID, Turn

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_RECORDED = "fastswitch-recorded"
#: Rows of a row group, and block ids after which one is closed early: as objects they take 40 bytes.
GROUP_ROWS = 1 << 14
GROUP_BLOCKS = 1 << 18
#: Rows that are Python objects at a time; fewer where they hold many block ids.
_BATCH = 1 << 10
#: Most bytes a row group may claim to unpack to.
_MAX_GROUP = 1 << 28
#: Ids are unique, so no file can hold more rows for each of its bytes.
_MAX_ROWS_PER_BYTE = 16
_IDS = ("request_id", "session_id", *TEXTS)


def is_parquet(path: Path, place: Place) -> bool:
    """Whether a file begins as Parquet does. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError) as error:
        place.fail(f"cannot be read: {reason(error)}")


def schema() -> pa.Schema:
    """The columns and their types."""
    import pyarrow as pa  # noqa: PLC0415  # slow to import, as everywhere below

    component = pa.struct([("kind", pa.string()), ("id", pa.string()), ("tokens", pa.int32())])
    kinds = dict.fromkeys(_IDS, pa.string())
    kinds |= dict.fromkeys(("turn", "input_tokens", "output_tokens", *COUNTS), pa.int32())
    kinds |= dict.fromkeys(SECONDS, pa.float64())
    kinds |= {"priority": pa.int64(), "hash_ids": pa.list_(pa.field("element", pa.int64()))}
    kinds |= {"components": pa.list_(pa.field("element", component))}
    return pa.schema(kinds)


# ---------------------------------------------------------------------- reading


@contextmanager
def _opened(path: Path, place: Place) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose claims are within the limits. Raises InputError, also for what breaks
    while it is read."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        size = path.stat().st_size
        metadata = pq.read_metadata(path)
        names = metadata.schema.to_arrow_schema().names
        ids = [name for name in names if name in _IDS]
        with pq.ParquetFile(
            path, metadata=metadata, read_dictionary=ids, buffer_size=1 << 16
        ) as file:
            _check_claims(file, size, place)
            yield file
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        place.fail(f"broken Parquet: {reason(error)}")


def _check_claims(file: pq.ParquetFile, size: int, place: Place) -> None:
    metadata = file.metadata
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > MAX_UNPACKED:
        place.fail(f"unpacks to more than {MAX_UNPACKED} bytes")
    if max((group.total_byte_size for group in groups), default=0) > _MAX_GROUP:
        place.fail(f"a row group unpacks to more than {_MAX_GROUP} bytes")
    if unpacked > (1 << 20) and unpacked > MAX_RATIO * size:
        place.fail(f"unpacks to more than {MAX_RATIO} times its {size} bytes")
    if metadata.num_rows > _MAX_ROWS_PER_BYTE * size:
        place.fail(f"{metadata.num_rows} rows in {size} bytes")
    wanted = schema()
    found = file.schema_arrow
    for field in found:
        if field.name not in wanted.names:
            place.fail("unknown column", field.name)
        known = wanted.field(field.name).type
        is_wide = (str(field.type), str(known)) == ("int64", "int32")
        if field.type != known and not is_wide and getattr(field.type, "value_type", None) != known:
            place.fail(f"column of {field.type}, not {known}", field.name)
    if len(set(found.names)) != len(found.names):
        place.fail("column given twice")


def recorded_schema(header: dict[str, Any] | None = None) -> pa.Schema:
    """The schema of a table of the rows that a run served, in the order seen. Whole numbers are wide,
    as in all tables of a run."""
    import pyarrow as pa  # noqa: PLC0415

    narrow, wide = pa.int32(), pa.int64()
    columns = [(f.name, wide if f.type == narrow else f.type) for f in schema()]
    found = pa.schema(columns)
    if header is None:
        return found
    return found.with_metadata({FORMAT: json.dumps(header), _RECORDED: "1"})


def recorded_row(turn: Turn, names: Sequence[str], *, blocks: bool) -> tuple[Any, ...]:
    """A turn as a row of that table, cells in the order of `names`. `blocks`: with its block ids and
    components."""
    row = row_of(turn, runs=False)
    row["priority"] = turn.priority
    if not blocks:
        row.pop("hash_ids", None)
        row.pop("components", None)
    elif "components" in row:
        row["components"] = _structs(row["components"])
    return tuple(map(row.get, names))


def _structs(parts: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(("kind", "id", "tokens"), part, strict=True)) for part in parts]


def header_of(path: Path, place: Place) -> tuple[dict[str, Any], bool]:
    """The header, as JSON, and whether rows are in the order seen by a run. Raises InputError."""
    with _opened(path, place) as file:
        metadata = file.schema_arrow.metadata or {}
        data = metadata.get(FORMAT.encode())
        if data is None:
            place.fail(f"Parquet without {FORMAT} in its metadata")
        header = parse_json(data.decode(), place)
        if not isinstance(header, dict):
            place.fail("the header is not a JSON object")
        return header, _RECORDED.encode() in metadata


def rows_of(path: Path, place: Place) -> Iterator[dict[str, Any]]:
    """Rows in order, nulls left out; `place.line` is the number of the row. Raises InputError."""
    with _opened(path, place) as file:
        names = file.schema_arrow.names
        for batch in file.iter_batches(batch_size=_batch_size(file)):
            for name in _IDS:
                if name in names:
                    _check_lengths(batch.column(names.index(name)), name, place)
            for row in batch.to_pylist():
                place.line += 1
                found = {key: value for key, value in row.items() if value is not None}
                if "components" in found:
                    found["components"] = [
                        [part["kind"], part["id"], part["tokens"]] if part else None
                        for part in found["components"]
                    ]
                yield found


def columns_by_id(place: Place, names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Columns of a recording's table by request id. Raises InputError."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = ["request_id", *names]
    try:
        with pq.ParquetFile(place.path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                place.fail("missing", missing[0])
            found = file.read(columns).to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:
        place.fail(f"broken Parquet: {reason(error)}")
    rows = zip(*(found[name] for name in names), strict=True)
    return dict(zip(found["request_id"], rows, strict=True))


def _batch_size(file: pq.ParquetFile) -> int:
    """Rows at a time, so that a batch is about 8 MiB."""
    metadata = file.metadata
    unpacked = sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    per_row: int = unpacked // max(metadata.num_rows, 1) + 1
    return max(1, min(_BATCH, (1 << 23) // per_row))


def _check_lengths(column: Any, name: str, place: Place) -> None:
    """Ids come as a dictionary and indexes into it; a long one must not be spelled out a thousand
    times."""
    import pyarrow.compute as pc  # noqa: PLC0415

    values = getattr(column, "dictionary", column)
    longest = pc.max(pc.binary_length(values)).as_py() or 0
    if longest > 4 * MAX_ID:
        place.fail(f"{longest} bytes, must be at most {MAX_ID} characters", name)


# ---------------------------------------------------------------------- writing


@contextmanager
def writer(path: Path, header: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A new file; what is yielded puts a row in it."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = schema().with_metadata({FORMAT: json.dumps(header)})
    rows: list[dict[str, Any]] = []
    blocks = 0

    def flush() -> None:
        nonlocal blocks
        if rows:
            file.write_batch(pa.RecordBatch.from_pylist(rows, columns))
            rows.clear()
            blocks = 0

    def put(row: dict[str, Any]) -> None:
        nonlocal blocks
        if "components" in row:
            row["components"] = _structs(row["components"])
        rows.append(row)
        blocks += len(row.get("hash_ids", ()))
        if len(rows) == GROUP_ROWS or blocks >= GROUP_BLOCKS:
            flush()

    with path.open("wb") as raw, pq.ParquetWriter(raw, columns, compression="zstd") as file:
        yield put
        flush()
