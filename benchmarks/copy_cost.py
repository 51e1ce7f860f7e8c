"""What copies cost, fitted on one published source and tested on the other.

    FASTSWITCH_MEASUREMENTS=FOLDER python benchmarks/copy_cost.py

Rows: an H100's batched copies with bytes, pieces and time of the whole call (vLLM pull requests 42212 and
48434; what was timed on the device alone is none). Form, as `sim/costs.py` has it: a job's set-up, then
the larger of submission (pieces * descriptor) and moving (pieces * set-up + bytes / rate); pieces below 28 KiB
that go to the device have a set-up and a rate of their own. Beside it stands the form before: submission,
then moving, one set-up for all pieces, with the constants that shipped.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.step_cost import DATA
from calibrate.machines import gpus, links
from calibrate.nnls import nnls

Floats = npt.NDArray[np.float64]
SMALL = 28 * 1024
#: Job and call, ns: small beside all of these.
JOB = 52_300.0
#: As shipped before: descriptor, set-up, rate.
BEFORE = (500.0, 1000.0, 55e9)


class Row(NamedTuple):
    """One call."""

    source: str
    pieces: int
    bytes: int
    ns: float

    @property
    def is_small(self) -> bool:
        """Whether its pieces take the other way."""
        return self.bytes < SMALL * self.pieces


class Constants(NamedTuple):
    """ns a descriptor; ns a piece and bytes a second, of large and of small pieces."""

    descriptor: float
    setup: float
    rate: float
    small_setup: float
    small_rate: float


def rows_of(path: Path) -> list[Row]:
    found = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            told = all(row[name] for name in ("pieces", "bytes", "time_us"))
            is_call = row["method"].startswith("batched") and "device alone" not in row["note"]
            if row["gpu"] == "H100" and is_call and told:
                source = "42212" if "42212" in row["source"] else "48434"
                time = float(row["time_us"]) * 1000
                found.append(Row(source, int(row["pieces"]), int(row["bytes"]), time))
    return found


def shipped() -> Constants:
    """Those of the profiles that ship."""
    transfer = links.transfer_of(gpus.GPUS["h100-sxm"])
    assert transfer.small_setup is not None
    assert transfer.small_rate is not None
    return Constants(
        transfer.per_descriptor.value,
        transfer.piece_setup.value,
        transfer.to_device.value,
        transfer.small_setup.value,
        transfer.small_rate.value,
    )


def foretold(rows: Sequence[Row], constants: Constants) -> Floats:
    found = []
    for row in rows:
        setup, rate = constants.setup, constants.rate
        if row.is_small:
            setup, rate = constants.small_setup, constants.small_rate
        moving = row.pieces * setup + row.bytes / rate * 1e9
        found.append(JOB + max(row.pieces * constants.descriptor, moving))
    return np.array(found)


def before(rows: Sequence[Row]) -> Floats:
    descriptor, setup, rate = BEFORE
    return np.array([JOB + r.pieces * (descriptor + setup) + r.bytes / rate * 1e9 for r in rows])


def fitted(rows: Sequence[Row]) -> Constants:
    """Least absolute relative errors of each regime, since one row is four times off any line; what fewer
    than two shapes tell stays as shipped."""
    found = shipped()
    for small in (False, True):
        mine = [row for row in rows if row.is_small == small]
        if len({row.bytes / row.pieces for row in mine}) < 2:
            continue
        times = np.array([row.ns - JOB for row in mine])
        matrix = np.array([(row.pieces, row.bytes) for row in mine], float)
        setup, each = _robust(matrix / times[:, None])
        rate = 1e9 / max(each, 1e-6)
        names = ("small_setup", "small_rate") if small else ("setup", "rate")
        found = found._replace(**dict(zip(names, map(float, (setup, rate)), strict=True)))
    return found


def _robust(matrix: Floats) -> Floats:
    """Non-negative, by least squares with weights of one over the last error."""
    weights = np.ones(len(matrix))
    found = np.zeros(matrix.shape[1])
    for _ in range(50):
        found = nnls(matrix, np.ones(len(matrix)), weights)
        weights = 1 / np.maximum(np.abs(matrix @ found - 1), 0.02)
    return found


def main() -> None:
    if DATA not in os.environ:
        sys.exit(f"{DATA} is not set: the folder of the public measurements (docs/machines.md)")
    rows = rows_of(Path(os.environ[DATA]) / "copies.csv")
    by = {name: [row for row in rows if row.source == name] for name in ("42212", "48434")}
    trials = [
        ("before, as shipped", rows, before(rows)),
        ("shipped", rows, foretold(rows, shipped())),
    ]
    for seen, unseen in (("42212", "48434"), ("48434", "42212")):
        constants = fitted(by[seen])
        trials.append(
            (f"fitted on {seen}, tested on {unseen}", by[unseen], foretold(by[unseen], constants))
        )
        print(f"fitted on {seen}: {constants}")
    constants = fitted(rows)
    trials.append(("fitted on all", rows, foretold(rows, constants)))
    print(f"fitted on all: {constants}")
    table = []
    for name, tested, times in trials:
        off = np.abs(times / np.array([row.ns for row in tested]) - 1)
        figures = {"mean": off.mean(), "p95": np.percentile(off, 95), "max": off.max()}
        line = {name: round(float(value), 3) for name, value in figures.items()}
        table.append({"trial": name, "rows": len(tested), **line})
        text = ", ".join(f"{key} {100 * value:.0f} %" for key, value in line.items())
        print(f"{name:<36} {len(tested):>3} rows: {text}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
