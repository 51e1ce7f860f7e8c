"""Does anything still get done? The question that every test of progress asks after every plan."""

from __future__ import annotations

from policy.plan import Plan
from policy.request import Request
from policy.scheduler import Scheduler


class NoProgress(AssertionError):
    """Work is there, plans are made, and nothing comes of them."""


def computed(request: Request) -> int:
    """Tokens of a live request whose KV is on the device."""
    if request.is_decoding:
        return request.num_tokens - 1
    return request.context.device_tokens


class Watchdog:
    """Fingerprint: how many requests have left, and the most tokens each was ever computed to.

    `patience` plans in a row that leave it as it was, with requests live, are one too many.
    """

    def __init__(self, scheduler: Scheduler, patience: int) -> None:
        self._scheduler = scheduler
        self._patience = patience
        self._most: dict[str, int] = {}
        self._left = 0
        self._still = 0

    def look(self, plan: Plan) -> None:
        """After a plan was made. Raises NoProgress."""
        live = self._scheduler.desk.live
        left = len(self._most.keys() - live.keys())
        moved = left > self._left or not live
        self._left = left
        for name, request in live.items():
            now = computed(request)
            if now > self._most.get(name, -1):
                self._most[name] = now
                moved = True
        self._still = 0 if moved else self._still + 1
        if self._still >= self._patience:
            raise NoProgress(
                f"{self._still} plans without progress: {sorted(live.values(), key=repr)};"
                f" the last waits on {plan.waiting_on}"
            )
