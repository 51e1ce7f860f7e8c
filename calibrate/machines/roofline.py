"""A step's time from a data sheet and a model's shape, for machines that nobody has measured.

Each matrix product takes ((2mnk / (e_c F))^p + (bytes / (e_m W))^p)^(1/p) and a launch; attention of
decoding requests reads its KV at e_a W after a launch and something a request; attention of prompts does
its pairs at e_p F. F and W are the data sheet's; the nine constants below were fitted to the measured
cards by `benchmarks/derived_machines.py`, which also leaves each card and each model out in turn: that
error stands in every profile that comes from here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from calibrate.machines.gpus import Gpu
from calibrate.machines.shapes import Gemm, Shape
from calibrate.machines.steps import Step, Timed, even
from calibrate.machines.tables import OpTables, alone, line

FITTED = Path(__file__).parent / "roofline.json"
#: Rows and contexts at which a table is worked out.
TOKENS = (
    1,
    2,
    4,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    160,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (16, 64, 256, 1024, 4096, 16384)
PROMPTS = (16, 64, 256, 1024, 2048, 4096, 8192)


class Constants(NamedTuple):
    """Shares of the data sheet's rates that are reached, a product's knee, and launches, ns."""

    compute: float
    memory: float
    knee: float
    launch: float
    kv: float
    decode_launch: float
    request: float
    pairs: float
    prompt_launch: float


def fitted() -> tuple[Constants, dict[str, dict[str, tuple[float, float]]]]:
    """The constants, and (mean, P95) by what was left out ("gpu" or "model") and kind of step."""
    data = json.loads(FITTED.read_text(encoding="utf-8"))
    errors = {
        out: {kind: (pair[0], pair[1]) for kind, pair in kinds.items()}
        for out, kinds in data["errors"].items()
    }
    return Constants(**data["constants"]), errors


def product_ns(gpu: Gpu, gemm: Gemm, rows: float, constants: Constants, width: int = 2) -> float:
    """All products of one name in a step."""
    compute = 2 * rows * gemm.n * gemm.k / (constants.compute * gpu.flops)
    moved = (gemm.n * gemm.k + rows * (gemm.n + gemm.k)) * width
    memory = moved / (constants.memory * gpu.memory_rate)
    both: float = (compute**constants.knee + memory**constants.knee) ** (1 / constants.knee)
    return gemm.times * (both * 1e9 + constants.launch)


class Attention:
    """See `tables.Attention`; its rows are worked out, not measured."""

    has_mixed = False

    def __init__(self, gpu: Gpu, shape: Shape, constants: Constants) -> None:
        self._constants = constants
        per_token = 2 * shape.kv_heads * shape.head_dim * shape.dtype_bytes
        self._kv = per_token / (constants.kv * gpu.memory_rate) * 1e9
        self._pair = 4 * shape.heads * shape.head_dim / (constants.pairs * gpu.flops) * 1e9

    @property
    def rows(self) -> Sequence[Timed]:
        """Steps all over what a table would hold."""
        steps = [even(batch, context) for batch in BATCHES for context in CONTEXTS]
        steps += [Step(chunks=((new, past),)) for new in PROMPTS for past in (0, 4096)]
        steps += [Step(chunks=((new // 4, 0),) * 4) for new in PROMPTS]
        return [Timed(step, self(step)) for step in steps]

    def __call__(self, step: Step) -> float:
        """One layer, ns."""
        constants, found = self._constants, 0.0
        if step.batch:
            found += constants.decode_launch + constants.request * step.batch
            found += self._kv * step.kv_tokens
        if step.chunks:
            found += constants.prompt_launch + self._pair * step.squares / 2
            found += self._kv * step.past
        return found


def tables_of(gpu: Gpu, shape: Shape, constants: Constants) -> OpTables:
    """Op tables as a data sheet has them; no all-reduce."""
    head = shape.head()
    return OpTables(
        shape,
        gpu.name,
        f"{gpu.sheet}; constants fitted to measured cards",
        "facts from a data sheet",
        line(
            (m, sum(product_ns(gpu, gemm, m, constants) for gemm in shape.gemms())) for m in TOKENS
        ),
        line((m, product_ns(gpu, head, m, constants)) for m in BATCHES),
        Attention(gpu, shape, constants),
        _ring(gpu, shape) if shape.shards > 1 else alone,
        ("worked out from the data sheet: no step of this machine was measured",)
        + (("all-reduce over PCIe assumed",) if shape.shards > 1 else ()),
    )


def _ring(gpu: Gpu, shape: Shape) -> Callable[[float], float]:
    """An assumed all-reduce: a launch, and every byte over half of the PCIe link's rate."""
    rate = {4: 12e9, 5: 24e9}[gpu.pcie]
    moved = 2 * (shape.shards - 1) / shape.shards * shape.hidden * shape.dtype_bytes
    launch, each = 15e3, moved / rate * 1e9
    return lambda tokens: 2 * shape.layers * (launch + each * tokens)
