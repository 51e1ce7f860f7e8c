"""Op tables of NVIDIA aiconfigurator (ai-dynamo/aiconfigurator, `systems/data`): a folder of parquet
files for one GPU and engine version: `gemm_perf`, `context_attention_perf`, `generation_attention_perf`
and perhaps `custom_allreduce_perf`. Times are milliseconds, one value a row.

They hold matrix products, attention and all-reduce alone. Norms, rotary embedding and activations are
worked out from the shape (`elementwise_bytes`) and belong to the profile's host-per-token term. Decode
and prompts are measured apart: beside each other they are taken to add up, and a prompt behind a prefix
to cost its further pairs at the rate of the longest prompts. `message_size` of an all-reduce counts
elements (the collector makes tensors of that many).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from calibrate.machines.columns import read_parquet
from calibrate.machines.shapes import Gemm, Shape
from calibrate.machines.steps import Step, Timed, even
from calibrate.machines.tables import Line, OpTables, alone, line
from policy.errors import InputError
from traces.strict import shown_path

Floats = npt.NDArray[np.float64]

SOURCE = "aiconfigurator op tables (ai-dynamo/aiconfigurator)"
LICENCE = "Apache-2.0"
MS = 1e6
#: No engine puts more new tokens into a step, or has more outputs.
MOST_TOKENS, MOST_OUTPUTS = 8192, 512
_HEADS = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")


def read(folder: Path, shape: Shape, machine: str, reduce_from: Path | None = None) -> OpTables:
    """The tables of one model's share on one GPU. `reduce_from`: a folder whose all-reduce table is
    used instead. Raises InputError."""
    products = _Products(folder, shape)
    at = products.rows(shape.gemms(), MOST_TOKENS)
    tokens = line((m, sum(products(gemm, m) for gemm in shape.gemms())) for m in at)
    head = line(
        (m, products(shape.head(), m)) for m in products.rows((shape.head(),), MOST_OUTPUTS)
    )
    attention, assumed = _attention(folder, shape)
    reduce: Callable[[float], float] = alone
    if shape.shards > 1:
        reduce = all_reduce(reduce_from or folder, shape)
    version = folder.name.rpartition("-")[2]
    return OpTables(
        shape,
        machine,
        f"{SOURCE}, vLLM {version}",
        LICENCE,
        tokens,
        head,
        attention,
        reduce,
        (
            "attention of prompts and of decoding requests in one step adds up",
            "a prompt behind a prefix: its pairs at the rate of the longest prompts",
            "uneven decoding contexts cost what even ones do",
            *assumed,
        ),
    )


def elementwise_bytes(shape: Shape) -> int:
    """Bytes that norms, rotary embedding, KV writes and activations move for one token, all layers."""
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 8 * shape.hidden  # twice: read it and the residual, write both
    rotary = 2 * (heads + kv)
    writes = 4 * kv
    activation = 3 * shape.inner
    return (norms + rotary + writes + activation) * shape.layers * shape.dtype_bytes


class _Products:
    """Times of matrix products. Where a table lacks a width or depth, straight between the widths and
    depths around it; wider than all, in proportion to the widest."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        path = folder / "gemm_perf.parquet"
        frame = read_parquet(path, ("m", "n", "k", "latency"), ("gemm_dtype",))
        frame = frame[frame["gemm_dtype"] == "bfloat16"]
        if shape.dtype_bytes != 2 or frame.empty:
            raise InputError(f"{shown_path(path)}: no rows of bfloat16")
        self._path = path
        self._times: dict[tuple[int, int], Line] = {
            (int(rows["n"].iloc[0]), int(rows["k"].iloc[0])): line(_pairs(rows, "m", "latency", MS))
            for _, rows in frame.groupby(["n", "k"])
        }
        self._widths = sorted({n for n, _ in self._times})
        self._depths = sorted({k for _, k in self._times})

    def __call__(self, gemm: Gemm, rows: int) -> float:
        """All of them in a step, ns."""
        return gemm.times * sum(
            share * self._times[corner](rows) for corner, share in self._corners(gemm)
        )

    def rows(self, gemms: Sequence[Gemm], most: int) -> list[int]:
        """Numbers of rows, up to `most`, at which all of these were measured."""
        corners = [corner for gemm in gemms for corner, _ in self._corners(gemm)]
        common = set.intersection(*(set(self._times[corner].at) for corner in corners))
        found = sorted(m for m in common if m <= most)
        if not found:
            names = ", ".join(gemm.name for gemm in gemms)
            raise InputError(
                f"{shown_path(self._path)}: no m at which all of {names} were measured"
            )
        return found

    def _corners(self, gemm: Gemm) -> list[tuple[tuple[int, int], float]]:
        widths, depths = _around(self._widths, gemm.n), _around(self._depths, gemm.k)
        found = [((n, k), p * q) for n, p in widths for k, q in depths]
        lacking = [corner for corner, _ in found if corner not in self._times]
        if lacking:
            raise InputError(f"{shown_path(self._path)}: no rows of n, k = {lacking[0]}")
        return found


def _around(known: Sequence[int], value: int) -> list[tuple[int, float]]:
    """Known values around one, with their shares."""
    if value in known:
        return [(value, 1.0)]
    above = [one for one in known if one > value]
    below = [one for one in known if one < value]
    if not above or not below:
        nearest = below[-1] if below else above[0]
        return [(nearest, value / nearest)]
    share = (value - below[-1]) / (above[0] - below[-1])
    return [(below[-1], 1 - share), (above[0], share)]


