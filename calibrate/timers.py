"""Times one sample of any point, by `realrun`'s own runner, swap manager and engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from calibrate.bench import BLOCK, SMALL_BLOCK, Bench
from calibrate.overhead import step_overhead_ns
from calibrate.points import Point
from policy.plan import Copy, Direction
from policy.pools.runs import Run
from policy.systems import System, named_system
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.runner import Runner, Work
from realrun.runtime import Runtime, runtime_for
from realrun.swap import SwapManager

WARM_UP = 2

#: Times one sample of one point, in nanoseconds.
Timer = Callable[[Point], int]


class Timers:
    """Times any point. What it needs is made once: a store for each layout, warm kernels."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._stores = {
            (layout, size): bench.store(layout, size)
            for layout in ("layer_major", "block_major")
            for size in (BLOCK, SMALL_BLOCK)
        }
        self._runner = Runner(bench.model.decoder, self._stores["layer_major", BLOCK].device)
        self.runtime = runtime_for(bench.device)
        self._tiny: LoadedModel | None = None
        self._warm: set[Point] = set()
        self._swaps: dict[tuple[str, KVStore], SwapManager] = {}

    def __call__(self, point: Point) -> int:
        """One sample; the first time after some that are thrown away."""
        timed: Timer = getattr(self, f"_{point.kind}")
        if point not in self._warm:
            self._warm.add(point)
            for _ in range(WARM_UP):
                timed(point)
        return timed(point)

    def close(self) -> None:
        """Stop swap threads, give memory back."""
        for swap in self._swaps.values():
            swap.close()
        for store in self._stores.values():
            store.close()

    # ------------------------------------------------------------------ steps

    def _decode(self, point: Point) -> int:
        batch, kv_tokens, longest = point["batch"], point["kv_tokens"], point["longest"]
        return self._step(contexts_of(batch, kv_tokens, longest), [])

    def _prefill(self, point: Point) -> int:
        return self._step([], [(point["tokens"], point["past"])])

    def _prompts(self, point: Point) -> int:
        return self._step([], [(point["tokens"], point["past"])] * point["prompts"])

    def _mixed(self, point: Point) -> int:
        batch, kv_tokens = point["batch"], point["kv_tokens"]
        return self._step(
            contexts_of(batch, kv_tokens, kv_tokens // batch), [(point["tokens"], point["past"])]
        )

    def _step(self, contexts: list[int], prompts: list[tuple[int, int]]) -> int:
        work = work_for(contexts, prompts)
        begin = time.perf_counter_ns()
        self._runner.greedy_step(work)  # its answer is on the host, so the step has ended
        return time.perf_counter_ns() - begin

    def _overhead(self, point: Point) -> int:
        """A decode step's time outside the runner, which no model changes: so of the smallest."""
        if self._tiny is None:
            self._tiny = load_model("random:tiny", self._bench.dtype, self._bench.device)
        return step_overhead_ns(self._tiny, point["batch"], self._bench.device.type)

    # ------------------------------------------------------------------ copies

    def _copy(self, point: Point) -> int:
        """From the plan that submits a job until its end is seen."""
        way = Direction(point["way"])
        swap = self._swap_of(point)
        with self._busy(swap, _other(way), on=bool(point["duplex"])):
            copy = make_job(0, way, point["blocks"], point["runs"], first=0)
            begin = time.perf_counter_ns()
            swap.submit(copy)
            swap.wait([copy.copy_id])
            taken = time.perf_counter_ns() - begin
        _drain(swap)
        return taken

    def _submit(self, point: Point) -> int:
        """From the plan that submits a job until its last call is in."""
        swap = self._swap_of(point)
        copy = make_job(0, Direction(point["way"]), point["blocks"], point["runs"], first=0)
        begin = time.perf_counter_ns()
        swap.submit(copy)
        taken = time.perf_counter_ns() - begin
        _drain(swap)
        return taken

    def _interference(self, point: Point) -> int:
        """A decode step while copies in one direction go on."""
        swap = self._swap(named_system("fastswitch"))
        contexts = [point["kv_tokens"] // point["batch"]] * point["batch"]
        with self._busy(swap, Direction(point["way"]), on=bool(point["with_copy"])):
            return self._step(contexts, [])

    def _swap_of(self, point: Point) -> SwapManager:
        config = self._bench.model.config
        block_bytes = point["bytes"] // point["blocks"]
        size = block_bytes // (config.token_elements * self._bench.dtype.itemsize)
        return self._swap(named_system(point["system"]), size)

    def _swap(self, system: System, block_size: int = BLOCK) -> SwapManager:
        store = self._stores[system.transport.layout, block_size]
        if (system.name, store) not in self._swaps:
            self._swaps[system.name, store] = SwapManager(
                store,
                self.runtime,
                submission=system.transport.submission,
                threads=system.transport.workers or 0,
                clock=time.perf_counter_ns,
            )
        return self._swaps[system.name, store]

    def _busy(self, swap: SwapManager, way: Direction, *, on: bool) -> Background:
        """Copies in one direction, one after another, until the block ends."""
        return Background(swap.store, self.runtime, way, self._bench.limits.copy_blocks, on=on)


class Background:
    """A thread of its own that copies the upper half of the pools until told to stop."""

    def __init__(
        self, store: KVStore, runtime: Runtime, way: Direction, blocks: int, *, on: bool
    ) -> None:
        self._stop = threading.Event()
        self._started = threading.Event()
        self._swap: SwapManager | None = None
        if on:
            self._swap = SwapManager(
                store, runtime, submission="merged", threads=0, clock=time.perf_counter_ns
            )
        self._copy = make_job(1, way, blocks, 1, first=store.device.num_blocks - blocks)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if self._swap is not None:
            self._thread.start()
            self._started.wait()

    def __exit__(self, *_: object) -> None:
        if self._swap is not None:
            self._stop.set()
            self._thread.join()
            self._swap.close()

    def _run(self) -> None:
        assert self._swap is not None
        while not self._stop.is_set():
            self._swap.submit(self._copy)
            self._started.set()
            self._swap.wait([self._copy.copy_id])
            self._swap.poll()


# ---------------------------------------------------------------------- pieces


def _other(way: Direction) -> Direction:
    return Direction.TO_HOST if way is Direction.TO_DEVICE else Direction.TO_DEVICE


def contexts_of(batch: int, kv_tokens: int, longest: int) -> list[int]:
    """Context lengths: one of `longest`, the others share the rest evenly."""
    rest = (kv_tokens - longest) // max(1, batch - 1)
    return [rest] * (batch - 1) + [longest]


def work_for(contexts: list[int], prompts: list[tuple[int, int]]) -> list[Work]:
    """Prompts (new, past) and decoding requests, on blocks of their own. Which tokens does not
    matter: a step takes as long for any."""
    blocks = iter(range(1 << 30))
    work = []
    for new, past in prompts:
        work.append(Work([1] * new, past, _table(blocks, past + new)))
    for context in contexts:
        work.append(Work([1], context - 1, _table(blocks, context)))
    return work


def _table(blocks: Iterator[int], tokens: int) -> list[int]:
    return [next(blocks) for _ in range(-(-tokens // BLOCK))]


def make_job(copy_id: int, way: Direction, blocks: int, runs: int, first: int) -> Copy:
    """A copy of `blocks` in `runs` runs of nearly equal length."""
    found: list[Run] = []
    at = first
    for index in range(runs):
        length = blocks // runs + (index < blocks % runs)
        found.append((at, at, length))
        at += length
    return Copy(copy_id, way, f"job{copy_id}", tuple(found), blocks, urgent=True)


def _drain(swap: SwapManager) -> None:
    while swap.in_flight:
        swap.wait(list(swap.in_flight))
        swap.poll()
