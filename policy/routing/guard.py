"""A user's router, kept from doing harm: what it answers is checked.

Views are values, so it can change nothing through them. Built-in routers are tested and run without
this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from policy import own
from policy.errors import ConfigError
from policy.routing.base import Router
from policy.routing.books import IndexSpec
from policy.routing.view import Choice, ReplicaView, RoutedView
from policy.views import Draw

RouterMaker = Callable[[Draw], Router]


class GuardedRouter(Router):
    """`router` under the name `name`. Raises ConfigError, in words, for whatever it does wrong: an
    exception, an answer that is no Choice, a replica that is not ready."""

    def __init__(self, name: str, router: Router) -> None:
        self.name = name
        self._router = router
        if router.remembers is not None and not isinstance(router.remembers, IndexSpec):
            self._fail(f"remembers is {own.shown(router.remembers)}, neither an IndexSpec nor None")
        self.remembers = router.remembers
        self.reads_signals = bool(router.reads_signals)
        super().__init__()

    def begin(self, block_tokens: int) -> None:
        """See Router."""
        self._call("begin", block_tokens)
        self.books = self._router.books

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        """The router's choice, if it is one."""
        choice = self._call("choose", request, tuple(ready), now_ns)
        if not isinstance(choice, Choice):
            self._fail(f"choose returned {own.shown(choice)}, which is not a Choice")
        known = [one.number for one in ready]
        if choice.replica not in known:
            self._fail(
                f"choose returned replica {own.shown(choice.replica)} for {request.request_id};"
                f" ready are {', '.join(map(str, known))}"
            )
        return choice

    def sent(self, request: RoutedView, replica: int, now_ns: int) -> None:
        """See Router."""
        self._call("sent", request, replica, now_ns)

    def first_token(self, request_id: str, now_ns: int) -> None:
        """See Router."""
        self._call("first_token", request_id, now_ns)

    def ended(self, request_id: str, now_ns: int) -> None:
        """See Router."""
        self._call("ended", request_id, now_ns)

    def up(self, replica: int, now_ns: int) -> None:
        """See Router."""
        self._call("up", replica, now_ns)

    def down(self, replica: int, now_ns: int) -> None:
        """See Router."""
        self._call("down", replica, now_ns)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._router, method)(*arguments)
        except Exception as error:
            line = own.line_of(error, __name__)
            where = f" (its line {line})" if line else ""
            what = f"{method} raised {type(error).__name__}{where}: {own.shown_text(str(error))}"
            raise ConfigError(f"router {self.name}: {what}") from error

    def _fail(self, problem: str) -> NoReturn:
        raise ConfigError(f"router {self.name}: {problem}")


def router_maker_of(given: object) -> RouterMaker:
    """How to make a fresh router from what a user gave (`policy.own.maker_of`). Raises ConfigError."""
    return own.maker_of(given, Router, "router", Router.__module__)
