"""Tries the batched copy call once, in a process of its own with a time limit, before a run relies on it.

    python -m realrun.batchtry DEVICE

The child copies MAX_DESCRIPTORS pieces of page-locked memory to the device and back and compares them.
A driver that hangs in the call takes the child along and not the run.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from policy.errors import FaultError
from realrun.batchcopy import MAX_DESCRIPTORS, copy_batch
from realrun.driver import driver
from realrun.pieces import Pieces

_PIECE = 512
_WAIT_S = 60.0


@cache
def why_not(device: int, command: tuple[str, ...] = (), wait_s: float = _WAIT_S) -> str | None:
    """What keeps the batched call from being used on this CUDA device, in words; None if it works.
    `command`: what to run in place of this module."""
    root = Path(__file__).resolve().parent.parent
    arguments = list(command) or [sys.executable, "-m", "realrun.batchtry", str(device)]
    try:
        child = subprocess.run(
            arguments, cwd=root, capture_output=True, text=True, timeout=wait_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"cuMemcpyBatchAsync: a try in a process of its own hung for {wait_s:g} s"
    except OSError as error:
        return f"cuMemcpyBatchAsync: could not be tried in a process of its own: {error}"
    if child.returncode == 0:
        return None
    said = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return f"cuMemcpyBatchAsync: tried in a process of its own: {said[:200]}"


def main(device: int) -> int:
    """Try it; exit code 0 if what came back is what went."""
    found = driver()
    context, memory = ctypes.c_void_p(), ctypes.c_uint64()
    total = MAX_DESCRIPTORS * _PIECE
    host = [np.zeros(total + 4096, np.uint8) for _ in range(2)]
    begin = [-part.ctypes.data % 4096 for part in host]
    sent, back = (part[at : at + total] for part, at in zip(host, begin, strict=True))
    sent[:] = np.random.default_rng(0).integers(0, 256, total, np.uint8)
    for name, arguments in (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), ctypes.c_int(device))),
        ("cuCtxSetCurrent", (context,)),
        ("cuMemAlloc", (ctypes.byref(memory), ctypes.c_size_t(total))),
    ):
        _must(name, ctypes.CFUNCTYPE(ctypes.c_int)(found.address(name))(*arguments))
    for part in (sent, back):
        _must("cuMemHostRegister", found.register(part.ctypes.data, total))
    stream = found.stream()
    at = np.arange(MAX_DESCRIPTORS, dtype=np.int64) * _PIECE
    sizes = np.full(MAX_DESCRIPTORS, _PIECE, np.int64)
    copy_batch(Pieces(memory.value + at, sent.ctypes.data + at, sizes), stream)
    copy_batch(Pieces(back.ctypes.data + at, memory.value + at, sizes), stream)
    wait = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    _must("cuStreamSynchronize", wait(found.address("cuStreamSynchronize"))(stream))
    if not np.array_equal(sent, back):
        raise FaultError("other bytes came back than were sent")
    return 0


def _must(name: str, code: Any) -> None:
    if code:
        raise FaultError(f"{name}: CUDA error {code}")


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1])))
    except FaultError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
