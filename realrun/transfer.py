"""How a copy job becomes calls: the four ways of submitting (`Transport.submission`).

`per_block`: a call per block and piece, as vLLM 0.3.3. `merged`: a call per run and piece.
`batched`: one call per job. `gather`: pack the blocks of each tensor into one buffer on the side they
leave, move that with one call, and unpack it where they arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from policy.plan import Copy, Direction
from realrun.kvstore import KVStore
from realrun.runtime import Lane


class Put(NamedTuple):
    """A job on a lane: how many copy calls that took, and the time inside them, which is the driver's
    and not Python's, in nanoseconds; None where the two were not told apart."""

    calls: int
    driver_ns: int | None


#: Puts a job's copies on a lane.
Mover = Callable[[KVStore, Copy, Lane], Put]


def per_block(store: KVStore, copy: Copy, lane: Lane) -> Put:
    """A call per block and piece."""
    pieces = store.pieces(copy.runs, copy.direction, by_block=True)
    begin = time.perf_counter_ns()
    lane.copy_each(pieces)
    return Put(len(pieces.sizes), time.perf_counter_ns() - begin)


def merged(store: KVStore, copy: Copy, lane: Lane) -> Put:
    """A call per run and piece."""
    pieces = store.pieces(copy.runs, copy.direction)
    begin = time.perf_counter_ns()
    lane.copy_each(pieces)
    return Put(len(pieces.sizes), time.perf_counter_ns() - begin)


def batched(store: KVStore, copy: Copy, lane: Lane) -> Put:
    """One call, or a few where one may not be given so many pieces."""
    pieces = store.pieces(copy.runs, copy.direction)
    begin = time.perf_counter_ns()
    calls = lane.copy_batch(pieces)
    return Put(calls, time.perf_counter_ns() - begin)


def gather(store: KVStore, copy: Copy, lane: Lane) -> Put:
    """Pack, one call per tensor, unpack. Buffers hold one tensor's share of the job at a time."""
    host = torch.tensor([h + i for _, h, n in copy.runs for i in range(n)])
    device = torch.tensor([d + i for d, _, n in copy.runs for i in range(n)])
    device = device.to(store.device.pieces[0].device)
    for on_device, on_host in zip(store.device.pieces, store.host.pieces, strict=True):
        in_between = lane.host_buffer(len(host), on_host)
        if copy.direction is Direction.TO_HOST:
            packed = lane.pack(on_device, device)
            lane.copy(in_between, packed)
            lane.mark().synchronize()  # the CPU may read it only when it has landed
            on_host.index_copy_(0, host, in_between)
        else:
            torch.index_select(on_host, 0, host, out=in_between)
            landed = torch.empty_like(in_between, device=on_device.device)
            lane.copy(landed, in_between)
            lane.unpack(on_device, device, landed)
    return Put(len(store.device.pieces), None)


MOVERS: dict[str, Mover] = {
    "per_block": per_block,
    "merged": merged,
    "batched": batched,
    "gather": gather,
}
