"""Streams and events behind one small interface, so that the swap manager is the same code on a GPU,
on a CPU, and on a fake device whose streams run in an adversarial order.

A **lane** is where one thread puts copies of one direction, in order. A **barrier** is a point in the
compute stream: a copy behind it sees everything that was computed before it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from policy.errors import FaultError
from realrun import batchtry
from realrun.batchcopy import copy_batch, driver_call
from realrun.driver import driver
from realrun.eachcopy import copy_each, is_native
from realrun.pieces import Pieces


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

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """One copy call between tensors of equal shape, of which torch's allocators keep account."""

    def copy_each(self, pieces: Pieces) -> None:
        """A copy call for each piece, in a loop without the interpreter's lock."""

    def copy_batch(self, pieces: Pieces) -> int:
        """As few calls as possible for all pieces; how many."""

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

    def why_not(self, submission: str) -> str | None:
        """What keeps this machine from taking copies submitted this way, in words; None if it can."""

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

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """See Lane."""
        target.copy_(source)

    def copy_each(self, pieces: Pieces) -> None:
        """See Lane."""
        copy_each(pieces, 0)

    def copy_batch(self, pieces: Pieces) -> int:
        """See Lane. A CPU has no batched call, so this is a loop without anything between."""
        copy_each(pieces, 0)
        return 1

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

    def __init__(self) -> None:
        is_native()  # compiled now, if it is, and not when the first copy is timed

    def why_not(self, submission: str) -> str | None:  # noqa: ARG002
        """See Runtime. A CPU does them all."""
        return None

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
    """A stream of its own: torch's are 32 of a pool, and who asks for a 33rd shares one."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)  # there is a context now
            self._context = driver().context()
            handle = driver().stream()
        self.stream = torch.cuda.ExternalStream(handle, device)  # type: ignore[no-untyped-call]
        self._call = driver().copy_call()
        self._bind = driver().binder()

    def on(self) -> AbstractContextManager[object]:
        """See Lane."""
        code = self._bind(self._context)
        if code:
            raise FaultError(f"cuCtxSetCurrent: CUDA error {code}")
        return _CudaContext(self.stream)

    def wait(self, mark: Mark) -> None:
        """See Lane."""
        assert isinstance(mark, CudaMark)
        self.stream.wait_event(mark.event)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """See Lane."""
        target.copy_(source, non_blocking=True)

    def copy_each(self, pieces: Pieces) -> None:
        """See Lane."""
        copy_each(pieces, self.stream.cuda_stream, self._call)

    def copy_batch(self, pieces: Pieces) -> int:
        """See Lane."""
        return copy_batch(pieces, self.stream.cuda_stream)

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
        is_native()  # as on a CPU

    def why_not(self, submission: str) -> str | None:
        """See Runtime. The batched call is tried in a process of its own first."""
        if submission != "batched":
            return None
        try:
            driver_call()
        except FaultError as error:
            return str(error)
        return batchtry.why_not(self._device.index or 0)

    def lane(self) -> Lane:
        """See Runtime."""
        return CudaLane(self._device)

    def barrier(self) -> Mark:
        """See Runtime."""
        return CudaMark(torch.cuda.current_stream(self._device))


def runtime_for(device: torch.device) -> Runtime:
    """The runtime of a device."""
    return CudaRuntime(device) if device.type == "cuda" else CpuRuntime()
