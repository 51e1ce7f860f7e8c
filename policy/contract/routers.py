"""What every router must keep to, as a suite that says in words what is broken.

    from policy.contract import check_router
    check_router(MyRouter)

`check_router` has fresh routers send a small crowd to three replicas, one of which goes down and comes
back, and to one alone, and asks:

* **form**: every answer is a Choice of a replica that is ready; no method raises;
* **a choice is a question**: asked twice at one moment, it has one answer;
* **books**: what the router has under way is what was sent and has not ended;
* **determinism**: same events, same choices, in another process too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import NamedTuple

from policy.contract.crowd import Salted, draw
from policy.errors import ConfigError, FastSwitchError
from policy.routing.guard import GuardedRouter, RouterMaker, router_maker_of
from policy.routing.view import Choice, ReplicaState, ReplicaView, RoutedView, Seen

#: Requests of the crowd, and those between two of which a replica is gone.
REQUESTS = 60
DOWN_FROM, DOWN_TO = 20, 35


def check_router(given: object, name: str = "the router") -> None:
    """Raise ConfigError naming what a router breaks. `given`: a Router, or what makes one."""
    found = router_violations(given, name)
    if found:
        raise ConfigError("\n".join(found[:5]))


def router_violations(given: object, name: str = "the router") -> list[str]:
    """Every promise that a router breaks, in words; an empty list if it keeps them all."""
    try:
        maker = router_maker_of(given)
    except ConfigError as error:
        return [str(error)]
    found: list[str] = []
    for replicas in (3, 1):
        for problem in _violations_of(maker, name, replicas):
            if problem not in found:
                found.append(problem)
    return found


class _Answer(NamedTuple):
    request_id: str
    choice: Choice


def _violations_of(maker: RouterMaker, name: str, replicas: int) -> list[str]:
    try:
        first = list(_routed(maker, name, replicas, str))
        second = list(_routed(maker, name, replicas, Salted))
    except FastSwitchError as error:
        return [str(error)]
    for one, other in zip_longest(first, second):
        if one != other:
            said = " and then ".join(
                "nothing" if a is None else f"replica {a.choice.replica} for {a.request_id}"
                for a in (one, other)
            )
            return [
                f"router {name}: it is not deterministic: routing the same crowd twice, it said {said};"
                " it must not hang on id(), hash(), the order of a set, a clock, or random numbers"
                " other than draw()"
            ]
    return []


def _made(maker: RouterMaker, name: str) -> GuardedRouter:
    try:
        made = maker(draw)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"router {name}: making it raised {error!r}") from error
    return GuardedRouter(name, made)


def _routed(
    maker: RouterMaker, name: str, replicas: int, text: Callable[[str], str]
) -> Iterator[_Answer]:
    router = _made(maker, name)
    router.begin(16)
    under_way: dict[str, int] = {}
    for k in range(REQUESTS):
        now = k * 1_000_000
        gone = replicas > 1 and DOWN_FROM <= k < DOWN_TO
        if replicas > 1 and k == DOWN_FROM:
            for request_id in [r for r, where in under_way.items() if where == 1]:
                router.ended(request_id, now)
                del under_way[request_id]
            router.down(1, now)
        if replicas > 1 and k == DOWN_TO:
            router.up(1, now)
        views = [_view(i, under_way, now, gone=gone and i == 1) for i in range(replicas)]
        request = _request(k, text)
        choice = router.route(request, views, now)
        again = router.route(request, views, now)
        if again != choice:
            raise ConfigError(
                f"router {name}: asked twice for {request.request_id} at one moment, it said"
                f" {choice.replica} and then {again.replica}; a choice must change nothing"
            )
        assert choice.replica is not None
        router.sent(request, choice.replica, now)
        under_way[request.request_id] = choice.replica
        if k % 3 == 0:
            router.first_token(request.request_id, now + 10)
        if k % 4 != 3:
            oldest = next(iter(under_way))
            router.ended(oldest, now + 20)
            del under_way[oldest]
        _check_books(router, under_way, replicas)
        yield _Answer(str(request.request_id), choice)


def _check_books(router: GuardedRouter, under_way: dict[str, int], replicas: int) -> None:
    for index in range(replicas):
        written = router.books.load(index).requests
        real = sum(where == index for where in under_way.values())
        if written != real:
            raise ConfigError(
                f"router {router.name}: its books have {written} requests under way at replica"
                f" {index}, and there are {real}; a method that overrides must call the base's"
            )


def _request(k: int, text: Callable[[str], str]) -> RoutedView:
    session = k % 17
    blocks = tuple((session if i > 2 else session % 3) * 100 + i for i in range(4 + k // 17))
    return RoutedView(
        text(f"r{k:02}"),
        text(f"s{session}"),
        text(f"c{session % 5}"),
        1 + k // 17,
        16 * len(blocks) + 7,
        blocks,
    )


def _view(index: int, under_way: dict[str, int], now: int, *, gone: bool) -> ReplicaView:
    live = sum(where == index for where in under_way.values())
    state = ReplicaState.DOWN if gone else ReplicaState.READY
    seen = max(0, now - 500_000)
    return ReplicaView(
        index,
        f"replica-{index}",
        "all",
        state,
        Seen(max(0, live - 2), seen),
        Seen(min(live, 2), seen),
        Seen(min(1.0, live / 8), seen),
    )
