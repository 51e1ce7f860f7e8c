"""Laws of lengths and gaps, drawn by inversion so that a draw is one number of one stream.

Only scalar `math` functions are used: array versions differ between CPUs and library versions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist
from typing import ClassVar

from policy.errors import ConfigError
from traces.randomness import Streams

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


@dataclass(frozen=True, slots=True)
class Values:
    """A law of lengths or times: with chance `zero` nothing, else a log-normal mixture, as a
    multiple of `grid` and cut to `low`..`high`. With `mean` it is exponential instead. Raises
    ConfigError for numbers that are no law.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    parts: Mixture = ()
    zero: float = 0.0
    low: float = 0.0
    high: float | None = None
    grid: float | None = None
    mean: float | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (not self.parts) and self.zero < 1:
            raise ConfigError("a law has parts or a mean, or zero 1")
        if self.mean is not None and not 0 <= self.mean < math.inf:
            raise ConfigError(f"a law's mean, {self.mean}, is below 0")
        for weight, mean, deviation in self.parts:
            if not (0 <= weight <= 1 and abs(mean) <= 50 and 0 < deviation <= 20):
                raise ConfigError(
                    f"part [{weight}, {mean}, {deviation}] of a law: weight 0 to 1, log mean -50 to"
                    " 50, log deviation above 0 and up to 20"
                )
        if self.parts and abs(math.fsum(weight for weight, _, _ in self.parts) - 1) > 1e-3:
            raise ConfigError("the weights of a law's parts must sum to 1")
        if not (0 <= self.zero <= 1 and 0 <= self.low < math.inf):
            raise ConfigError("a law's zero is 0 to 1, and its low is at least 0")
        if self.high is not None and not self.low <= self.high < math.inf:
            raise ConfigError(f"a law's high, {self.high}, is below its low")
        if self.grid is not None and not 0 < self.grid < math.inf:
            raise ConfigError(f"a law's grid, {self.grid}, is not above 0")

    def draw(self, streams: Streams, purpose: str, name: str, k: int) -> float:
        """The k-th value of a stream."""
        if self.zero and streams.uniform(f"{purpose}-zero", name, k) < self.zero:
            return 0.0
        if self.mean is not None:
            return self._fitted(self.mean * streams.exponential(purpose, name, k))
        return self._fitted(draw_mixture(self.parts, streams, purpose, name, k))

    def at(self, score: float) -> float:
        """The quantile at a normal score."""
        if self.zero:
            share = _NORMAL.cdf(score)
            if share <= self.zero:
                return 0.0
            rest = (share - self.zero) / (1 - self.zero)
            score = _NORMAL.inv_cdf(min(max(rest, 1e-12), 1 - 1e-12))
        if self.mean is not None:
            return self._fitted(-self.mean * math.log(_NORMAL.cdf(-score)))
        return self._fitted(mixture_at(self.parts, score))

    def _fitted(self, value: float) -> float:
        if self.grid is not None:
            value = round(value / self.grid) * self.grid
        value = max(value, self.low)
        return value if self.high is None else min(value, self.high)


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


def draw_gamma(shape: float, streams: Streams, purpose: str, name: str, k: int) -> float:
    """The k-th gamma variate of this shape and scale 1 (Marsaglia and Tsang 2000). Each has room
    for 64 trials, of which one in twenty at most fails."""
    if shape < 1:
        below = math.log(streams.uniform(f"{purpose}-boost", name, k)) / shape
        return draw_gamma(shape + 1, streams, purpose, name, k) * math.exp(below)
    d = shape - 1 / 3
    value = d
    for trial in range(64):
        x = streams.normal(purpose, name, 64 * k + trial)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v <= 0:
            continue
        value = d * v
        u = streams.uniform(f"{purpose}-accept", name, 64 * k + trial)
        if math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            break
    return value


def weibull_shape(cv: float) -> float:
    """The shape of a Weibull law with this coefficient of variation, .01 to 100, by bisection."""
    low, high = math.log(0.1), math.log(200)
    for _ in range(80):
        middle = (low + high) / 2
        k = math.exp(middle)
        squared = math.exp(math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k)) - 1
        low, high = (middle, high) if squared > cv * cv else (low, middle)
    return math.exp(low)


def seconds_to_ns(seconds: float) -> int:
    """Quantise at once."""
    return round(seconds * 1_000_000_000)
