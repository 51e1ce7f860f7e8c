"""The contract suite: every built-in order keeps it, and every way to break it is told in words."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from policy.contract import check, violations
from policy.contract import crowd as served
from policy.contract.crowd import crowd
from policy.errors import ConfigError, InvariantError
from policy.orders.base import Order
from policy.orders.catalog import ORDERS, OrderSettings
from policy.orders.vtc import VirtualTokenCounter
from policy.plan import Plan
from policy.views import Draw, RequestView


@pytest.mark.parametrize("name", ORDERS)
def test_every_built_in_order_keeps_the_contract(name: str) -> None:
    def make(draw: Draw) -> Order:
        return ORDERS[name](draw, OrderSettings())

    check(make, name)


def test_the_crowd_is_short_of_memory_and_has_everything_in_it() -> None:
    seen: set[str] = set()

    class Looking(Order):
        refreshes = True

        def key(self, request: RequestView, now_ns: int) -> tuple[int, ...]:
            seen.update(
                name
                for name, is_so in (
                    ("preempted", request.num_preemptions),
                    ("later turn", request.turn == 2),
                    ("cached", request.cached_tokens),
                    ("on the host", request.host_blocks),
                    ("waiting", not request.is_resident),
                    ("decoding", request.is_decoding),
                )
                if is_so
            )
            return (request.num_generated,)

    check(Looking)
    assert len(seen) == 6
    assert len({turn.client_id for turn in crowd()}) == 3


# ---------------------------------------------------------------------- orders that break it


class _Broken(Order):
    refreshes = True


class ById(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (id(request),)


class ByIdOfText(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (id(request.session_id),)


class ByHash(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (hash(request.request_id),)


class BySetOrder(_Broken):
    def __init__(self) -> None:
        self.clients: set[str] = set()

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self.clients.add(request.client_id)

    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (list(self.clients).index(request.client_id),)


class ByClock(_Broken):
    def __init__(self) -> None:
        self.born = time.perf_counter()

    def key(self, request: RequestView, now_ns: int) -> tuple[float]:
        return (self.born - request.arrival_ns,)


class ByChance(_Broken):
    def update(self, index: int, now_ns: int) -> None:
        self.chance = random.random()

    def key(self, request: RequestView, now_ns: int) -> tuple[float]:
        return (getattr(self, "chance", 0.0),)


class AcrossRuns(_Broken):
    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)

    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (self.number,)


class FailsLater(_Broken):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        if type(self).made > 1:
            raise OSError("the file is gone")


class Counting(_Broken):
    calls = 0

    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        self.calls += 1
        return (self.calls,)


class Mutating(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        request.priority = 0  # type: ignore[misc]
        return (0,)


class Peeking(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (request.output_tokens,)  # type: ignore[attr-defined]


class NotANumber(_Broken):
    def key(self, request: RequestView, now_ns: int) -> tuple[float]:
        return (math.nan if request.num_generated > 3 else 0.0,)


class WrongType(_Broken):
    def key(self, request: RequestView, now_ns: int) -> Any:
        return request.request_id


class NotTotal(_Broken):
    def key(self, request: RequestView, now_ns: int) -> Any:
        return (frozenset({request.client_id}),)


class Raising(_Broken):
    def left(self, request: RequestView, now_ns: int) -> None:
        raise LookupError("who was that?")


class Forgetful(_Broken):
    """Of conversations that are idle it knows nothing any more, and their keys are asked for."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self.levels[request.request_id] = request.priority

    def left(self, request: RequestView, now_ns: int) -> None:
        del self.levels[request.request_id]

    def key(self, request: RequestView, now_ns: int) -> tuple[int]:
        return (self.levels[request.request_id],)


