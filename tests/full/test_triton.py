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
from typing import Any

import pytest

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="the executor needs torch")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed; make test-full installs it", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from realrun import kernels, splitkv

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ["tests/realrun/test_attention.py", "tests/realrun/test_ops.py"]

#: Compute capability -> bytes of shared memory a program may have (CUDA's programming guide, table of
#: technical specifications).
ARCHITECTURES = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
#: Llama-3-8B: 32 query heads, 8 key heads, head size 128, hidden 4096, inner 14336.
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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


def source(kernel: Any, kind: str, pointers: dict[str, str], sizes: dict[str, Any]) -> ASTSource:
    """What triton compiles for a real launch: pointers and strides are multiples of 16 but for those
    that it is told not to look at."""
    signature = {}
    attributes = {}
    loose = {"table_row", "splits"}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + pointers.get(name, kind)
            attributes[index,] = [["tt.divisibility", 16]]
        elif name in ("scale", "eps"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if name not in loose:
                attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, sizes, attributes)


def sources(kind: str) -> dict[str, ASTSource]:
    """Every kernel at the sizes of Llama-3-8B."""
    shape = splitkv.shape_for(32, 8, 128, TYPES[kind])
    wide = dict.fromkeys(("acc_ptr", "max_ptr", "sum_ptr"), "fp32")
    ids = dict.fromkeys(("table_ptr", "lengths_ptr", "blocks_ptr", "offsets_ptr"), "i64")
    return {
        "decode_partial": source(
            kernels.decode_partial,
            kind,
            wide | ids,
            {
                "GROUP": shape.group,
                "PADDED_GROUP": shape.padded_group,
                "DIM": shape.dim,
                "PADDED_DIM": shape.padded_dim,
                "BLOCK_SIZE": 16,
                "TILE": shape.tile,
                "WIDE": shape.wide,
            },
        ),
        "decode_combine": source(
            kernels.decode_combine,
            kind,
            wide,
            {"PADDED_SPLITS": 16, "DIM": 128, "PADDED_DIM": 128},
        ),
        "store_kv": source(
            kernels.store_kv, kind, ids, {"SIZE": 1024, "PADDED_SIZE": 1024, "DIM": 128}
        ),
        "add_norm": source(
            kernels.add_norm, kind, {}, {"SIZE": 4096, "PADDED_SIZE": 4096, "ADDS": True}
        ),
        "turn": source(kernels.turn, kind, {}, {"DIM": 128, "PADDED_HALF": 64, "NORMS": True}),
        "gate": source(kernels.gate, kind, {}, {"SIZE": 14336, "TILE": 1024}),
    }


@pytest.mark.parametrize("kind", list(TYPES))
@pytest.mark.parametrize("capability", list(ARCHITECTURES))
def test_every_kernel_compiles_for_the_gpus_of_the_paper_and_after(
    capability: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    built = {
        name: triton.compile(
            one, target=GPUTarget("cuda", capability, 32), options=dict(splitkv.OPTIONS)
        )
        for name, one in sources(kind).items()
    }
    for name, one in built.items():
        assert f"sm_{capability}" in one.asm["ptx"], name
        assert one.asm["cubin"][:4] == b"\x7fELF", name
        assert one.metadata.shared <= ARCHITECTURES[capability], name
    attention = built["decode_partial"].asm["ptx"]
    assert ("mma.sync" in attention) == (
        kind != "fp32"
    )  # matrix units, where they are exact enough
    assert "cp.async" in attention  # keys of the next tile while this one is computed


def test_the_kernels_compiled_are_all_there_are() -> None:
    there = {name for name, one in vars(kernels).items() if isinstance(one, triton.JITFunction)}
    assert set(sources("bf16")) == there
