"""Op tables of LLMServingSim's profiler (casys-kaist/LLMServingSim, `profiler/`): a folder with
`dense.csv` (layer, tokens, time_us), `per_sequence.csv` (layer, sequences, time_us), `attention.csv`
(prefill_chunk, kv_prefill, n_decode, kv_decode, time_us) and perhaps `skew.csv`.

They were taken inside vLLM with one layer, every operation of it included, so nothing of the GPU's is
missing. One value a row. Times in `skew.csv` are three times those of `attention.csv` at equal shapes
(2.95 to 3.00 on the cards seen), so they are divided by the median ratio found in the two files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from calibrate.machines.columns import file_of, found_in, read_csv
from calibrate.machines.shapes import Shape
from calibrate.machines.steps import Step, Timed, even
from calibrate.machines.tables import Line, OpTables, alone, line
from policy.errors import InputError
from traces.strict import shown_path

Floats = npt.NDArray[np.float64]

SOURCE = "LLMServingSim op tables (casys-kaist/LLMServingSim, profiler)"
LICENCE = "MIT"
#: Layers that are there twice a layer, and those once a model.
_TWICE = ("layernorm",)
_ONCE = ("embedding", "final_layernorm")
_ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
_SKEW = ("n", "nb", "pc", "kp", "kvs", "kv_big", "t_mean_us", "t_max_us", "t_skew_us")


def read(folder: Path, shape: Shape, machine: str) -> OpTables:
    """The tables of one model's share on one GPU. Raises InputError."""
    layers, outputs = file_of(folder, "dense.csv"), file_of(folder, "per_sequence.csv")
    dense = read_csv(layers, ("tokens", "time_us"), ("layer",))
    heads = read_csv(outputs, ("sequences", "time_us"), ("layer",))
    rows = read_csv(file_of(folder, "attention.csv"), (*_ATTENTION, "time_us"))
    uneven = found_in(folder, "skew.csv")
    skew = None if uneven is None else read_csv(uneven, _SKEW, ("regime",))
    if skew is not None and "pure" not in set(skew["regime"]):
        raise InputError(f"{shown_path(folder)}: skew.csv has no rows of regime pure")
    assumed = [] if skew is not None else ["uneven decoding contexts cost what even ones do"]
    if shape.shards > 1:
        assumed.append("no all-reduce was measured")
    return OpTables(
        shape,
        machine,
        SOURCE,
        LICENCE,
        _dense(dense, shape, layers),
        _summed(heads, outputs, "sequences", dict.fromkeys(heads["layer"], 1.0)),
        Attention(rows, skew),
        alone,
        tuple(assumed),
    )


