"""Whole-step times that somebody took: a CSV of a few rows, or a points file of `fastswitch calibrate`
(copies, if it has any, are not looked at).

The CSV has `ms` and what the step held: `batch` decoding requests with `kv_tokens` tokens of KV in all,
`longest` of them (or even), `new_tokens` of prompts behind `past_tokens` each, in `prompts` equal prompts (1). What a
row does not say is 0. One row a measurement; equal steps are averaged.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibrate import points as own
from calibrate.machines.steps import Step, Timed
from policy.errors import InputError
from traces.strict import quoted, reason, shown_path

COLUMNS = ("batch", "kv_tokens", "longest", "new_tokens", "past_tokens", "prompts")
#: Longer steps are a mistake of units.
MOST_MS = 1e6


def read(path: Path) -> list[Timed]:
    """Steps with their times, each once. Raises InputError naming file, line and field."""
    if path.suffix == ".jsonl":
        found = own.read(path)
        times = {
            _step(point.as_json()): [float(ns) for ns in samples]
            for point, samples in found.samples.items()
            if point.kind in ("decode", "prefill", "prompts", "mixed")
        }
    else:
        times = _csv(path)
    if not times:
        raise InputError(f"{shown_path(path)}: has no steps")
    return sorted(Timed(step, float(np.median(ns))) for step, ns in times.items())


def _csv(path: Path) -> dict[Step, list[float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    rows = csv.DictReader(lines)
    names = rows.fieldnames or ()
    if "ms" not in names or any(name not in (*COLUMNS, "ms") for name in names):
        raise InputError(
            f"{shown_path(path)}:1: columns are ms, {', '.join(COLUMNS)}; this has"
            f" {quoted(', '.join(map(str, names)))}"
        )
    times: dict[Step, list[float]] = {}
    for row in rows:
        where = f"{shown_path(path)}:{rows.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: has not {len(names)} fields")
        values = {name: _whole(row.get(name) or "0", name, where) for name in COLUMNS}
        try:
            ms = float(row["ms"])
        except ValueError:
            ms = float("nan")
        if not 0 < ms < MOST_MS:
            raise InputError(f"{where}: ms: {quoted(row['ms'])} is no time in milliseconds")
        step = _of_row(values)
        if not step.tokens:
            raise InputError(f"{where}: a step of neither batch nor new_tokens")
        if step.batch > step.kv_tokens:
            raise InputError(f"{where}: kv_tokens: {step.kv_tokens} of {step.batch} requests")
        times.setdefault(step, []).append(ms * 1e6)
    return times


def _whole(text: str, name: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise InputError(f"{where}: {name}: {quoted(text)} is no whole number")
    return int(text)


def _of_row(values: Mapping[str, int]) -> Step:
    prompts = max(1, values["prompts"])
    chunks = ((values["new_tokens"] // prompts, values["past_tokens"]),) * prompts
    batch, kv_tokens = values["batch"], values["kv_tokens"]
    even = -(-kv_tokens // batch) if batch else 0
    return Step(
        batch,
        kv_tokens if batch else 0,
        max(even, values["longest"]) if batch else 0,
        chunks if values["new_tokens"] else (),
    )


def _step(row: Mapping[str, Any]) -> Step:
    return _of_row(
        {
            "batch": row.get("batch", 0),
            "kv_tokens": row.get("kv_tokens", 0),
            "longest": row.get("longest", 0),
            "new_tokens": row.get("tokens", 0) * row.get("prompts", 1),
            "past_tokens": row.get("past", 0),
            "prompts": row.get("prompts", 1),
        }
    )
