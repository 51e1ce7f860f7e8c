"""The local engine: worker processes of this machine, watched one by one.

A trial that takes too long, or whose process dies, costs that trial: the worker is replaced and the
others go on. Workers are started as programs of their own, so a script needs no `__main__` guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from explore.studies.trial import failed
from explore.studies.workers.process import READY
from policy.errors import FaultError

#: How often a trial is given to a worker before its death is the trial's fault.
MAX_ATTEMPTS = 2
#: How many workers in a row may die before they are ready.
MAX_STILLBORN = 3

#: One thread a worker; and address space is taken when it is used, so that a limit of it means
#: something: no arenas for each thread, none of a gigabyte for Arrow.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass
class _Task:
    ask: str
    seconds: float | None
    attempts: int = 0

    @property
    def key(self) -> str:
        return str(json.loads(self.ask)["key"])


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    task: _Task | None = None
    deadline: float | None = None
    is_ready: bool = False
    received: bytearray = field(default_factory=bytearray)

    @property
    def descriptor(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, task: _Task) -> None:
        """Start a trial; a worker that died meanwhile is noticed when its replies end."""
        task.attempts += 1
        self.task = task
        self.deadline = None if task.seconds is None else time.monotonic() + task.seconds
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(task.ask.encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> int:
        """Kill it; its return code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not written, a dead worker needs not
                pipe.close()
        return self.process.wait()


class Local:
    """`workers` processes of `program` (explore.studies.workers.base.Workers)."""

    def __init__(
        self, workers: int, program: Sequence[str] = ("-m", "explore.studies.workers.process")
    ) -> None:
        self._count = workers
        self._program = program
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._stillborn = 0

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """Replies of all asks, in the order they come. Raises FaultError if no worker can live."""
        waiting = deque(_Task(ask, json.loads(ask)["seconds"]) for ask in asks)
        while waiting or any(worker.task for worker in self._workers):
            self._hand_out(waiting)
            for worker in self._wait():
                yield from self._receive(worker, waiting)
            yield from self._stop_the_late()

    def close(self) -> None:
        """End all workers."""
        while self._workers:
            self._remove(self._workers[0])
        self._selector.close()

    def _hand_out(self, waiting: deque[_Task]) -> None:
        busy = sum(worker.task is not None for worker in self._workers)
        while len(self._workers) < min(self._count, busy + len(waiting)):
            self._start()
        for worker in self._workers:
            if waiting and worker.is_ready and worker.task is None:
                worker.give(waiting.popleft())

    def _start(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        process = subprocess.Popen(
            [sys.executable, *self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
            process_group=0,  # Ctrl-C is this process's business, also while they import
        )
        worker = _Worker(process)
        self._workers.append(worker)
        self._selector.register(worker.descriptor, selectors.EVENT_READ, worker)

    def _wait(self) -> list[_Worker]:
        """Workers that said something or died; none if a deadline came first."""
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        return [key.data for key, _ in self._selector.select(timeout)]

    def _receive(self, worker: _Worker, waiting: deque[_Task]) -> Iterator[str]:
        data = os.read(worker.descriptor, 1 << 16)
        if not data:
            yield from self._bury(worker, waiting)
            return
        worker.received += data
        if not worker.received.endswith(b"\n"):
            return
        line = bytes(worker.received)
        worker.received.clear()
        if not worker.is_ready and line == READY:
            worker.is_ready = True
            self._stillborn = 0
            return
        worker.task = worker.deadline = None
        reply = line.decode().rstrip("\n")
        if "failed" in json.loads(reply):
            self._remove(worker)  # what failed may have left anything behind
        yield reply

    def _bury(self, worker: _Worker, waiting: deque[_Task]) -> Iterator[str]:
        """Its trial is tried once more, by another worker."""
        task, was_ready = worker.task, worker.is_ready
        # Its replies have ended, so it is ending by itself: the return code is its own.
        code = worker.process.wait()
        self._remove(worker)
        if not was_ready:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                raise FaultError(f"workers die before they are ready ({_ended(code)})")
        if task is None:
            return
        if task.attempts < MAX_ATTEMPTS:
            waiting.appendleft(task)
        else:
            yield failed(task.key, f"its worker died {MAX_ATTEMPTS} times ({_ended(code)})")

    def _stop_the_late(self) -> Iterator[str]:
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.task is not None and worker.deadline is not None and worker.deadline <= now:
                task = worker.task
                self._remove(worker)
                yield failed(task.key, f"time limit of {task.seconds:g} s")

    def _remove(self, worker: _Worker) -> None:
        self._selector.unregister(worker.descriptor)
        self._workers.remove(worker)
        worker.end()


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
