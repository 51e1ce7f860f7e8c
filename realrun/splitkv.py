"""Paged attention of decoding requests on a GPU: split-KV, two kernels.

One new token for each request. A program takes one row, one key head and one split of the row's keys
and leaves a partial sum; a second kernel puts the splits together (flash-decoding, Dao et al. 2023).
Both layouts of `realrun.kvstore` are read through strides. Needs triton.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from realrun import kernels
from realrun.device_ops import Kernels

#: Products of matrix units are at least this wide.
_MIN_DOT = 16
_LOG2_E = 1.0 / math.log(2.0)


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    group: int
    padded_group: int
    dim: int
    padded_dim: int
    tile: int
    wide: bool


def shape_for(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> Shape:
    """Sizes of one program. Keys and values of a tile, twice, fit an A10's 99 KiB."""
    group = heads // kv_heads
    padded_dim = max(_MIN_DOT, _padded(head_dim))
    return Shape(
        group,
        max(_MIN_DOT, _padded(group)),
        head_dim,
        padded_dim,
        max(16, min(128, 16384 // (padded_dim * dtype.itemsize))),
        dtype == torch.float32 or kernels.INTERPRETED,
    )


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


class SplitDecode:
    """See `realrun.device_ops.Decode`. The table and the lengths are read when it is called."""

    def __init__(
        self, table_BN: torch.Tensor, lengths_B: torch.Tensor, block_size: int, splits: int
    ) -> None:
        """`splits`: into how many each row is cut; a row's result depends on it and on the row."""
        self._table = table_BN
        self._lengths = lengths_B
        self._block_size = block_size
        self._splits = splits
        self._partials: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self, q_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """`out_BHD`."""
        batch, heads, dim = q_BHD.shape
        kv_heads = keys.shape[2]
        shape = shape_for(heads, kv_heads, dim, q_BHD.dtype)
        assert keys.stride() == values.stride()
        assert keys.stride(3) == 1
        assert q_BHD.stride(2) == 1
        if self._partials is None:
            parts = q_BHD.new_empty((batch, heads, self._splits), dtype=torch.float32)
            acc = q_BHD.new_empty((batch, heads, self._splits, dim), dtype=torch.float32)
            self._partials = (acc, parts, torch.empty_like(parts))
        out_BHD = torch.empty((batch, heads, dim), dtype=q_BHD.dtype, device=q_BHD.device)
        kernels.decode_partial[(batch, kv_heads, self._splits)](
            q_BHD,
            keys,
            values,
            self._table,
            self._lengths,
            *self._partials,
            _LOG2_E / math.sqrt(dim),
            q_BHD.stride(0),
            q_BHD.stride(1),
            *keys.stride()[:3],
            self._table.stride(0),
            GROUP=shape.group,
            PADDED_GROUP=shape.padded_group,
            DIM=shape.dim,
            PADDED_DIM=shape.padded_dim,
            BLOCK_SIZE=self._block_size,
            TILE=shape.tile,
            WIDE=shape.wide,
            **OPTIONS,
        )
        kernels.decode_combine[(batch, heads)](
            *self._partials,
            out_BHD,
            self._splits,
            PADDED_SPLITS=_padded(self._splits),
            DIM=shape.dim,
            PADDED_DIM=shape.padded_dim,
            **OPTIONS,
        )
        return out_BHD


#: Said outright, since triton's default for fusing products and sums is about to change.
OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def store(
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks_T: torch.Tensor,
    offsets_T: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
) -> None:
    """Write K and V of T tokens into their slots. See `realrun.attention.Kernels`."""
    rows, heads, dim = k_TKD.shape
    assert keys.stride() == values.stride()
    assert k_TKD.stride(2) == v_TKD.stride(2) == keys.stride(3) == 1
    if not rows:
        return
    kernels.store_kv[(rows,)](
        k_TKD,
        v_TKD,
        keys,
        values,
        blocks_T,
        offsets_T,
        k_TKD.stride(0),
        k_TKD.stride(1),
        v_TKD.stride(0),
        v_TKD.stride(1),
        *keys.stride()[:3],
        SIZE=heads * dim,
        PADDED_SIZE=_padded(heads * dim),
        DIM=dim,
        **OPTIONS,
    )


TRITON = Kernels(store, SplitDecode, has_splits=True)