class Attention:
    """See `tables.Attention`. `wider`: by how much more heads the model has than the rows used, which
    prompts pay in proportion and decoding requests, that wait for their KV, do not."""

    has_mixed = False

    def __init__(self, decode: pd.DataFrame, prompts: pd.DataFrame, wider: float) -> None:
        self._decode = _Plane(decode, "batch_size", "context")
        self._prompts = _Plane(prompts, "batch_size", "isl")
        self._wider = wider
        longest = self._prompts.of_one()
        pairs = (longest.at[-1] ** 2 - longest.at[-2] ** 2) / 2
        self._pair = wider * (longest.ns[-1] - longest.ns[-2]) / pairs
        self.rows: Sequence[Timed] = [
            *(Timed(even(b, c), ns) for b, c, ns in self._decode.all()),
            *(
                Timed(Step(chunks=((c, 0),) * b), ns * wider)
                for b, c, ns in self._prompts.all()
                if b * c <= MOST_TOKENS
            ),
        ]

    def __call__(self, step: Step) -> float:
        """See `tables.Attention`."""
        found = self._decode(step.batch, step.kv_tokens / step.batch) if step.batch else 0.0
        if step.chunks:
            launch = self._prompts(1, 1)
            alone_ns = [self._wider * self._prompts(1, new) for new, _ in step.chunks]
            found += sum(alone_ns) - (len(alone_ns) - 1) * min(launch, *alone_ns)
            found += self._pair * sum(new * past for new, past in step.chunks)
        return found


def _attention(folder: Path, shape: Shape) -> tuple[Attention, tuple[str, ...]]:
    prompts = _rows(folder / "context_attention_perf.parquet", ("isl",), shape)
    decode = _rows(folder / "generation_attention_perf.parquet", ("isl", "step"), shape)
    decode = decode.assign(context=decode["step"] + decode["isl"])
    own = shape.heads
    known = sorted(
        {int(heads) for heads in prompts["num_heads"]}
        & {int(heads) for heads in decode["num_heads"]}
    )
    if not known:
        raise InputError(
            f"{shown_path(folder)}: no attention of {shape.kv_heads} KV heads of {shape.head_dim}"
        )
    heads = min(known, key=lambda one: (abs(np.log(one / own)), one))
    assumed = () if heads == own else (f"attention of {own} heads from rows of {heads}",)
    decode, prompts = decode[decode["num_heads"] == heads], prompts[prompts["num_heads"] == heads]
    alone = prompts[prompts["batch_size"] == 1]
    if min(decode["batch_size"].nunique(), prompts["batch_size"].nunique()) < 2:
        raise InputError(f"{shown_path(folder)}: attention of one batch_size alone")
    if alone["isl"].nunique() < 2:
        raise InputError(f"{shown_path(folder)}: attention of fewer than two prompts by themselves")
    return Attention(decode, prompts, own / heads), assumed


def _rows(path: Path, more: tuple[str, ...], shape: Shape) -> pd.DataFrame:
    """Rows of the model's KV heads and head size in bf16, no window."""
    frame = read_parquet(path, (*_HEADS, *more, "latency"), ("kv_cache_dtype",))
    chosen = (
        (frame["num_key_value_heads"] == shape.kv_heads)
        & (frame["head_dim"] == shape.head_dim)
        & (frame["kv_cache_dtype"] == "bfloat16")
    )
    if "window_size" in frame.columns:
        chosen &= frame["window_size"] == 0
    return frame[chosen].assign(ns=frame["latency"] * MS)


def _pairs(frame: pd.DataFrame, at: str, of: str, scale: float = 1.0) -> list[tuple[int, float]]:
    return [(int(one), float(ns) * scale) for one, ns in zip(frame[at], frame[of], strict=True)]


class _Plane:
    """Times by requests and tokens of each: by tokens first, straight, then between numbers of
    requests; beyond either, the last slope."""

    def __init__(self, frame: pd.DataFrame, by: str, along: str) -> None:
        self._lines = {
            count: line(_pairs(frame[frame[by] == count], along, "ns"))
            for count in sorted({int(one) for one in frame[by]})
        }
        self._counts = sorted(self._lines)

    def __call__(self, count: float, tokens: float) -> float:
        counts = self._counts
        index = min(max(1, sum(one < count for one in counts)), len(counts) - 1)
        left, right = counts[index - 1], counts[index]
        low, high = self._lines[left](tokens), self._lines[right](tokens)
        return max(0.0, low + (high - low) * (count - left) / (right - left))

    def all(self) -> list[tuple[int, int, float]]:
        """(requests, tokens of each, ns) of every row."""
        return [
            (count, at, ns)
            for count in self._counts
            for at, ns in zip(*self._lines[count], strict=True)
        ]

    def of_one(self) -> Line:
        """Of one request."""
        return self._lines[1]


def all_reduce(folder: Path, shape: Shape) -> Callable[[float], float]:
    """Two all-reduces a layer, of tokens * hidden elements, as captured in a graph."""
    path = folder / "custom_allreduce_perf.parquet"
    frame = read_parquet(path, ("num_gpus", "message_size", "latency"), ("backend",))
    rows = frame[(frame["num_gpus"] == shape.shards) & (frame["backend"] == "vllm_graph")]
    if rows.empty:
        raise InputError(f"{shown_path(path)}: no rows of {shape.shards} GPUs")
    found = line(_pairs(rows, "message_size", "latency", MS))
    calls = 2 * shape.layers
    return lambda tokens: calls * found(tokens * shape.hidden)
