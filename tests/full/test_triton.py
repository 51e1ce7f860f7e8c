"""The Triton kernels without a GPU: their numbers in the interpreter, their machine code from the compiler.

Run in processes of their own, since the interpreter is asked for before triton is imported.
"""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="the executor needs torch")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed; make test-full installs it", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton

from benchmarks.kernel_figures import CAPABILITIES, TYPES, compiled, figures, sources
from realrun import kernels

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ["tests/realrun/test_attention.py", "tests/realrun/test_ops.py"]


@pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 9),
    reason="the interpreter before 3.9 fails beside numpy 2.4",
)
def test_the_interpreter_computes_what_plain_torch_does() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "triton or kernels",
            *FILES,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 60
    assert "skipped" not in done.stdout


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("kind", list(TYPES))
@pytest.mark.parametrize("capability", list(CAPABILITIES))
def test_every_kernel_compiles_for_the_gpus_of_the_paper_and_after(
    capability: int, kind: str
) -> None:
    for name, one in sources(kind).items():
        built = compiled(one, capability)
        assert f"sm_{capability}" in built.asm["ptx"], name
        assert built.asm["cubin"][:4] == b"\x7fELF", name
        assert built.metadata.shared <= CAPABILITIES[capability][1], name
        found = figures(built, capability)
        assert found.stack == 0, name  # nothing spills
        if name.startswith("decode_partial"):
            # matrix units, where they are exact enough
            assert ("mma.sync" in built.asm["ptx"]) == (kind != "fp32")
            assert found.async_wait == 2  # both sides of the next tile may still be under way
            assert found.registers <= 100
            assert found.per_processor >= {80: 3, 86: 2, 90: 5, 100: 5}[capability]


def test_the_kernels_compiled_are_all_there_are() -> None:
    there = {name for name, one in vars(kernels).items() if isinstance(one, triton.JITFunction)}
    assert {name.split()[0] for name in sources("bf16")} == there
