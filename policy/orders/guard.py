"""A user's order, kept from doing harm: it sees read-only views, and what it answers is checked.

The planner sorts by whatever an order answers, so one NaN would make the order of requests depend on
where they stood before. Built-in orders are tested and run without this.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NoReturn, cast

from policy import own
from policy.errors import ConfigError
from policy.orders.base import Key, Order
from policy.views import Draw, RequestView

Maker = Callable[[Draw], Order]


class _View:
    """A `RequestView` of a request, and nothing else of it."""

    __slots__ = ("_View__request",)

    def __init__(self, request: RequestView) -> None:
        object.__setattr__(self, "_View__request", request)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a request shows a policy no {name} (policy/views.py says what)")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"it changed a request's {name}; a view is read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"it deleted a request's {name}; a view is read-only")

    def __repr__(self) -> str:
        return f"<view of {object.__getattribute__(self, '_View__request')!r}>"


for _name, _what in vars(RequestView).items():
    if isinstance(_what, property):
        setattr(_View, _name, property(attrgetter(f"_View__request.{_name}")))


def view_of(request: RequestView) -> RequestView:
    """What an order may see of a live request, as an object through which nothing can be changed."""
    return cast(RequestView, _View(request))


class Guarded(Order):
    """`order` under the name `name`. Raises ConfigError, in words, for whatever it does wrong: an
    exception, a key that is no tuple of numbers, NaN, a change to what it was shown."""

    def __init__(self, name: str, order: Order) -> None:
        self.name = name
        self._order = order
        self.views: dict[str, RequestView] = {}
        if not isinstance(order.refreshes, bool):
            self._fail(f"refreshes is {own.shown(order.refreshes)}, neither True nor False")
        self.refreshes = order.refreshes
        if type(order.unit) is not int or order.unit < 1:
            self._fail(f"unit is {own.shown(order.unit)}, not a whole number of at least 1")
        self.unit = order.unit

    def arrived(self, request: RequestView, now_ns: int) -> None:
        """A request came in."""
        view = self.views[request.request_id] = view_of(request)
        self._call("arrived", view, now_ns)

    def began(self, request: RequestView) -> None:
        """A request decodes from now on."""
        self._call("began", self.views[request.request_id])

    def left(self, request: RequestView, now_ns: int) -> None:
        """A request is no longer live."""
        self._call("left", self.views.pop(request.request_id), now_ns)

    def update(self, index: int, now_ns: int) -> None:
        """A priority update begins."""
        self._call("update", index, now_ns)

    def key(self, request: RequestView, now_ns: int) -> Key:
        """The order's key, if it is one."""
        view = self.views.get(request.request_id) or view_of(request)  # idle: it has left
        try:
            key: Any = self._order.key(view, now_ns)
        except Exception as error:  # noqa: BLE001
            self._raised("key", error)
        if not isinstance(key, tuple):
            self._fail(f"key returned {own.shown(key)}, which is not a tuple of numbers")
        for part in key:
            if not isinstance(part, (int, float)):
                self._fail(
                    f"key returned {own.shown(key)}: {own.shown(part)} is a {type(part).__name__},"
                    " not an int or a float, so not every two keys can be compared"
                )
            if part != part:  # noqa: PLR0124
                self._fail(
                    f"key returned {own.shown(key)}: NaN is neither less nor more than anything"
                )
        return key

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._order, method)(*arguments)
        except Exception as error:  # noqa: BLE001
            self._raised(method, error)

    def _raised(self, method: str, error: Exception) -> NoReturn:
        line = own.line_of(error, __name__)
        where = f" (its line {line})" if line else ""
        what = f"{method} raised {type(error).__name__}{where}: {own.shown_text(str(error))}"
        raise ConfigError(f"order {self.name}: {what}") from error

    def _fail(self, problem: str) -> NoReturn:
        raise ConfigError(f"order {self.name}: {problem}")


def maker_of(given: object) -> Maker:
    """How to make a fresh order from what a user gave (`policy.own.maker_of`). Raises ConfigError."""
    return own.maker_of(given, Order, "order", Order.__module__)
