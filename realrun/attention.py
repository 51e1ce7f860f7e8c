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
from torch.nn.attention.bias import causal_lower_right

from realrun.device_ops import MAX_SPLITS, Decode, Kernels
from realrun.ferry import Ferry
from realrun.heads import Heads
from realrun.kvstore import Tier

#: Programs that run at once on a GPU of about 130 multiprocessors, five on each: more would wait for
#: them. Not measured.
PROGRAMS = 640
#: A split is no shorter than this many tokens.
MIN_SPLIT_TOKENS = 64
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
    heads: Heads,
) -> torch.Tensor:
    """See Kernels, in plain torch."""
    q_THD, k_TKD, v_TKD = heads.turned()
    rows = len(blocks_T)
    keys[blocks_T, offsets_T] = k_TKD[:rows]
    values[blocks_T, offsets_T] = v_TKD[:rows]
    return q_THD


def move(source: torch.Tensor, target: torch.Tensor) -> None:
    """See Kernels, in plain torch."""
    target.copy_(source)


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


PLAIN = Kernels(store, PlainDecode, move, has_splits=False)


def splits_for(batch: int, kv_heads: int, context: int) -> int:
    """Into how many parts the keys of each row are cut, for a longest context in tokens: as many as
    run at once, none where the rows alone fill the device, and not so many that the parts are short."""
    wanted = PROGRAMS // (batch * kv_heads)
    return max(1, min(wanted, -(-context // MIN_SPLIT_TOKENS), MAX_SPLITS))


@cache
def kernels_for(kind: str) -> Kernels:
    """The kernels of a device of this kind (`cuda`, `cpu`). Triton is imported for a GPU only.

    On a GPU prompts must not go through cuDNN: it plans anew for every shape, which takes most of a
    second, so a run would pay where a calibration, which repeats its shapes, does not."""
    if kind != "cuda":
        return PLAIN
    torch.backends.cuda.enable_cudnn_sdp(False)
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
        ferry: Ferry | None = None,
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
        if ferry is None:
            ferry = Ferry(device, self._kernels.move)
        one_by_one = alone and not self._kernels.has_splits
        decoding = 0 if one_by_one else _num_decoding(segments)
        first = len(segments) - decoding
        together = segments[first:]
        lengths = [past + new for past, new, _ in together]
        width = -(-max(lengths, default=0) // size)
        used = [table[: -(-(past + new) // size)] for past, new, table in segments]
        padded = [block for table in used[first:] for block in _padded(table, width)]
        self._blocks, self._offsets, lengths_B, table_BN, *tables = ferry.to_device(
            blocks, offsets, lengths, padded, *used[:first]
        )
        self._num_rows = len(blocks)
        self._singles: list[tuple[int, int, int, torch.Tensor]] = []
        row = 0
        for (past, new, _), table_N in zip(segments[:first], tables, strict=True):
            self._singles.append((row, new, past, table_N))
            row += new
        self._together: tuple[int, Decode] | None = None
        if decoding:
            splits = FIXED_SPLITS if alone else splits_for(decoding, keys.shape[2], max(lengths))
            table_BN = table_BN.view(decoding, width)
            self._together = (row, self._kernels.decode(table_BN, lengths_B, size, splits))

    def __call__(self, layer: int, heads: Heads) -> torch.Tensor:
        """Store K and V, then attend. Returns `out_THD`."""
        keys, values = self._tier.keys(layer), self._tier.values(layer)
        q_THD = self._kernels.store(keys, values, self._blocks, self._offsets, heads)
        out_THD = torch.zeros_like(q_THD)
        for row, new, past, table in self._singles:
            k_SKD = keys[table].flatten(0, 1)[: past + new]
            v_SKD = values[table].flatten(0, 1)[: past + new]
            out_THD[row : row + new] = attend(q_THD[row : row + new], k_SKD, v_SKD)
        if self._together is not None:
            row, decode = self._together
            rows = self._num_rows
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

    def __call__(self, layer: int, heads: Heads) -> torch.Tensor:
        """Store K and V, then attend. Returns `out_THD`."""
        keys, values = self._tier.keys(layer), self._tier.values(layer)
        q_THD = self._kernels.store(keys, values, self._blocks, self._offsets, heads)
        return self._decode(q_THD, keys, values)


def _num_decoding(segments: Sequence[Segment]) -> int:
    """How many segments at the end have a single token."""
    count = 0
    for segment in reversed(segments):
        if segment.new != 1:
            break
        count += 1
    return count


def _padded(table: Sequence[int], width: int) -> list[int]:
    """A block table of `width` blocks, block 0 behind its own."""
    return [*table, *[0] * (width - len(table))]


def attend(q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor) -> torch.Tensor:
    """The new tokens at the end of a context: each sees all before it and itself. `out_THD`.

    No mask is handed over as a tensor, which flash attention does not take: a whole prompt says it is
    causal, new tokens behind earlier ones that the diagonal ends in the lower right.
    """
    new, length = len(q_THD), len(k_SKD)
    has_past = new < length
    out_HTD = F.scaled_dot_product_attention(
        q_THD.transpose(0, 1).unsqueeze(0),
        k_SKD.transpose(0, 1).unsqueeze(0),
        v_SKD.transpose(0, 1).unsqueeze(0),
        attn_mask=causal_lower_right(new, length) if has_past else None,
        is_causal=not has_past,
        enable_gqa=True,
    ).squeeze(0)
    return out_HTD.transpose(0, 1)
