"""Attention over block tables: plain torch on a CPU, the kernels of `realrun.splitkv` on a GPU.

A step is a list of segments, each some new tokens of one request behind what is already in its
blocks: a prompt is a long segment, a decoding request one of a single token. The new keys and values
are written to their slots first; then every segment attends to its own context.

Shapes end names: T new tokens, B of them decoding, S slots or keys, N blocks of a table, H query
heads, K key heads, D head size. `keys` and `values` are a layer's, `[blocks, block_size, K, D]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from realrun.device_ops import Decode, Kernels
from realrun.kvstore import Tier

#: Programs that keep a GPU of about a hundred multiprocessors busy. Not measured.
PROGRAMS = 1024
#: A split is no shorter than this many tokens, and a row has no more than MAX_SPLITS.
MIN_SPLIT_TOKENS = 128
MAX_SPLITS = 32
#: Splits of every row where its result may depend on nothing but the row.
FIXED_SPLITS = 8


class Segment(NamedTuple):
    """New tokens of one request: `past` are in its blocks already. `table`: device block ids."""

    past: int
    new: int
    table: Sequence[int]


def store(
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks_T: torch.Tensor,
    offsets_T: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
) -> None:
    """Write K and V of T tokens into their slots, in plain torch."""
    keys[blocks_T, offsets_T] = k_TKD
    values[blocks_T, offsets_T] = v_TKD


class PlainDecode:
    """See Decode. Every row is padded to the width of the table."""

    def __init__(
        self, table_BN: torch.Tensor, lengths_B: torch.Tensor, block_size: int, _splits: int
    ) -> None:
        self._table = table_BN
        slots_S = torch.arange(table_BN.shape[1] * block_size, device=table_BN.device)
        self._valid_BS = slots_S < lengths_B.unsqueeze(1)
        self._invalid = ~self._valid_BS[:, :, None, None]

    def __call__(
        self, q_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """See Decode. Slots that are not valid are cleared and not only masked: 0 * NaN is NaN. A row
        of which all is masked comes out as zeros."""
        k_BSKD = keys[self._table].flatten(1, 2).masked_fill_(self._invalid, 0)
        v_BSKD = values[self._table].flatten(1, 2).masked_fill_(self._invalid, 0)
        out_BH1D = F.scaled_dot_product_attention(
            q_BHD.unsqueeze(2),
            k_BSKD.transpose(1, 2),
            v_BSKD.transpose(1, 2),
            attn_mask=self._valid_BS[:, None, None, :],
            enable_gqa=True,
        )
        return out_BH1D.squeeze(2)


PLAIN = Kernels(store, PlainDecode, has_splits=False)


def splits_for(batch: int, kv_heads: int, context: int) -> int:
    """Into how many parts the keys of each row are cut, for a longest context in tokens: enough to
    keep the device busy, not so many that the parts are short."""
    wanted = -(-PROGRAMS // (batch * kv_heads))
    return max(1, min(wanted, -(-context // MIN_SPLIT_TOKENS), MAX_SPLITS))


@cache
def kernels_for(kind: str) -> Kernels:
    """The kernels of a device of this kind (`cuda`, `cpu`). Triton is imported for a GPU only."""
    if kind != "cuda":
        return PLAIN
    from realrun import splitkv  # noqa: PLC0415

    return splitkv.TRITON


class StepAttention:
    """The attention of one step, prepared once and called once a layer.

    `alone`: every segment's result depends on nothing but itself (the deterministic mode): decoding
    segments go with a fixed number of splits, or where there are none one by one at their exact
    lengths; otherwise they go together, padded. Rows behind the segments' are padding: nothing is
    stored for them and they get zeros.
    """

    def __init__(
        self,
        tier: Tier,
        segments: Sequence[Segment],
        *,
        alone: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        self._tier = tier
        size = tier.block_size
        blocks: list[int] = []
        offsets: list[int] = []
        for past, new, table in segments:
            for position in range(past, past + new):
                blocks.append(table[position // size])
                offsets.append(position % size)
        keys = tier.keys(0)
        device = keys.device
        self._kernels = kernels_for(device.type) if kernels is None else kernels
        self._blocks = torch.tensor(blocks, device=device)
        self._offsets = torch.tensor(offsets, device=device)
        self._num_rows = len(blocks)
        self._singles: list[tuple[int, int, torch.Tensor, torch.Tensor | None]] = []
        self._together: tuple[int, Decode] | None = None
        one_by_one = alone and not self._kernels.has_splits
        decoding = 0 if one_by_one else _num_decoding(segments)
        first = len(segments) - decoding
        row = 0
        for past, new, table in segments[:first]:
            used = torch.tensor(table[: -(-(past + new) // size)], device=device)
            self._singles.append((row, new, used, _causal(past, new, device)))
            row += new
        self._lengths = [past + new for past, new, _ in segments]
        if decoding:
            lengths = self._lengths[first:]
            splits = FIXED_SPLITS if alone else splits_for(decoding, keys.shape[2], max(lengths))
            decode = self._kernels.decode(
                _padded([segment.table for segment in segments[first:]], lengths, size, device),
                torch.tensor(lengths, device=device),
                size,
                splits,
            )
            self._together = (row, decode)

    def __call__(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store K and V, then attend. Returns `out_THD`."""
        keys, values = self._tier.keys(layer), self._tier.values(layer)
        rows = self._num_rows
        self._kernels.store(keys, values, self._blocks, self._offsets, k_TKD[:rows], v_TKD[:rows])
        out_THD = torch.zeros_like(q_THD)
        for (row, new, table, mask), length in zip(self._singles, self._lengths, strict=False):
            k_SKD = keys[table].flatten(0, 1)[:length]
            v_SKD = values[table].flatten(0, 1)[:length]
            out_THD[row : row + new] = _attend(q_THD[row : row + new], k_SKD, v_SKD, mask)
        if self._together is not None:
            row, decode = self._together
            out_THD[row:rows] = decode(q_THD[row:rows], keys, values)
        return out_THD


