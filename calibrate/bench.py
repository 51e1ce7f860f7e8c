"""What is to be timed: a model with room for KV, and every point that its limits allow."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibrate.grid import (
    COPY_SYSTEMS,
    DIRECTIONS,
    Limits,
    copy_shapes,
    decode_points,
    mixed_points,
    overhead_points,
    prefill_points,
    prompts_points,
)
from calibrate.points import Point
from policy.systems import System, named_system
from realrun.kvstore import KVStore
from realrun.model import LoadedModel

BLOCK = 16
#: Copies of smaller blocks too: what a small piece costs is no line through larger ones.
SMALL_BLOCK = 4
SMALL_BLOCK_SYSTEMS = ("vllm-0.3.3-keep", "fastswitch")


@dataclass(frozen=True)
class Bench:
    """A model with room for KV, ready to be timed."""

    model: LoadedModel
    limits: Limits
    device: torch.device
    dtype: torch.dtype

    def blocks(self) -> int:
        """Blocks of either pool: for the largest step and the largest copy job."""
        ragged = self.limits.max_batch  # a context need not end with a block
        return max(self.limits.max_tokens // BLOCK + ragged + 1, 2 * self.limits.copy_blocks)

    def store(self, layout: str, block_size: int = BLOCK) -> KVStore:
        """Memory of one layout; for copies alone if its blocks are small."""
        blocks = self.blocks() if block_size == BLOCK else 2 * self.limits.copy_blocks
        return KVStore(
            self.model.config,
            layout=layout,
            device_blocks=blocks,
            host_blocks=blocks,
            block_size=block_size,
            dtype=self.dtype,
            device=self.device,
        )


def all_points(bench: Bench) -> list[Point]:
    """Everything that is timed, each once."""
    limits = bench.limits
    points = decode_points(limits) + prefill_points(limits) + prompts_points(limits)
    points += mixed_points(limits) + overhead_points(limits)
    points += [point for name in COPY_SYSTEMS for point in copy_points(bench, named_system(name))]
    if bench.device.type == "cuda":  # on a CPU a call returns when its bytes have moved
        told = [point.features for point in points if _is_told_by_calls(point)]
        points += [Point(kind, features) for kind in ("submit", "python") for features in told]
    points += interference_points(bench)
    return list(dict.fromkeys(points))


def _is_told_by_calls(point: Point) -> bool:
    """A copy job whose calls are made in the thread that would time them."""
    if point.kind != "copy" or point["duplex"]:
        return False
    return named_system(point["system"]).transport.dispatch == "main_thread"


def copy_points(bench: Bench, system: System) -> list[Point]:
    """Jobs of one system, each alone and while the other direction is busy, and some alone with
    small blocks."""
    pieces = bench.model.config.layers * 2 if system.transport.layout == "layer_major" else 1
    token_bytes = bench.model.config.token_elements * bench.dtype.itemsize
    sorts = [(BLOCK, 0), (BLOCK, 1)]
    if system.name in SMALL_BLOCK_SYSTEMS:
        sorts.append((SMALL_BLOCK, 0))
    found = []
    for blocks, runs in copy_shapes(bench.limits):
        calls = {"per_block": blocks * pieces, "merged": runs * pieces, "batched": 1}
        count = calls[system.transport.submission]
        for way in DIRECTIONS:
            for block_size, duplex in sorts:
                size = blocks * token_bytes * block_size
                features = (way, system.name, blocks, runs, count, size, duplex)
                found.append(Point("copy", features))
    return found


def interference_points(bench: Bench) -> list[Point]:
    """Decode steps with and without copies under way."""
    batch = max(1, bench.limits.max_batch // 2)
    context = min(max(16, bench.limits.max_context // 4), bench.limits.max_tokens // batch)
    return [
        Point("interference", (way, batch, batch * context, with_copy))
        for way in DIRECTIONS
        for with_copy in (0, 1)
    ]
