"""What every order must keep to, as a suite that says in words what is broken.

    from policy.contract import check
    check(MyOrder)

`check` makes fresh orders, serves a small crowd with each on a machine whose memory is short, and asks:

* **form**: every key is a tuple of numbers, none of them NaN; no method raises, nor `key` when it is asked
  for somebody who has left;
* **no mutation**: nothing that the order was shown is changed;
* **a key is a question**: asked twice at one moment, it has one answer;
* **determinism**: same events, same keys, in another process too: nothing hangs on id(), hash(), the
  order of a set, a clock, global random numbers, or on what an earlier run left behind. A clock that
  stands still for the half second this takes goes unseen;
* **safety**: after every step all laws of `policy.integrity` hold;
* **progress**: once arrivals stop, everybody is served;
* **bounded parkings**: nobody is parked more often than planner rule 10 allows.

The last three are promises of the planner, which an order can at worst make it keep slowly; they are
asked of the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

from policy.contract.crowd import SETTINGS, Machine, Salted, crowd, draw
from policy.errors import ConfigError, FastSwitchError, ProgressError
from policy.orders.base import Key, Order
from policy.orders.guard import Guarded, Maker, maker_of
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS, System
from policy.views import RequestView

#: Swapping that steps wait for, that they overlap with, and recomputing instead.
WORLDS = (
    SYSTEMS["+groups"],
    SYSTEMS["fastswitch"],
    SYSTEMS["+groups"].but("recompute", preemption="recompute"),
)


def check(given: object, name: str = "the order") -> None:
    """Raise ConfigError naming every promise that an order breaks, in at most five lines.

    `given`: an Order, or what makes one (`policy.orders.guard.maker_of`).
    """
    found = violations(given, name)
    if found:
        raise ConfigError("\n".join(found[:5]))


def violations(given: object, name: str = "the order") -> list[str]:
    """Every promise that an order breaks, in words; an empty list if it keeps them all."""
    try:
        maker = maker_of(given)
    except ConfigError as error:
        return [str(error)]
    found: list[str] = []
    for system in WORLDS:
        for problem in _violations_in(maker, name, system):
            if problem not in found:
                found.append(problem)
    return found


class _Answer(NamedTuple):
    """One question and what the order said."""

    request_id: str
    now_ns: int
    key: Key


class _Witness(Order):
    """Asks twice and writes down what was answered."""

    def __init__(self, order: Guarded) -> None:
        self.name = order.name
        self.refreshes = order.refreshes
        self.unit = order.unit
        self.answers: list[_Answer] = []
        self.kept: list[RequestView] = []  # alive, so that the next crowd has other ids
        self._order = order

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self._order.arrived(request, now_ns)
        self.kept += [request, self._order.views[request.request_id]]

    def left(self, request: RequestView, now_ns: int) -> None:
        self._order.left(request, now_ns)

    def update(self, index: int, now_ns: int) -> None:
        self._order.update(index, now_ns)

    def key(self, request: RequestView, now_ns: int) -> Key:
        key = self._order.key(request, now_ns)
        again = self._order.key(request, now_ns)
        if again != key:
            raise ConfigError(
                f"order {self.name}: asked twice for the key of {request.request_id} at one moment,"
                f" it said {key} and then {again}; a key must change nothing"
            )
        self.answers.append(_Answer(str(request.request_id), now_ns, key))
        return key


def _violations_in(maker: Maker, name: str, system: System) -> list[str]:
    try:
        first = _served(maker, name, system, str)
    except ConfigError as error:
        return [str(error)]
    except FastSwitchError as error:
        return [_of_the_planner(name, system, error)]
    try:
        second = _served(maker, name, system, Salted)
    except FastSwitchError:
        # Text made from an id hashes as ever, so an order that looks one up by the other trips here
        # and nowhere else. What is left to ask is whether it says the same again.
        try:
            second = _served(maker, name, system, str)
        except FastSwitchError as error:
            return [f"order {name}: served the same crowd again, it failed: {error}"]
    for one, other in zip_longest(first.answers, second.answers):
        if one != other:
            return [_differing(name, one, other)]
    return []


def _of_the_planner(name: str, system: System, error: FastSwitchError) -> str:
    promise = "progress" if isinstance(error, ProgressError) else "safety"
    return f"order {name}: {promise} is lost under {system.name}: {error}"


def _differing(name: str, one: _Answer | None, other: _Answer | None) -> str:
    said = " and then ".join(
        "nothing" if a is None else f"{a.key} for {a.request_id} at {a.now_ns} ns"
        for a in (one, other)
    )
    return (
        f"order {name}: it is not deterministic: serving the same crowd twice, it said {said}; it must"
        " not hang on id(), hash(), the order of a set, a clock, or random numbers other than draw()"
    )


def _served(maker: Maker, name: str, system: System, text: Callable[[str], str]) -> _Witness:
    """The order after it has served everybody. Raises FastSwitchError for a promise it broke."""
    try:
        made = maker(draw)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"order {name}: making it raised {error!r}") from error
    witness = _Witness(Guarded(name, made))
    Machine(Scheduler(SETTINGS, system, witness, draw), crowd(text)).serve()
    return witness
