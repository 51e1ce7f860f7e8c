"""A call for each piece of a copy job, in a loop that holds no interpreter lock.

The loop is a dozen lines of C, compiled the first time they are needed, as vLLM 0.3.3 submitted from a
loop of C++: a thread in it leaves the interpreter to the engine for the whole job, and a call costs what
the driver takes. Without a compiler the loop is Python, and `is_native` says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from policy.errors import FaultError
from realrun.pieces import Pieces

_SOURCE = """
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef int (*copy_call)(uint64_t, uint64_t, size_t, void *);
int copy_each(copy_call call, const uint64_t *target, const uint64_t *source, const uint64_t *size,
              size_t count, void *stream, size_t *made) {
    int code = 0;
    for (*made = 0; *made < count && !code; *made += !code)
        code = call(target[*made], source[*made], size[*made], stream);
    return code;
}
int copy_now(uint64_t target, uint64_t source, size_t size, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)target, (const void *)(uintptr_t)source, size);
    return 0;
}
"""
_WAIT_S = 60


def copy_each(pieces: Pieces, stream: int, call: Any = None) -> None:
    """One `call` (as `realrun.driver.COPY`) for each piece, in order; without one, `memcpy`.

    Raises FaultError naming the piece that was refused; those before it are under way.
    """
    library = _library()
    if library is None:
        code, made = _in_python(pieces, stream, call)
    else:
        counted = ctypes.c_size_t(0)
        code = library.copy_each(
            ctypes.cast(library.copy_now if call is None else call, ctypes.c_void_p),
            *(ctypes.c_void_p(part.ctypes.data) for part in pieces),
            ctypes.c_size_t(len(pieces.sizes)),
            ctypes.c_void_p(stream),
            ctypes.byref(counted),
        )
        made = counted.value
    if code:
        raise FaultError(f"cuMemcpyAsync: CUDA error {code} at piece {made} of {len(pieces.sizes)}")


def _in_python(pieces: Pieces, stream: int, call: Any) -> tuple[int, int]:
    made = 0
    for target, source, size in zip(*(part.tolist() for part in pieces), strict=True):
        if call is None:
            ctypes.memmove(target, source, size)
        elif code := call(target, source, size, stream):
            return code, made
        made += 1
    return 0, made


def is_native() -> bool:
    """Whether the loop is compiled here."""
    return _library() is not None


@cache
def _library() -> Any:
    """The compiled loop; None where there is no compiler or it fails."""
    name = f"copy-{hashlib.sha256(_SOURCE.encode()).hexdigest()[:16]}.so"
    for folder in _folders():
        try:
            if not (folder / name).exists():
                _compile(folder, name)
            return ctypes.CDLL(str(folder / name))
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _folders() -> list[Path]:
    """Where the compiled loop is kept; a folder of this process where that cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(home) / "fastswitch", Path(tempfile.gettempdir()) / f"fastswitch-{os.getpid()}"]


def _compile(folder: Path, name: str) -> None:
    """Compile into `folder`, whole or not at all. Raises OSError or SubprocessError."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    found = shutil.which(compiler.split()[0]) or shutil.which("cc")
    if found is None:
        raise OSError("no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source = Path(work) / "copy.c"
        source.write_text(_SOURCE, encoding="utf-8")
        subprocess.run(
            [found, "-O2", "-shared", "-fPIC", "-o", str(source.with_suffix(".so")), str(source)],
            check=True,
            capture_output=True,
            timeout=_WAIT_S,
        )
        source.with_suffix(".so").replace(folder / name)
