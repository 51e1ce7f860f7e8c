"""When sessions begin, and whose they are: laws of arrivals.

Every law is stationary from time zero on: a renewal process starts with a residual gap, not with a
whole one, so that a bursty law does not begin with a burst.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

from policy.errors import ConfigError
from traces.generators.laws import Values, draw_gamma, weibull_shape
from traces.randomness import Streams

GapLaw = Literal["exponential", "gamma", "weibull"]

#: Beyond these, a renewal process stands still for ever or is a grid.
MIN_CV, MAX_CV = 0.01, 100.0


class Start(NamedTuple):
    """A session begins: seconds from the trace's start, and its client where the law knows."""

    at_s: float
    client_id: str | None = None


class Arrivals(Protocol):
    """A law of arrivals."""

    @property
    def rate(self) -> float:
        """Sessions per second in the long run."""

    def starts(self, streams: Streams) -> Iterator[Start]:
        """Starts in order of time, without end."""

    def in_words(self) -> str:
        """The law and its numbers, for a header."""


def check_rate(rate: float) -> None:
    """Raise ConfigError unless sessions can come at this rate."""
    if not 0 < rate < math.inf:
        raise ConfigError(f"workload.rate: {rate} is not a positive number")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError for a number of a law that is out of bounds."""
    if not low <= value <= high:
        raise ConfigError(f"workload.arrivals.{name}: {value} is not in {low:g} to {high:g}")


def shape_of(law: GapLaw, cv: float) -> float:
    """The shape at which a law's gaps have this CV."""
    if law == "weibull":
        return weibull_shape(cv)
    return 1 / (cv * cv) if law == "gamma" else 1.0


def draw_gap(law: GapLaw, shape: float, streams: Streams, name: str, k: int) -> float:
    """A gap of mean 1."""
    if law == "gamma":
        return draw_gamma(shape, streams, "arrival", name, k) / shape
    gap = streams.exponential("arrival", name, k)
    if law == "weibull":
        gap = math.pow(gap, 1 / shape) / math.gamma(1 + 1 / shape)
    return gap


def draw_residual(law: GapLaw, shape: float, streams: Streams, name: str) -> float:
    """From time zero to a stationary process's first event, for gaps of mean 1: a uniform share of
    a gap picked by its length. Those of a gamma law are gamma of a shape one more; a Weibull's are
    powers of a gamma of shape 1 + 1 / shape."""
    if law == "exponential":
        return draw_gap(law, shape, streams, name, 0)
    share = streams.uniform("arrival-phase", name, 0)
    if law == "gamma":
        return share * draw_gamma(shape + 1, streams, "arrival-first", name, 0) / shape
    picked = math.pow(draw_gamma(1 + 1 / shape, streams, "arrival-first", name, 0), 1 / shape)
    return share * picked / math.gamma(1 + 1 / shape)


def _renewals(law: GapLaw, shape: float, streams: Streams, name: str) -> Iterator[float]:
    """Event times of a stationary renewal process of rate 1."""
    clock = draw_residual(law, shape, streams, name)
    k = 0
    while True:
        yield clock
        k += 1
        clock += draw_gap(law, shape, streams, name, k)


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent gaps, exponential."""

    rate: float

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def starts(self, streams: Streams) -> Iterator[Start]:
        """See Arrivals."""
        clock = 0.0
        k = 0
        while True:
            clock += streams.exponential("arrival", "", k) / self.rate
            yield Start(clock)
            k += 1

    def in_words(self) -> str:
        """See Arrivals."""
        return f"Poisson, {self.rate:g} conversations per second"


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gaps of a gamma or Weibull law with coefficient of variation `cv`: above 1 in
    bursts, below 1 more even than Poisson."""

    rate: float
    cv: float
    law: Literal["gamma", "weibull"] = "gamma"

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_within("cv", self.cv, MIN_CV, MAX_CV)

    def starts(self, streams: Streams) -> Iterator[Start]:
        """See Arrivals."""
        for at in _renewals(self.law, shape_of(self.law, self.cv), streams, ""):
            yield Start(at / self.rate)

    def in_words(self) -> str:
        """See Arrivals."""
        return f"{self.law} gaps with CV {self.cv:g}, {self.rate:g} conversations per second on average"


