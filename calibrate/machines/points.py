"""Whole-step times that somebody took: a CSV of a few rows, or a points file of `fastswitch calibrate`
(copies, if it has any, are not looked at).

The CSV has `ms` and what the step held: `batch` decoding requests with `kv_tokens` tokens of KV in all,
`longest` of them (or even), `new_tokens` of prompts behind `past_tokens` each, in `prompts` equal prompts (1). What a
row does not say is 0. One row a measurement; of equal steps the median counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calibrate import points as own
from calibrate.machines.steps import Step, Timed
from policy.errors import InputError
from traces.readers.base import table_rows
from traces.strict import Place, count_of, nanoseconds_of, shown_path

COLUMNS = ("batch", "kv_tokens", "longest", "new_tokens", "past_tokens", "prompts")
#: Longer steps are a mistake of units.
MOST_NS = 10**12


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
    place = Place(path)
    times: dict[Step, list[float]] = {}
    for ms, *cells in table_rows(path, ("ms",), place, COLUMNS):
        ns = nanoseconds_of(ms, "ms", place, 1_000_000, MOST_NS)
        if not ns:
            place.fail("a step takes time", "ms")
        values = {
            name: count_of(cell or "0", name, place)
            for name, cell in zip(COLUMNS, cells, strict=True)
        }
        problem = _problem(values)
        if problem is not None:
            place.fail(problem)
        times.setdefault(_of_row(values), []).append(float(ns))
    return times


def _problem(values: Mapping[str, int]) -> str | None:
    """Why there is no such step, or None."""
    batch, kv_tokens, longest, new, past, prompts = (values[name] for name in COLUMNS)
    if not batch and not new:
        return "a step of neither batch nor new_tokens"
    if kv_tokens < batch or (kv_tokens and not batch):
        return f"kv_tokens: {kv_tokens} of {batch} requests"
    if longest and not -(-kv_tokens // max(1, batch)) <= longest <= kv_tokens:
        return f"longest: {longest} of {batch} requests with {kv_tokens} tokens"
    if new % max(1, prompts) or ((past or prompts) and not new):
        return f"new_tokens: {new} in {max(1, prompts)} equal prompts behind {past} each"
    return None


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
