"""The CUDA driver through ctypes: what torch has no call for, or only one that leaves errors behind.

Functions are asked for by version with `cuGetProcAddress`, so that newer drivers serve the same forms.
A driver call's error is its return code alone; a failed call of the CUDA runtime would also leave its
error for whoever asks next. ctypes gives the interpreter lock up for every call.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from policy.errors import FaultError

LIBRARY = "libcuda.so.1"
_VERSION = 12000
#: `cuMemcpyBatchAsync` with `failIdx`, which newer drivers still serve.
BATCH_VERSION = 12080
_NON_BLOCKING = 1

#: `cuMemcpyAsync(target, source, bytes, stream)`: any two addresses, host memory page-locked or not.
COPY = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p
)


class Driver:
    """The functions used here. Those that return a number return the driver's code, 0 for success."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def address(self, name: str, version: int = _VERSION) -> int:
        """Where a function of the driver is. Raises FaultError if this driver has none of that form."""
        pointer, status = ctypes.c_void_p(), ctypes.c_int()
        code = self._library.cuGetProcAddress_v2(
            name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(0), ctypes.byref(status)
        )
        if code or not pointer.value:
            raise FaultError(
                f"{name}: not in this driver (CUDA error {code}, status {status.value}); it needs"
                f" CUDA {version // 1000}.{version % 1000 // 10}"
            )
        return pointer.value

    def register(self, address: int, num_bytes: int) -> int:
        """Page-lock host memory."""
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
        return int(call(self.address("cuMemHostRegister"))(address, num_bytes, 0))

    def unregister(self, address: int) -> int:
        """Give it back."""
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        return int(call(self.address("cuMemHostUnregister"))(address))

    def context(self) -> int:
        """The context that is current in this thread. Raises FaultError if none is."""
        found = ctypes.c_void_p()
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
        code = call(self.address("cuCtxGetCurrent"))(ctypes.byref(found))
        if code or not found.value:
            raise FaultError(f"cuCtxGetCurrent: no context, CUDA error {code}")
        return found.value

    def binder(self) -> Any:
        """`cuCtxSetCurrent(context)`: makes a context current in the calling thread, which calls of the
        driver need there; a new thread has none."""
        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self.address("cuCtxSetCurrent"))

    def stream(self) -> int:
        """The handle of a new stream of the current context, which does not wait for the default one.
        Raises FaultError."""
        handle = ctypes.c_void_p()
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint)
        code = call(self.address("cuStreamCreate"))(ctypes.byref(handle), _NON_BLOCKING)
        if code or not handle.value:
            raise FaultError(f"cuStreamCreate: CUDA error {code}")
        return handle.value

    def copy_call(self) -> Any:
        """`cuMemcpyAsync`, as COPY."""
        return COPY(self.address("cuMemcpyAsync"))


@cache
def driver() -> Driver:
    """The driver of this machine. Raises FaultError if there is none."""
    try:
        return Driver(ctypes.CDLL(LIBRARY))
    except OSError as error:
        raise FaultError(f"no CUDA driver: {error}") from None
