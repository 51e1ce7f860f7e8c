"""The contract suite of routers: every named one keeps it, and every way to break it is told in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from policy.contract import check_router, router_violations
from policy.errors import ConfigError
from policy.routing.base import Router
from policy.routing.books import IndexSpec
from policy.routing.catalog import ROUTERS, make_router
from policy.routing.guard import GuardedRouter
from policy.routing.view import Choice, ReplicaView, RoutedView
from policy.views import Draw


@pytest.mark.parametrize("name", ROUTERS)
def test_every_named_router_keeps_the_contract(name: str) -> None:
    def make(draw: Draw) -> Router:
        return make_router(name, draw)

    check_router(make, name)


class Mine(Router):
    """The first that is ready."""

    remembers = IndexSpec()

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        return Choice(ready[0].number, "first")


def test_a_users_router_may_be_a_class_or_an_object() -> None:
    check_router(Mine)
    check_router(Mine())


class Answers(Mine):
    answer: Any = None

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Any:
        return self.answer


class NoChoice(Answers):
    answer = 1


class NotThere(Answers):
    answer = Choice(7, "far away")


class Raises(Mine):
    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        raise ZeroDivisionError("no one")


class BadIndex(Mine):
    remembers: Any = 16


class CannotBeMade(Mine):
    def __init__(self) -> None:
        raise RuntimeError("no")


class Changes(Mine):
    count = 0

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        self.count += 1
        return Choice(ready[self.count % len(ready)].number, "next")


class ByHash(Mine):
    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        return Choice(ready[hash(request.request_id) % len(ready)].number, "hash")


class AcrossRuns(Mine):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        return Choice(ready[self.number % len(ready)].number, "its own")


class NoBooks(Mine):
    def ended(self, request_id: str, now_ns: int) -> None:
        pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "router: 3 is neither a Router nor makes one"),
        (dict, r"router: \{\} is no policy.routing.base.Router"),
        (NoChoice, "choose returned 1, which is not a Choice"),
        (NotThere, "choose returned replica 7 for r00; ready are 0, 1, 2"),
        (
            Raises,
            r"choose raised ZeroDivisionError \(its line test_contract_routers.py:\d+\): no one",
        ),
        (BadIndex, "remembers is 16, neither an IndexSpec nor None"),
        (CannotBeMade, r"making it raised RuntimeError\('no'\)"),
        (Changes, "asked twice for r00 at one moment, it said 1 and then 2"),
        (ByHash, "it is not deterministic: routing the same crowd twice, it said replica"),
        (AcrossRuns, "it is not deterministic"),
        (NoBooks, "its books have 1 requests under way at replica 0, and there are 0"),
    ],
)
def test_a_broken_promise_is_told(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_router(given, "mine")


def test_a_guarded_router_tells_the_router_all_that_happens() -> None:
    heard: list[tuple[str, int, int]] = []

    class Hears(Mine):
        def up(self, replica: int, now_ns: int) -> None:
            heard.append(("up", replica, now_ns))

    guarded = GuardedRouter("mine", Hears())
    guarded.begin(16)
    guarded.up(2, 5)
    assert heard == [("up", 2, 5)]
    assert router_violations(Mine) == []
