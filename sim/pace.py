"""The simulated machine at the speed of the wall clock, so that real clients can use it.

SimPy is untouched: an event is processed when the clock has reached it, and how much later than that is
counted. `scale`: simulated seconds in a second.
"""

from __future__ import annotations

import time
from typing import Protocol, cast

import simpy

from runs.turns import NEVER, Turns
from sim.engine import Engine

#: Each octave of lateness is counted in so many parts, so a percentile is at most 1/8 too high.
_PARTS = 8


class Clock:
    """Simulated nanoseconds since it was made, as the wall clock has them."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._begin = time.perf_counter_ns()

    def __call__(self) -> int:
        """Now."""
        return int((time.perf_counter_ns() - self._begin) * self.scale)


class Lateness:
    """How much later than due events were processed: wall-clock microseconds, in buckets."""

    def __init__(self) -> None:
        self.count = 0
        self.max_us = 0
        self._counts: dict[int, int] = {}

    def add(self, late_us: int) -> None:
        """One more event."""
        self.count += 1
        self.max_us = max(self.max_us, late_us)
        shift = max(0, late_us.bit_length() - _PARTS.bit_length())
        bucket = (late_us >> shift) + 1 << shift
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def percentile_us(self, share: float) -> int:
        """An upper bound of that share of all events, at most 1/8 above it."""
        left = share * self.count
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return min(bucket, self.max_us)
        return self.max_us


class LiveDriver(Turns, Protocol):
    """A driver that hears of turns while the engine runs."""

    def wait(self, seconds: float | None) -> None:
        """Until there is news, for so long at most."""


class Bell:
    """Wakes an idle engine: `pushed` is what that asks for (`sim.engine.Engine`)."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._event: simpy.Event | None = None

    def pushed(self) -> simpy.Event:
        """The next time that it rings."""
        self._event = self._env.event()
        return self._event

    @property
    def is_awaited(self) -> bool:
        """Somebody has asked since it rang."""
        return self._event is not None

    def ring(self, at_ns: int) -> None:
        """At a time that is not before now."""
        event, self._event = self._event, None
        if event is not None:
            timer = self._env.timeout(max(0, at_ns - int(self._env.now)))
            timer.callbacks.append(lambda _: _succeed(event))


def _succeed(event: simpy.Event) -> None:
    event.succeed()


def run_paced(
    engine: Engine, driver: LiveDriver, bell: Bell, clock: Clock, lateness: Lateness
) -> None:
    """Run an engine to its end. What the driver hears of is seen at the time it came, as offline."""
    env = engine.env
    process = env.process(engine.run())
    failed: list[BaseException] = []
    process.callbacks.append(lambda event: _note(event, failed))
    while process.is_alive:
        due = env.peek()
        now = clock()
        if bell.is_awaited:
            news = driver.next_ns
            if driver.is_done:
                news = min(news, max(now, env.now))
            if news <= min(due, NEVER - 1):
                bell.ring(news)
                continue
        if due <= now:
            env.step()
            lateness.add(int((now - due) / clock.scale) // 1000)
        elif bell.is_awaited:
            driver.wait(None if due == float("inf") else (due - now) / clock.scale / 1e9)
        else:
            time.sleep((due - now) / clock.scale / 1e9)
    if failed:
        raise failed[0]


def _note(event: simpy.Event, failed: list[BaseException]) -> None:
    if not event.ok:
        event.defused = True
        failed.append(cast(BaseException, event.value))
