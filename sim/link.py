"""The host link: dispatch threads that submit, one FIFO per direction that moves bytes.

A job is submitted by a thread (serially), begins on the link once its first call is in and the job
before it has ended, and ends when its bytes have moved and its last call is in. While both
directions move, each is slower (the duplex rates); the time left is then counted anew.

What is foretold (when a full queue takes a submitter's last call, how long copies will interfere
with a step) knows every slow-down so far; of those to come it knows the one that is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress

import simpy

from policy.plan import Copy, Direction
from runs.recorder import CopyRecord
from sim.clock import Clock
from sim.costs import CopyCost, CopyCosts

_ONE = 1 << 10


class Job:
    """One copy under way."""

    __slots__ = (
        "begin_ns",
        "cancelled",
        "copy",
        "cost",
        "done",
        "end_ns",
        "expected_ns",
        "ok",
        "ready_ns",
        "submit_ns",
        "submitted_ns",
        "waited",
    )

    def __init__(self, copy: Copy, cost: CopyCost, submit_ns: int, done: simpy.Event) -> None:
        self.copy = copy
        self.cost = cost
        self.submit_ns = submit_ns  # handed to its dispatch thread
        self.ready_ns = 0  # its first call is in
        self.submitted_ns = 0  # its last call is in
        self.begin_ns = 0
        self.end_ns = 0
        self.expected_ns = 0  # its end as foretold, less the direction's lateness at that time
        self.done = done
        self.ok = True
        self.cancelled = False
        self.waited = False

    def record(self) -> CopyRecord:
        copy = self.copy
        return CopyRecord(
            copy.copy_id,
            copy.request_id,
            copy.direction.value,
            copy.num_blocks,
            len(copy.runs),
            self.cost.calls,
            self.cost.bytes,
            self.submit_ns,
            self.begin_ns,
            self.end_ns,
            self.ok,
            self.waited,
        )


class _Direction:
    """One direction's FIFO. A SimPy process serves it; `rate` is its progress per ns in 1/1024."""

    def __init__(self, env: Clock, link: HostLink, slow_rate: int) -> None:
        self._env = env
        self._link = link
        self.slow_rate = slow_rate
        self._queue: deque[Job] = deque()  # the job under way first
        self._awake = env.event()
        self.moving = False
        self.busy_until = 0  # when its queue will be empty, if nothing else comes or slows it
        self._late_ns = 0  # by how much the other direction has delayed this one, in all
        self._rate = _ONE
        self._rate_since = 0
        self._is_told = False
        self._process = env.process(self._serve())

    def push(self, job: Job) -> None:
        """Queue a job whose submission times are known."""
        self._queue.append(job)
        begin = max(self.busy_until, job.ready_ns)
        self.busy_until = max(begin + job.cost.link_ns, job.submitted_ns + job.cost.last_piece_ns)
        job.expected_ns = self.busy_until - self._late_ns
        if not self._awake.triggered:
            self._awake.succeed()

    def fits_ns(self, cost: CopyCost, ready_ns: int, depth: int, stalls_ns: int) -> int:
        """When the last call of a job pushed now finds room in the stream's queue, which holds
        `depth` calls, whichever jobs they belong to: when so many are left to move."""
        if stalls_ns:
            return max(self.busy_until, ready_ns) + cost.link_ns - stalls_ns
        left = depth - cost.calls
        for job in reversed(self._queue):
            if left < job.cost.calls:
                return job.expected_ns + self._late_ns - left * job.cost.last_piece_ns
            left -= job.cost.calls
        return 0

    def work_left(self, now: int) -> int:
        """What it has to do until its queue is empty, in 1/1024 ns at the full rate."""
        work = (self.busy_until - now) * _ONE
        if self.moving:
            work += (now - self._rate_since) * (_ONE - self._rate)
        return work

    def rate_changed(self) -> None:
        """The other direction started or stopped moving."""
        if self.moving and not self._is_told:
            self._is_told = True
            self._process.interrupt()

    def _serve(self) -> Generator[simpy.Event, object, None]:
        env = self._env
        while True:
            if not self._queue:
                self._awake = env.event()
                yield self._awake
            job = self._queue[0]
            if job.ready_ns > env.now:
                yield env.timeout(job.ready_ns - env.now)
            job.begin_ns = env.now
            yield from self._move(job.cost.link_ns)
            last_call = job.submitted_ns + job.cost.last_piece_ns
            if last_call > env.now:
                yield env.timeout(last_call - env.now)
            job.end_ns = env.now
            self._queue.popleft()
            self._link.ended(job)

    def _move(self, link_ns: int) -> Generator[simpy.Event, object, None]:
        """Take `link_ns` of full-rate time, longer while the other direction moves too."""
        env = self._env
        other = self._link.other(self)
        self.moving = True
        other.rate_changed()
        left = link_ns * _ONE
        while left > 0:
            rate = self._rate = self.slow_rate if other.moving else _ONE
            begin = self._rate_since = env.now
            self._is_told = False
            with suppress(simpy.Interrupt):  # the other direction starts or stops
                yield env.timeout(-(-left // rate))
            elapsed = env.now - begin
            left -= elapsed * rate
            late = elapsed * (_ONE - rate) >> 10
            self.busy_until += late
            self._late_ns += late
        self.moving = False
        other.rate_changed()


class HostLink:
    """Dispatch and both directions. `ended_jobs` holds what has ended since it was last taken."""

    def __init__(
        self,
        env: Clock,
        costs: CopyCosts,
        *,
        worker_threads: int | None,
        fails: Callable[[Copy], bool] | None = None,
    ) -> None:
        """`worker_threads` per direction; None: the engine's own thread submits.

        `fails` injects faults: a copy it picks takes its time and ends as not ok.
        """
        self._env = env
        self._costs = costs
        self._fails = fails
        self._directions = {
            way: _Direction(env, self, costs.duplex_rate[way])
            for way in (Direction.TO_HOST, Direction.TO_DEVICE)
        }
        self._threads = (
            None
            if worker_threads is None
            else {way: [0] * worker_threads for way in self._directions}
        )
        self.in_flight: dict[int, Job] = {}
        self.ended_jobs: list[Job] = []
        self.on_end: simpy.Event | None = None  # somebody idle waits for any job to end

    def submit(self, copy: Copy, submitter_free_ns: int) -> Job:
        """Start a job. `submitter_free_ns`: when the engine's thread gets to it, if it submits.

        The job's `submitted_ns` tells the engine when that thread is free again.
        """
        cost = self._costs.cost(copy)
        now = self._env.now
        job = Job(copy, cost, now, self._env.event())
        server = self._directions[copy.direction]
        threads = None if self._threads is None else self._threads[copy.direction]
        begin = submitter_free_ns if threads is None else max(now, min(threads))
        job.ready_ns = begin + cost.first_call_ns
        job.submitted_ns = begin + cost.submit_ns
        costs = self._costs
        fits = server.fits_ns(cost, job.ready_ns, costs.queue_depth, costs.stalls_after(cost))
        job.submitted_ns = max(job.submitted_ns, fits)
        if threads is not None:
            threads[threads.index(min(threads))] = job.submitted_ns
        self.in_flight[copy.copy_id] = job
        server.push(job)
        return job

    def cancel(self, copy_id: int) -> None:
        """The source is kept: the job still takes its time, then ends as not ok."""
        job = self.in_flight.get(copy_id)
        if job is not None:
            job.cancelled = True

    def ended(self, job: Job) -> None:
        """A job's last byte has moved."""
        job.ok = not job.cancelled and not (self._fails is not None and self._fails(job.copy))
        del self.in_flight[job.copy.copy_id]
        self.ended_jobs.append(job)
        job.done.succeed()
        if self.on_end is not None and not self.on_end.triggered:
            self.on_end.succeed()

    def other(self, direction: _Direction) -> _Direction:
        first, second = self._directions.values()
        return second if direction is first else first

    def slowdown(self, begin_ns: int, step_ns: int) -> int:
        """Nanoseconds a step from `begin_ns` gains by interference with copies under way."""
        extra = 0
        for way, busy_ns in zip(self._directions, self._busy_for(begin_ns), strict=True):
            if busy_ns > 0:
                extra += min(busy_ns, step_ns) * self._costs.interference[way] >> 10
        return extra

    def _busy_for(self, now: int) -> tuple[int, int]:
        """How long each direction will be busy, if nothing else comes."""
        first, second = self._directions.values()
        left, right = first.work_left(now), second.work_left(now)
        if left <= 0 or right <= 0:
            return left >> 10, right >> 10
        left_ns, right_ns = -(-left // first.slow_rate), -(-right // second.slow_rate)
        if left_ns <= right_ns:
            return left_ns, left_ns + max(0, right - left_ns * second.slow_rate >> 10)
        return right_ns + max(0, left - right_ns * first.slow_rate >> 10), right_ns
