"""Plain torch and Triton under the same tests: on a GPU, or in triton's interpreter on a CPU."""

# ruff: noqa: N803, N806
from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from realrun import attention
from realrun.config import PRESETS, ModelConfig
from realrun.device_ops import Kernels
from realrun.kvstore import Tier

IMPLEMENTATIONS = ("torch", "triton")
#: What a result in this type may be off by, as a share of the largest value: a rounding of the input
#: of a product, of its result, and (the interpreter cuts bf16 off instead of rounding it) one more.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def device() -> torch.device:
    """Where tests of both run."""
    if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def skip_unless_runnable(implementation: str) -> None:
    """Triton runs on a GPU, or on a CPU if the environment asked for its interpreter at start."""
    if implementation == "torch":
        return
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; make test-full installs it")
    if device().type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("runs under TRITON_INTERPRET=1, which tests/full/test_triton.py sets")


def kernels_of(implementation: str) -> Kernels:
    """The kernels of a name of IMPLEMENTATIONS."""
    if implementation == "torch":
        return attention.PLAIN
    from realrun import splitkv

    return splitkv.TRITON


def shaped(heads: int, kv_heads: int, head_dim: int, layers: int = 2) -> ModelConfig:
    """A decoder's configuration of which attention is all that matters."""
    return replace(
        PRESETS["tiny"], heads=heads, kv_heads=kv_heads, head_dim=head_dim, layers=layers
    )


class Memory(NamedTuple):
    """A tier full of random numbers, and block tables in it that share nothing."""

    tier: Tier
    tables: list[list[int]]

    def context(self, layer: int, row: int, length: int) -> tuple[Any, Any]:
        """K and V of a row's first tokens, `[length, K, D]`, in double precision."""
        size = self.tier.block_size
        k, v = self.tier.keys(layer), self.tier.values(layer)
        at = [(self.tables[row][i // size], i % size) for i in range(length)]
        return (torch.stack([side[b, o] for b, o in at]).double().cpu() for side in (k, v))


def memory(
    config: ModelConfig, layout: str, lengths: list[int], block_size: int, dtype: Any, seed: int = 0
) -> Memory:
    """Room for rows of these lengths. Blocks are handed out in random order."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // block_size) for length in lengths]
    total = sum(counts) + 3
    tier = Tier(config, layout, total, block_size, dtype, device(), spare=1)
    for piece in tier.pieces:
        piece.copy_(torch.randn(piece.shape, generator=generator))
    ids = torch.randperm(total, generator=generator).tolist()
    tables = []
    for count in counts:
        tables.append(ids[:count])
        ids = ids[count:]
    return Memory(tier, tables)


def padded(tables: list[list[int]], filler: int = 0) -> Any:
    """`table_BN` on the device."""
    width = max(1, *(len(table) for table in tables))
    rows = [[*table, *[filler] * (width - len(table))] for table in tables]
    return torch.tensor(rows, device=device())


def normal(shape: tuple[int, ...], dtype: Any, seed: int) -> Any:
    """Random numbers on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device(), dtype)


def definition(q_HD: Any, k_SKD: Any, v_SKD: Any) -> Any:
    """Attention of one token head by head, by the formula, in double precision."""
    outs = []
    group = q_HD.shape[0] // k_SKD.shape[1]
    for head, q_D in enumerate(q_HD.double().cpu()):
        scores_S = (k_SKD[:, head // group] @ q_D) / math.sqrt(len(q_D))
        weights_S = (scores_S - scores_S.max()).exp()
        outs.append(weights_S @ v_SKD[:, head // group] / weights_S.sum())
    return torch.stack(outs)
