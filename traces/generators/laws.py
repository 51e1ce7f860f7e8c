"""Laws of lengths and gaps, drawn by inversion so that a draw is one number of one stream.

Only scalar `math` functions are used: array versions differ between CPUs and library versions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

from traces.draw import Streams

_NORMAL = NormalDist()

#: (weight, mean, standard deviation) of the logarithm.
Mixture = tuple[tuple[float, float, float], ...]


def draw_mixture(mixture: Mixture, streams: Streams, purpose: str, name: str, k: int) -> float:
    """A draw from a log-normal mixture: one uniform picks the part, one normal the value."""
    pick = streams.uniform(f"{purpose}-part", name, k)
    shares = accumulate(weight for weight, _, _ in mixture[:-1])
    _, mean, deviation = mixture[sum(pick > share for share in shares)]
    return math.exp(mean + deviation * streams.normal(purpose, name, k))


@lru_cache(maxsize=32)
def _scores(mixture: Mixture) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(normal score, log value) of a mixture at 1,601 points from -5 to 5, by bisection."""
    points = [-5 + i / 160 for i in range(1601)]
    low = min(mean - 8 * deviation for _, mean, deviation in mixture)
    high = max(mean + 8 * deviation for _, mean, deviation in mixture)
    values = []
    for point in points:
        target = _NORMAL.cdf(point)
        left, right = low, high
        for _ in range(60):
            middle = (left + right) / 2
            below = math.fsum(w * _NORMAL.cdf((middle - m) / d) for w, m, d in mixture)
            left, right = (middle, right) if below < target else (left, middle)
        values.append(left)
    return tuple(points), tuple(values)


def mixture_at(mixture: Mixture, score: float) -> float:
    """The mixture's quantile at a normal score: its marginal is kept, whatever made the score."""
    points, values = _scores(mixture)
    score = min(max(score, points[0]), points[-1])
    index = min(bisect_right(points, score), len(points) - 1)
    share = (score - points[index - 1]) / (points[index] - points[index - 1])
    return math.exp(values[index - 1] + share * (values[index] - values[index - 1]))


def draw_turns(hazards: Sequence[float], cap: int, streams: Streams, name: str) -> int:
    """Turns of a conversation: after k turns another follows with chance hazards[k - 1], the last
    of which goes on for ever."""
    turns = 1
    while turns < cap:
        chance = hazards[min(turns, len(hazards)) - 1]
        if streams.uniform("another-turn", name, turns) >= chance:
            break
        turns += 1
    return turns


def seconds_to_ns(seconds: float) -> int:
    """Quantise at once."""
    return round(seconds * 1_000_000_000)
