"""Attention over block tables in plain torch: the reference, and what runs on a CPU.

A step is a list of segments, each some new tokens of one request behind what is already in its
blocks: a prompt is a long segment, a decoding request one of a single token. The new keys and values
are written to their slots first; then every segment attends to its own context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from realrun.kvstore import Tier


class Segment(NamedTuple):
    """New tokens of one request: `past` are in its blocks already. `table`: device block ids."""

    past: int
    new: int
    table: Sequence[int]


class StepAttention:
    """The attention of one step, prepared once and called once a layer.

    `alone`: every segment attends by itself at its exact length, so that its result depends on
    nothing but itself (the deterministic mode); otherwise decoding segments go together, padded.
    Rows behind the segments' are padding: nothing is stored for them and they get zeros.
    """

    def __init__(self, tier: Tier, segments: Sequence[Segment], *, alone: bool = False) -> None:
        self._tier = tier
        size = tier.block_size
        blocks: list[int] = []
        offsets: list[int] = []
        for past, new, table in segments:
            for position in range(past, past + new):
                blocks.append(table[position // size])
                offsets.append(position % size)
        device = tier.keys(0).device
        self._blocks = torch.tensor(blocks, device=device)
        self._offsets = torch.tensor(offsets, device=device)
        self._num_rows = len(blocks)
        self._singles: list[tuple[int, int, torch.Tensor, torch.Tensor | None]] = []
        self._together: tuple[int, torch.Tensor, torch.Tensor] | None = None
        decoding = 0 if alone else _num_decoding(segments)
        row = 0
        for past, new, table in segments[: len(segments) - decoding]:
            used = torch.tensor(table[: -(-(past + new) // size)], device=device)
            self._singles.append((row, new, used, _causal(past, new, device)))
            row += new
        if decoding:
            self._together = (row, *_padded(segments[len(segments) - decoding :], size, device))
        self._lengths = [past + new for past, new, _ in segments]

    def __call__(
        self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor
    ) -> torch.Tensor:
        """Store K and V, then attend. Returns `out_THD`."""
        keys, values = self._tier.keys(layer), self._tier.values(layer)
        rows = self._num_rows
        keys[self._blocks, self._offsets] = k_TKD[:rows]
        values[self._blocks, self._offsets] = v_TKD[:rows]
        out_THD = torch.zeros_like(q_THD)
        for (row, new, table, mask), length in zip(self._singles, self._lengths, strict=False):
            k_SKD = keys[table].flatten(0, 1)[:length]
            v_SKD = values[table].flatten(0, 1)[:length]
            out_THD[row : row + new] = _attend(q_THD[row : row + new], k_SKD, v_SKD, mask)
        if self._together is not None:
            row, table_BN, valid_BS = self._together
            out_THD[row:rows] = _attend_batch(q_THD[row:rows], keys, values, table_BN, valid_BS)
        return out_THD


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
    segments: Sequence[Segment], size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block tables side by side, padded with block 0, and which of their slots are valid."""
    lengths = [past + new for past, new, _ in segments]
    width = -(-max(lengths) // size)
    rows = [
        [*table[: -(-length // size)], *[0] * (width - -(-length // size))]
        for (_, _, table), length in zip(segments, lengths, strict=True)
    ]
    table_BN = torch.tensor(rows, device=device)
    slots_S = torch.arange(width * size, device=device)
    return table_BN, slots_S < torch.tensor(lengths, device=device).unsqueeze(1)


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


def _attend_batch(
    q_BHD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table_BN: torch.Tensor,
    valid_BS: torch.Tensor,
) -> torch.Tensor:
    """One new token for each of B requests. Slots that are not valid may hold anything, NaN too,
    so they are cleared and not only masked: 0 * NaN is NaN."""
    invalid = ~valid_BS[:, :, None, None]
    k_BSKD = keys[table_BN].flatten(1, 2).masked_fill_(invalid, 0)
    v_BSKD = values[table_BN].flatten(1, 2).masked_fill_(invalid, 0)
    out_BH1D = F.scaled_dot_product_attention(
        q_BHD.unsqueeze(2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=valid_BS[:, None, None, :],
        enable_gqa=True,
    )
    return out_BH1D.squeeze(2)
