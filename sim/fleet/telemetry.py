"""What the gateway is told of replicas: read at ticks, handed over later, sometimes lost.

A true scraper: at any time it knows the state at the last tick that is old enough and was not lost. A
tick at the instant of a change sees what was before it. State changes only when an engine plans or
updates, so nothing happens at a tick: what was true then is found when somebody asks.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from policy.routing.view import UNHEARD, Seen
from policy.scheduler import Scheduler
from sim.clock import Clock
from traces.randomness import Streams

Signals = tuple[Seen, Seen, Seen]
NOTHING_HEARD: Signals = (UNHEARD, UNHEARD, UNHEARD)


class ScrapeTimes(NamedTuple):
    """Of all replicas: nanoseconds between ticks, until a value is known, share of ticks lost."""

    period_ns: int
    delay_ns: int
    loss: float
    is_aligned: bool


class Probe:
    """The signals of one replica. `watch` is called after every plan and every update."""

    def __init__(
        self, clock: Clock, scheduler: Scheduler, name: str, times: ScrapeTimes, streams: Streams
    ) -> None:
        self._clock = clock
        self._scheduler = scheduler
        self._name = name
        self._times = times
        self._streams = streams
        self._blocks = scheduler.settings.device_blocks
        self._phase = 0
        if not times.is_aligned:
            self._phase = streams("scrape-phase", name, 0) % times.period_ns
        self._since = -1  # the state holds after this instant
        self._state = (0, 0, scheduler.engine.levels().device)
        self._next_tick = self._phase
        self._past: deque[tuple[int, tuple[int, int, int]]] = (
            deque()
        )  # at the last tick of each state

    def watch(self, scheduler: Scheduler) -> None:
        """Something may have changed."""
        now = self._clock.now
        if now > self._since:
            if now >= self._next_tick:
                last = now - (now - self._phase) % self._times.period_ns
                self._past.append((last, self._state))
                self._next_tick = last + self._times.period_ns
            self._since = now
        desk = scheduler.desk
        running = len(desk.running)
        self._state = (len(desk.live) - running, running, scheduler.engine.levels().device)

    def read(self) -> Signals:
        """Waiting, running and the share of KV blocks taken, as they are known now."""
        tick = self._tick()
        if tick < 0:
            return NOTHING_HEARD
        past = self._past
        while past and past[0][0] < tick:
            past.popleft()
        waiting, running, free = past[0][1] if past else self._state
        return (
            Seen(waiting, tick),
            Seen(running, tick),
            Seen((self._blocks - free) / self._blocks, tick),
        )

    def _tick(self) -> int:
        """The last tick that is old enough and was not lost; negative if there is none."""
        times = self._times
        old = self._clock.now - times.delay_ns - self._phase
        if old < 0:
            return -1
        number = old // times.period_ns
        while times.loss and self._streams.uniform("scrape-loss", self._name, number) < times.loss:
            number -= 1
            if number < 0:
                return -1
        return self._phase + number * times.period_ns
