"""Paged KV in two tiers: the tensors behind the block ids of `policy/`.

`layer_major`: for each layer and each of K and V one tensor `[blocks, block_size, kv_heads, head_dim]`,
so one block is 2 * layers pieces (vLLM 0.3.3). `block_major`: one tensor
`[blocks, layers, 2, block_size, kv_heads, head_dim]`, so one block is one piece. Both look the same
to attention: `keys(layer)` and `values(layer)` are views of the first kind.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch

from policy.errors import InvariantError
from policy.plan import Direction
from policy.pools.runs import Run
from realrun.config import ModelConfig
from realrun.pinned import PAGE_BYTES, register_in_chunks

LAYOUTS = ("layer_major", "block_major")


class Piece(NamedTuple):
    """Tensors of equal shape: what one copy call moves."""

    target: torch.Tensor
    source: torch.Tensor


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
        make = partial(_zeros, dtype=dtype, device=device)
        self.num_blocks = num_blocks
        self.scratch = num_blocks if spare else None
        rows = num_blocks + spare
        self.block_size = block_size
        if layout == "block_major":
            whole = make((rows, config.layers, 2, *inner))
            self.pieces = [whole]
            self._views = [(whole[:, i, 0], whole[:, i, 1]) for i in range(config.layers)]
        else:
            self._views = [
                (make((rows, *inner)), make((rows, *inner))) for _ in range(config.layers)
            ]
            self.pieces = [side for pair in self._views for side in pair]
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the host it begins with a page, so that chunks to page-lock can end with one."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = prod(shape) * dtype.itemsize
    memory = torch.zeros(num_bytes + PAGE_BYTES, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE_BYTES
    return memory[first : first + num_bytes].view(dtype).view(shape)


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
        self.registered = (
            register_in_chunks(self.host.pieces, self.host.num_blocks)
            if device.type == "cuda"
            else None
        )

    def close(self) -> None:
        """Give page-locked memory back."""
        if self.registered is not None:
            self.registered.close()

    def pieces(self, run: Run, direction: Direction) -> list[Piece]:
        """The slices that one run is, one for each tensor of a tier.

        Raises InvariantError for blocks outside the pools, of which a slice would leave out some.
        """
        device, host, length = run
        if not (
            0 <= device <= self.device.num_blocks - length
            and 0 <= host <= self.host.num_blocks - length
        ):
            raise InvariantError(
                f"run {run} is not inside {self.device.num_blocks} device and"
                f" {self.host.num_blocks} host blocks"
            )
        pairs = [
            (on_device[device : device + length], on_host[host : host + length])
            for on_device, on_host in zip(self.device.pieces, self.host.pieces, strict=True)
        ]
        if direction is Direction.TO_HOST:
            return [Piece(on_host, on_device) for on_device, on_host in pairs]
        return [Piece(on_device, on_host) for on_device, on_host in pairs]
