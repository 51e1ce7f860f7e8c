"""How a copy job becomes calls: the four ways of submitting (`System.submission`).

`per_block`: a call per block and piece, as vLLM 0.3.3. `merged`: a call per run and piece.
`batched`: one call per job. `gather`: pack the blocks of each tensor into one buffer on the side they
leave, move that with one call, and unpack it where they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from policy.plan import Copy, Direction
from policy.pools.runs import Run
from realrun.kvstore import KVStore, Piece
from realrun.runtime import Lane

#: Puts a job's copies on a lane; returns the number of copy calls.
Mover = Callable[[KVStore, Copy, Lane], int]


def per_block(store: KVStore, copy: Copy, lane: Lane) -> int:
    """A call per block and piece."""
    return _loop(store, copy, lane, _blocks(copy.runs))


def merged(store: KVStore, copy: Copy, lane: Lane) -> int:
    """A call per run and piece."""
    return _loop(store, copy, lane, iter(copy.runs))


def batched(store: KVStore, copy: Copy, lane: Lane) -> int:
    """One call."""
    lane.copy_batch(
        [piece for run in copy.runs for piece in store.pieces(run, copy.direction)],
    )
    return 1


def gather(store: KVStore, copy: Copy, lane: Lane) -> int:
    """Pack, one call per tensor, unpack. Buffers hold one tensor's share of the job at a time."""
    host = torch.tensor([h + i for _, h, n in copy.runs for i in range(n)])
    device = torch.tensor([d + i for d, _, n in copy.runs for i in range(n)])
    device = device.to(store.device.pieces[0].device)
    for on_device, on_host in zip(store.device.pieces, store.host.pieces, strict=True):
        in_between = lane.host_buffer(len(host), on_host)
        if copy.direction is Direction.TO_HOST:
            packed = lane.pack(on_device, device)
            lane.copy(Piece(in_between, packed))
            lane.mark().synchronize()  # the CPU may read it only when it has landed
            on_host.index_copy_(0, host, in_between)
        else:
            torch.index_select(on_host, 0, host, out=in_between)
            landed = torch.empty_like(in_between, device=on_device.device)
            lane.copy(Piece(landed, in_between))
            lane.unpack(on_device, device, landed)
    return len(store.device.pieces)


def _loop(store: KVStore, copy: Copy, lane: Lane, runs: Iterator[Run]) -> int:
    calls = 0
    for run in runs:
        for piece in store.pieces(run, copy.direction):
            lane.copy(piece)
            calls += 1
    return calls


def _blocks(runs: tuple[Run, ...]) -> Iterator[Run]:
    for device, host, length in runs:
        for i in range(length):
            yield (device + i, host + i, 1)


MOVERS: dict[str, Mover] = {
    "per_block": per_block,
    "merged": merged,
    "batched": batched,
    "gather": gather,
}