class DecodeAttention:
    """The attention of a step in which every row is one new token of a request of its own.

    It takes everything from two int64 tensors on the device, `positions_B` of the new tokens and
    `table_BN`, with no look at their values, so that it can be captured in a graph. A row at position
    -1 is padding: its K and V go to the first slot of its table's first block, which must be
    nobody's, and it gets zeros.
    """

    def __init__(
        self,
        tier: Tier,
        positions_B: torch.Tensor,
        table_BN: torch.Tensor,
        splits: int,
        *,
        kernels: Kernels | None = None,
    ) -> None:
        self._tier = tier
        self._kernels = kernels_for(table_BN.device.type) if kernels is None else kernels
        size = tier.block_size
        at_B = positions_B.clamp_min(0)
        self._blocks = table_BN.gather(1, (at_B // size).unsqueeze(1)).squeeze(1)
        self._offsets = at_B % size
        self._decode = self._kernels.decode(table_BN, positions_B + 1, size, splits)

    def __call__(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store K and V, then attend. Returns `out_THD`."""
        keys, values = self._tier.keys(layer), self._tier.values(layer)
        self._kernels.store(keys, values, self._blocks, self._offsets, k_TKD, v_TKD)
        return self._decode(q_THD, keys, values)


def _num_decoding(segments: Sequence[Segment]) -> int:
    """How many segments at the end have a single token."""
    count = 0
    for segment in reversed(segments):
        if segment.new != 1:
            break
        count += 1
    return count


def _causal(past: int, new: int, device: torch.device) -> torch.Tensor | None:
    """Which keys a new token sees: all of the past, and the new ones up to itself."""
    if new == 1:
        return None
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)


def _padded(
    tables: Sequence[Sequence[int]], lengths: Sequence[int], size: int, device: torch.device
) -> torch.Tensor:
    """Block tables side by side, `table_BN`, padded with block 0."""
    width = -(-max(lengths) // size)
    rows = []
    for table, length in zip(tables, lengths, strict=True):
        used = -(-length // size)
        rows.append([*table[:used], *[0] * (width - used)])
    return torch.tensor(rows, device=device)


def _attend(
    q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, mask_TS: torch.Tensor | None
) -> torch.Tensor:
    out_HTD = F.scaled_dot_product_attention(
        q_THD.transpose(0, 1).unsqueeze(0),
        k_SKD.transpose(0, 1).unsqueeze(0),
        v_SKD.transpose(0, 1).unsqueeze(0),
        attn_mask=mask_TS,
        enable_gqa=True,
    ).squeeze(0)
    return out_HTD.transpose(0, 1)
