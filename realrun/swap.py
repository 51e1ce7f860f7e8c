"""The swap manager: carries out the copies that plans name, and tells what became of them.

`main_thread` submits in the engine's thread (vLLM 0.3.3); `worker_threads` in threads of each
direction, so that the engine goes on computing. Either way:

- every copy waits for the barrier that the engine set behind its last step (traps A1, A2, A7);
- a copy's mark is recorded after the copy was put (A5);
- completions are seen by polling, in the order of submission within a lane, by the engine alone;
- whatever goes wrong with a copy is a value, `ok` false, and never an exception in a thread nobody
  looks at. A worker that dies is replaced, and the job it held has failed.

Which blocks a copy may touch is the policies' business. `policy/` hands no block on before the
outcome of the copy that uses it; `BlockGuard` asserts so, block by block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from policy.errors import FaultError, InvariantError
from policy.plan import Copy, Direction
from realrun.kvstore import KVStore
from realrun.runtime import Lane, Mark, Runtime
from realrun.transfer import MOVERS
from traces.recorder import CopyRecord

#: How long a copy may take before the engine gives the run up.
TIMEOUT_S = 60.0


class Transfer:
    """A copy from submission to its end."""

    __slots__ = (
        "after",
        "barrier",
        "calls",
        "cancelled",
        "copy",
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
        self.after = after  # earlier copies that share a block with it
        self.barrier = barrier
        self.submit_ns = submit_ns
        self.start_ns = submit_ns
        self.end_ns = submit_ns
        self.calls = 0
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
        """It has ended, well or not."""
        if not self.submitted.is_set():
            return False
        return self.mark is None or self.mark.is_done()


class BlockGuard:
    """Which blocks copies in flight read or write.

    Copies of one direction take effect in the order of submission, so two may write one block: a
    plan may hand a host block on from a store that it waits for to the next store. Copies of
    opposite directions must not meet.
    """

    def __init__(self) -> None:
        self._users: dict[tuple[str, int], Copy] = {}

    def take(self, copy: Copy) -> list[int]:
        """Ids of earlier copies of the same direction that `copy` must come after.

        Raises InvariantError if a block of `copy` is in use in the other direction.
        """
        after: dict[int, None] = {}
        for block in _blocks_of(copy):
            other = self._users.get(block)
            if other is None:
                continue
            if other.direction is not copy.direction:
                raise InvariantError(
                    f"copy {copy.copy_id} and copy {other.copy_id} meet in {block[0]} block"
                    f" {block[1]}"
                )
            after[other.copy_id] = None
        for block in _blocks_of(copy):
            self._users[block] = copy
        return list(after)

    def give_back(self, copy: Copy) -> None:
        """The copy has ended."""
        for block in _blocks_of(copy):
            if self._users.get(block) is copy:
                del self._users[block]

    def give_back_source(self, copy: Copy) -> None:
        """A cancelled copy to the host: its source is somebody's again, who may write it. What the
        copy still reads there is thrown away."""
        for block in _blocks_of(copy):
            if block[0] == "device" and self._users.get(block) is copy:
                del self._users[block]

    def check_compute(self, blocks: Iterable[int]) -> None:
        """Raise InvariantError if a step writes a device block that a copy uses."""
        for block in blocks:
            user = self._users.get(("device", block))
            if user is not None:
                raise InvariantError(f"a step writes device block {block} of copy {user.copy_id}")


def _blocks_of(copy: Copy) -> Iterable[tuple[str, int]]:
    for device, host, length in copy.runs:
        for i in range(length):
            yield ("device", device + i)
            yield ("host", host + i)


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
        self.in_flight: dict[int, Transfer] = {}
        self.guard = BlockGuard()
        self._store = store
        self._runtime = runtime
        self._move = MOVERS[submission]
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

        Raises FaultError after `timeout_s` without an end.
        """
        for copy_id in copy_ids:
            transfer = self.in_flight[copy_id]
            transfer.waited = True
            deadline = self._clock() + int(self._timeout_s * 1e9)
            while not transfer.submitted.wait(0.05):
                self._bury_the_dead()
                self._check_hang(transfer, deadline)
            if transfer.mark is not None and not transfer.mark.is_done():
                transfer.mark.synchronize()

    def wait_for_news(self, timeout_s: float) -> None:
        """Block until some copy may have ended, or for `timeout_s`."""
        with self._news:
            if not any(transfer.submitted.is_set() for transfer in self.in_flight.values()):
                self._news.wait(timeout_s)

    def poll(self) -> list[Transfer]:
        """Copies that have ended since the last call, in the order of submission."""
        self._bury_the_dead()
        now = self._clock()
        ended = []
        for copy_id, transfer in list(self.in_flight.items()):
            if transfer.is_done():
                if not transfer.end_ns > transfer.submit_ns:
                    transfer.end_ns = now
                del self.in_flight[copy_id]
                self.guard.give_back(transfer.copy)
                ended.append(transfer)
            else:
                self._check_hang(transfer, transfer.submit_ns + int(self._timeout_s * 1e9))
        return ended

    def close(self) -> None:
        """Stop the workers. Copies that were queued are carried out first."""
        for worker in self._workers:
            self._queues[worker.way].put(None)
        for worker in self._workers:
            worker.join(self._timeout_s)
        self._workers = []

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
            copy.num_blocks * self._store.device.block_bytes,
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
                    earlier.submitted.wait()
                    if earlier.mark is not None:
                        lane.wait(earlier.mark)
                transfer.calls = self._move(self._store, transfer.copy, lane)
                mark = lane.mark()
            if mark.is_done():
                transfer.end_ns = self._clock()
            transfer.mark = mark
        except Exception as error:  # noqa: BLE001  # a failed copy is a value
            transfer.error = error
            transfer.end_ns = self._clock()
        self._announce(transfer)

    def _announce(self, transfer: Transfer) -> None:
        transfer.submitted.set()
        with self._news:
            self._news.notify_all()

    def _check_hang(self, transfer: Transfer, deadline: int) -> None:
        if self._clock() > deadline:
            copy = transfer.copy
            raise FaultError(
                f"copy {copy.copy_id} of {copy.request_id} ({copy.direction.value},"
                f" {copy.num_blocks} blocks) has not ended after {self._timeout_s:g} s"
            )

    def _bury_the_dead(self) -> None:
        """A worker that died takes its job along: the job has failed, and another takes over."""
        for index, worker in enumerate(self._workers):
            if worker.is_alive():
                continue
            held = worker.held
            if held is not None and not held.submitted.is_set():
                held.error = RuntimeError("the worker thread died")
                held.end_ns = self._clock()
                self._announce(held)
            self._workers[index] = _Worker(self, worker.way)
            self._workers[index].start()


class _Worker(threading.Thread):
    """A thread of one direction with a lane of its own."""

    def __init__(self, manager: SwapManager, way: Direction) -> None:
        super().__init__(name=f"swap-{way.value}", daemon=True)
        self.way = way
        self.held: Transfer | None = None
        self._manager = manager

    def run(self) -> None:
        """Carry out jobs until told to stop."""
        manager = self._manager
        lane = manager._runtime.lane()
        queue = manager._queues[self.way]
        while True:
            transfer = queue.get()
            if transfer is None:
                return
            self.held = transfer
            manager._carry_out(transfer, lane)
            self.held = None
