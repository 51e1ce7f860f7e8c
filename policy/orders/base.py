"""What an order is: a key per live request, smaller first."""

from __future__ import annotations

from policy.views import RequestView

Key = tuple[int | float, ...]


class Order:
    """Base of every order, and an order by itself: first come, first served.

    The planner computes each live request's key once per refresh and breaks ties by arrival, then
    id, so keys may change only at a refresh. `refreshes` says when that is:

    * False: a key is computed once, when the request arrives;
    * True: at every priority update as well (every 1/frequency steps, see `policy.orders.clock.UpdateClock`).

    A subclass overrides what it needs. It must not change the request, ask for the time or draw
    random numbers by itself.
    """

    name = "fcfs"
    refreshes = False
    #: What one unit of priority is in the first number of a key (`hysteresis.gap` counts in units).
    unit: int = 1

    def arrived(self, request: RequestView, now_ns: int) -> None:
        """A request came in. Called before its first `key`."""

    def began(self, request: RequestView) -> None:
        """A request decodes from now on: its first token has been made, or it has come back. Tokens of
        one of which this was never said are none."""

    def left(self, request: RequestView, now_ns: int) -> None:
        """A request finished, was rejected or cancelled. Its key may still be asked for: the copy
        of an idle conversation ranks by it."""

    def update(self, index: int, now_ns: int) -> None:
        """Priority update number `index` (0, 1, 2, ...) begins; keys are asked for right after."""

    def key(self, request: RequestView, now_ns: int) -> Key:  # noqa: ARG002
        """Smaller is served first. Any tuple of numbers."""
        return ()
