"""One calibration: which machine and model this is, what physics allows, then every point.

The limits of what is timed follow the device. What a step or copy may cost at best is worked out and
shown before anything is measured, so that an absurd figure is seen at once.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.bench import BLOCK, Bench, all_points
from calibrate.facts import cpu_facts, gpu_facts
from calibrate.grid import Limits
from calibrate.measure import REPEATS, measure
from calibrate.points import Points
from calibrate.profile import Model
from calibrate.timers import Timers
from realrun.model import LoadedModel, load_model
from realrun.serve import device_and_dtype, link_rates, room_for_kv

#: Contexts and batches within reach of minutes. A profile is valid inside its own.
CPU_LIMITS = Limits(max_batch=16, max_context=256, max_tokens=2048, max_prefill=96, copy_blocks=16)
CUDA_LIMITS = Limits(
    max_batch=64, max_context=4096, max_tokens=131_072, max_prefill=4096, copy_blocks=256
)
#: Seconds after which `fastswitch calibrate` begins no new round of samples.
BUDGET_S = {"cpu": 180.0, "cuda": 300.0}
#: Bytes read to find the device's memory rate, and rows of the product that finds its arithmetic's.
_READ_BYTES = 256 << 20
_ROWS = 1024


@dataclass(frozen=True)
class Target:
    """What is calibrated. `bench.model` is loaded."""

    bench: Bench
    header: dict[str, object]

    def num_samples(self, repeats: int) -> int:
        """How many there will be in all."""
        return repeats * num_points(self.bench)


def num_points(bench: Bench) -> int:
    """How many there are to time."""
    return len(all_points(bench))


def prepare(
    spec: str, device_name: str, dtype_name: str | None = None, limits: Limits | None = None
) -> Target:
    """Load the model. Raises ConfigError, InputError."""
    device, dtype = device_and_dtype(device_name, dtype_name)
    model = load_model(spec, dtype, device)
    if limits is None:
        limits = CUDA_LIMITS if device.type == "cuda" else CPU_LIMITS
    return prepare_with(model, limits, device, dtype, spec)


def prepare_with(
    model: LoadedModel, limits: Limits, device: torch.device, dtype: torch.dtype, spec: str
) -> Target:
    """For a model that is there already; `spec`: what it is called."""
    longest = min(limits.max_context, model.config.max_model_len)
    limits = limits._replace(max_context=longest, max_prefill=min(limits.max_prefill, longest))
    bench = Bench(model, limits, device, dtype)
    return Target(bench, _header(bench, spec))


def run(
    target: Target,
    points_path: Path,
    *,
    repeats: int = REPEATS,
    budget_s: float | None = None,
    progress: Callable[[], None] | None = None,
    timers: Timers | None = None,
) -> Points:
    """Time everything, going on where an earlier run with the same file stopped. `timers`: warm ones,
    which stay open."""
    return measure(
        target.bench,
        points_path,
        target.header,
        repeats=repeats,
        budget_s=budget_s,
        progress=progress,
        timers=timers,
    )


def _header(bench: Bench, spec: str) -> dict[str, object]:
    config, device = bench.model.config, bench.device
    shape = Model(
        name=config.name,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype_bytes=bench.dtype.itemsize,
        weight_bytes=bench.model.decoder.weights.num_bytes,
        max_model_len=config.max_model_len,
    )
    block_bytes = config.token_elements * bench.dtype.itemsize * BLOCK
    blocks = bench.blocks()
    return {
        "machine": _machine(device),
        "date": time.strftime("%Y-%m-%d"),
        "model": shape.model_dump(mode="json"),
        "device": device.type,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "pools": {
            "block_size": BLOCK,
            "device_blocks": room_for_kv(device, block_bytes) if device.type == "cuda" else blocks,
            "host_blocks": blocks,
        },
        "provenance": {
            "spec": spec,
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "python": platform.python_version(),
            "threads": str(torch.get_num_threads()),
            **(gpu_facts(device.index or 0) if device.type == "cuda" else {}),
            **cpu_facts(),
        },
    }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


# ---------------------------------------------------------------------- what physics allows


def roofline(target: Target) -> list[str]:
    """Lines of text: rates of this machine, and the least that steps and copies can take."""
    bench = target.bench
    limits, device = bench.limits, bench.device
    weights = bench.model.decoder.weights.num_bytes
    per_token = bench.model.config.token_elements * bench.dtype.itemsize
    reads, flops, link = _read_rate(device), _flop_rate(device, bench.dtype), link_rates(device)
    parameters = weights // bench.dtype.itemsize
    lines = [
        f"memory {reads / 1e9:.3g} GB/s, arithmetic {flops / 1e9:.4g} GFLOP/s,"
        f" link {link['h2d'] / 1e9:.3g} GB/s in and {link['d2h'] / 1e9:.3g} out",
        f"weights {weights / 1e6:.4g} MB, KV {per_token / 1e3:.4g} KB a token",
    ]
    for batch, context in ((1, 16), (limits.max_batch, limits.max_tokens // limits.max_batch)):
        moved = weights + batch * context * per_token
        work = 2 * parameters * batch
        lines.append(
            f"a decode step of {batch} with {batch * context} tokens of KV: at least"
            f" {moved / reads * 1e3:.3g} ms for {moved / 1e6:.4g} MB,"
            f" {work / flops * 1e3:.3g} ms for {work / 1e9:.3g} GFLOP"
        )
    work = 2 * parameters * limits.max_prefill
    lines.append(
        f"a prompt of {limits.max_prefill}: at least {work / flops * 1e3:.3g} ms for"
        f" {work / 1e9:.4g} GFLOP"
    )
    size = per_token * BLOCK
    lines.append(f"a block of {size / 1e3:.4g} KB: at least {size / link['h2d'] * 1e6:.3g} us in")
    return lines


def _read_rate(device: torch.device) -> float:
    """Bytes per second that a sum over much memory reads, best of five."""
    held = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / min(_seconds(held.sum, device) for _ in range(5))


def _flop_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square product, best of five."""
    square = torch.ones(_ROWS, _ROWS, dtype=dtype, device=device)
    return 2 * _ROWS**3 / min(_seconds(lambda: square @ square, device) for _ in range(5))


def _seconds(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
