"""One driver call for a whole copy job: `cuMemcpyBatchAsync` through ctypes.

ctypes gives the interpreter lock up for the call, so plain threads are enough. The 12.8 form of the
function (with `failIdx`) is asked for by version, which newer drivers still serve. Source order is
`STREAM`: with `ANY` the engine may read a source before earlier work of the stream has written it,
which garbles copies to the host (trap A3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from policy.errors import FaultError
from realrun.kvstore import Piece

CUDA_VERSION = 12080
SOURCE_IN_STREAM_ORDER = 1


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


def copy_batch(pieces: Sequence[Piece], stream: int, call: BatchCall | None = None) -> None:
    """Copy all `pieces` with one call on the stream with this handle (never the legacy one).

    Pieces are contiguous tensors; none may overlap another. Raises FaultError naming the piece the
    driver refused, if it refused one.
    """
    if not pieces:
        return
    count = len(pieces)
    targets = np.fromiter((piece.target.data_ptr() for piece in pieces), np.uint64, count)
    sources = np.fromiter((piece.source.data_ptr() for piece in pieces), np.uint64, count)
    sizes = np.fromiter((piece.source.nbytes for piece in pieces), np.uint64, count)
    attributes = Attributes(srcAccessOrder=SOURCE_IN_STREAM_ORDER)
    first = np.zeros(1, np.uint64)
    failed = ctypes.c_size_t(0)
    code = (call or driver_call())(
        targets.ctypes.data,
        sources.ctypes.data,
        sizes.ctypes.data,
        count,
        ctypes.byref(attributes),
        first.ctypes.data,
        1,
        ctypes.byref(failed),
        stream,
    )
    if code:
        where = f" at piece {failed.value} of {count}" if failed.value < count else ""
        raise FaultError(f"cuMemcpyBatchAsync: CUDA error {code}{where}")


@cache
def driver_call() -> BatchCall:
    """The driver's function. Raises FaultError for a driver older than CUDA 12.8, or none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise FaultError(f"cuMemcpyBatchAsync: no CUDA driver: {error}") from None
    pointer = ctypes.c_void_p()
    status = ctypes.c_int()
    code = driver.cuGetProcAddress_v2(
        b"cuMemcpyBatchAsync",
        ctypes.byref(pointer),
        CUDA_VERSION,
        ctypes.c_uint64(0),
        ctypes.byref(status),
    )
    if code or not pointer.value:
        raise FaultError(
            f"cuMemcpyBatchAsync: not in this driver (CUDA error {code}, status {status.value});"
            " it needs CUDA 12.8, or use submission: merged"
        )
    return PROTOTYPE(pointer.value)
