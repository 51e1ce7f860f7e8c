"""Paged KV in two tiers: the tensors behind the block ids of `policy/`.

`layer_major`: for each layer and each of K and V one tensor `[blocks, block_size, kv_heads, head_dim]`,
so one block is 2 * layers pieces (vLLM 0.3.3). `block_major`: one tensor
`[blocks, layers, 2, block_size, kv_heads, head_dim]`, so one block is one piece. Both look the same
to attention: `keys(layer)` and `values(layer)` are views of the first kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

import numpy as np
import torch

from policy.errors import InvariantError
from policy.plan import Direction
from policy.pools.runs import Run
from realrun.config import ModelConfig
from realrun.pieces import Addresses, Pieces, cut
from realrun.pinned import PAGE_BYTES, page_lock

LAYOUTS = ("layer_major", "block_major")


class Tier:
    """One side's blocks. `pieces` are the tensors that a run is a slice of: [blocks, ...].

    `spare` blocks lie behind the `num_blocks` that policies know. The first of them is `scratch`,
    where the rows that pad a step write.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: str,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        inner = (block_size, config.kv_heads, config.head_dim)
        self.num_blocks = num_blocks
        self.scratch = num_blocks if spare else None
        rows = num_blocks + spare
        self.block_size = block_size
        shape: tuple[int, ...] = (rows, *inner)
        count = 2 * config.layers
        if layout == "block_major":
            count, shape = 1, (rows, config.layers, 2, *inner)
        #: All of it where it is one allocation, on the host; it begins with a page.
        self.whole, self.pieces = _zeros(count, shape, dtype, device)
        if layout == "block_major":
            [all_] = self.pieces
            self._views = [(all_[:, i, 0], all_[:, i, 1]) for i in range(config.layers)]
        else:
            self._views = list(zip(self.pieces[::2], self.pieces[1::2], strict=True))
        #: Where each piece begins, and the bytes of one block in it.
        self.bases = np.array([piece.data_ptr() for piece in self.pieces], np.int64)
        self.piece_bytes = prod(shape[1:]) * dtype.itemsize
        #: Bytes of one block over all layers.
        self.block_bytes = 2 * config.layers * prod(inner) * dtype.itemsize

    def keys(self, layer: int) -> torch.Tensor:
        """K of a layer, `[blocks, block_size, kv_heads, head_dim]`; a view."""
        return self._views[layer][0]

    def values(self, layer: int) -> torch.Tensor:
        """V of a layer, as `keys`."""
        return self._views[layer][1]

    def poison(self, blocks: list[int]) -> None:
        """Fill blocks with NaN, so that reading them without a copy or a write shows."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.pieces[0].device)
        for piece in self.pieces:
            piece[index] = float("nan")

    def checksum(self, block: int) -> int:
        """A sum over the bits of one block."""
        total = 0
        for piece in self.pieces:
            bits = piece[block].contiguous().view(torch.uint8).to(torch.int64)
            weights = torch.arange(1, bits.numel() + 1, device=bits.device)
            total = (total * 1_000_003 + int((bits.flatten() * weights).sum())) % (1 << 61)
        return total


def _zeros(
    count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """So many tensors of one shape. On the host they share one allocation, so that one call can
    page-lock it; it and each of them begin with a page."""
    if device.type != "cpu":
        return None, [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]
    num_bytes = prod(shape) * dtype.itemsize
    stride = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
    memory = torch.zeros(count * stride + PAGE_BYTES, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE_BYTES
    whole = memory[first : first + count * stride]
    begins = range(0, count * stride, stride) if stride else [0] * count
    return whole, [whole[at : at + num_bytes].view(dtype).view(shape) for at in begins]


class KVStore:
    """Both tiers. The host tier is page-locked once, here, if the device is a GPU."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        layout: str,
        device_blocks: int,
        host_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.block_size = block_size
        self.device = Tier(config, layout, device_blocks, block_size, dtype, device, spare=1)
        cpu = torch.device("cpu")
        self.host = Tier(config, layout, host_blocks, block_size, dtype, cpu)
        self.registered = None
        if device.type == "cuda":
            assert self.host.whole is not None
            self.registered = page_lock(self.host.whole)

    def close(self) -> None:
        """Give page-locked memory back."""
        if self.registered is not None:
            self.registered.close()

    def pieces(
        self, runs: Sequence[Run], direction: Direction, *, by_block: bool = False
    ) -> Pieces:
        """What a job moves, tensor by tensor: a piece for each run in it, or `by_block` for each
        block; none crosses a border of the page-locked memory.

        Raises InvariantError for blocks outside the pools.
        """
        table = np.fromiter(chain.from_iterable(runs), np.int64, 3 * len(runs)).reshape(-1, 3)
        device, host, length = table.T
        if by_block:
            nth = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            device, host = np.repeat(device, length) + nth, np.repeat(host, length) + nth
            length = np.ones_like(nth)
        outside = (device < 0) | (device > self.device.num_blocks - length)
        outside |= (host < 0) | (host > self.host.num_blocks - length)
        if outside.any():
            first = int(outside.argmax())
            raise InvariantError(
                f"run {(int(device[first]), int(host[first]), int(length[first]))} is not inside"
                f" {self.device.num_blocks} device and {self.host.num_blocks} host blocks"
            )
        on_device = _addresses(self.device, device)
        on_host = _addresses(self.host, host)
        sizes = np.tile(length * self.host.piece_bytes, len(self.host.bases))
        if direction is Direction.TO_HOST:
            found = Pieces(on_host, on_device, sizes)
        else:
            found = Pieces(on_device, on_host, sizes)
        return found if self.registered is None else cut(found, on_host, self.registered.borders)


def _addresses(tier: Tier, blocks: Addresses) -> Addresses:
    """Of these blocks in every tensor of a tier, tensor by tensor."""
    found: Addresses = np.add.outer(tier.bases, blocks * tier.piece_bytes).ravel()
    return found
