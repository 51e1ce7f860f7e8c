"""Turns that clients bring while an engine runs: the live twin of `runs.turns.TurnDriver`.

Other threads put turns and leaves in, the engine's thread alone takes them out. The clock is read under
the lock that the engine looks under: whatever it did not see at an instant is stamped later than
that, so a replay and a simulation of the recording see it where it was seen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from runs.turns import NEVER, Arrival
from traces.workload import Turn


class LiveDriver:
    """`clock`: nanoseconds of the run. `on_leave(request_id, at_ns)`: the engine's, for cancellations."""

    has_queue = False
    num_queued = 0
    queued_ns = 0
    num_unsaid = 0

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._news = threading.Condition()
        self._queue: deque[tuple[int, Turn | str]] = deque()
        self._closed = False
        self.on_leave: Callable[[str, int], None] = lambda _request_id, _at_ns: None
        self.num_rows = 0

    # ------------------------------------------------------------------ any thread

    def put(self, turn: Turn) -> bool:
        """A client asks. False if the door is closed."""
        return self._put(turn)

    def cancel(self, request_id: str) -> None:
        """A client has left."""
        self._put(request_id)

    def close(self) -> None:
        """Nobody comes any more; who is here is served to the end."""
        with self._news:
            self._closed = True
            self._news.notify()

    def _put(self, what: Turn | str) -> bool:
        with self._news:
            if self._closed and isinstance(what, Turn):
                return False
            self._queue.append((self._clock(), what))
            self._news.notify()
            return True

    # ------------------------------------------------------------------ the engine's thread

    @property
    def next_ns(self) -> int:
        """When what came first came, NEVER if nothing did."""
        with self._news:
            return self._queue[0][0] if self._queue else NEVER

    @property
    def is_done(self) -> bool:
        """Closed, and nothing left."""
        with self._news:
            return self._closed and not self._queue

    def due(self, now_ns: int) -> list[Arrival]:
        """Turns that came by `now_ns`; who left by then is told to the engine."""
        found = []
        with self._news:
            while self._queue and self._queue[0][0] <= now_ns:
                at, what = self._queue.popleft()
                if isinstance(what, str):
                    self.on_leave(what, at)
                else:
                    self.num_rows += 1
                    turn = replace(what, arrival_ns=at)
                    found.append(Arrival(at, turn.request_id, turn, turn.parent_id, at))
        return found

    def ended(self, request_id: str, now_ns: int) -> None:
        """Nobody waits for it here: clients come by themselves."""

    def wait(self, seconds: float | None) -> None:
        """Until something comes or it closes, for so long at most."""
        with self._news:
            if not self._queue and not self._closed:
                self._news.wait(seconds)
