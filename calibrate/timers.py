"""Times one sample of any point, by `realrun`'s own runner, swap manager and engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from calibrate.bench import BLOCK, SMALL_BLOCK, Bench
from calibrate.overhead import step_overhead_ns
from calibrate.points import Point
from policy.errors import FaultError
from policy.plan import Copy, Direction
from policy.pools.runs import Run
from policy.systems import System, named_system
from realrun.kvstore import LAYOUTS, KVStore
from realrun.runner import Runner, Work
from realrun.runtime import Runtime, runtime_for
from realrun.swap import SwapManager, Transfer

WARM_UP = 2

#: Times one sample of one point, in nanoseconds.
Timer = Callable[[Point], int]


class Timers:
    """Times any point. What it needs is made once: a store for each layout, warm kernels."""

    def __init__(
        self,
        bench: Bench,
        runtime: Runtime | None = None,
        stores: Mapping[tuple[str, int], KVStore] | None = None,
        runner: Runner | None = None,
    ) -> None:
        """`stores`: some that are there already, by layout and block size, and stay open; `runner`: the one
        over the first of them."""
        self._bench = bench
        given = stores or {}
        self._own: list[KVStore] = []
        self._stores = dict(given)
        for layout in LAYOUTS:
            for size in (BLOCK, SMALL_BLOCK):
                if (layout, size) not in given:
                    self._stores[layout, size] = bench.store(layout, size)
                    self._own.append(self._stores[layout, size])
        tier = self._stores["layer_major", BLOCK].device
        self._runner = Runner(bench.model.decoder, tier) if runner is None else runner
        self.runtime = runtime_for(bench.device) if runtime is None else runtime
        self._behind: dict[KVStore, SwapManager] = {}  # of copies in the background
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
        for swap in (*self._swaps.values(), *self._behind.values()):
            swap.close()
        for store in self._own:
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
        """A decode step's time outside the runner."""
        return step_overhead_ns(point["batch"], self._bench.device.type)

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
            drain(swap)
        return taken

    def _submit(self, point: Point) -> int:
        """From the plan that submits a job until its last call is in."""
        return self._put(point)[0]

    def _python(self, point: Point) -> int:
        """The share of that which is not the driver's."""
        taken, transfer = self._put(point)
        assert transfer.driver_ns is not None
        return max(1, taken - transfer.driver_ns)

    def _put(self, point: Point) -> tuple[int, Transfer]:
        swap = self._swap_of(point)
        copy = make_job(0, Direction(point["way"]), point["blocks"], point["runs"], first=0)
        begin = time.perf_counter_ns()
        swap.submit(copy)
        taken = time.perf_counter_ns() - begin
        [transfer] = drain(swap)
        return taken, transfer

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
        """Raises FaultError if this machine cannot submit as the system does."""
        store = self._stores[system.transport.layout, block_size]
        if (system.name, store) not in self._swaps:
            self._swaps[system.name, store] = SwapManager(
                store,
                self.runtime,
                submission=system.transport.submission,
                threads=system.transport.workers or 0,
                clock=time.perf_counter_ns,
            )
        swap = self._swaps[system.name, store]
        if swap.fallback is not None:
            raise FaultError(f"{system.name}: {swap.fallback}")
        return swap

    def _busy(self, swap: SwapManager, way: Direction, *, on: bool) -> AbstractContextManager[None]:
        """Copies in one direction, one after another, until the block ends; by a manager that is made once
        for a store, since every lane is a stream."""
        if not on:
            return nullcontext()
        if swap.store not in self._behind:
            self._behind[swap.store] = SwapManager(
                swap.store,
                self.runtime,
                submission="merged",
                threads=0,
                clock=time.perf_counter_ns,
            )
        return background(self._behind[swap.store], way, self._bench.limits.copy_blocks)


@contextmanager
def background(swap: SwapManager, way: Direction, blocks: int) -> Iterator[None]:
    """A thread of its own copies the upper half of the pools, over and over, until the block ends. Raises
    FaultError at the end if one of its copies failed: then the other direction was not busy."""
    stop, started = threading.Event(), threading.Event()
    copy = make_job(1, way, blocks, 1, first=swap.store.device.num_blocks - blocks)
    problems: list[Exception] = []

    def run() -> None:
        try:
            while not stop.is_set():
                swap.submit(copy)
                started.set()
                drain(swap)
        except Exception as error:  # noqa: BLE001  # nobody looks at a thread
            problems.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if problems:
        raise FaultError(f"copies in the background: {problems[0]}")


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
    return Copy(copy_id, way, f"job{copy_id}", tuple(found), blocks)


def drain(swap: SwapManager) -> list[Transfer]:
    """Wait until nothing is in flight; what has ended. Raises FaultError if a copy failed, which a time of
    its own says nothing about."""
    ended: list[Transfer] = []
    while swap.in_flight:
        swap.wait(list(swap.in_flight))
        ended += swap.poll()
    for transfer in ended:
        if not transfer.ok:
            raise FaultError(f"the copy failed: {transfer.error}")
    return ended
