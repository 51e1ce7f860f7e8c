"""What one replica's engine has in place of a driver of turns: what the router gave it."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol

import simpy

from runs.turns import NEVER, Arrival, TurnDriver
from sim.clock import Clock


class Gateway(Protocol):
    """What an inbox asks of the fleet."""

    driver: TurnDriver

    def route_due(self) -> None:
        """Send what has arrived by now."""

    def ended(self, replica: int, request_id: str, now_ns: int) -> None:
        """A reply has ended there."""

    @property
    def is_over(self) -> bool:
        """Nothing will be sent any more."""


class Inbox:
    """Turns sent to one replica, in (arrival, id) order. `frontend_ns` lies between it and the engine."""

    def __init__(self, clock: Clock, gateway: Gateway, replica: int, frontend_ns: int) -> None:
        self._clock = clock
        self._gateway = gateway
        self._replica = replica
        self._frontend_ns = frontend_ns
        self._due: list[Arrival] = []
        self._pushed: simpy.Event | None = None
        self.num_rows = 0
        self.num_unsaid = 0  # later turns that do not say what they repeat of their parent

    # ------------------------------------------------------------------ the fleet's side

    def push(self, arrival: Arrival) -> None:
        """It is sent here, now."""
        turn = arrival.turn
        self.num_rows += 1
        self.num_unsaid += turn.turn > 1 and turn.parent_prefix_tokens is None
        heappush(self._due, arrival)
        self._wake(self._frontend_ns)

    def close(self) -> None:
        """Nothing more will come."""
        self._wake(0)

    def take_all(self) -> list[Arrival]:
        """What the engine has not seen yet, taken away from it."""
        taken, self._due = sorted(self._due), []
        return taken

    @property
    def num_waiting(self) -> int:
        """Turns that the engine has not seen yet."""
        return len(self._due)

    def _wake(self, delay_ns: int) -> None:
        event, self._pushed = self._pushed, None
        if event is not None:
            event._ok, event._value = True, None
            self._clock.schedule(event, delay=delay_ns)

    # ------------------------------------------------------------------ the engine's side

    def pushed(self) -> simpy.Event:
        """The next time that something is sent here, or that nothing more will be."""
        if self._pushed is None:
            self._pushed = self._clock.event()
        return self._pushed

    @property
    def next_ns(self) -> int:
        """When the next turn arrived, NEVER if none is here."""
        gateway = self._gateway
        if gateway.driver.next_ns <= self._clock.now:
            gateway.route_due()  # what ended just now lets it come
        return self._due[0].arrival_ns if self._due else NEVER

    def due(self, now_ns: int) -> list[Arrival]:
        """Turns that have arrived by `now_ns`, in order."""
        found = []
        while self._due and self._due[0].arrival_ns <= now_ns:
            found.append(heappop(self._due))
        return found

    def ended(self, request_id: str, now_ns: int) -> None:
        """A reply has ended, or the turn was rejected or cancelled."""
        self._gateway.ended(self._replica, request_id, now_ns)

    @property
    def is_done(self) -> bool:
        """No turn will ever arrive here again."""
        return not self._due and self._gateway.is_over

    @property
    def has_queue(self) -> bool:
        """Whether the client, of the whole fleet, keeps turns back."""
        return self._gateway.driver.has_queue

    @property
    def num_queued(self) -> int:
        """Turns that waited in the client's own queue, of the whole fleet."""
        return self._gateway.driver.num_queued

    @property
    def queued_ns(self) -> int:
        """How long they did."""
        return self._gateway.driver.queued_ns
