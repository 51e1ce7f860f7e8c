"""Scores of replicas for one request, larger is better. Each is a small function over all candidates.

Rules and defaults are those of the routers named, as read in their sources (docs/fleet.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from policy.routing.books import Books
from policy.routing.view import ReplicaView, RoutedView
from policy.views import Draw

Candidates = Sequence[ReplicaView]


class Ask(NamedTuple):
    """One question: who serves this request now?"""

    request: RoutedView
    books: Books
    now_ns: int
    draw: Draw

    def random(self, purpose: str, k: int = 0) -> int:
        """64 uniform bits of this attempt."""
        request = self.request
        return self.draw(purpose, request.request_id, (request.attempt << 16) + k)

    def matched(self, replica: ReplicaView) -> int:
        """Leading blocks of the prompt that were sent there."""
        return self.books.matched(self.request, replica.number, self.now_ns)

    def requests(self, replica: ReplicaView) -> int:
        """This router's requests under way there."""
        return self.books.load(replica.number).requests


class Scorer(Protocol):
    """A score of each candidate, larger is better."""

    def __call__(self, ask: Ask, candidates: Candidates, /) -> list[float]: ...


def fewest_outstanding(ask: Ask, candidates: Candidates) -> list[float]:
    """Fewest of this router's requests under way."""
    return [-float(ask.requests(one)) for one in candidates]


def next_in_turn(ask: Ask, candidates: Candidates) -> list[float]:
    """One after the other, counted by this router's decisions."""
    due = ask.books.num_routed % len(candidates)
    return [float(place == due) for place in range(len(candidates))]


def by_session(ask: Ask, candidates: Candidates) -> list[float]:
    """Rendezvous hash of the session: who comes or goes moves only its own sessions."""
    session = ask.request.session_id
    return [float(ask.draw(f"route-{one.name}", session, 0)) for one in candidates]


def llm_d_queue(_ask: Ask, candidates: Candidates) -> list[float]:
    """Fewest waiting, scaled between the longest and the shortest queue; 1 for all where all are equal.
    So a queue of 1 against 0 is worth as much as 100 against 0."""
    waiting = [one.waiting.value for one in candidates]
    most, least = max(waiting), min(waiting)
    if most == least:
        return [1.0] * len(waiting)
    return [(most - own) / (most - least) for own in waiting]


def llm_d_kv(_ask: Ask, candidates: Candidates) -> list[float]:
    """Share of KV blocks that is free."""
    return [1.0 - one.kv_share.value for one in candidates]


def llm_d_prefix(ask: Ask, candidates: Candidates) -> list[float]:
    """Share of the prompt's blocks that was sent there."""
    total = len(ask.request.blocks)
    return [ask.matched(one) / total if total else 0.0 for one in candidates]


class TokenLoad(NamedTuple):
    """Least prompt tokens to compute there, this request's with them, against a threshold."""

    threshold: int = 4_194_304

    def __call__(self, ask: Ask, candidates: Candidates) -> list[float]:
        scores = []
        for one in candidates:
            load = ask.books.load(one.number).uncached
            load += ask.books.uncached(ask.request, one.number, ask.now_ns)
            scores.append(1.0 - min(load, self.threshold) / self.threshold)
        return scores


class DynamoCost(NamedTuple):
    """Dynamo's cost, negative: blocks to prefill there, less what is cached, and blocks that decode."""

    prefill_scale: float = 1.0
    credit: float = 1.0
    request_weight: float = 0.0

    def __call__(self, ask: Ask, candidates: Candidates) -> list[float]:
        size, tokens = ask.books.block_tokens, ask.request.input_tokens
        scores = []
        for one in candidates:
            load = ask.books.load(one.number)
            cached = self.credit * ask.matched(one)
            prefill = max(0.0, (load.uncached + tokens) / size - cached)
            decode = -(-(load.tokens + tokens) // size)
            scores.append(
                -(self.prefill_scale * prefill + decode + self.request_weight * load.requests)
            )
        return scores
