"""How fast a machine copies, swaps, decodes and prefills, beside what it can do at best."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_bench import Bench
from calibrate import overhead
from calibrate.timers import drain
from policy.errors import FaultError
from policy.plan import Copy, Direction
from policy.pools.runs import Run
from realrun.config import ModelConfig
from realrun.kvstore import LAYOUTS
from realrun.swap import SwapManager

Values = dict[str, Any]
#: How a job's blocks lie: single ones anywhere, runs of neighbours, one run.
PATTERNS = {"scattered": 1, "runs": 16, "whole": 64}
#: (submission, threads a direction).
WAYS = (("per_block", 0), ("per_block", 4), ("merged", 0), ("merged", 4), ("batched", 0), ("gather", 0))  # fmt: skip
REPEATS = 4


# ---------------------------------------------------------------------- plain copies


def copy_rate(bench: Bench) -> Values:
    """A copy within the device: bytes read plus bytes written."""
    source = torch.randint(0, 256, (4 * bench.sizes.copy_bytes,), dtype=torch.uint8)
    source = source.to(bench.device)
    target = torch.empty_like(source)
    return {"bytes_per_s": 2 * source.nbytes / bench.median(lambda: target.copy_(source))}


def pinned_rates(bench: Bench) -> Values:
    """Page-locked copies in one piece, each way alone and both at once."""
    size = bench.sizes.copy_bytes
    hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=bench.on_gpu) for _ in range(2)]
    there = [torch.ones(size, dtype=torch.uint8, device=bench.device) for _ in range(2)]
    lanes = [bench.runtime.lane() for _ in range(2)]

    def down() -> None:
        with lanes[0].on():
            lanes[0].copy(hosts[0], there[0])

    def up() -> None:
        with lanes[1].on():
            lanes[1].copy(there[1], hosts[1])

    def both() -> None:
        down()
        up()

    return {
        "d2h": size / bench.median(down),
        "h2d": size / bench.median(up),
        "both": 2 * size / bench.median(both),
    }


# ---------------------------------------------------------------------- swaps


def job_runs(pattern: str, blocks: int, pools: tuple[int, int], seed: int) -> list[Run]:
    """Runs of a job, of which no two share a block on either side. `pools`: blocks of the two sides."""
    draw = random.Random(seed)
    length = min(blocks, PATTERNS[pattern])
    sides = [draw.sample(range(pool // length), blocks // length) for pool in pools]
    return [(d * length, h * length, length) for d, h in zip(*sides, strict=True)]


def swap_rates(bench: Bench, layout: str, submission: str, threads: int) -> Values:
    """Jobs through a swap manager of its own, from the first call to the last byte seen: one way, the other,
    and both at once, for each pattern. Two jobs of a direction keep its threads busy."""
    store, sizes = bench.store(layout), bench.sizes
    swap = SwapManager(
        store, bench.runtime, submission=submission, threads=threads, clock=time.perf_counter_ns
    )
    if swap.fallback is not None:
        swap.close()
        raise FaultError(swap.fallback)
    values: Values = {}
    half = (store.device.num_blocks // 2, store.host.num_blocks // 2)
    size = 2 * sizes.job * store.device.block_bytes
    try:
        for pattern in PATTERNS:
            for name, ways in (("d2h", 0), ("h2d", 1), ("both", None)):
                chosen = [list(Direction)[ways]] if ways is not None else list(Direction)
                spent = [
                    _swap(swap, pattern, chosen, half, sizes.job, seed)
                    for seed in range(REPEATS + 1)
                ]
                median = statistics.median(spent[1:])
                values[f"{pattern} {name}"] = size * len(chosen) / median
    finally:
        swap.close()
    return values


def _swap(
    swap: SwapManager,
    pattern: str,
    ways: list[Direction],
    half: tuple[int, int],
    blocks: int,
    seed: int,
) -> float:
    copies: list[Copy] = []
    for at, way in enumerate(ways):
        runs = job_runs(pattern, 2 * blocks, half, seed)
        shift = [(d + at * half[0], h + at * half[1], n) for d, h, n in runs]
        middle = len(shift) // 2 or 1
        for part in (shift[:middle], shift[middle:]):
            if part:
                count = sum(n for _, _, n in part)
                copies.append(Copy(len(copies) + 1, way, "r", tuple(part), count))
    swap.set_barrier()
    begin = time.perf_counter()
    for copy in copies:
        swap.submit(copy)
    drain(swap)
    return time.perf_counter() - begin


# ---------------------------------------------------------------------- steps


def step_bytes(config: ModelConfig, batch: int, context: float, itemsize: int) -> float:
    """Bytes that a decode step must move: every weight once, but of the embedding the rows of the
    batch; the KV of `context` tokens a request, the new one included, of which that one is written
    first."""
    layer = (
        (2 * config.q_size + 2 * config.kv_size) * config.hidden
        + 3 * config.intermediate * config.hidden
        + 2 * config.hidden
    )
    if config.qkv_bias:
        layer += config.q_size + 2 * config.kv_size
    if config.qk_norm:
        layer += (config.heads + config.kv_heads) * config.head_dim
    weights = config.layers * layer + config.hidden + config.vocab * config.hidden
    kv = config.token_elements * batch * (context + 1)
    return (weights + batch * config.hidden + kv) * itemsize


def decode_rate(bench: Bench, layout: str, batch: int) -> Values:
    """Steps behind one another on the device, and steps whose tokens are read before the next."""
    sizes, runner = bench.sizes, bench.runner(layout)
    start = bench.decoding(batch, sizes.context - sizes.steps)
    room = bench.decoding(batch, sizes.context)  # blocks for the steps to come
    start = [one._replace(table=two.table) for one, two in zip(start, room, strict=True)]
    graph = None if runner.graphs is None else runner.graphs.graph_for(batch, sizes.context)

    def read() -> None:
        for step in range(sizes.steps):
            runner.greedy_step([one._replace(past=one.past + step) for one in start])

    def ahead() -> None:
        assert graph is not None
        graph.start(start)
        for _ in range(sizes.steps - 1):
            graph.again()
        graph.tokens()

    with torch.inference_mode():
        for piece in bench.store(layout).device.pieces:
            piece.normal_()  # zeros are faster than numbers
        seconds = {"step_ms_read": bench.median(read) / sizes.steps}
        if graph is not None:
            seconds["step_ms"] = bench.median(ahead) / sizes.steps
    best = min(seconds.values())
    moved = step_bytes(
        bench.model().config, batch, sizes.context - sizes.steps / 2, sizes.dtype.itemsize
    )
    return {
        **{name: value * 1e3 for name, value in seconds.items()},
        "batch": batch,
        "context": sizes.context,
        "bytes_per_s": moved / best,
    }


def kernel_times(bench: Bench, batch: int) -> Values:
    """Where the time of a decode step goes, by the profiler: microseconds a step, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    runner, repeats = bench.runner("layer_major"), 3
    work = bench.decoding(batch, bench.sizes.context)
    kind = ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU
    with torch.inference_mode():
        runner.greedy_step(work)
        bench.wait()
        with profile(activities=[kind], acc_events=True) as seen:
            for _ in range(repeats):
                runner.greedy_step(work)
            bench.wait()
    what = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    rows = sorted(((getattr(row, what), row.key) for row in seen.key_averages()), reverse=True)
    if not rows or not rows[0][0]:
        raise FaultError("the profiler saw no kernel")
    return {key[:60]: round(us / repeats, 1) for us, key in rows[:12]}


def prefill_times(bench: Bench, tokens: int) -> Values:
    """A prompt of a length that was not run before, then again; and behind a prefix of half the context."""
    runner = bench.runner("layer_major")
    past = min(bench.sizes.context // 2, 1024)
    values: Values = {"tokens": tokens}
    with torch.inference_mode():
        for name, work in (("", bench.prompt(tokens)), (" behind", bench.prompt(tokens, past))):
            run = partial(runner.greedy_step, [work])
            values[f"first_ms{name}"] = bench.once(run) * 1e3
            values[f"steady_ms{name}"] = bench.median(run, 3) * 1e3
    return values


def python_times(bench: Bench, batch: int) -> Values:
    """What our Python adds to a decode step, the runner apart."""
    return {"batch": batch, "us": overhead.step_overhead_ns(batch, bench.device.type) / 1e3}


def swap_points() -> list[tuple[str, Callable[[Bench], Values]]]:
    """Every layout with every way of submitting."""
    return [
        (
            f"{layout} {submission} {threads} threads",
            partial(swap_rates, layout=layout, submission=submission, threads=threads),
        )
        for layout in LAYOUTS
        for submission, threads in WAYS
    ]
