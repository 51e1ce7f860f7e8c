"""How long the scheduler's own calls take: measured on this machine, so never the same twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from explore.reproduce.data import Points
from policy.scheduler import Scheduler
from runs import scenario as scenarios
from runs.recorder import Recorder
from runs.serving import make_scheduler
from sim.simulate import calm_collector, make_engine, prepare

OURS, THEIRS, SETUP = "fastswitch", "paged-keep", "8b-markov"
REPEATS = 3
CONVERSATIONS = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class Overhead:
    """CPU seconds in `schedule` and `update` of both systems, the least of some repeats, and the run's
    simulated seconds. Conversations served."""

    ours_s: float
    theirs_s: float
    run_s: float
    steps: int
    conversations: int

    @property
    def share(self) -> float:
        """What ours takes more, of the time that the run lasts."""
        return (self.ours_s - self.theirs_s) / self.run_s


class _Timed:
    """A scheduler whose decisions and bookkeeping are timed; everything else is the scheduler's."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.spent_ns = 0
        self.schedule = self._timing(scheduler.schedule)
        self.update = self._timing(scheduler.update)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def _timing(self, call: Callable[[Any], _T]) -> Callable[[Any], _T]:
        clock = time.thread_time_ns  # of this thread, so neighbours do not count

        def timed(argument: Any) -> _T:
            begin = clock()
            found = call(argument)
            self.spent_ns += clock() - begin
            return found

        return timed


def measure(points: Points, repeats: int = REPEATS, conversations: int = CONVERSATIONS) -> Overhead:
    """Serve the set-up with both systems and time their schedulers."""
    times = {}
    run_s, steps = 0.0, 0
    for system in (OURS, THEIRS):
        best = None
        for _ in range(repeats):
            spent, run_s, steps = _serve(points, system, conversations)
            best = spent if best is None else min(best, spent)
        times[system] = (best or 0) / 1e9
    return Overhead(times[OURS], times[THEIRS], run_s, steps, conversations)


def _serve(points: Points, system: str, conversations: int) -> tuple[int, float, int]:
    setup = points.setups[SETUP]
    values = {
        **setup.set,
        "workload.rate": points.rate,
        "workload.conversations": conversations,
        "system": system,
    }
    prepared = prepare(scenarios.load(setup.scenario, values))
    timed = _Timed(make_scheduler(prepared))
    with Recorder() as recorder:
        engine = make_engine(prepared, cast(Scheduler, timed), recorder, "off")
        with calm_collector():
            engine.env.run(until=engine.env.process(engine.run()))
    return timed.spent_ns, engine.env.now / 1e9, timed.step
