"""Runs of blocks that one copy can move: contiguous on both sides.

A run is `(device, host, length)`: block ids `device .. device+length-1` pair with
`host .. host+length-1`. A LIFO free list hands out descending ids; a descending run is the same
bytes, so it is returned ascending, by its lowest ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, repeat
from operator import sub

from policy.pools.allocation import Allocation

Run = tuple[int, int, int]


def contiguous_runs(device: Sequence[int], host: Sequence[int]) -> list[Run]:
    """Runs of two block tables of equal length, in table order.

    Consecutive entries belong to one run while both ids step by +1, or both by -1. An aged page
    list has hardly any such pair, so those are sought first and everything else is single blocks.
    """
    joints = [
        i
        for i, step in enumerate(map(sub, islice(device, 1, None), device))
        if (step == 1 or step == -1) and host[i + 1] - host[i] == step  # noqa: PLR1714
    ]
    singles = list(zip(device, host, repeat(1)))
    if not joints:
        return singles
    runs: list[Run] = []
    begin = 0
    for index, first in enumerate(joints):
        if first < begin:  # its first block belongs to the run before
            continue
        step = device[first + 1] - device[first]
        last = first
        for joint in islice(joints, index, None):  # one run: neighbouring joints, one direction
            if joint != last or device[joint + 1] - device[joint] != step:
                break
            last += 1
        low = first if step == 1 else last
        runs += singles[begin:first]
        runs.append((device[low], host[low], last - first + 1))
        begin = last + 1
    return runs + singles[begin:]


def matching_runs(
    device: Allocation, device_from: int, host: Allocation, host_from: int, count: int
) -> list[Run]:
    """Runs of `count` blocks from the given logical index of each side.

    Uses the run lists where both pools keep them, since that costs a step per run and not one per
    block. The answer equals `contiguous_runs` of the two tables (property test), except that single
    blocks that descend on both sides stay apart: a pool of runs hands them out ascending.
    """
    if device.runs is None or host.runs is None:
        return contiguous_runs(
            device.blocks[device_from : device_from + count],
            host.blocks[host_from : host_from + count],
        )
    runs: list[Run] = []
    left = _pieces(device.runs, device_from)
    right = _pieces(host.runs, host_from)
    d_start, d_left = left.pop()
    h_start, h_left = right.pop()
    while True:
        length = min(d_left, h_left, count)
        runs.append((d_start, h_start, length))
        count -= length
        if not count:
            return runs
        d_start, d_left = (d_start + length, d_left - length) if d_left > length else left.pop()
        h_start, h_left = (h_start + length, h_left - length) if h_left > length else right.pop()


def _pieces(runs: list[list[int]], skip: int) -> list[tuple[int, int]]:
    """The (start, length) pieces after `skip` blocks, last piece first."""
    pieces: list[tuple[int, int]] = []
    for start, length in runs:
        if skip >= length:
            skip -= length
        else:
            pieces.append((start + skip, length - skip))
            skip = 0
    pieces.reverse()
    return pieces