def _dense(frame: pd.DataFrame, shape: Shape, path: Path) -> Line:
    names = set(frame["layer"])
    if not {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"} <= names:
        raise InputError(f"{shown_path(path)}: lacks matrix products of a dense model")
    times = {
        name: 1.0 if name in _ONCE else shape.layers * (2.0 if name in _TWICE else 1.0)
        for name in names
    }
    return _summed(frame, path, "tokens", times)


def _summed(frame: pd.DataFrame, path: Path, by: str, times: dict[str, float]) -> Line:
    """All layers at each number at which every one was measured, ns."""
    factors = np.array([times[name] for name in frame["layer"]])
    frame = frame.assign(ns=frame["time_us"] * 1000.0 * factors)
    groups = frame.groupby(by)
    whole = groups["layer"].nunique() == frame["layer"].nunique()
    found = groups["ns"].sum()[whole]
    if found.empty:
        raise InputError(f"{shown_path(path)}: no {by} at which every layer was measured")
    return line(zip(found.index.astype(int), found, strict=True))


class Attention:
    """See `tables.Attention`. Between rows every axis is straight; before its first row the row
    itself. Of several chunks the one with most pairs is beside the decoding requests; each other adds
    what it takes alone, less what the smallest takes alone. Uneven contexts: time at the mean, and the
    share `alpha` of what the longest for all would add, the median of the skew table's by regime and
    number of requests."""

    has_mixed = True

    def __init__(self, frame: pd.DataFrame, skew: pd.DataFrame | None) -> None:
        frame = frame.assign(ns=frame["time_us"] * 1000.0)
        chunk, count = frame["prefill_chunk"], frame["n_decode"]
        self._pure = _Grid(frame[chunk == 0], ("n_decode", "kv_decode"))
        self._alone = _Grid(frame[(count == 0) & (chunk > 0)], ("prefill_chunk", "kv_prefill"))
        self._mixed = _Grid(frame[(count > 0) & (chunk > 0)], _ATTENTION)
        self._least = float(self._alone.values.min())
        self._alpha: dict[str, Line] = {}
        self.rows: Sequence[Timed] = [
            Timed(_step(*row[:4]), float(row[4]))
            for row in frame[[*_ATTENTION, "ns"]].itertuples(index=False)
        ]
        if skew is not None:
            self.rows = [*self.rows, *self._skewed(skew)]

    def __call__(self, step: Step) -> float:
        """See `tables.Attention`."""
        chunks = sorted(step.chunks, key=lambda one: -one[0] * (2 * one[1] + one[0]))
        more = sum(max(0.0, self._alone(new, past) - self._least) for new, past in chunks[1:])
        first = chunks[:1]
        if not step.batch:
            return self._alone(*first[0]) + more
        mean = step.kv_tokens / step.batch
        found = self._beside(first, step.batch, mean)
        regime = "mixed" if first else "pure"
        if step.uneven and regime in self._alpha:
            alpha = self._alpha[regime](step.batch)
            found += alpha * (self._beside(first, step.batch, step.longest) - found)
        return found + more

    def _beside(self, first: list[tuple[int, int]], batch: int, context: float) -> float:
        if not first:
            return self._pure(batch, context)
        return self._mixed(*first[0], batch, context)

    def _skewed(self, skew: pd.DataFrame) -> list[Timed]:
        """Rows of the skew table in the attention table's units, and `alpha` by regime."""
        pure = skew[skew["regime"] == "pure"]
        mean = (pure["nb"] * pure["kv_big"] + (pure["n"] - pure["nb"]) * pure["kvs"]) / pure["n"]
        known = [self._pure(batch, context) for batch, context in zip(pure["n"], mean, strict=True)]
        scale = float(np.median(pure["t_mean_us"] * 1000.0 / np.array(known)))
        gap = skew["t_max_us"] - skew["t_mean_us"]
        told = skew[gap > 0.05 * skew["t_mean_us"]].assign(
            alpha=(skew["t_skew_us"] - skew["t_mean_us"]) / gap
        )
        for regime, rows in told.groupby("regime"):
            medians = rows.groupby("n")["alpha"].median().clip(0.0, 1.0)
            pairs = zip(medians.index.astype(int), medians, strict=True)
            self._alpha[str(regime)] = line(pairs)
        found = []
        for row in skew[[*_SKEW]].to_dict("records"):
            n, big = int(row["n"]), int(row["nb"])
            tokens = big * int(row["kv_big"]) + (n - big) * int(row["kvs"])
            chunks = ((int(row["pc"]), int(row["kp"])),) if row["pc"] else ()
            step = Step(n, tokens, int(row["kv_big"]), chunks)
            found.append(Timed(step, row["t_skew_us"] * 1000.0 / scale, skewed=True))
        return found


def _step(chunk: Any, past: Any, batch: Any, context: Any) -> Step:
    return even(int(batch), int(context), ((int(chunk), int(past)),) if chunk else ())


def _doubles(value: float) -> bool:
    return int(value) & (int(value) - 1) == 0


class _Grid:
    """The complete grid of a table that may have rows off it too: the profiler's doubling one, less the
    values that are not there with every other. Multilinear inside, the last slope beyond."""

    def __init__(self, frame: pd.DataFrame, axes: Sequence[str]) -> None:
        kept = frame
        for axis in axes:
            kept = kept[[_doubles(value) for value in kept[axis]]]
        while True:
            sizes = [kept[axis].nunique() for axis in axes]
            if len(kept) == int(np.prod(sizes)):
                break
            # what is there with fewest others goes first
            shares = {
                (axis, value): count * size
                for axis, size in zip(axes, sizes, strict=True)
                for value, count in kept.groupby(axis).size().items()
            }
            axis, value = min(shares, key=lambda key: (shares[key], key[0], float(key[1])))  # type: ignore[arg-type]
            kept = kept[kept[axis] != value]
        if kept.empty:
            raise InputError(f"attention.csv: no complete grid over {', '.join(axes)}")
        self._at = [np.sort(kept[axis].unique()) for axis in axes]
        ordered = kept.sort_values(list(axes))
        self.values: Floats = ordered["ns"].to_numpy().reshape([len(at) for at in self._at])

    def __call__(self, *where: float) -> float:
        found = self.values
        for at, value in zip(self._at, where, strict=True):
            if len(at) == 1:
                found = found[0]
                continue
            index = int(np.clip(np.searchsorted(at, value, side="right"), 1, len(at) - 1))
            share = max(0.0, (value - at[index - 1]) / (at[index] - at[index - 1]))
            found = found[index - 1] + (found[index] - found[index - 1]) * share
        return float(found)