class Unmakeable(_Broken):
    def __init__(self, weight: int) -> None:
        self.weight = weight


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (ById, "not deterministic: .*it must not hang on id"),
        (ByIdOfText, "not deterministic"),
        (ByHash, "not deterministic"),
        (BySetOrder, "not deterministic: .*the order of a set"),
        (ByClock, "not deterministic: .*a clock"),
        (ByChance, "not deterministic: .*random numbers other than draw"),
        (AcrossRuns, "not deterministic"),
        (FailsLater, "served the same crowd again, it failed: .*the file is gone"),
        (Counting, r"asked twice for the key of .* it said \(1,\) and then \(2,\)"),
        (Mutating, "it changed a request's priority; a view is read-only"),
        (Peeking, "a request shows a policy no output_tokens"),
        (NotANumber, "NaN is neither less nor more"),
        (WrongType, "which is not a tuple of numbers"),
        (NotTotal, "so not every two keys can be compared"),
        (Raising, r"left raised LookupError \(its line test_contract.py:\d+\): who was that"),
        (Forgetful, r"key raised KeyError \(its line test_contract.py:\d+\)"),
        (Unmakeable, "making it raised TypeError"),
        (7, "is neither an Order nor makes one"),
        (lambda: 7, "7 is no policy.orders.base.Order"),
    ],
)
def test_a_broken_order_is_refused_in_words(broken: Any, words: str) -> None:
    name = getattr(broken, "__name__", "")
    with pytest.raises(ConfigError, match=words) as found:
        check(broken, name)
    assert name in str(found.value) or "<lambda>" in name
    assert len(str(found.value).splitlines()) <= 5


def test_keys_that_stop_coming_are_not_the_same_keys() -> None:
    class Once(_Broken):
        runs = 0

        def __init__(self) -> None:
            type(self).runs += 1
            self.refreshes = self.runs == 1

    (problem, *_) = violations(Once, "Once")
    assert "not deterministic" in problem


def test_an_order_that_makes_names_from_ids_is_not_taken_for_a_random_one() -> None:
    """Equal text made from an id need not hash like the salted id of the second run."""

    class Families(Order):
        def __init__(self) -> None:
            self.served: dict[str, int] = {}

        def arrived(self, request: RequestView, now_ns: int) -> None:
            self.served[request.session_id] = 1

        def key(self, request: RequestView, now_ns: int) -> tuple[int]:
            return (self.served[request.request_id.partition("/")[0]],)

    assert violations(Families) == []


# ---------------------------------------------------------------------- planners that break it


def test_progress_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MAX_PLANS", 20)
    found = violations(VirtualTokenCounter, "vtc")
    assert len(found) == 3
    for problem in found:
        assert "order vtc: progress is lost under " in problem and "after 20 plans" in problem


def test_safety_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> None:
        raise InvariantError("3 blocks are nobody's")

    monkeypatch.setattr(served, "check_integrity", fails)
    with pytest.raises(ConfigError, match=r"safety is lost under \+groups: 3 blocks are nobody's"):
        check(Order)


def test_parkings_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 10 switched off, and an order that always prefers who is not there."""

    class Restless(Order):
        refreshes = True

        def key(self, request: RequestView, now_ns: int) -> tuple[int, int]:
            return (int(request.is_resident), request.num_generated)

    assert violations(Restless) == []
    monkeypatch.setattr("policy.engines.swaps.Swaps.is_shielded", lambda _self, _request: False)
    assert any("rule 10 allows" in problem for problem in violations(Restless))


def test_everybody_is_served_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[set[str]] = []
    serve: Callable[[Any], None] = served.Machine.serve

    def watched(machine: Any) -> None:
        serve(machine)
        ended.append(machine.done)

    monkeypatch.setattr(served.Machine, "serve", watched)
    check(Order)
    everybody = {turn.request_id for turn in crowd()}
    assert len(ended) == 6 and all({*map(str, done)} == everybody for done in ended)


def test_plans_are_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    execute: Callable[[Any, Plan], Any] = served.Machine._execute

    def watched(machine: Any, plan: Plan) -> Any:
        plans.append(plan)
        return execute(machine, plan)

    monkeypatch.setattr(served.Machine, "_execute", watched)
    check(VirtualTokenCounter)
    for kind in ("preempt", "copies", "wait_for", "prefill"):
        assert any(getattr(plan, kind) for plan in plans), kind
