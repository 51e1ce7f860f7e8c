"""What only a GPU can say, in parts of at most nine minutes each on one machine.

    make gpu-check PART=tests OUT=DIR      every gpu test, and the Triton kernels' tests on the device
    make gpu-check PART=bench OUT=DIR      decode, swapping, FastSwitch against vLLM 0.3.3
    make gpu-check PART=calibrate OUT=DIR  a cost profile of the card, with Llama-3-8B's shapes
    make gpu-check PART=validate OUT=DIR   four systems served for real and predicted with it

The last two are `benchmarks.validation` in DIR/validation; with DEVICE=cpu they run on a CPU with SmolLM2.

Every finished test and point is a line of DIR/points.jsonl and is not run again, so a part that was cut
off goes on where it was: run it again until nothing is left. Failed ones are tried again. DIR/gpu-check.json
and DIR/gpu-check.html hold everything so far. Goals, each against what this machine itself can do: a decode
step moves its bytes at 80 % of the rate of a copy within the device (bytes read plus bytes written); a swap
at 90 % of the best page-locked copy.

Exits with 0 when the part is complete, 1 when something failed, 2 without a CUDA device or for a DIR of
another machine, 3 when time ran out and something is left.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from policy.plan import Direction
    from policy.runs import Run
    from realrun.config import ModelConfig
    from realrun.kvstore import KVStore
    from realrun.model import LoadedModel
    from realrun.runtime import Lane

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "bench")
#: Parts that another script carries out, on a CPU too.
EXPERIMENT = ("calibrate", "validate")
#: A part stops starting things after this, so that it ends within nine minutes.
BUDGET_S = 500.0
DECODE_GOAL, SWAP_GOAL = 0.80, 0.90

#: Tests that plain torch and Triton share.
SHARED = ("tests/realrun/test_attention.py", "tests/realrun/test_ops.py")
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
    "throughput_makespan_tok_s",
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


# ---------------------------------------------------------------------- points and their file


class Point(NamedTuple):
    """Something to measure: `run` gives its values; `estimate_s` is what it may take."""

    name: str
    run: Callable[[], dict[str, Any]]
    estimate_s: float


class Ledger:
    """The lines of DIR/points.jsonl: `{"part", "name", "ok", "seconds", "values" or "error"}`.

    The last line of a name counts. A line that was cut off by a kill is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "points.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        for line in whole.splitlines():
            row = json.loads(line)
            self.rows[row["part"], row["name"]] = row
        if torn:
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def is_done(self, part: str, name: str) -> bool:
        """It ran to a good end."""
        row = self.rows.get((part, name))
        return row is not None and bool(row["ok"])

    def add(self, part: str, name: str, *, ok: bool, seconds: float, **rest: Any) -> None:
        """One flushed line."""
        row = {"part": part, "name": name, "ok": ok, "seconds": round(seconds, 3), **rest}
        self.rows[part, name] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def of(self, part: str) -> list[dict[str, Any]]:
        """The rows of a part, in the order they first ran."""
        return [row for (one, _), row in self.rows.items() if one == part]

    def values(self, part: str, name: str) -> dict[str, Any]:
        """What was measured; nothing if it was not."""
        row = self.rows.get((part, name))
        return row["values"] if row is not None and row["ok"] else {}


def run_points(
    part: str,
    points: Iterable[Point],
    ledger: Ledger,
    *,
    clock: Callable[[], float],
    deadline: float,
    say: Callable[[str], None],
) -> list[str]:
    """Run what is not done yet, as far as the time goes. Returns the names of what was left out for
    want of time. `clock`: seconds."""
    left = []
    for name, run, estimate_s in points:
        if ledger.is_done(part, name):
            continue
        begin = clock()
        if begin + estimate_s > deadline:
            left.append(name)
            continue
        try:
            values = run()
        except Exception as error:  # noqa: BLE001  # the others can still be measured
            first = (str(error).splitlines() or [""])[0][:300]
            ledger.add(
                part,
                name,
                ok=False,
                seconds=clock() - begin,
                error=f"{type(error).__name__}: {first}",
            )
            say(f"{name}: FAILED: {type(error).__name__}: {first}")
        else:
            ledger.add(part, name, ok=True, seconds=clock() - begin, values=values)
            say(f"{name}: {shown(values)}")
        gc.collect()  # graphs and their memory hold one another
    return left


def shown(values: dict[str, Any]) -> str:
    """Values on a line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def claim(ledger: Ledger, machine: dict[str, Any]) -> str | None:
    """Write down whose points these are. Returns what is wrong if they are another machine's."""
    known = ledger.values("machine", "machine")
    for name in ("gpu", "torch"):
        if known and known[name] != machine[name]:
            return f"{ledger.path}: has points of {known[name]}, and this is {machine[name]}"
    if not known:
        ledger.add("machine", "machine", ok=True, seconds=0.0, values=machine)
    return None


