"""Page-locked host memory: registered once at start, in chunks, and checked.

Memory is allocated plainly, touched, and registered afterwards: asking the allocator for page-locked
memory rounds each allocation up to a power of two. One registration of hundreds of GiB fails, so it
goes in chunks, which end where a block and a page end: a page cannot be locked twice. A failed call
leaves a sticky error in the CUDA context, so each return code is read.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

import torch

from policy.errors import ConfigError, FaultError

CHUNK_BYTES = 4 << 30
PAGE_BYTES = 4096


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
            locked = self.num_bytes
            self.close()
            raise ConfigError(
                f"pool.host_blocks: {num_bytes >> 20} MiB of host memory could not be page-locked"
                f" after {locked >> 20} MiB (CUDA error {code}); use a smaller host pool"
            )
        self._addresses.append(address)
        self.num_bytes += num_bytes

    def close(self) -> None:
        """Give every chunk back, whatever becomes of the others; calling it again does nothing.

        Raises FaultError if the driver keeps one.
        """
        codes = []
        while self._addresses:
            codes.append(int(self._cudart.cudaHostUnregister(self._addresses.pop())))
        self.num_bytes = 0
        kept = [code for code in codes if code]
        if kept:
            raise FaultError(
                f"{len(kept)} of {len(codes)} chunks of host memory could not be given back"
                f" (CUDA error {kept[0]})"
            )


def register_in_chunks(
    tensors: list[torch.Tensor],
    num_blocks: int,
    cudart: Any = None,
    chunk: int = CHUNK_BYTES,
    is_locked: Callable[[torch.Tensor], bool] = torch.Tensor.is_pinned,
) -> Registered:
    """Page-lock tensors whose first dimension is `num_blocks` blocks and which begin with a page.

    A chunk has at most `chunk` bytes, if blocks are not larger. Raises ConfigError if the driver
    refuses one, FaultError if it takes one and does not lock it (`is_locked` of its first and last
    block): copies of such memory are not asynchronous (trap A8). Nothing is left registered then.
    """
    driver = torch.cuda.cudart() if cudart is None else cudart  # type: ignore[no-untyped-call]
    registered = Registered(driver)
    for tensor in tensors:
        block_bytes = tensor[:1].nbytes
        whole = PAGE_BYTES // gcd(PAGE_BYTES, block_bytes)  # so many blocks end with a page
        step = max(1, chunk // max(1, block_bytes) // whole) * whole
        for first in range(0, num_blocks, step):
            blocks = tensor[first : first + step]
            registered.add(blocks.data_ptr(), blocks.nbytes)
            if not (is_locked(blocks[:1]) and is_locked(blocks[-1:])):
                registered.close()
                raise FaultError(
                    f"{blocks.nbytes >> 20} MiB of host memory were registered and are not"
                    " page-locked"
                )
    return registered
