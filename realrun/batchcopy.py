"""As few driver calls as possible for a whole copy job: `cuMemcpyBatchAsync` through ctypes.

ctypes gives the interpreter lock up for the call, so plain threads are enough. The 12.8 form of the
function (with `failIdx`) is asked for by version, which newer drivers still serve. Source order is
`STREAM`: with `ANY` the engine may read a source before earlier work of the stream has written it,
which garbles copies to the host (trap A3). A call is given no more than MAX_DESCRIPTORS pieces: a hang
with 51,828 of them is public (vllm-project/vllm issue 49276).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

from policy.errors import FaultError
from realrun.driver import BATCH_VERSION, driver
from realrun.pieces import Pieces

SOURCE_IN_STREAM_ORDER = 1
MAX_DESCRIPTORS = 4096


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Attributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("srcAccessOrder", ctypes.c_int),
        ("srcLocHint", _Location),
        ("dstLocHint", _Location),
        ("flags", ctypes.c_uint),
    )


PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int,  # CUresult
    ctypes.c_void_p,  # CUdeviceptr* dsts
    ctypes.c_void_p,  # CUdeviceptr* srcs
    ctypes.c_void_p,  # size_t* sizes
    ctypes.c_size_t,
    ctypes.POINTER(Attributes),
    ctypes.c_void_p,  # size_t* attrsIdxs
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),  # failIdx
    ctypes.c_void_p,  # stream
)

BatchCall = Callable[..., int]


def copy_batch(pieces: Pieces, stream: int, call: BatchCall | None = None) -> int:
    """Copy all pieces on the stream with this handle (never the legacy one); returns how many calls
    that took. None of the pieces may overlap another.

    Raises FaultError naming the piece the driver refused, if it refused one.
    """
    count = len(pieces.sizes)
    attributes = Attributes(srcAccessOrder=SOURCE_IN_STREAM_ORDER)
    from_first = np.zeros(1, np.uint64)
    calls = 0
    for first in range(0, count, MAX_DESCRIPTORS):
        size = min(MAX_DESCRIPTORS, count - first)
        failed = ctypes.c_size_t(size)
        code = (call or driver_call())(
            *(part.ctypes.data + first * part.itemsize for part in pieces),
            size,
            ctypes.byref(attributes),
            from_first.ctypes.data,
            1,
            ctypes.byref(failed),
            stream,
        )
        if code:
            where = f" at piece {first + failed.value} of {count}" if failed.value < size else ""
            raise FaultError(f"cuMemcpyBatchAsync: CUDA error {code}{where}")
        calls += 1
    return calls


@cache
def driver_call() -> BatchCall:
    """The driver's function. Raises FaultError for a driver older than CUDA 12.8, or none."""
    return PROTOTYPE(driver().address("cuMemcpyBatchAsync", BATCH_VERSION))
