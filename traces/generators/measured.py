"""Requests of measured clients: ServeGen's rates, burstiness and lengths per client and window.

What is consumed is described by three small protocols, so that whoever reads such data (or makes it
up) needs to know nothing else. Requests are single: the published distributions have no sessions.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from policy.errors import ConfigError
from traces.generators.arrivals import GapLaw, draw_gap, draw_residual, shape_of
from traces.generators.laws import seconds_to_ns
from traces.randomness import Streams
from traces.workload import Header, Turn, Workload

#: A few published windows have CVs up to 1,038; a process so bursty stands still.
MAX_CV = 20.0


class Window(Protocol):
    """A client's arrivals from `start_s` until its next window: `rate` per second, gaps of
    coefficient of variation `cv`, of law `gamma`, `weibull` or another (taken as exponential). Shape
    and scale are not asked for: rate and CV say the same. CVs above 20 count as 20."""

    @property
    def start_s(self) -> float:
        """Seconds from the trace's start."""

    @property
    def rate(self) -> float:
        """Per second; 0: none come."""

    @property
    def cv(self) -> float:
        """Of the gaps."""

    @property
    def law(self) -> str | None:
        """In any case of letters."""


class Spread(Protocol):
    """How long something is: a histogram, or if that is empty, quantiles, drawn along straight lines
    and at the first one below it."""

    @property
    def histogram(self) -> Sequence[tuple[float, float]]:
        """(tokens, weight), weights of any sum above 0."""

    @property
    def quantiles(self) -> Sequence[tuple[float, float]]:
        """(share, tokens), rising."""


class Lengths(Protocol):
    """Tokens from `start_s` until the next lengths."""

    @property
    def start_s(self) -> float:
        """Seconds from the trace's start."""

    @property
    def inputs(self) -> Spread | None:
        """Of prompts; None: not known."""

    @property
    def outputs(self) -> Spread | None:
        """Of replies; None: not known."""


class Client(Protocol):
    """One client. Rates and lengths are in order of time; before the first lengths, and where none
    are known, the nearest before that are known hold, else the first."""

    @property
    def client_id(self) -> str:
        """Unique."""

    @property
    def rates(self) -> Sequence[Window]:
        """Arrivals."""

    @property
    def lengths(self) -> Sequence[Lengths]:
        """Tokens."""


class _Law(NamedTuple):
    """Tokens by cumulated share: steps of a histogram, or lines between quantiles."""

    tokens: tuple[float, ...]
    ends: tuple[float, ...]
    is_line: bool

    def draw(self, uniform: float) -> int:
        place = uniform * self.ends[-1]
        at = min(bisect_right(self.ends, place), len(self.tokens) - 1)
        if not self.is_line or at == 0:
            return round(self.tokens[at])
        low, high = self.ends[at - 1], self.ends[at]
        part = (place - low) / (high - low) if high > low else 1.0
        below = self.tokens[at - 1]
        return round(below + part * (self.tokens[at] - below))


