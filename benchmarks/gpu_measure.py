"""What a GPU check measures: copies within the device and over the link, decode steps, two systems."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_ledger import Ledger, Point

if TYPE_CHECKING:
    from policy.plan import Direction
    from policy.pools.runs import Run
    from realrun.config import ModelConfig
    from realrun.kvstore import KVStore
    from realrun.model import LoadedModel
    from realrun.runtime import Lane

COPY, PINNED = "copy within the device", "page-locked copy"
BATCHES, CONTEXT, STEPS = (1, 8, 64), 2048, 32
MODEL = "llama-3-8b"
BLOCK_SIZE = 16
#: Blocks of both pools, of a copy job and of a run of consecutive blocks, for swapping.
POOL_BLOCKS, JOB_BLOCKS, RUN_BLOCKS = 1024, 64, 16
PATTERNS = ("scattered", "runs")
REPEATS = 5
SYSTEMS = ("vllm-0.3.3-keep", "fastswitch")
#: Short conversations in memory for about a dozen of them.
SCENARIO: dict[str, Any] = {
    "name": "gpu-check",
    "description": "Short conversations, Markov priorities, memory for about a dozen contexts.",
    "workload": {
        "generator": "chat",
        "conversations": 40,
        "rate": 8.0,
        "context_cap": 2048,
        "think": "none",
    },
    "profile": "a10-llama-3-8b",
    "priority": {"pattern": "markov", "frequency": 0.04},
    "pool": {"device_blocks": 512, "host_blocks": 3072},
    "limits": {"max_model_len": 2048, "max_num_seqs": 32},
    "last_turn_known": True,
}
SERVE_METRICS = (
    "finished",
    "output_tokens",
    "makespan_s",
    "throughput_live_tok_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p50_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "stall_share",
    "preemptions",
    "copy_calls",
    "copy_bytes",
    "mean_run_blocks",
)


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
        layer += config.q_size + config.kv_size
    weights = config.layers * layer + config.hidden + config.vocab * config.hidden
    kv = config.token_elements * batch * (context + 1)
    return (weights + batch * config.hidden + kv) * itemsize


def decode_values(
    step_s: float, read_step_s: float, batch: int, num_bytes: float, copy_bytes_per_s: float | None
) -> dict[str, Any]:
    """What a decode point says. `read_step_s`: of a step whose tokens are read before the next."""
    rate = num_bytes / step_s
    return {
        "batch": batch,
        "context": CONTEXT,
        "step_ms": step_s * 1e3,
        "step_ms_tokens_read": read_step_s * 1e3,
        "tokens_per_s": batch / step_s,
        "bytes_per_step": round(num_bytes),
        "bytes_per_s": rate,
        "share_of_copy": None if copy_bytes_per_s is None else rate / copy_bytes_per_s,
    }


def swap_values(seconds: dict[str, float], num_bytes: int, best: dict[str, Any]) -> dict[str, Any]:
    """What a swap point says of `{"d2h": s, "h2d": s}`; `best`: of the pinned copy."""
    values: dict[str, Any] = {}
    for way, spent in seconds.items():
        rate = num_bytes / spent
        values[f"{way}_bytes_per_s"] = rate
        values[f"{way}_share"] = rate / best[way] if way in best else None
    return values


def job_runs(pattern: str, blocks: int, pool: int, seed: int) -> list[tuple[int, int, int]]:
    """Runs (device block, host block, length) of a job: `scattered` single blocks, or `runs` of
    RUN_BLOCKS neighbours. No two share a block."""
    draw = random.Random(seed)
    length = 1 if pattern == "scattered" else RUN_BLOCKS
    slots = range(pool // length)
    device = draw.sample(slots, blocks // length)
    host = draw.sample(slots, blocks // length)
    return [(d * length, h * length, length) for d, h in zip(device, host, strict=True)]


# ---------------------------------------------------------------------- measuring


def once(run: Callable[[], object]) -> float:
    """Seconds of the device."""
    import torch

    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def timed(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the device, the median of several after one that does not count."""
    return statistics.median([once(run) for _ in range(repeats + 1)][1:])


