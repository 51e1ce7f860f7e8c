"""A user's order sees what it may, changes nothing, and answers in tuples of numbers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from policy.errors import ConfigError
from policy.memory.context import Context
from policy.orders.base import Order
from policy.orders.guard import Guarded, maker_of, view_of
from policy.orders.vtc import VirtualTokenCounter
from policy.request import Request
from policy.views import RequestView
from tests.helpers.small import draw

SEEN = [name for name, what in vars(RequestView).items() if isinstance(what, property)]


def request() -> Request:
    made = Request("r1", arrival_ns=5, input_tokens=7, client_id="k", priority=2)
    made.holding = made.context = Context(made)
    return made


class Answering(Order):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def key(self, request: RequestView, now_ns: int) -> Any:
        return self.answer() if callable(self.answer) else self.answer


def asked(answer: Any) -> Any:
    guarded = Guarded("mine:Order", Answering(answer))
    one = request()
    guarded.arrived(one, 0)
    return guarded.key(one, 0)


# ---------------------------------------------------------------------- views


@pytest.mark.parametrize("name", SEEN)
def test_a_view_shows_what_the_protocol_names(name: str) -> None:
    one = request()
    assert getattr(view_of(one), name) == getattr(one, name)


@pytest.mark.parametrize("name", ["context", "output_tokens", "move", "_tokens"])
def test_a_view_shows_nothing_else(name: str) -> None:
    with pytest.raises(AttributeError, match=f"shows a policy no {name}"):
        getattr(view_of(request()), name)


def test_nothing_can_be_changed_through_a_view() -> None:
    one = request()
    view = view_of(one)
    for name in (*SEEN, "mine"):
        with pytest.raises(AttributeError, match=f"changed a request's {name}"):
            setattr(view, name, 0)
        with pytest.raises(AttributeError, match=f"deleted a request's {name}"):
            delattr(view, name)
    assert one.priority == 2
    assert repr(view) == f"<view of {one!r}>"


def test_a_request_is_the_same_view_for_as_long_as_it_lives() -> None:
    seen: list[RequestView] = []

    class Keeping(Order):
        def arrived(self, request: RequestView, now_ns: int) -> None:
            seen.append(request)

        def key(self, request: RequestView, now_ns: int) -> tuple[int]:
            seen.append(request)
            return (0,)

        left = arrived

    guarded, one = Guarded("mine:Keeping", Keeping()), request()
    guarded.arrived(one, 0)
    guarded.key(one, 0)
    guarded.left(one, 0)
    assert len(seen) == 3 and len(set(map(id, seen))) == 1 and seen[0] is not one


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("key", [(), (1,), (2, -0.5), (True, 3), (math.inf, -math.inf)])
def test_a_tuple_of_numbers_is_a_key(key: tuple[float, ...]) -> None:
    assert asked(key) == key


class Wild:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "key returned None, which is not a tuple of numbers"),
        ([1], r"key returned \[1\], which is not a tuple"),
        (3, "key returned 3, which is not a tuple"),
        (Wild(), "key returned a Wild, which is not a tuple"),
        (("a",), "'a' is a str, not an int or a float, so not every two keys can be compared"),
        ((1, (2,)), r"\(2,\) is a tuple, not an int"),
        (({1},), r"\{1\} is a set, not an int"),
        ((1 + 2j,), "is a complex, not an int"),
        ((1, math.nan), "NaN is neither less nor more than anything"),
        (("x" * 500,), r"\.\.\."),
        (lambda: 1 // 0, r"key raised ZeroDivisionError \(its line test_guard.py:\d+\): integer"),
    ],
)
def test_what_is_no_key_is_refused_in_words(answer: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^order mine:Order: .*{words}") as found:
        asked(answer)
    assert len(str(found.value)) < 400 and "\n" not in str(found.value)


@pytest.mark.parametrize("method", ["arrived", "left", "update"])
def test_whatever_a_method_raises_is_told_with_its_name(method: str) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("k\n1")

    class Failing(Order):
        pass

    setattr(Failing, method, fail)
    guarded, one = Guarded("mine:Failing", Failing()), request()
    calls: dict[str, Callable[[], None]] = {
        "arrived": lambda: guarded.arrived(one, 0),
        "left": lambda: guarded.left(one, 0),
        "update": lambda: guarded.update(0, 0),
    }
    guarded.views["r1"] = view_of(one)
    with pytest.raises(ConfigError, match=rf"^order mine:Failing: {method} raised KeyError .*k.n1"):
        calls[method]()


def test_an_exception_from_inside_a_library_call_names_the_users_line_or_none() -> None:
    guarded = Guarded("mine:Order", Answering(0))
    guarded._order = Order()
    guarded._order.update = divmod  # type: ignore[method-assign,assignment]
    with pytest.raises(ConfigError, match=r"update raised ZeroDivisionError: "):
        guarded.update(1, 0)


@pytest.mark.parametrize("unit", [0, 0.5, True, None])
def test_a_unit_of_priority_is_a_whole_number(unit: object) -> None:
    order = Order()
    order.unit = unit  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=f"unit is {unit}, not a whole number of at least 1"):
        Guarded("mine:Order", order)


def test_refreshes_is_yes_or_no() -> None:
    order = Order()
    order.refreshes = 1  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="refreshes is 1, neither True nor False"):
        Guarded("mine:Order", order)


# ---------------------------------------------------------------------- making


class Drawing(Order):
    def __init__(self, draw: Any, weight: int = 1) -> None:
        self.draw = draw


def plain() -> Order:
    return Order()


@pytest.mark.parametrize("given", [Order, plain, VirtualTokenCounter])
def test_what_makes_an_order_makes_a_fresh_one_each_time(given: Callable[[], Order]) -> None:
    make = maker_of(given)
    assert isinstance(make(draw), Order) and make(draw) is not make(draw)


def test_what_wants_draws_is_given_them() -> None:
    made = maker_of(Drawing)(draw)
    assert isinstance(made, Drawing) and made.draw is draw


def test_an_order_is_copied_as_it_was_given() -> None:
    given = VirtualTokenCounter()
    given.service["k"] = 5
    make = maker_of(given)
    given.service["k"] = 6
    first, second = make(draw), make(draw)
    assert isinstance(first, VirtualTokenCounter) and isinstance(second, VirtualTokenCounter)
    first.service["k"] = 7
    assert second.service == {"k": 5}


def test_what_has_no_signature_is_called_without_arguments() -> None:
    with pytest.raises(ConfigError, match=r"order: \{\} is no policy.orders.base.Order"):
        maker_of(dict)(draw)


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="order: 5 is neither an Order nor makes one"):
        maker_of(5)
    with pytest.raises(ConfigError, match=r"order: 'x' is no policy\.orders\.base\.Order"):
        maker_of(lambda: "x")(draw)
    locked = Order()
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=r"cannot be copied for a run of its own .*give the class"
    ):
        maker_of(locked)