@dataclass(frozen=True, slots=True)
class MeasuredClients:
    """Requests of `clients` in begin_s <= t < end_s, begin_s as time zero, `scale` times as many.

    Within and across windows a client is one renewal process in its own operational time, the
    integral of its rate: a gap is drawn with the burstiness of the window in which it begins, and
    passes through what follows at the rates there.
    """

    clients: Sequence[Client]
    end_s: float
    begin_s: float = 0.0
    scale: float = 1.0
    source: str = "measured clients"
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.clients:
            raise ConfigError("clients: there are none")
        if not 0 <= self.begin_s < self.end_s < math.inf:
            raise ConfigError(f"clients: {self.begin_s:g} to {self.end_s:g} s is no span of time")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"clients: scale {self.scale:g} is not above 0")
        names = [client.client_id for client in self.clients]
        if len(set(names)) < len(names):
            raise ConfigError("clients: an id is given twice")

    def workload(self, streams: Streams) -> Workload:
        """An open workload, made anew at every iteration."""
        header = Header(
            source=self.source,
            licence=self.licence,
            timing="open",
            composed_from=(
                f"lengths: each client's histograms, {self.source}",
                f"arrivals: each client's rates and burstiness in windows, {self.source},"
                f" {len(self.clients)} clients, {self.begin_s:g} to {self.end_s:g} s,"
                f" {self.scale:g} times as many",
            ),
            seed=streams.seed,
        )
        return Workload(header, lambda: self._turns(streams))

    def _turns(self, streams: Streams) -> Iterator[Turn]:
        mine = [self._requests(index, client, streams) for index, client in enumerate(self.clients)]
        merged = heapq.merge(*mine)
        for number, (at, index, prompt, reply) in enumerate(merged):
            name = f"r{number:07d}"
            yield Turn(
                name,
                name,
                1,
                prompt,
                reply,
                arrival_ns=seconds_to_ns(at - self.begin_s),
                client_id=self.clients[index].client_id,
            )

    def _requests(
        self, index: int, client: Client, streams: Streams
    ) -> Iterator[tuple[float, int, int, int]]:
        name = client.client_id
        starts = [lengths.start_s for lengths in client.lengths]
        prompts = _laws([lengths.inputs for lengths in client.lengths])
        replies = _laws([lengths.outputs for lengths in client.lengths])
        if not prompts or not replies:
            raise ConfigError(f"clients: {name} has arrivals and no lengths")
        for k, at in enumerate(self._times(client, streams)):
            now = max(bisect_right(starts, at) - 1, 0)
            prompt = prompts[now].draw(streams.uniform("client-prompt", name, k))
            reply = replies[now].draw(streams.uniform("client-reply", name, k))
            yield at, index, prompt, reply

    def _times(self, client: Client, streams: Streams) -> Iterator[float]:
        """Arrivals in begin_s..end_s."""
        name = client.client_id
        need: float | None = None  # of the present gap, in operational time
        k = 0
        windows = client.rates
        for number, window in enumerate(windows):
            begin = max(window.start_s, self.begin_s)
            end = windows[number + 1].start_s if number + 1 < len(windows) else self.end_s
            end = min(end, self.end_s)
            rate = window.rate * self.scale
            if rate <= 0 or end <= begin:
                continue
            law = _law(window.law)
            shape = shape_of(law, min(max(window.cv, 0.05), MAX_CV))
            if need is None:
                need = draw_residual(law, shape, streams, name)
            clock = begin
            while need <= (end - clock) * rate:
                clock += need / rate
                if clock >= end:
                    break
                yield clock
                k += 1
                need = draw_gap(law, shape, streams, name, k)
            need -= min(need, max(0.0, end - clock) * rate)


def is_told(client: Client) -> bool:
    """Whether it is known when a client's requests come, and how long prompts and replies are."""
    return bool(client.rates) and all(
        any(spread is not None and _law_of(spread) is not None for spread in spreads)
        for spreads in (
            (lengths.inputs for lengths in client.lengths),
            (lengths.outputs for lengths in client.lengths),
        )
    )


def _law(name: str | None) -> GapLaw:
    lowered = (name or "").lower()
    if lowered == "gamma":
        return "gamma"
    return "weibull" if lowered == "weibull" else "exponential"


def _laws(spreads: Sequence[Spread | None]) -> list[_Law]:
    """A law for each; one that is not known is that before it, or the first that is known. Empty if
    none is."""
    made = [None if spread is None else _law_of(spread) for spread in spreads]
    held = next((law for law in made if law is not None), None)
    found = []
    for law in made:
        held = law or held
        if held is not None:
            found.append(held)
    return found


def _law_of(spread: Spread) -> _Law | None:
    kept = [(tokens, weight) for tokens, weight in spread.histogram if weight > 0]
    if kept:
        ends = tuple(accumulate(weight for _, weight in kept))
        return _Law(tuple(tokens for tokens, _ in kept), ends, is_line=False)
    if spread.quantiles:
        shares = tuple(share for share, _ in spread.quantiles)
        return _Law(tuple(tokens for _, tokens in spread.quantiles), shares, is_line=True)
    return None
