"""Streams and events behind one small interface, so that the swap manager is the same code on a GPU,
on a CPU, and on a fake device whose streams run in an adversarial order.

A **lane** is where one thread puts copies of one direction, in order. A **barrier** is a point in the
compute stream: a copy behind it sees everything that was computed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from policy.errors import ConfigError, FaultError
from realrun.batchcopy import copy_batch, driver_call
from realrun.kvstore import Piece


class Mark(Protocol):
    """A point in a lane or in the compute stream."""

    def is_done(self) -> bool:
        """Everything before it has happened."""

    def synchronize(self) -> None:
        """Block the calling thread until it is done."""


class Lane(Protocol):
    """One thread's queue of copies."""

    def on(self) -> AbstractContextManager[object]:
        """Enter before putting copies, in the thread that owns the lane."""

    def wait(self, mark: Mark) -> None:
        """What comes next happens after `mark`."""

    def copy(self, piece: Piece) -> None:
        """One copy call."""

    def copy_batch(self, pieces: Sequence[Piece]) -> None:
        """One call for many copies, of which none overlaps another."""

    def pack(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """A new buffer beside `tensor` with its blocks `index`, filled when the lane gets there."""

    def unpack(self, tensor: torch.Tensor, index: torch.Tensor, packed: torch.Tensor) -> None:
        """The blocks `index` of `tensor` become `packed`, when the lane gets there."""

    def host_buffer(self, num_blocks: int, like: torch.Tensor) -> torch.Tensor:
        """Host memory for so many blocks of `like`, page-locked where that matters (trap A8). It
        may be let go of as soon as what uses it has been put (A9)."""

    def mark(self) -> Mark:
        """The point behind everything put so far; recorded after it was put (trap A5)."""


class Runtime(Protocol):
    """Where lanes and barriers come from."""

    def check(self, submission: str) -> None:
        """Raise ConfigError if this machine cannot take copies submitted this way."""

    def lane(self) -> Lane:
        """A lane of its own; never the compute stream."""

    def barrier(self) -> Mark:
        """The point behind everything computed so far."""


class _Done:
    """What a CPU has done when the call returns."""

    def is_done(self) -> bool:
        """Always."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


class CpuLane:
    """Copies by `memcpy` in the calling thread; torch gives the interpreter lock up for each."""

    def on(self) -> AbstractContextManager[object]:
        """See Lane. Inference mode is per thread."""
        return torch.inference_mode()

    def wait(self, mark: Mark) -> None:
        """The compute of a CPU is done when its call returns."""
        mark.synchronize()

    def copy(self, piece: Piece) -> None:
        """See Lane."""
        piece.target.copy_(piece.source)

    def copy_batch(self, pieces: Sequence[Piece]) -> None:
        """See Lane. A CPU has no batched call, so this is a loop without anything between."""
        for target, source in pieces:
            target.copy_(source)

    def pack(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """See Lane."""
        return tensor.index_select(0, index)

    def unpack(self, tensor: torch.Tensor, index: torch.Tensor, packed: torch.Tensor) -> None:
        """See Lane."""
        tensor.index_copy_(0, index, packed)

    def host_buffer(self, num_blocks: int, like: torch.Tensor) -> torch.Tensor:
        """See Lane."""
        return torch.empty((num_blocks, *like.shape[1:]), dtype=like.dtype)

    def mark(self) -> Mark:
        """See Lane."""
        return _DONE


class CpuRuntime:
    """Compute and copies of a machine without a GPU."""

    def check(self, submission: str) -> None:
        """See Runtime. A CPU does them all."""

    def lane(self) -> Lane:
        """See Runtime."""
        return CpuLane()

    def barrier(self) -> Mark:
        """See Runtime."""
        return _DONE


_DONE = _Done()


class CudaMark:
    """An event that was recorded when it was made."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def is_done(self) -> bool:
        """See Mark."""
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        """See Mark."""
        self.event.synchronize()


class CudaLane:
    """A stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    def on(self) -> AbstractContextManager[object]:
        """See Lane."""
        return _CudaContext(self.stream)

    def wait(self, mark: Mark) -> None:
        """See Lane."""
        assert isinstance(mark, CudaMark)
        self.stream.wait_event(mark.event)

    def copy(self, piece: Piece) -> None:
        """See Lane."""
        piece.target.copy_(piece.source, non_blocking=True)

    def copy_batch(self, pieces: Sequence[Piece]) -> None:
        """See Lane."""
        copy_batch(pieces, self.stream.cuda_stream)

    def pack(self, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """See Lane. The lane's stream is current, so the buffer is that stream's."""
        return tensor.index_select(0, index)

    def unpack(self, tensor: torch.Tensor, index: torch.Tensor, packed: torch.Tensor) -> None:
        """See Lane."""
        tensor.index_copy_(0, index, packed)

    def host_buffer(self, num_blocks: int, like: torch.Tensor) -> torch.Tensor:
        """See Lane. torch's own allocator keeps the memory until copies from and to it are done."""
        shape = (num_blocks, *like.shape[1:])
        return torch.empty(shape, dtype=like.dtype, pin_memory=True)

    def mark(self) -> Mark:
        """See Lane."""
        return CudaMark(self.stream)


class _CudaContext:
    """Device, stream and inference mode of a thread; all three are per thread."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._parts = (torch.cuda.device(stream.device), torch.cuda.stream(stream))
        self._inference = torch.inference_mode()

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()  # type: ignore[no-untyped-call]
        self._inference.__enter__()

    def __exit__(self, *error: object) -> None:
        self._inference.__exit__(*error)
        for part in reversed(self._parts):
            part.__exit__(*error)


class CudaRuntime:
    """Compute on the current stream, copies on others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def check(self, submission: str) -> None:
        """See Runtime."""
        if submission == "batched":
            try:
                driver_call()
            except FaultError as error:
                raise ConfigError(f"submission: {error}") from None

    def lane(self) -> Lane:
        """See Runtime."""
        return CudaLane(self._device)

    def barrier(self) -> Mark:
        """See Runtime."""
        return CudaMark(torch.cuda.current_stream(self._device))


def runtime_for(device: torch.device) -> Runtime:
    """The runtime of a device."""
    return CudaRuntime(device) if device.type == "cuda" else CpuRuntime()