# ---------------------------------------------------------------------- arithmetic


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
    from traces.scenario import build

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


# ---------------------------------------------------------------------- tests


class Resumed:
    """A pytest plugin: of the tests that need a GPU, those that have not passed yet, as far as the time
    goes; each is a line of the ledger when it has ended."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float], deadline: float) -> None:
        self.left: list[str] = []
        self._ledger = ledger
        self._clock = clock
        self._deadline = deadline
        self._problems: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep what is still to be done."""
        todo = [
            item
            for item in items
            if wants_a_gpu(item) and not self._ledger.is_done("tests", item.nodeid)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in todo])
        items[:] = todo

    def pytest_collectreport(self, report: Any) -> None:
        """A file that was skipped or broke as a whole has not passed."""
        if report.outcome != "passed":
            name, why = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:300]
            self._ledger.add("tests", name, ok=False, seconds=0.0, error=f"{report.outcome}: {why}")

    def pytest_runtest_setup(self, item: Any) -> None:
        """Leave out what the time does not allow."""
        if self._clock() > self._deadline:
            import pytest

            self.left.append(item.nodeid)
            pytest.skip("no time left")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Setup, the test itself and teardown report one after another."""
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        if report.outcome != "passed":
            lines = str(report.longrepr).strip().splitlines() or [""]
            self._problems.setdefault(name, f"{report.outcome}: {lines[-1][:300]}")
        if report.when == "teardown" and name not in self.left:
            problem = self._problems.get(name)
            rest: dict[str, Any] = {"values": {}} if problem is None else {"error": problem}
            seconds = self._seconds[name]
            self._ledger.add("tests", name, ok=problem is None, seconds=seconds, **rest)


def wants_a_gpu(item: Any) -> bool:
    """Marked so, or of the tests that plain torch and Triton share, but not plain torch's."""
    if item.get_closest_marker("gpu") is not None:
        return True
    return item.nodeid.split("::")[0] in SHARED and "[torch" not in item.name


def run_tests(ledger: Ledger, deadline: float) -> list[str]:
    """Names of what was left out for want of time."""
    import pytest

    plugin = Resumed(ledger, time.monotonic, deadline)
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib"]
    options += [
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "--confcutdir",
        str(ROOT),
    ]
    pytest.main([*options, *(str(ROOT / path) for path in ("tests/gpu", *SHARED))], [plugin])
    return plugin.left


# ---------------------------------------------------------------------- the page


_STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; font-weight: 600; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } section { overflow-x: auto; margin: 2rem 0; }
"""
NOT_MEASURED = "not measured"


def number(value: Any, scale: float = 1.0, digits: int = 1) -> str:
    """A number in a cell."""
    return NOT_MEASURED if value is None else f"{value * scale:,.{digits}f}"


def against(share: Any, goal: float) -> str:
    """A share in per cent and whether it reaches its goal."""
    if share is None:
        return NOT_MEASURED
    return f"{share:.1%} ({'reached' if share >= goal else 'missed'}: {goal:.0%})"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a section."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<section><table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def page(ledger: Ledger) -> str:
    """Everything so far on one page that needs nothing else. What has no value says so."""
    machine = ledger.values("machine", "machine")
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    body = [f"<h1>GPU check</h1><p>{escape(facts)}</p>"]
    copy, pinned = ledger.values("bench", COPY), ledger.values("bench", PINNED)
    body.append(
        table(
            "What this machine can do, GB/s",
            ("copy", "rate"),
            [
                ("within the device, read plus written", number(copy.get("bytes_per_s"), 1e-9)),
                ("page-locked, to the host", number(pinned.get("d2h"), 1e-9)),
                ("page-locked, to the device", number(pinned.get("h2d"), 1e-9)),
            ],
        )
    )
    rows: list[tuple[str, ...]] = []
    for batch in BATCHES:
        found = ledger.values("bench", f"decode batch {batch}")
        rows.append(
            (
                str(batch),
                number(found.get("step_ms"), digits=2),
                number(found.get("step_ms_tokens_read"), digits=2),
                number(found.get("tokens_per_s"), digits=0),
                number(found.get("bytes_per_s"), 1e-9, 0),
                against(found.get("share_of_copy"), DECODE_GOAL),
            )
        )
    head = ("batch", "ms", "ms, tokens read", "tokens/s", "GB/s", "share of a copy's rate")
    body.append(table(f"A decode step of random {MODEL}, context {CONTEXT}, bf16", head, rows))
    swaps = [swap_row(ledger, *name) for name in swap_names()]
    swap_head = (
        "swap",
        "GB/s to host",
        "share of best copy",
        "GB/s to device",
        "share of best copy",
    )
    body.append(table(f"Jobs of {JOB_BLOCKS} blocks of 2 MiB", swap_head, swaps))
    served = [ledger.values("bench", f"serve {system}") for system in SYSTEMS]
    rows = [
        (name, *(NOT_MEASURED if one.get(name) is None else str(one[name]) for one in served))
        for name in SERVE_METRICS
    ]
    body.append(table("A short scenario served", ("metric", *SYSTEMS), rows))
    tests = ledger.of("tests")
    failed = [row for row in (*tests, *ledger.of("bench")) if not row["ok"]]
    passed = sum(row["ok"] for row in tests)
    body.append(f"<p>Tests: {passed} passed, {len(tests) - passed} not.</p>" if tests else "")
    if not tests:
        body.append(f"<p>Tests: {NOT_MEASURED}.</p>")
    if failed:
        lines = [(row["name"], row["error"]) for row in failed]
        body.append(table("Failed", ("what", "why"), lines))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>GPU check</title>'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def swap_names() -> list[tuple[str, str, str]]:
    """(layout, submission, pattern) of every row of the swap table."""
    from realrun.kvstore import LAYOUTS
    from realrun.transfer import MOVERS

    return [(layout, way, pattern) for layout in LAYOUTS for way in MOVERS for pattern in PATTERNS]


def swap_row(ledger: Ledger, layout: str, submission: str, pattern: str) -> tuple[str, ...]:
    """One line of the swap table."""
    found = ledger.values("bench", f"swap {layout} {submission}").get(pattern, {})
    cells = [f"{layout}, {submission}, {pattern}"]
    for way in ("d2h", "h2d"):
        cells.append(number(found.get(f"{way}_bytes_per_s"), 1e-9))
        cells.append(against(found.get(f"{way}_share"), SWAP_GOAL))
    return tuple(cells)


def write(ledger: Ledger, folder: Path) -> None:
    """The JSON and the page, whole or not at all."""
    document = {
        "format": "fastswitch-gpu-check/1",
        "goals": {"decode_share_of_copy": DECODE_GOAL, "swap_share_of_pinned": SWAP_GOAL},
        "machine": ledger.values("machine", "machine"),
        **{part: ledger.of(part) for part in PARTS},
    }
    texts = {
        "gpu-check.json": json.dumps(document, indent=1) + "\n",
        "gpu-check.html": page(ledger),
    }
    for name, text in texts.items():
        beside = folder / f".{name}.part"
        beside.write_text(text, encoding="utf-8")
        beside.replace(folder / name)


# ---------------------------------------------------------------------- the command


def this_machine() -> dict[str, Any]:
    """What the numbers belong to."""
    import importlib.metadata

    import torch

    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    found["cuda"] = str(torch.version.cuda)
    found["python"] = platform.python_version()
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "none"
    found["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    return found


def why_not() -> str | None:
    """What keeps this machine from being checked."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=(*PARTS, *EXPERIMENT), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    why = None if options.device == "cpu" and options.part in EXPERIMENT else why_not()
    if why is not None:
        print(f"gpu-check: nothing was measured: {why}", file=sys.stderr)
        return 2
    if options.part in EXPERIMENT:
        return experiment(options.part, options.out, options.device)
    ledger = Ledger(options.out)
    why = claim(ledger, this_machine())
    if why is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    deadline = begin + BUDGET_S
    if options.part == "tests":
        left = run_tests(ledger, deadline)
    else:
        points = bench_points(ledger, options.out)
        left = run_points(
            "bench", points, ledger, clock=time.monotonic, deadline=deadline, say=print
        )
    write(ledger, options.out)
    return verdict(options.part, ledger, left)


def experiment(part: str, out: Path, device: str) -> int:
    """Calibrate, or serve and predict; exit codes as above."""
    validation = importlib.import_module("benchmarks.validation")  # scripts have two names to mypy
    code: int = validation.main(
        ["--full", "--device", device, "--part", part, "--budget", str(BUDGET_S)]
        + ["--out", str(out / "validation")]
    )
    return code


def verdict(part: str, ledger: Ledger, left: Sequence[str]) -> int:
    """Say how it went in one line; returns the exit code."""
    rows = ledger.of(part)
    failed = [row["name"] for row in rows if not row["ok"]]
    print(
        f"gpu-check {part}: {len(rows) - len(failed)} done, {len(failed)} failed, {len(left)} left"
        + ("; run it again to go on" if left else "")
    )
    if failed or not rows:
        return 1
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
