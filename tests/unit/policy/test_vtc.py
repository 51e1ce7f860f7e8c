"""The service that clients have had, kept from what changes, against a walk over everybody who is live."""

from __future__ import annotations

import random

import pytest

from policy.orders.vtc import VirtualTokenCounter
from policy.request import DecodeClock, Move, Request


class Walk:
    """VTC as its paper words it: at every arrival of an idle client and every update, all are charged."""

    def __init__(self) -> None:
        self.service: dict[str, int] = {}
        self.live: dict[str, Request] = {}
        self.charged: dict[str, int] = {}
        self.last_left: str | None = None

    def arrived(self, request: Request) -> None:
        client = request.client_id
        clients = {other.client_id for other in self.live.values()}
        if client not in clients:
            self.update()
            level = self.service.get(client, 0)
            if clients:
                level = max(level, min(self.service[other] for other in clients))
            elif self.last_left is not None:
                level = max(level, self.service[self.last_left])
            self.service[client] = level
        self.live[request.request_id] = request
        self.charged[request.request_id] = 0

    def update(self) -> None:
        for request in self.live.values():
            self.charge(request)

    def charge(self, request: Request) -> None:
        new = request.num_generated - self.charged[request.request_id]
        first = request.input_tokens if new and not self.charged[request.request_id] else 0
        self.service[request.client_id] += 2 * new + first
        self.charged[request.request_id] += new

    def left(self, request: Request) -> None:
        self.charge(request)
        del self.live[request.request_id]
        if all(other.client_id != request.client_id for other in self.live.values()):
            self.last_left = request.client_id


@pytest.mark.parametrize("seed", range(20))
def test_service_is_what_a_walk_over_all_live_requests_finds(seed: int) -> None:
    rng = random.Random(seed)
    order, walk, clock = VirtualTokenCounter(), Walk(), DecodeClock()
    live: list[Request] = []
    decoding: list[Request] = []
    for number in range(150):
        match rng.choice(["come", "come", "begin", "pause", "step", "step", "go", "update"]):
            case "come":
                client = f"c{rng.randrange(8)}"
                request = Request(f"r{number}", arrival_ns=0, input_tokens=9, client_id=client)
                order.arrived(request, 0)
                walk.arrived(request)
                live.append(request)
            case "begin" if waiting := [r for r in live if r not in decoding]:
                request = rng.choice(waiting)
                request.move(Move.PREFILL)
                request.add_token()
                request.start_decoding(clock)
                order.began(request)
                decoding.append(request)
            case "pause" if decoding:
                request = decoding.pop(rng.randrange(len(decoding)))
                request.stop_decoding()
                request.move(Move.RECOMPUTE)
            case "step":
                clock.count += 1
            case "go" if live:
                request = live.pop(rng.randrange(len(live)))
                order.left(request, 0)
                walk.left(request)
                if request in decoding:
                    decoding.remove(request)
            case "update":
                order.update(number, 0)
                walk.update()
                assert order.service == walk.service
    order.update(0, 0)
    walk.update()
    assert order.service == walk.service
    assert max(order.service.values()) > 20
