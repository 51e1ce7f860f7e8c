"""Page-locked host memory: registered once at start, in one piece where the driver allows, and checked.

Memory is allocated plainly, touched, and registered afterwards: asking the allocator for page-locked
memory rounds each allocation up to a power of two. One registration of hundreds of GiB fails, so then it
goes in chunks, and no copy may cross from one into the next: `borders`. It is the driver that is asked,
since a failed call of the CUDA runtime leaves an error behind that the next kernel launch reports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from policy.errors import ConfigError, FaultError
from realrun.driver import driver
from realrun.pieces import Addresses

CHUNK_BYTES = 4 << 30
PAGE_BYTES = 4096


class Locker(Protocol):
    """What `realrun.driver.Driver` does for page-locked memory; both return the driver's code."""

    def register(self, address: int, num_bytes: int, /) -> int:
        """Page-lock memory."""

    def unregister(self, address: int, /) -> int:
        """Give it back."""


class Registered:
    """Memory that the driver knows; `close` gives it back."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._addresses: list[int] = []
        self.num_bytes = 0

    @property
    def borders(self) -> Addresses:
        """Addresses at which one registration ends and the next begins, rising."""
        return np.array(self._addresses[1:], np.int64)

    def add(self, address: int, num_bytes: int) -> int:
        """Register memory behind what there is already. Returns the driver's code."""
        code = self._locker.register(address, num_bytes)
        if not code:
            self._addresses.append(address)
            self.num_bytes += num_bytes
        return code

    def close(self) -> None:
        """Give all back, whatever becomes of the others; calling it again does nothing.

        Raises FaultError if the driver keeps some.
        """
        codes = []
        while self._addresses:
            codes.append(self._locker.unregister(self._addresses.pop()))
        self.num_bytes = 0
        kept = [code for code in codes if code]
        if kept:
            raise FaultError(
                f"{len(kept)} of {len(codes)} chunks of host memory could not be given back"
                f" (CUDA error {kept[0]})"
            )


def page_lock(
    memory: torch.Tensor,
    locker: Locker | None = None,
    chunk: int = CHUNK_BYTES,
    is_locked: Callable[[torch.Tensor], bool] = torch.Tensor.is_pinned,
) -> Registered:
    """Page-lock bytes that begin with a page: at once, or else in chunks of at most `chunk` bytes.

    Raises ConfigError if the driver refuses a chunk, FaultError if it takes memory and does not lock it
    (`is_locked` of the first and last byte of each registration): copies of such memory are not
    asynchronous (trap A8). Nothing is left registered then.
    """
    registered = Registered(driver() if locker is None else locker)
    begin, total = memory.data_ptr(), memory.nbytes
    step = max(1, chunk // PAGE_BYTES) * PAGE_BYTES
    if not total:
        return registered
    whole = not registered.add(begin, total)
    spans = [(0, total)] if whole else [(at, min(step, total - at)) for at in range(0, total, step)]
    for at, size in spans:
        code = 0 if whole else registered.add(begin + at, size)
        if code:
            locked = registered.num_bytes
            registered.close()
            raise ConfigError(
                f"pool.host_blocks: {size >> 20} MiB of host memory could not be page-locked"
                f" after {locked >> 20} MiB (CUDA error {code}); use a smaller host pool"
            )
        if not (is_locked(memory[at : at + 1]) and is_locked(memory[at + size - 1 : at + size])):
            registered.close()
            raise FaultError(
                f"{size >> 20} MiB of host memory were registered and are not page-locked"
            )
    return registered