def measure_copy() -> dict[str, Any]:
    """A copy of 2 GiB of random numbers within the device: bytes read plus bytes written."""
    import torch

    source = torch.randint(0, 256, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    spent = timed(lambda: target.copy_(source), 20)
    return {"bytes_per_s": 2 * source.nbytes / spent}


def measure_pinned() -> dict[str, Any]:
    """The best of copies of 512 MiB in one piece, each way alone."""
    import torch

    host = torch.randint(0, 256, (512 << 20,), dtype=torch.uint8).pin_memory()
    device = torch.empty_like(host, device="cuda")
    down = timed(lambda: host.copy_(device, non_blocking=True))
    up = timed(lambda: device.copy_(host, non_blocking=True))
    return {"d2h": host.nbytes / down, "h2d": host.nbytes / up}


@cache
def big_model() -> LoadedModel:
    """Llama-3-8B's shape with random weights in bf16; 16 GB."""
    import torch

    from realrun.model import load_model

    return load_model(f"random:{MODEL}", torch.bfloat16, "cuda")


def measure_decode(batch: int, ledger: Ledger) -> dict[str, Any]:
    """Graph steps behind one another on the device, contexts growing up to CONTEXT."""
    import torch

    from realrun.kvstore import Tier
    from realrun.runner import Runner, Work

    model = big_model()
    width = CONTEXT // BLOCK_SIZE
    device = model.decoder.device
    tier = Tier(
        model.config, "block_major", batch * width, BLOCK_SIZE, torch.bfloat16, device, spare=1
    )
    ids = list(range(batch * width))
    random.Random(0).shuffle(ids)
    tables = [ids[row * width : (row + 1) * width] for row in range(batch)]
    past = CONTEXT - STEPS
    with torch.inference_mode():
        for piece in tier.pieces:
            piece.normal_()
        runner = Runner(model.decoder, tier)
        assert runner.graphs is not None
        graph = runner.graphs.graph_for(batch, CONTEXT)
        assert graph is not None
        start = [Work([1 + row], past, table) for row, table in enumerate(tables)]

        def ahead() -> None:
            graph.start(start)
            for _ in range(STEPS - 1):
                graph.again()

        spent = []
        for _ in range(REPEATS + 1):
            spent.append(once(ahead))
            graph.tokens()
        tokens = [work.tokens[0] for work in start]
        begin = time.perf_counter()
        for step in range(STEPS):
            work = [
                Work([token], past + step, table)
                for token, table in zip(tokens, tables, strict=True)
            ]
            tokens = runner.greedy_step(work)
        read_step_s = (time.perf_counter() - begin) / STEPS
    copy = ledger.values("bench", COPY).get("bytes_per_s")
    mean_context = past + (STEPS + 1) / 2
    num_bytes = step_bytes(model.config, batch, mean_context, 2)
    return decode_values(statistics.median(spent[1:]) / STEPS, read_step_s, batch, num_bytes, copy)


def measure_swap(layout: str, submission: str, ledger: Ledger) -> dict[str, Any]:
    """Jobs of JOB_BLOCKS blocks of Llama-3-8B, 2 MiB each, through a lane, one way and then the other;
    from the first call to the last byte, by the clock of the host."""
    import torch

    from policy.plan import Direction
    from realrun.config import PRESETS
    from realrun.kvstore import KVStore
    from realrun.runtime import runtime_for

    device = torch.device("cuda", torch.cuda.current_device())
    store = KVStore(
        PRESETS[MODEL],
        layout=layout,
        device_blocks=POOL_BLOCKS,
        host_blocks=POOL_BLOCKS,
        block_size=BLOCK_SIZE,
        dtype=torch.bfloat16,
        device=device,
    )
    runtime = runtime_for(device)
    runtime.check(submission)
    lane = runtime.lane()
    best = ledger.values("bench", PINNED)
    num_bytes = JOB_BLOCKS * store.device.block_bytes
    values: dict[str, Any] = {}
    try:
        with torch.inference_mode():
            for piece in store.device.pieces:
                piece.normal_()
            for pattern in PATTERNS:
                jobs = [job_runs(pattern, JOB_BLOCKS, POOL_BLOCKS, i) for i in range(REPEATS + 1)]
                spent = {
                    way.value: [swap_seconds(store, lane, submission, way, job) for job in jobs]
                    for way in Direction
                }
                median = {way: statistics.median(times[1:]) for way, times in spent.items()}
                values[pattern] = swap_values(median, num_bytes, best)
    finally:
        store.close()
    return values


def swap_seconds(
    store: KVStore, lane: Lane, submission: str, way: Direction, runs: Sequence[Run]
) -> float:
    """How long one job takes."""
    import torch

    from policy.plan import Copy
    from realrun.transfer import MOVERS

    copy = Copy(1, way, "r", tuple(runs), JOB_BLOCKS, urgent=True)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with lane.on():
        MOVERS[submission](store, copy, lane)
        lane.mark().synchronize()
    return time.perf_counter() - begin


def measure_serving(system: str, out: Path) -> dict[str, Any]:
    """One run of the engine, recorded under DIR/runs."""
    from realrun.serve import Options, serve
    from runs.scenario import build

    folder = out / "runs" / system
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted check left
    folder.parent.mkdir(parents=True, exist_ok=True)
    scenario = build({**SCENARIO, "system": system}, "gpu-check")
    options = Options(device="cuda", model=f"random:{MODEL}")
    recording = serve(scenario, options, out=folder, model=big_model())
    metrics = recording.summary["metrics"]
    found = {name: metrics[name] for name in SERVE_METRICS if name in metrics}
    return {**found, "verdict": recording.summary["verdict"]}


def bench_points(ledger: Ledger, out: Path) -> list[Point]:
    """Everything of PART=bench. The machine's own rates come first: the others are shares of them."""
    from realrun.kvstore import LAYOUTS
    from realrun.transfer import MOVERS

    points = [Point(COPY, measure_copy, 15), Point(PINNED, measure_pinned, 15)]
    for layout in LAYOUTS:
        for submission in MOVERS:
            run = partial(measure_swap, layout, submission, ledger)
            points.append(Point(f"swap {layout} {submission}", run, 20))
    for batch in BATCHES:
        run = partial(measure_decode, batch, ledger)
        points.append(Point(f"decode batch {batch}", run, 60))
    for system in SYSTEMS:
        points.append(Point(f"serve {system}", partial(measure_serving, system, out), 160))
    return points
