"""Who is left to choose from. A filter narrows the candidates, or leaves them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple, Protocol

from policy.routing.scorers import Ask, Candidates
from policy.routing.view import ReplicaView

Left = Sequence[ReplicaView]


class Filter(Protocol):
    """Those of the candidates that are left."""

    def __call__(self, ask: Ask, candidates: Candidates, /) -> Left: ...


def home(ask: Ask, candidates: Candidates) -> Left:
    """Where the session was served last, if that can serve."""
    last = ask.books.homes.get(ask.request.session_id)
    return [one for one in candidates if one.number == last] or candidates


def two_drawn(ask: Ask, candidates: Candidates) -> Left:
    """Two of them, drawn; in the order drawn."""
    count = len(candidates)
    if count < 3:
        return candidates if count < 2 or not ask.random("route-two") % 2 else candidates[::-1]
    first = ask.random("route-two") % count
    second = ask.random("route-two", 1) % (count - 1)
    return [candidates[first], candidates[second + (second >= first)]]


def longest_match(ask: Ask, candidates: Candidates) -> Left:
    """Those that were sent the longest beginning of this prompt; all, if nobody was sent any."""
    matches = [ask.matched(one) for one in candidates]
    best = max(matches)
    return [one for one, match in zip(candidates, matches, strict=True) if match == best]


class PrefixAffinity(NamedTuple):
    """llm-d's: those with at least `threshold` of the prompt, unless the best of them makes a request
    wait more than `penalty_ms` longer for its first token than the best of the others, as tokens to
    compute over `tokens_per_s` tell it."""

    threshold: float = 0.80
    penalty_ms: float = 18_000
    tokens_per_s: float = 15_928

    def __call__(self, ask: Ask, candidates: Candidates) -> Left:
        total = len(ask.request.blocks)
        sticky = [one for one in candidates if total and ask.matched(one) / total >= self.threshold]
        others = [one for one in candidates if one not in sticky]
        if not sticky or not others:
            return candidates
        waits = [min(self._wait_ms(ask, one) for one in side) for side in (sticky, others)]
        return candidates if waits[0] - waits[1] > self.penalty_ms else sticky

    def _wait_ms(self, ask: Ask, replica: ReplicaView) -> float:
        return ask.books.load(replica.number).uncached / self.tokens_per_s * 1000


class CacheAware(NamedTuple):
    """SGLang's: the shortest queues where loads differ by more than `absolute` and by a factor above
    `relative`; else the best match, if more than `threshold` of the prompt; else the least loaded."""

    threshold: float = 0.3
    absolute: int = 64
    relative: float = 1.5

    def __call__(self, ask: Ask, candidates: Candidates) -> Left:
        loads = [ask.requests(one) for one in candidates]
        most, least = max(loads), min(loads)
        if most - least > self.absolute and most > self.relative * least:
            return candidates
        total = len(ask.request.blocks)
        best = max(ask.matched(one) for one in candidates)
        if total and best / total > self.threshold:
            return longest_match(ask, candidates)
        return candidates


class Aibrix(NamedTuple):
    """AIBrix' prefix-cache: all where loads differ by more than `imbalance`; else of those that match,
    the longest first and the least loaded of equals, the first that has no more than the mean and
    `deviations` standard deviations; all if there is none."""

    imbalance: int = 8
    deviations: float = 1.0

    def __call__(self, ask: Ask, candidates: Candidates) -> Left:
        loads = [ask.requests(one) for one in candidates]
        if max(loads) - min(loads) > self.imbalance:
            return candidates
        mean = sum(loads) / len(loads)
        spread = sqrt(sum((load - mean) ** 2 for load in loads) / len(loads))
        matched = [
            (-ask.matched(one), load, place)
            for place, (one, load) in enumerate(zip(candidates, loads, strict=True))
            if ask.matched(one)
        ]
        for _, load, place in sorted(matched):
            if load <= mean + self.deviations * spread:
                return [candidates[place]]
        return candidates
