"""What a router is: it says where a request goes, and keeps its own books."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from policy.routing.books import Books, IndexSpec
from policy.routing.filters import Filter
from policy.routing.scorers import Ask, Scorer
from policy.routing.view import NOBODY, Choice, ReplicaState, ReplicaView, RoutedView
from policy.views import Draw


class Router:
    """Base of every router. A subclass overrides `choose`; the books follow by themselves.

    `choose` sees the replicas that are ready, never none, and answers with the number of one of them;
    it must not change anything but the router's own fields, ask for the time or draw random numbers
    by itself. What a request turns out to be is told by `first_token` and `ended`.
    """

    name = "router"
    #: Which prompts the router remembers; None: a request's `blocks` stay empty.
    remembers: IndexSpec | None = None
    #: It reads what replicas tell of themselves, so telemetry is worth its cost.
    reads_signals = True

    def __init__(self) -> None:
        self.books = Books(1)

    def begin(self, block_tokens: int) -> None:
        """Before the first request. `block_tokens`: of one of a request's `blocks`."""
        self.books = Books(block_tokens, self.remembers)

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        """Where it goes."""
        raise NotImplementedError

    def route(self, request: RoutedView, replicas: Sequence[ReplicaView], now_ns: int) -> Choice:
        """Where a request goes, of all replicas; nowhere if none is ready. Changes no books."""
        ready = [one for one in replicas if one.state is ReplicaState.READY]
        return self.choose(request, ready, now_ns) if ready else NOBODY

    def sent(self, request: RoutedView, replica: int, now_ns: int) -> None:
        """It goes there."""
        self.books.sent(request, replica, now_ns)

    def first_token(self, request_id: str, now_ns: int) -> None:  # noqa: ARG002
        """Its first token passed by."""
        self.books.first_token(request_id)

    def ended(self, request_id: str, now_ns: int) -> None:  # noqa: ARG002
        """Its reply ended, or it failed, was refused or cancelled."""
        self.books.ended(request_id)

    def up(self, replica: int, now_ns: int) -> None:
        """A replica is ready to be given requests."""

    def down(self, replica: int, now_ns: int) -> None:  # noqa: ARG002
        """A replica is gone, and what it held."""
        self.books.lost(replica)


class Recipe(NamedTuple):
    """A router as data: filters one after the other, then the largest weighted sum of scores.
    `ties`: the first in order, or drawn among those with the largest sum."""

    name: str
    sentence: str
    filters: tuple[Filter, ...] = ()
    scorers: tuple[tuple[Scorer, float], ...] = ()
    draws_ties: bool = False
    remembers: IndexSpec | None = None
    reads_signals: bool = False
    #: Where a request goes depends on nothing that happened: replicas do not depend on each other.
    is_fixed: bool = False


class Scored(Router):
    """A router by its recipe."""

    def __init__(self, recipe: Recipe, draw: Draw) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.remembers = recipe.remembers
        self.reads_signals = recipe.reads_signals
        self._draw = draw
        super().__init__()

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        """See Router."""
        ask = Ask(request, self.books, now_ns, self._draw)
        left = ready
        for narrow in self.recipe.filters:
            left = narrow(ask, left)
        sums = [0.0] * len(left)
        for scorer, weight in self.recipe.scorers:
            scores = scorer(ask, left)
            sums = [total + weight * score for total, score in zip(sums, scores, strict=True)]
        best = max(sums)
        places = [place for place, total in enumerate(sums) if total == best]
        place = places[0]
        if self.recipe.draws_ties and len(places) > 1:
            place = places[ask.random("route-tie") % len(places)]
        why = "only one left" if len(left) == 1 else "one of equals" if len(places) > 1 else "best"
        told = tuple((one.number, total) for one, total in zip(left, sums, strict=True))
        return Choice(left[place].number, why, told)