@dataclass(frozen=True, slots=True)
class Spaced:
    """Independent gaps of a fitted law, stretched so that `of_rate`, the fitted data's rate, becomes
    `rate`. The first session begins after a whole gap."""

    rate: float
    of_rate: float
    gaps: Values

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_rate(self.of_rate)

    def starts(self, streams: Streams) -> Iterator[Start]:
        """See Arrivals."""
        stretch = self.of_rate / self.rate
        clock = 0.0
        k = 0
        while True:
            clock += stretch * self.gaps.draw(streams, "arrival", "", k)
            yield Start(clock)
            k += 1

    def in_words(self) -> str:
        """See Arrivals."""
        return f"gaps of a fitted log-normal mixture, {self.rate:g} conversations per second"


@dataclass(frozen=True, slots=True)
class Modulated:
    """Poisson with a slowly moving rate: its logarithm is an autoregressive Gaussian process whose
    correlation falls to 1/e in `memory_s`; `swing` is the rate's coefficient of variation."""

    rate: float
    swing: float = 0.24
    memory_s: float = 600.0

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_within("swing", self.swing, 0.01, 10)
        check_within("memory_s", self.memory_s, 1e-3, 1e7)

    def starts(self, streams: Streams) -> Iterator[Start]:
        """See Arrivals. The rate is constant over tenths of the memory."""
        deviation = math.sqrt(math.log(1 + self.swing**2))
        keep = math.exp(-0.1)
        width = self.memory_s / 10
        level = streams.normal("rate-level", "", 0)
        step = k = 0
        clock = 0.0
        while True:
            need = streams.exponential("arrival", "", k)
            while True:
                rate = self.rate * math.exp(deviation * level - deviation**2 / 2)
                room = ((step + 1) * width - clock) * rate
                if need <= room:
                    break
                need -= max(room, 0.0)
                step += 1
                clock = step * width
                level = keep * level + math.sqrt(1 - keep**2) * streams.normal(
                    "rate-level", "", step
                )
            clock += need / rate
            yield Start(clock)
            k += 1

    def in_words(self) -> str:
        """See Arrivals."""
        return (
            f"Poisson with a moving rate (CV {self.swing:g}, memory {self.memory_s:g} s),"
            f" {self.rate:g} conversations per second on average"
        )


@dataclass(frozen=True, slots=True)
class Clients:
    """`clients` clients with Zipf shares i**-skew, each a renewal process of its own whose CV is
    drawn from a log-normal law, as ServeGen found (median CV e**.36 = 1.43); CVs are kept within
    .1 to 20."""

    rate: float
    clients: int = 50
    skew: float = 1.1
    law: Literal["gamma", "weibull"] = "gamma"
    cv_log_mean: float = 0.36
    cv_log_deviation: float = 0.83

    def __post_init__(self) -> None:
        check_rate(self.rate)
        check_within("clients", self.clients, 1, 100_000)
        check_within("skew", self.skew, 0, 5)
        check_within("cv_log_mean", self.cv_log_mean, -4, 4)
        check_within("cv_log_deviation", self.cv_log_deviation, 0, 4)

    def shares(self) -> list[float]:
        """Of each client, the largest first."""
        weights = [(i + 1) ** -self.skew for i in range(self.clients)]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def starts(self, streams: Streams) -> Iterator[Start]:
        """See Arrivals."""
        mine = [self._client(i, share, streams) for i, share in enumerate(self.shares())]
        return heapq.merge(*mine)

    def _client(self, index: int, share: float, streams: Streams) -> Iterator[Start]:
        name = f"client-{index + 1:04d}"
        level = self.cv_log_mean + self.cv_log_deviation * streams.normal("client-cv", name, 0)
        cv = min(max(math.exp(level), 0.1), 20.0)
        for at in _renewals(self.law, shape_of(self.law, cv), streams, name):
            yield Start(at / (self.rate * share), name)

    def in_words(self) -> str:
        """See Arrivals."""
        return (
            f"{self.clients} clients with Zipf {self.skew:g} shares and {self.law} gaps of CV"
            f" log-normal ({self.cv_log_mean:g}, {self.cv_log_deviation:g}),"
            f" {self.rate:g} conversations per second in all"
        )


def pick(shares: tuple[float, ...], uniform: float) -> int:
    """The index that a uniform number falls on."""
    return min(sum(uniform > end for end in accumulate(shares)), len(shares) - 1)
