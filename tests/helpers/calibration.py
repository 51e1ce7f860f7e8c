"""Points of a machine that is known: the times its profile says, with noise."""

from __future__ import annotations

import random
from typing import Any

from calibrate.grid import (
    COPY_SYSTEMS,
    DIRECTIONS,
    Limits,
    copy_shapes,
    decode_points,
    overhead_points,
    prefill_points,
    prompts_points,
)
from calibrate.points import Point, Points
from calibrate.profile import Profile, load
from policy.plan import Copy, Direction
from policy.systems import named_system
from sim.clock import Clock
from sim.costs import CopyCosts, step_costs
from sim.link import HostLink

LIMITS = Limits(max_batch=128, max_context=2048, max_tokens=65536, max_prefill=2048, copy_blocks=64)
BLOCK = 16
#: Engine time around a step that the points are made with, ns: in all, and per sequence.
OVERHEAD = (300_000, 2_000)


def truth(**values: float) -> Profile:
    """The machine the points are taken from. On it, calls cost more than moving a small piece."""
    changed = {
        "step.per_sequence_beyond": 20_000.0,
        "transfer.interference_to_device": 0.10,
        "transfer.interference_to_host": 0.04,
        "transfer.to_device_duplex": 40e9,
        "transfer.to_host_duplex": 25e9,
    }
    return load("h100-llama-3-8b").with_values({**changed, **values})


def header(profile: Profile) -> dict[str, Any]:
    return {
        "format": "fastswitch-points/1",
        "machine": "a machine that is known",
        "date": "2026-01-02",
        "model": profile.model.model_dump(),
        "device": "cuda",
        "dtype": "bfloat16",
        "pools": {"block_size": BLOCK, "device_blocks": 1234, "host_blocks": 4321},
        "provenance": {"driver": "1.2.3"},
        "seed": 7,
    }


def grid(profile: Profile) -> list[Point]:
    """What a calibration times."""
    found = decode_points(LIMITS) + prefill_points(LIMITS) + overhead_points(LIMITS)
    found += prompts_points(LIMITS)
    for name in COPY_SYSTEMS:
        pieces = (
            2 * profile.model.layers if named_system(name).transport.layout == "layer_major" else 1
        )
        for blocks, runs in copy_shapes(LIMITS):
            count = {"per_block": blocks * pieces, "merged": runs * pieces, "batched": 1}
            calls = count[named_system(name).transport.submission]
            size = blocks * profile.block_bytes(BLOCK)
            for way in DIRECTIONS:
                for duplex in (0, 1):
                    found.append(Point("copy", (way, name, blocks, runs, calls, size, duplex)))
    for way in DIRECTIONS:
        for batch in (16, 64):
            found += [Point("interference", (way, batch, batch * 512, beside)) for beside in (0, 1)]
    return list(dict.fromkeys(found))


def true_ns(profile: Profile, point: Point) -> int:
    """How long the simulated machine takes for a point."""
    costs = step_costs(profile)
    if point.kind == "decode":
        batch, kv_tokens = point["batch"], point["kv_tokens"]
        uneven = max(0, point["longest"] * batch - kv_tokens)
        return costs.decode_ns(batch, kv_tokens, uneven)
    if point.kind == "prefill":
        return costs.prefill_ns([(point["tokens"], point["past"])])
    if point.kind == "prompts":
        return costs.prefill_ns([(point["tokens"], point["past"])] * int(point["prompts"]))
    if point.kind == "overhead":
        return OVERHEAD[0] + OVERHEAD[1] * int(point["batch"])
    if point.kind == "interference":
        alone = costs.decode_ns(point["batch"], point["kv_tokens"])
        slower = CopyCosts(profile, named_system("fastswitch"), BLOCK).interference
        return alone + (alone * slower[Direction(point["way"])] * int(point["with_copy"]) >> 10)
    return job_ns(profile, point)


def job_ns(profile: Profile, point: Point) -> int:
    """A copy job on the simulated link, alone or while the other direction is always busy."""
    way = Direction(point["way"])
    costs = CopyCosts(profile, named_system(point["system"]), BLOCK)
    env = Clock()
    link = HostLink(env, costs, worker_threads=1)
    blocks, runs = point["blocks"], point["runs"]
    if point["duplex"]:
        other = Direction.TO_HOST if way is Direction.TO_DEVICE else Direction.TO_DEVICE
        link.submit(Copy(1, other, "beside", ((0, 0, 1 << 22),), 1 << 22), 0)
        env.run(until=10**9)
    begin = env.now
    lengths = [blocks // runs + (index < blocks % runs) for index in range(runs)]
    copied = tuple((0, 0, length) for length in lengths)
    job = link.submit(Copy(0, way, "job", copied, blocks), begin)
    env.run(until=job.done)
    return env.now - begin


def synthetic(
    profile: Profile, *, noise: float, repeats: int = 20, seed: int = 0, spread: float = 0.0
) -> Points:
    """Points of a machine: every point is off by a normal share `noise` of its time in all its
    repeats, and each repeat by a share `spread` more."""
    draw = random.Random(seed)
    points = Points(header(profile))
    for point in grid(profile):
        middle = true_ns(profile, point) * (1 + draw.gauss(0, noise))
        points.samples[point] = [
            max(1, round(middle * (1 + draw.gauss(0, spread)))) for _ in range(repeats)
        ]
    return points
