"""The swap manager: carries out the copies that plans name, and tells what became of them.

`main_thread` submits in the engine's thread (vLLM 0.3.3); `worker_threads` in threads of each
direction, so that the engine goes on computing. Either way:

- every copy waits for the barrier that the engine set behind its last step (traps A1, A2, A7);
- a copy's mark is recorded after the copy was put (A5), and also where putting it failed half-way,
  since what had been put still moves;
- completions are seen by polling, in the order of submission within a lane, by the engine alone;
- whatever goes wrong with a copy is a value, `ok` false, and never an exception in a thread nobody
  looks at. A worker that dies is replaced, and the job it held has failed.

Which blocks a copy may touch is the policies' business. `policy/` hands no block on before the
outcome of the copy that uses it; `BlockGuard` asserts so, block by block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

from policy.errors import FaultError
from policy.plan import Copy, Direction
from realrun.guard import BlockGuard
from realrun.kvstore import KVStore
from realrun.runtime import Lane, Mark, Runtime
from realrun.transfer import MOVERS
from runs.recorder import CopyRecord

#: How long a copy may take before the engine gives the run up.
TIMEOUT_S = 60.0
#: How long `close` waits for what is under way, if `timeout_s` is not less.
CLOSE_S = 10.0
#: How often an engine without anything else to do looks whether a copy has ended.
POLL_S = 5e-5
#: How often `close` looks whether a worker has died while another one waits for it.
JOIN_S = 0.01


class _Untold:
    """The mark of a copy of which something is on a lane and nothing says when it ends."""

    def is_done(self) -> bool:
        """Nobody knows."""
        raise RuntimeError("no mark could be recorded behind it")

    def synchronize(self) -> None:
        """Nobody knows."""
        self.is_done()


class Transfer:
    """A copy from submission to its end."""

    __slots__ = (
        "after",
        "barrier",
        "calls",
        "cancelled",
        "copy",
        "driver_ns",
        "end_ns",
        "error",
        "mark",
        "start_ns",
        "submit_ns",
        "submitted",
        "waited",
    )

    def __init__(self, copy: Copy, barrier: Mark, submit_ns: int, after: list[Transfer]) -> None:
        self.copy = copy
        self.after = after  # earlier copies that share a block with it, until `mark` is behind them
        self.barrier = barrier
        self.submit_ns = submit_ns
        self.start_ns = submit_ns
        self.end_ns = submit_ns
        self.calls = 0
        self.driver_ns: int | None = None  # inside the copy calls
        self.mark: Mark | None = None
        self.error: BaseException | None = None
        self.waited = False
        self.cancelled = False
        self.submitted = threading.Event()  # set when `mark` or `error` is

    @property
    def ok(self) -> bool:
        """Nothing went wrong so far, and somebody still wants it."""
        return self.error is None and not self.cancelled

    def is_done(self) -> bool:
        """It has ended, well or not. One that was never put ends when those it came after have:
        until then its blocks are in use. Raises what the device raises if that broke."""
        if not self.submitted.is_set():
            return False
        if self.mark is None:
            return all(earlier.is_done() for earlier in self.after)
        return self.mark.is_done()

    def saw_end(self, now_ns: int) -> None:
        """It has ended by now; who saw that first is believed."""
        if not self.end_ns > self.submit_ns:
            self.end_ns = now_ns

    def marks(self) -> Iterator[Mark]:
        """What a later copy that shares a block must come after. Waits until this one was put."""
        self.submitted.wait()
        if self.mark is not None:
            yield self.mark
        else:
            for earlier in self.after:
                yield from earlier.marks()


class SwapManager:
    """Copies in flight. Every method but the workers' is the engine thread's."""

    def __init__(
        self,
        store: KVStore,
        runtime: Runtime,
        *,
        submission: str,
        threads: int,
        clock: Callable[[], int],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`threads` per direction; 0: the engine's own thread. `clock`: nanoseconds."""
        #: Why copies are submitted one by one instead of as asked for, in words.
        self.fallback = runtime.why_not(submission)
        self.in_flight: dict[int, Transfer] = {}
        self.guard = BlockGuard()
        self.store = store
        self._runtime = runtime
        self._move = MOVERS["merged" if self.fallback else submission]
        self._clock = clock
        self._timeout_s = timeout_s
        self._barrier = runtime.barrier()
        self._news = threading.Condition()
        self._lanes = {way: runtime.lane() for way in Direction} if not threads else {}
        self._queues = {way: SimpleQueue[Transfer | None]() for way in Direction}
        self._workers = [_Worker(self, way) for way in Direction for _ in range(threads)]
        for worker in self._workers:
            worker.start()

    # ------------------------------------------------------------------ the engine's side

    def set_barrier(self) -> None:
        """What was computed up to here comes before every copy submitted from now on."""
        self._barrier = self._runtime.barrier()

    def submit(self, copy: Copy) -> None:
        """Start a copy. Raises InvariantError if its blocks are in use."""
        after = [self.in_flight[copy_id] for copy_id in self.guard.take(copy)]
        transfer = Transfer(copy, self._barrier, self._clock(), after)
        self.in_flight[copy.copy_id] = transfer
        if self._workers:
            self._queues[copy.direction].put(transfer)
        else:
            self._carry_out(transfer, self._lanes[copy.direction])

    def cancel(self, copy_id: int) -> None:
        """Nobody wants this copy any more. What no worker has begun is dropped; either way it ends,
        `ok` false, and holds its target until then."""
        transfer = self.in_flight[copy_id]
        transfer.cancelled = True
        self.guard.give_back_source(transfer.copy)

    def wait(self, copy_ids: Iterable[int]) -> None:
        """Block until these copies have ended. They stay in flight until `poll` reports them.

        Raises FaultError after `timeout_s` without an end, or if the device broke.
        """
        for copy_id in copy_ids:
            transfer = self.in_flight[copy_id]
            transfer.waited = True
            deadline = self._clock() + int(self._timeout_s * 1e9)
            while not transfer.submitted.wait(0.05):
                self._bury_the_dead()
                self._check_hang(transfer, deadline)
            while not self._has_ended(transfer):
                self._check_hang(transfer, deadline)
                time.sleep(0)  # let workers have the interpreter
            transfer.saw_end(self._clock())  # `poll` would see it a step later

    def wait_for_news(self, timeout_s: float) -> None:
        """Block until some copy may have ended, or for `timeout_s`."""
        with self._news:
            if not any(transfer.submitted.is_set() for transfer in self.in_flight.values()):
                self._news.wait(timeout_s)
                return
        if not any(self._has_ended(transfer) for transfer in self.in_flight.values()):
            time.sleep(min(timeout_s, POLL_S))

    def poll(self) -> list[Transfer]:
        """Copies that have ended since the last call, in the order of submission.

        Raises FaultError if one has not ended after `timeout_s`, or if the device broke.
        """
        self._bury_the_dead()
        now = self._clock()
        ended = []
        for copy_id, transfer in list(self.in_flight.items()):
            if self._has_ended(transfer):
                transfer.saw_end(now)
                del self.in_flight[copy_id]
                self.guard.give_back(transfer.copy)
                ended.append(transfer)
            else:
                self._check_hang(transfer, transfer.submit_ns + int(self._timeout_s * 1e9))
        return ended

    def close(self) -> None:
        """Stop the workers, before the memory they copy to and from goes. What none has begun is
        dropped; what is under way is waited for, up to CLOSE_S, and stays in flight if that is not
        enough. Calling it again does nothing."""
        deadline = time.monotonic() + min(self._timeout_s, CLOSE_S)
        for transfer in self.in_flight.values():
            transfer.cancelled = True
        for worker in self._workers:
            self._queues[worker.way].put(None)
        self._dismiss(deadline)
        while any(self._is_moving(transfer) for transfer in self.in_flight.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        for copy_id, transfer in list(self.in_flight.items()):
            if not self._is_moving(transfer):
                del self.in_flight[copy_id]
                self.guard.give_back(transfer.copy)

    def record(self, transfer: Transfer) -> CopyRecord:
        """The row of copies.parquet."""
        copy = transfer.copy
        return CopyRecord(
            copy.copy_id,
            copy.request_id,
            copy.direction.value,
            copy.num_blocks,
            len(copy.runs),
            transfer.calls,
            copy.num_blocks * self.store.device.block_bytes,
            transfer.submit_ns,
            transfer.start_ns,
            transfer.end_ns,
            transfer.ok,
            transfer.waited,
        )

    # ------------------------------------------------------------------ carrying out

    def _carry_out(self, transfer: Transfer, lane: Lane) -> None:
        """Put one copy on a lane. Never raises; what goes wrong is the transfer's `error`."""
        if transfer.cancelled:
            transfer.end_ns = self._clock()
            self._announce(transfer)
            return
        try:
            with lane.on():
                transfer.start_ns = self._clock()
                lane.wait(transfer.barrier)
                for earlier in transfer.after:
                    for mark in earlier.marks():
                        lane.wait(mark)
                transfer.mark = _UNTOLD
                try:
                    put = self._move(self.store, transfer.copy, lane)
                    transfer.calls, transfer.driver_ns = put
                finally:
                    transfer.mark = lane.mark()
                transfer.after = []
            if transfer.mark.is_done():
                transfer.end_ns = self._clock()
        except Exception as error:  # noqa: BLE001  # a failed copy is a value
            transfer.error = error
            transfer.end_ns = self._clock()
        self._announce(transfer)

    def _announce(self, transfer: Transfer) -> None:
        transfer.submitted.set()
        with self._news:
            self._news.notify_all()

    def _has_ended(self, transfer: Transfer) -> bool:
        try:
            return transfer.is_done()
        except Exception as error:
            raise FaultError(f"{_name(transfer.copy)}: the device broke: {error}") from error

    def _is_moving(self, transfer: Transfer) -> bool:
        """Its bytes may still be on the way; nothing moves on a device that broke."""
        try:
            return not transfer.is_done()
        except Exception:  # noqa: BLE001
            return False

    def _check_hang(self, transfer: Transfer, deadline: int) -> None:
        if self._clock() > deadline:
            raise FaultError(f"{_name(transfer.copy)} has not ended after {self._timeout_s:g} s")

    def _bury_the_dead(self) -> None:
        """A worker that died takes its job along: the job has failed, and another takes over."""
        for index, worker in enumerate(self._workers):
            if worker.is_alive():
                continue
            self._bury(worker)
            self._workers[index] = _Worker(self, worker.way)
            self._workers[index].start()

    def _dismiss(self, deadline: float) -> None:
        """Let the workers go. A living one may wait for what a dead one held, and what a dead one
        had not begun nobody will take any more."""
        while time.monotonic() < deadline:
            for worker in self._workers:
                if not worker.is_alive():
                    self._bury(worker)
            alive = [worker for worker in self._workers if worker.is_alive()]
            if not alive:
                break
            alive[0].join(JOIN_S)
        self._workers = []
        for queue in self._queues.values():
            while not queue.empty():
                transfer = queue.get()
                if transfer is not None:
                    transfer.end_ns = self._clock()
                    self._announce(transfer)

    def _bury(self, worker: _Worker) -> None:
        held = worker.held
        if held is not None and not held.submitted.is_set():
            held.error = RuntimeError("the worker thread died")
            held.end_ns = self._clock()
            self._announce(held)


def _name(copy: Copy) -> str:
    return (
        f"copy {copy.copy_id} of {copy.request_id} ({copy.direction.value},"
        f" {copy.num_blocks} blocks)"
    )


_UNTOLD = _Untold()


class _Worker(threading.Thread):
    """A thread of one direction with a lane of its own."""

    def __init__(self, manager: SwapManager, way: Direction) -> None:
        super().__init__(name=f"swap-{way.value}", daemon=True)
        self.way = way
        self.held: Transfer | None = None
        self._manager = manager
        self._lane = manager._runtime.lane()

    def run(self) -> None:
        """Carry out jobs until told to stop."""
        manager = self._manager
        queue = manager._queues[self.way]
        while True:
            transfer = queue.get()
            if transfer is None:
                return
            self.held = transfer
            manager._carry_out(transfer, self._lane)
            self.held = None
