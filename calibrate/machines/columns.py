"""Columns of a published table, checked: numbers above or equal to nothing, and those asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from policy.errors import InputError
from traces.strict import quoted, reason, shown_path


def read_csv(path: Path, numbers: Sequence[str], names: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV file, compressed or not. Raises InputError naming file, line and field."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    return _checked(frame, path, numbers, names)


@lru_cache(maxsize=8)
def read_parquet(path: Path, numbers: tuple[str, ...], names: tuple[str, ...] = ()) -> pd.DataFrame:
    """A parquet file, kept for the next model's share. Raises InputError naming file, row and field."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    return _checked(frame, path, numbers, names)


def _checked(
    frame: pd.DataFrame, path: Path, numbers: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    lacking = [name for name in (*names, *numbers) if name not in frame.columns]
    if lacking:
        raise InputError(f"{shown_path(path)}: no column {', '.join(lacking)}")
    for name in numbers:
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if wrong.size:
            row = int(wrong[0])
            raise InputError(
                f"{shown_path(path)}:{row + 2}: {name}: {quoted(str(frame[name].iloc[row]))} is no"
                " number >= 0"
            )
        frame[name] = values
    return frame


def found_in(folder: Path, stem: str) -> Path | None:
    """`stem` or `stem.gz` in a folder, if it is there."""
    return next((path for end in ("", ".gz") if (path := folder / f"{stem}{end}").is_file()), None)


def file_of(folder: Path, stem: str) -> Path:
    """`stem` or `stem.gz` in a folder. Raises InputError."""
    path = found_in(folder, stem)
    if path is None:
        raise InputError(f"{shown_path(folder)}: has no {stem}")
    return path
