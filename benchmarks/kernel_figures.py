"""What the compiler makes of the Triton kernels, at the sizes of Llama-3-8B: no GPU is needed.

    python -m benchmarks.kernel_figures [--capability 80 86 90 100] [--type bf16 fp16 fp32]

For each kernel: registers of a thread, bytes of its stack (where spilled registers go), bytes of shared
memory, how many programs a multiprocessor holds at once, and for decode attention `async_wait`: how many
groups of loads may still be under way when a tile is computed, 0 without software pipelining. All of it
is read from the compiled code.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from realrun import kernels, splitkv
from realrun.device_ops import MAX_SPLITS

#: Compute capability -> (bytes of shared memory of a multiprocessor, and of a program; threads;
#: programs), from the table of technical specifications of CUDA's programming guide.
CAPABILITIES = {
    80: (164 << 10, 163 << 10, 2048, 32),
    86: (100 << 10, 99 << 10, 1536, 16),
    90: (228 << 10, 227 << 10, 2048, 32),
    100: (228 << 10, 227 << 10, 2048, 32),
}
_REGISTERS = 65536
#: Shared memory that the system keeps of each program.
_RESERVED = 1024
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: Arguments that triton is told not to look at.
_LOOSE = {"table_row", "splits", "stored", "size"}


class Source(NamedTuple):
    """A kernel with its sizes and how it is launched."""

    source: ASTSource
    options: dict[str, Any]


def _source(
    kernel: Any, kind: str, pointers: dict[str, str], sizes: dict[str, Any], **options: Any
) -> Source:
    """As for a real launch: pointers and strides are multiples of 16."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = "*" + pointers.get(name, kind)
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
        if name not in _LOOSE | {"scale", "eps"}:
            attributes[index,] = [["tt.divisibility", 16]]
    return Source(ASTSource(kernel, signature, sizes, attributes), {**splitkv.OPTIONS, **options})


def sources(kind: str) -> dict[str, Source]:
    """Every kernel."""
    shape = splitkv.shape_for(32, 8, 128, TYPES[kind])
    wide = dict.fromkeys(("acc_ptr", "max_ptr", "sum_ptr"), "fp32")
    ids = dict.fromkeys(("table_ptr", "lengths_ptr", "blocks_ptr", "offsets_ptr"), "i64")
    partial = {
        "GROUP": shape.group,
        "PADDED_GROUP": shape.padded_group,
        "DIM": shape.dim,
        "PADDED_DIM": shape.padded_dim,
        "BLOCK_SIZE": 16,
        "TILE": shape.tile,
        "WIDE": shape.wide,
    }
    heads = {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "PADDED_HALF": 64, "NORMS": True}
    stages = {"num_stages": splitkv.STAGES}
    found = {
        f"decode_partial{suffix}": _source(
            kernels.decode_partial, kind, wide | ids, {**partial, "WHOLE": whole}, **stages
        )
        for suffix, whole in (("", False), (" whole", True))
    }
    combine = {"PADDED_SPLITS": MAX_SPLITS, "DIM": 128, "PADDED_DIM": 128}
    norm = {"SIZE": 4096, "PADDED_SIZE": 4096, "ADDS": True}
    return {
        **found,
        "decode_combine": _source(kernels.decode_combine, kind, wide, combine),
        "turn_store": _source(kernels.turn_store, kind, ids, heads, num_warps=1),
        "add_norm": _source(kernels.add_norm, kind, {}, norm),
        "gate": _source(kernels.gate, kind, {}, {"SIZE": 14336, "TILE": 1024}),
        "move": _source(kernels.move, "i64", {}, {"TILE": 1024}),
    }


class Figures(NamedTuple):
    """Of one kernel on one kind of GPU. `per_processor`: programs at once; `async_wait`: None where
    nothing is loaded asynchronously."""

    registers: int
    stack: int
    shared: int
    per_processor: int
    async_wait: int | None


def compiled(one: Source, capability: int) -> Any:
    """The kernel as triton has it, with its code in `asm`."""
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(one.source, target=target, options=one.options)


def figures(built: Any, capability: int) -> Figures:
    """What the compiled code says."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    shared, threads = built.metadata.shared, 32 * built.metadata.num_warps
    memory, _, most_threads, most = CAPABILITIES[capability]
    per_warp = -(-usage["REG"] * 32 // 256) * 256
    by_registers = _REGISTERS // (per_warp * built.metadata.num_warps)
    by_memory = memory // (shared + _RESERVED)
    waits = re.findall(r"async_wait[^\n]*?num = (\d+)", built.asm["ttgir"])
    loop = _loop(built.asm["ttgir"])
    inside = re.findall(r"async_wait[^\n]*?num = (\d+)", loop)
    return Figures(
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        shared,
        min(by_registers, by_memory, most_threads // threads, most),
        max(map(int, inside)) if inside else 0 if waits else None,
    )


def _loop(text: str) -> str:
    """The body of the first loop in triton's own code."""
    begin = text.find("scf.for")
    return "" if begin < 0 else text[begin : text.find("scf.yield", begin)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES))
    parser.add_argument("--type", nargs="+", default=list(TYPES))
    chosen = parser.parse_args()
    print(f"triton {triton.__version__}, sizes of Llama-3-8B")
    heads = ("kernel", "type", "sm", "registers", "stack", "shared", "at once", "async_wait")
    print("{:<22} {:<5} {:>4} {:>9} {:>6} {:>7} {:>8} {:>10}".format(*heads))
    found: dict[str, list[int | None]] = {}
    for kind in chosen.type:
        for name, one in sources(kind).items():
            for capability in chosen.capability:
                row = figures(compiled(one, capability), capability)
                wait = "-" if row.async_wait is None else str(row.async_wait)
                print(
                    f"{name:<22} {kind:<5} {capability:>4} {row.registers:>9} {row.stack:>6}"
                    f" {row.shared:>7} {row.per_processor:>8} {wait:>10}",
                    flush=True,
                )
                found[f"{name} {kind} {capability}"] = list(row)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
