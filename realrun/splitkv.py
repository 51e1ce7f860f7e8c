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
from realrun.device_ops import MAX_SPLITS, Kernels
from realrun.heads import Heads

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
    """Sizes of one program: small tiles, of which STAGES are under way at once."""
    group = heads // kv_heads
    padded_dim = max(_MIN_DOT, padded(head_dim))
    return Shape(
        group,
        max(_MIN_DOT, padded(group)),
        head_dim,
        padded_dim,
        max(16, min(128, 8192 // (padded_dim * dtype.itemsize))),
        dtype == torch.float32 or kernels.INTERPRETED,
    )


def padded(size: int) -> int:
    """The next power of two, which is what triton has arrays of."""
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
        out_BHD = torch.empty((batch, heads, dim), dtype=q_BHD.dtype, device=q_BHD.device)
        whole = self._splits == 1
        if self._partials is None:
            splits = 0 if whole else self._splits
            parts = q_BHD.new_empty((batch, heads, splits), dtype=torch.float32)
            acc = q_BHD.new_empty((batch, heads, splits, dim), dtype=torch.float32)
            self._partials = (acc, parts, torch.empty_like(parts))
        kernels.decode_partial[(batch, kv_heads, self._splits)](
            q_BHD,
            keys,
            values,
            self._table,
            self._lengths,
            *self._partials,
            out_BHD,
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
            WHOLE=whole,
            **{**OPTIONS, "num_stages": STAGES},
        )
        if whole:
            return out_BHD
        kernels.decode_combine[(batch, heads)](
            *self._partials,
            out_BHD,
            self._splits,
            PADDED_SPLITS=MAX_SPLITS,
            DIM=shape.dim,
            PADDED_DIM=shape.padded_dim,
            **OPTIONS,
        )
        return out_BHD


#: Three tiles: two on their way from memory while one is computed.
STAGES = 3
_MOVE_TILE = 1024
#: Said outright, since triton's default for fusing products and sums is about to change.
OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def store(
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks_T: torch.Tensor,
    offsets_T: torch.Tensor,
    heads: Heads,
) -> torch.Tensor:
    """See `realrun.device_ops.Kernels`."""
    all_THD, num_query, num_key, weight_ND, eps, angles = heads
    rows, count, dim = all_THD.shape
    assert keys.stride() == values.stride()
    assert all_THD.stride(2) == keys.stride(3) == 1
    q_THD = torch.empty((rows, num_query, dim), dtype=all_THD.dtype, device=all_THD.device)
    if rows:
        kernels.turn_store[(rows, count)](
            all_THD,
            all_THD if weight_ND is None else weight_ND,
            angles.cos,
            angles.sin,
            q_THD,
            keys,
            values,
            blocks_T,
            offsets_T,
            len(blocks_T),
            eps,
            *all_THD.stride()[:2],
            *keys.stride()[:3],
            HEADS=num_query,
            KV_HEADS=num_key,
            DIM=dim,
            PADDED_HALF=padded(dim // 2),
            NORMS=weight_ND is not None,
            **{**OPTIONS, "num_warps": 1},
        )
    return q_THD


def move(source: torch.Tensor, target: torch.Tensor) -> None:
    """See `realrun.device_ops.Kernels`. Host memory must be page-locked."""
    assert source.is_contiguous() and target.is_contiguous()
    if source.numel():
        grid = (-(-source.numel() // _MOVE_TILE),)
        kernels.move[grid](source, target, source.numel(), TILE=_MOVE_TILE, **OPTIONS)


TRITON = Kernels(store, SplitDecode, move, has_splits=True)
