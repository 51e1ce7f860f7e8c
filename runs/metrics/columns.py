"""Tables of a recording as columns: int64 arrays (nulls as -1), booleans, lists of strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from runs.metrics.stats import Ints
from runs.recording import SCHEMAS, Recording

NS = 1_000_000_000

Columns = dict[str, Any]


def columns_of(recording: Recording, name: str) -> Columns:
    """Columns of one table but for lists, of which no metric is made. Raises InputError if the folder
    lacks it."""
    flat = [field.name for field in SCHEMAS[name] if not pa.types.is_nested(field.type)]
    table: pa.Table = recording.table(name, flat)
    found: Columns = {}
    for column_name in table.column_names:
        column = table.column(column_name)
        if pa.types.is_integer(column.type):
            found[column_name] = column.fill_null(-1).to_numpy().astype(np.int64)
        elif pa.types.is_boolean(column.type):
            found[column_name] = column.to_numpy(zero_copy_only=False).astype(bool)
        else:
            found[column_name] = _strings(column)
    return found


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    """Equal strings are one object: a table has many rows and few names."""
    encoded = column.combine_chunks().dictionary_encode()
    names = [*encoded.dictionary.to_pylist(), None]
    return [names[index] for index in encoded.indices.fill_null(-1).to_pylist()]


def rows_where(columns: Columns, mask: Any) -> Columns:
    """Some rows of a table, every column of them."""
    kept = np.flatnonzero(mask).tolist()
    return {
        name: [column[i] for i in kept] if isinstance(column, list) else column[mask]
        for name, column in columns.items()
    }


def rows_of(columns: Columns, names: set[str]) -> Columns:
    """The rows of these requests."""
    mask = np.fromiter((name in names for name in columns["request_id"]), bool)
    return rows_where(columns, mask)


def is_one(column: list[str | None], value: str) -> Any:
    """Where a column of strings has this value."""
    return np.fromiter((cell == value for cell in column), bool, len(column))


def codes_of(names: list[str | None], codes: dict[str | None, int]) -> Ints:
    """A whole number for each name; new ones are added to `codes`."""
    return np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))


def positions_of(steps: Columns, numbers: Ints) -> Ints:
    """Rows of steps.parquet by step number."""
    return np.searchsorted(steps["step"], numbers)


def seconds(nanoseconds: float | None) -> float | None:
    """Edge of the program: nanoseconds to seconds, rounded to a nanosecond's worth of digits."""
    return None if nanoseconds is None else round(nanoseconds / NS, 9)


def label(q: float) -> str:
    """`p99.9` as a key: p999."""
    return f"p{q:g}".replace(".", "")
