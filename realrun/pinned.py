"""Page-locked host memory: registered once at start, in chunks, and checked.

Memory is allocated plainly, touched, and registered afterwards: asking the allocator for page-locked
memory rounds each allocation up to a power of two. One registration of hundreds of GiB fails, so it
goes in chunks. A failed call leaves a sticky error in the CUDA context, so each return code is read.
"""

from __future__ import annotations

from typing import Any

import torch

from policy.errors import ConfigError

CHUNK_BYTES = 4 << 30


class Registered:
    """Chunks of memory that the driver knows; `close` gives them back."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._addresses: list[int] = []
        self.num_bytes = 0

    def add(self, address: int, num_bytes: int) -> None:
        """Register one chunk. Raises ConfigError, with everything before it given back."""
        code = int(self._cudart.cudaHostRegister(address, num_bytes, 0))
        if code:
            self.close()
            raise ConfigError(
                f"pool.host_blocks: {num_bytes >> 20} MiB of host memory could not be page-locked"
                f" (CUDA error {code}); use a smaller host pool"
            )
        self._addresses.append(address)
        self.num_bytes += num_bytes

    def close(self) -> None:
        """Give every chunk back; calling it again does nothing."""
        while self._addresses:
            self._cudart.cudaHostUnregister(self._addresses.pop())
        self.num_bytes = 0


def register_in_chunks(
    tensors: list[torch.Tensor], num_blocks: int, cudart: Any = None, chunk: int = CHUNK_BYTES
) -> Registered:
    """Page-lock tensors whose first dimension is `num_blocks` blocks, cut on block boundaries."""
    driver = torch.cuda.cudart() if cudart is None else cudart  # type: ignore[no-untyped-call]
    registered = Registered(driver)
    for tensor in tensors:
        block_bytes = tensor[:1].numel() * tensor.element_size()
        step = max(1, chunk // max(1, block_bytes))
        for first in range(0, num_blocks, step):
            blocks = min(step, num_blocks - first)
            address = tensor.data_ptr() + first * block_bytes
            registered.add(address, blocks * block_bytes)
    return registered
