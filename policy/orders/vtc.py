"""Virtual token counter: serve the client that has received least (Sheng et al., 2401.00588).

Preemptive, with a head start: a request that holds device memory counts as `head_start` less
served, the size of a context switch, or token-level fairness thrashes itself
(docs/sources.md#head-start).
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush, heapreplace
from math import lcm

from policy.errors import ConfigError
from policy.orders.base import Key, Order
from policy.views import RequestView

#: Largest weight of a client.
MAX_WEIGHT = 1000


class VirtualTokenCounter(Order):
    """Weighted service per client: 1 per prompt token computed, 2 per output token.

    A prompt is charged once, when its first token appears, and only what was not cached; recomputed
    tokens are the engine's fault and charge nobody (trap T14). A client that returns from idle is
    lifted to the least served client with work, or to the one that left last (trap T13).

    `weights`: shares that clients are entitled to, 1 where none is given; a token of a client of
    weight 3 counts a third of one of a client of weight 1. Whole numbers: service is counted in
    parts of a token, so many that every weight divides them.
    """

    name = "vtc"
    refreshes = True

    def __init__(
        self,
        *,
        head_start: int = 60,
        prompt_weight: int = 1,
        output_weight: int = 2,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self._weights = dict(weights or {})
        for client, weight in self._weights.items():
            if not 1 <= weight <= MAX_WEIGHT:
                raise ConfigError(f"vtc.weights.{client}: {weight} is not in 1 to {MAX_WEIGHT}")
        self.unit = lcm(*self._weights.values())
        self._head_start = head_start * self.unit
        self._prompt_weight = prompt_weight * self.unit
        self._output_weight = output_weight * self.unit
        self.service: dict[str, int] = {}
        self._live: dict[str, int] = {}  # client -> how many of its requests are live
        self._levels: list[tuple[int, str]] = []  # heap: what live clients had been served, or less
        self._charged: dict[str, int] = {}  # request -> output tokens charged
        self._serving: dict[str, RequestView] = {}  # those that may have tokens not charged yet
        self._last_left: str | None = None

    def arrived(self, request: RequestView, now_ns: int) -> None:  # noqa: ARG002
        """Lift a client that had nothing queued."""
        client = request.client_id
        if client not in self._live:
            self._charge_everybody()
            level = self.service.get(client, 0)
            if self._live:
                level = max(level, self._least())
            elif self._last_left is not None:
                level = max(level, self.service[self._last_left])
            self.service[client] = level
            self._live[client] = 0
            heappush(self._levels, (level, client))
        self._live[client] += 1
        self._charged[request.request_id] = 0

    def began(self, request: RequestView) -> None:
        """Its tokens are to be charged."""
        self._serving[request.request_id] = request

    def left(self, request: RequestView, now_ns: int) -> None:  # noqa: ARG002
        """Settle what is still uncharged."""
        self._charge(request)
        del self._charged[request.request_id]
        self._serving.pop(request.request_id, None)
        self._live[request.client_id] -= 1
        if not self._live[request.client_id]:
            del self._live[request.client_id]
            self._last_left = request.client_id

    def update(self, index: int, now_ns: int) -> None:  # noqa: ARG002
        """Charge the tokens served since the last update."""
        self._charge_everybody()

    def key(self, request: RequestView, now_ns: int) -> Key:  # noqa: ARG002
        """The client's service, less the head start of a resident."""
        service = self.service[request.client_id]
        return (service - self._head_start if request.is_resident else service,)

    def _charge_everybody(self) -> None:
        for name, request in list(self._serving.items()):
            self._charge(request)
            if not request.is_decoding:
                del self._serving[name]

    def _least(self) -> int:
        """What the least served live client has been served. Service only grows."""
        levels = self._levels
        while True:
            level, client = levels[0]
            if client not in self._live:
                heappop(levels)
            elif level < self.service[client]:
                heapreplace(levels, (self.service[client], client))
            else:
                return level

    def _charge(self, request: RequestView) -> None:
        generated = request.num_generated
        charged = self._charged[request.request_id]
        if generated == charged:
            return
        cost = (generated - charged) * self._output_weight
        if charged == 0:
            cost += (request.input_tokens - request.cached_tokens) * self._prompt_weight
        self.service[request.client_id] += cost // self._weights.get(request.client_id, 1)
        self._charged[request.request_id] = generated
