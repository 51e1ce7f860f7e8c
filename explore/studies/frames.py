"""Results as pandas frames, for notebooks. The command never imports this."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
from pyarrow import csv

from policy.errors import InputError
from traces.strict import reason, shown_path

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison


def of_comparison(comparison: Comparison) -> pd.DataFrame:
    """One row per system and run, one column per metric."""
    rows = [
        {"system": name, "run": comparison.scenario.run + run, **result["metrics"]}
        for name in comparison.systems
        for run, result in enumerate(comparison.results[name])
    ]
    return pd.DataFrame(rows)


def of_csv(path: Path) -> pd.DataFrame:
    """A table of a sweep, every number as it was written. Raises InputError if it cannot be read."""
    try:
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    frame: pd.DataFrame = table.to_pandas()
    return frame
