"""Times the real machine's own steps and copies, round by round.

Rounds go over all points in a fresh random order, so that a slow minute of the machine hits every
point once. Each sample is written down at once; a calibration that was stopped goes on where it was.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from calibrate.bench import Bench, all_points
from calibrate.points import Journal, Point, Points, read
from calibrate.timers import Timers
from policy.errors import ConfigError, FaultError
from traces.strict import reason, shown_path

REPEATS = 20


def measure(
    bench: Bench,
    path: Path,
    header: dict[str, object],
    *,
    repeats: int = REPEATS,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
    points: list[Point] | None = None,
    timers: Timers | None = None,
) -> Points:
    """Time every point `repeats` times and append the samples to `path`; return all that is there. A point
    that fails is written down with its reason and not tried again in this call; the others go on.

    `budget_s`: start no new round after so long. `timers`: warm ones, which stay open. Raises ConfigError if `path` holds another
    machine's or model's samples.
    """
    done = read(path) if path.exists() and path.stat().st_size else Points(dict(header))
    for name in ("machine", "model", "device", "dtype"):
        if done.header.get(name) != header.get(name):
            raise ConfigError(
                f"{shown_path(path)}: holds samples of {name} {done.header.get(name)!r},"
                f" this is {header.get(name)!r}; give another file"
            )
    wanted = all_points(bench) if points is None else points
    own = Timers(bench) if timers is None else timers
    journal = Journal(path, header)
    begin = time.monotonic()
    rng = random.Random(seed)
    given_up: set[Point] = set()
    try:
        with torch.inference_mode(), _interrupted_between_samples() as check:
            for _ in range(repeats):
                due = [
                    point
                    for point in wanted
                    if len(done.samples.get(point, ())) < repeats and point not in given_up
                ]
                if not due or (budget_s is not None and time.monotonic() - begin > budget_s):
                    break
                rng.shuffle(due)
                for point in due:
                    check()
                    try:
                        taken = own(point)
                    except (FaultError, RuntimeError, MemoryError) as error:
                        given_up.add(point)
                        done.failed[point] = reason(error)
                        journal.failed(point, done.failed[point])
                        continue
                    journal.sample(point, taken)
                    done.samples.setdefault(point, []).append(taken)
                    if progress is not None:
                        progress()
    finally:
        journal.close()
        if timers is None:
            own.close()
    return done


@contextmanager
def _interrupted_between_samples() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the sample under way, since one that is cut off leaves a thread copying. Yields
    what to call where an interrupt may be raised."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
