"""Choices of every named router, computed by hand: on both sides of each threshold, and of ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from policy.errors import ConfigError
from policy.routing.base import Scored
from policy.routing.catalog import ROUTERS, make_router
from policy.routing.view import ReplicaState, ReplicaView, RoutedView, Seen

NOW = 1_000_000_000_000
PROMPT = tuple(range(100, 110))  # ten blocks of 16 tokens


def chosen(
    name: str,
    *,
    n: int = 3,
    loads: Sequence[int] = (),
    tokens: Sequence[int] = (),
    decoding: Sequence[int] = (),
    matched: Sequence[int] = (),
    sent_before_ns: int = 0,
    draws: Sequence[int] = (0, 0),
    hashes: Sequence[int] = (),
    waiting: Sequence[float] = (),
    kv: Sequence[float] = (),
    down: Sequence[int] = (),
    home: int | None = None,
    routed: int = 0,
    blocks: Sequence[int] = PROMPT,
) -> int | None:
    """Where a prompt of 160 tokens goes. `loads`: requests of one token under way at each replica;
    `tokens`: one request of so many there, without a first token, `decoding`: with one; `matched`: of
    the prompt's blocks, sent there before; `draws`: by their number; `hashes`: of the session."""

    def draw(purpose: str, who: str, k: int) -> int:
        return hashes[int(purpose[-1])] if hashes else draws[k]

    router = make_router(name, draw)
    router.begin(16)
    count = 0

    def send(replica: int, size: int, what: Sequence[int] = (), at: int = NOW) -> str:
        nonlocal count
        count += 1
        router.sent(RoutedView(f"x{count}", f"s{count}", "c", 1, size, what), replica, at)
        return f"x{count}"

    for replica, blocks_there in enumerate(matched):
        if blocks_there:
            router.ended(send(replica, 16, PROMPT[:blocks_there], NOW - sent_before_ns), NOW)
    for replica, number in enumerate(loads):
        for _ in range(number):
            send(replica, 1)
    for replica, size in enumerate(tokens):
        if size:
            send(replica, size)
    for replica, size in enumerate(decoding):
        if size:
            router.first_token(send(replica, size), NOW)
    if home is not None:
        router.sent(RoutedView("before", "mine", "c", 1, 1), home, NOW)
        router.ended("before", NOW)
    router.books.num_routed = routed
    n = max(n if not loads else len(loads), 1)
    views = [
        ReplicaView(
            i,
            f"r{i}",
            "all",
            ReplicaState.DOWN if i in down else ReplicaState.READY,
            Seen(waiting[i] if waiting else 0, NOW),
            Seen(0, NOW),
            Seen(kv[i] if kv else 0.0, NOW),
        )
        for i in range(n)
    ]
    return router.route(RoutedView("new", "mine", "c", 2, 160, blocks), views, NOW).replica


def rows(name: str, *table: tuple[dict[str, Any], int | None]) -> list[Any]:
    assert len(table) >= 20
    return [
        pytest.param(name, given, want, id=f"{name}-{i}") for i, (given, want) in enumerate(table)
    ]


def by(*names: str) -> Any:
    """A row as `by("loads")((1, 0, 0), 1)`: values of these, then the choice."""
    return lambda *values: (dict(zip(names, values[:-1], strict=False)), values[-1])


_r = by("routed", "n", "down")
ROUND_ROBIN = rows(
    "round-robin",
    _r(0, 3, (), 0), _r(1, 3, (), 1), _r(2, 3, (), 2), _r(3, 3, (), 0), _r(4, 3, (), 1),
    _r(5, 3, (), 2), _r(301, 3, (), 1), _r(0, 1, (), 0), _r(7, 1, (), 0), _r(0, 2, (), 0),
    _r(1, 2, (), 1), _r(2, 2, (), 0), _r(0, 3, (0,), 1), _r(1, 3, (0,), 2), _r(5, 3, (0,), 2),
    _r(0, 3, (1,), 0), _r(1, 3, (1,), 2), _r(1, 3, (2,), 1), _r(4, 4, (1, 2), 0),
    _r(5, 4, (1, 2), 3), _r(0, 3, (0, 1, 2), None),
)  # fmt: skip
_d = by("draws", "n", "down")
RANDOM = rows(
    "random",
    _d((0,), 3, (), 0), _d((1,), 3, (), 1), _d((2,), 3, (), 2), _d((3,), 3, (), 0),
    _d((4,), 3, (), 1), _d((5,), 3, (), 2), _d((100,), 3, (), 1), _d((0,), 1, (), 0),
    _d((9,), 1, (), 0), _d((0,), 2, (), 0), _d((1,), 2, (), 1), _d((2,), 2, (), 0),
    _d((0,), 3, (0,), 1), _d((1,), 3, (0,), 2), _d((2,), 3, (0,), 1), _d((0,), 3, (1,), 0),
    _d((1,), 3, (1,), 2), _d((1,), 3, (2,), 1), _d((7,), 4, (), 3), _d((7,), 4, (3,), 1),
)  # fmt: skip
_l = by("loads")
LEAST = rows(
    "least-outstanding",
    _l((0, 0, 0), 0), _l((1, 0, 0), 1), _l((0, 1, 0), 0), _l((0, 0, 1), 0), _l((1, 1, 0), 2),
    _l((1, 0, 1), 1), _l((0, 1, 1), 0), _l((1, 1, 1), 0), _l((2, 1, 1), 1), _l((1, 2, 1), 0),
    _l((2, 2, 1), 2), _l((5, 4, 3), 2), _l((3, 4, 5), 0), _l((4, 3, 5), 1), _l((7,), 0),
    _l((3, 2), 1), _l((2, 3), 0), _l((2, 2), 0), _l((9, 8, 7, 6), 3), _l((6, 6, 5, 5), 2),
)  # fmt: skip
_p = by("draws", "loads")
POWER_OF_TWO = rows(
    "power-of-two",
    _p((0, 0), (0, 0, 0), 0), _p((0, 0), (1, 0, 0), 1), _p((0, 0), (1, 1, 0), 0),
    _p((0, 1), (1, 0, 0), 2), _p((0, 1), (0, 0, 0), 0), _p((0, 1), (2, 0, 2), 0),
    _p((1, 0), (0, 0, 0), 1), _p((1, 0), (0, 1, 0), 0), _p((1, 1), (0, 1, 0), 2),
    _p((1, 1), (0, 0, 0), 1), _p((1, 1), (0, 3, 3), 1), _p((2, 0), (5, 0, 4), 2),
    _p((2, 0), (4, 0, 4), 2), _p((2, 0), (3, 0, 4), 0), _p((2, 1), (0, 4, 4), 2),
    _p((2, 1), (0, 3, 4), 1), _p((4, 3), (0, 1, 0), 2), _p((0,), (0, 0), 0), _p((1,), (0, 0), 1),
    _p((1,), (0, 1), 0), _p((0,), (1, 0), 1), _p((0,), (5,), 0),
)  # fmt: skip
_h = by("hashes", "down", "n")
SESSION_HASH = rows(
    "session-hash",
    _h((3, 7, 5), (), 3, 1), _h((7, 3, 5), (), 3, 0), _h((3, 5, 7), (), 3, 2),
    _h((3, 7, 5), (1,), 3, 2), _h((3, 7, 5), (0,), 3, 1), _h((3, 7, 5), (2,), 3, 1),
    _h((3, 7, 5), (1, 2), 3, 0), _h((7, 3, 5), (0,), 3, 2), _h((7, 3, 5), (1,), 3, 0),
    _h((1, 1, 1), (), 3, 0), _h((1, 2, 2), (), 3, 1), _h((1,), (), 1, 0), _h((0, 0), (), 2, 0),
    _h((0, 1), (), 2, 1), _h((1, 0), (), 2, 0), _h((1, 0), (0,), 2, 1), _h((9, 8, 7, 6), (), 4, 0),
    _h((9, 8, 7, 6), (0,), 4, 1), _h((9, 8, 7, 6), (0, 1), 4, 2), _h((6, 7, 8, 9), (), 4, 3),
    _h((3, 7, 5), (0, 1, 2), 3, None),
)  # fmt: skip
_s = by("home", "loads", "down")
STICKY = rows(
    "sticky-least",
    _s(None, (0, 0, 0), (), 0), _s(None, (1, 0, 0), (), 1), _s(None, (1, 1, 0), (), 2),
    _s(0, (0, 0, 0), (), 0), _s(1, (0, 0, 0), (), 1), _s(2, (0, 0, 0), (), 2),
    _s(0, (9, 0, 0), (), 0), _s(1, (0, 9, 0), (), 1), _s(2, (0, 0, 99), (), 2),
    _s(0, (0, 0, 0), (0,), 1), _s(0, (0, 1, 0), (0,), 2), _s(0, (0, 1, 1), (0,), 1),
    _s(1, (5, 0, 4), (1,), 2), _s(1, (4, 0, 4), (1,), 0), _s(2, (1, 2, 0), (2,), 0),
    _s(2, (2, 1, 0), (2,), 1), _s(1, (0, 3, 0), (0,), 1), _s(0, (4,), (), 0),
    _s(1, (0, 3), (), 1), _s(1, (3, 0), (1,), 0), _s(0, (0, 0), (0, 1), None),
)  # fmt: skip
_q = by("waiting", "kv", "matched", "draws")
NONE = (0, 0, 0)
LLM_D_DEFAULT = rows(
    "llm-d-default",
    _q(NONE, NONE, NONE, (0,), 0), _q(NONE, NONE, NONE, (1,), 1), _q(NONE, NONE, NONE, (5,), 2),
    _q((1, 0, 0), NONE, NONE, (0,), 1),  # 2, 4, 4
    _q((1, 0, 0), NONE, NONE, (1,), 2),
    _q((100, 0, 50), NONE, NONE, (0,), 1),  # 2, 4, 3
    _q((1, 0, 0), NONE, (10, 0, 0), (0,), 0),  # 5, 4, 4
    _q((1, 0, 0), NONE, (6, 0, 0), (0,), 1),  # 3.8, 4, 4
    _q((1, 0, 1), NONE, (7, 0, 0), (0,), 0),  # 4.1, 4, 2
    _q(NONE, (0.5, 0.2, 0.9), NONE, (0,), 1),  # 3, 3.6, 2.2
    _q(NONE, (0.5, 0.2, 0.9), (0, 0, 10), (0,), 2),  # 3, 3.6, 5.2
    _q(NONE, (1.0, 0, 0), (6, 0, 0), (0,), 1),  # 3.8, 4, 4
    _q(NONE, (1.0, 0, 0), (7, 0, 0), (0,), 0),  # 4.1, 4, 4
    _q((4, 2, 0), NONE, NONE, (0,), 2),  # 2, 3, 4
    _q((4, 2, 0), NONE, (0, 10, 0), (0,), 1),  # 2, 6, 4
    _q((4, 2, 0), NONE, (10, 0, 0), (0,), 0),  # 5, 3, 4
    _q((4, 2, 0), NONE, (10, 5, 0), (0,), 0),  # 5, 4.5, 4
    _q((4, 2, 0), NONE, (10, 7, 0), (0,), 1),  # 5, 5.1, 4
    _q((4, 1, 0), NONE, (0, 2, 0), (0,), 1),  # 2, 4.1, 4
    _q((4, 1, 0), NONE, (0, 1, 0), (0,), 2),  # 2, 3.8, 4
    _q((0, 1, 1), (0.9, 0.1, 0.1), NONE, (0,), 0),  # 2.2, 1.8, 1.8
    _q((0, 1, 1), (1.0, 0, 0), NONE, (2,), 2),  # 2, 2, 2
)  # fmt: skip
_a = by("matched", "tokens", "draws", "down")
GAP = 286_704  # tokens that take 18 s at 15,928 a second
LLM_D_AFFINITY = rows(
    "llm-d-affinity",
    _a(NONE, NONE, (0,), 0), _a(NONE, NONE, (1,), 1), _a((8, 0, 0), NONE, (0,), 0),
    _a((7, 0, 0), (200, 0, 0), (0,), 1),  # 248, 160, 160 tokens
    _a((8, 0, 0), (200, 0, 0), (0,), 0), _a((8, 0, 0), (GAP, 0, 0), (0,), 0),
    _a((8, 0, 0), (GAP + 1, 0, 0), (0,), 1), _a((8, 0, 0), (300_000, 20_000, 20_000), (0,), 0),
    _a((8, 0, 0), (300_000, 10_000, 20_000), (0,), 1),
    _a((8, 8, 0), (100, 0, 0), (0,), 1), _a((8, 9, 0), NONE, (0,), 1),
    _a((10, 8, 0), (50, 0, 0), (0,), 1),  # 50, 32
    _a((10, 8, 0), (20, 0, 0), (0,), 0),  # 20, 32
    _a((8, 8, 8), (3, 2, 1), (0,), 2), _a((10, 10, 10), NONE, (4,), 1),
    _a((0, 0, 8), (0, 0, GAP), (0,), 2), _a((0, 0, 8), (0, 0, GAP + 1), (1,), 1),
    _a((0, 9, 0), (5, 5, 5), (0,), 1), _a((0, 8, 0), NONE, (1,), (1,), 2),
    _a(NONE, (10, 20, 30), (0,), 0), _a(NONE, (30, 20, 10), (0,), 2),
    _a(NONE, (4_194_304, 4_194_144, 5_000_000), (2,), 2),
    _a(NONE, (4_194_304, 4_194_143, 5_000_000), (2,), 1),
)  # fmt: skip
_c = by("matched", "loads", "down")
SGLANG = rows(
    "sglang-cache-aware",
    _c(NONE, (0, 0, 0), 0), _c(NONE, (1, 0, 0), 1), _c((4, 0, 0), (5, 0, 0), 0),
    _c((3, 0, 0), (5, 0, 0), 1), _c((4, 4, 0), (5, 4, 0), 1), _c((5, 4, 0), (5, 4, 0), 0),
    _c((10, 0, 0), (64, 0, 0), 0), _c((10, 0, 0), (65, 0, 0), 1),
    _c((10, 0, 0), (200, 140, 140), 0), _c((10, 0, 0), (210, 140, 140), 0),
    _c((10, 0, 0), (211, 140, 140), 1), _c((10, 0, 0), (211, 140, 139), 2),
    _c((0, 10, 0), (0, 65, 0), 0), _c((0, 10, 0), (0, 64, 0), 1), _c((0, 10, 0), (1, 65, 1), 1),
    _c((0, 10, 0), (1, 66, 1), 0), _c((3, 3, 3), (1, 0, 1), 1), _c((4, 4, 4), (1, 1, 0), 2),
    _c((0, 0, 4), (0, 0, 10), 2), _c((0, 0, 4), (0, 0, 0), (2,), 0), _c((0, 0, 3), (0, 0, 10), 0),
)  # fmt: skip
_y = by("matched", "tokens", "decoding", "sent_before_ns")
TTL = 120_000_000_000
DYNAMO = rows(
    "dynamo-kv",
    _y(NONE, NONE, 0), _y((0, 5, 0), NONE, 1), _y((10, 0, 0), NONE, 0),
    _y((10, 0, 0), (80, 0, 0), 0),  # 5 + 15, 20
    _y((10, 0, 0), (96, 0, 0), 1),  # 6 + 16, 20
    _y((10, 0, 0), (64, 0, 0), 0),  # 4 + 14, 20
    _y(NONE, NONE, (160, 0, 0), 1),  # 10 + 20, 20
    _y((10, 0, 0), NONE, (160, 0, 0), 0),  # 0 + 20, 20
    _y((10, 0, 0), NONE, (176, 0, 0), 1),  # 0 + 21, 20
    _y((9, 0, 0), NONE, (160, 0, 0), 1),  # 1 + 20, 20
    _y(NONE, (16, 0, 0), 1), _y(NONE, (16, 16, 0), 2), _y(NONE, (32, 16, 48), 1),
    _y((1, 2, 3), NONE, 2), _y((3, 2, 1), NONE, 0),
    _y((0, 4, 0), (0, 32, 0), 0),  # 20, 8 + 12
    _y((0, 5, 0), (0, 32, 0), 1),  # 20, 7 + 12
    _y((0, 10, 0), NONE, NONE, TTL, 1), _y((0, 10, 0), NONE, NONE, TTL + 1, 0),
    _y(NONE, NONE, (1, 0, 0), 1),  # 10 + 11
    _y((0, 0, 1), NONE, (0, 0, 16), 0),  # 20, 20, 9 + 11
    _y((0, 0, 2), NONE, (0, 0, 16), 2),  # 8 + 11
)  # fmt: skip
_k = by("matched", "draws", "loads", "down")
PRODUCTION_STACK = rows(
    "production-stack-prefix",
    _k(NONE, (0,), 0), _k(NONE, (1,), 1), _k(NONE, (2,), 2), _k((2, 0, 0), (1,), 0),
    _k((1, 0, 0), (1,), 1), _k((2, 4, 0), (0,), 1), _k((4, 4, 0), (0,), 0), _k((4, 4, 0), (1,), 1),
    _k((3, 2, 0), (0,), 0), _k((3, 2, 0), (1,), 1), _k((2, 0, 0), (1,), (50, 0, 0), 0),
    _k((10, 10, 10), (5,), 2), _k((5, 4, 3), (0,), 0), _k((5, 4, 3), (1,), 1),
    _k((0, 0, 2), (0,), 2), _k((4, 2, 0), (0,), (0, 0, 0), (0,), 1), _k((9, 8, 0), (3,), 1),
    _k((10, 9, 0), (1,), 0), _k((1, 1, 2), (0,), 2), _k((0, 1, 0), (2,), 2),
    _k((6, 0, 6), (1,), 2), _k((6, 0, 6), (0,), 0),
)  # fmt: skip
AIBRIX = rows(
    "aibrix-prefix",
    _c(NONE, (0, 0, 0), 0), _c(NONE, (1, 0, 0), 1),
    _c((5, 0, 0), (8, 0, 0), 1),  # mean 2.67 and 3.77
    _c((5, 0, 0), (2, 1, 0), 2),  # mean 1 and 0.82
    _c((5, 0, 0), (1, 1, 0), 0),  # mean 0.67 and 0.47
    _c((5, 0, 0), (9, 0, 0), 1), _c((0, 0, 5), (4, 4, 4), 2), _c((3, 5, 4), (4, 4, 4), 1),
    _c((5, 5, 0), (1, 1, 0), 0), _c((5, 5, 0), (2, 1, 0), 1), _c((6, 5, 0), (2, 1, 0), 1),
    _c((0, 6, 5), (0, 2, 1), 2),
    _c((5, 0, 0), (2, 2, 0), 0),  # mean 1.33 and 0.94
    _c((5, 0), (3, 0), 0),  # mean 1.5 and 1.5
    _c((5, 0, 0), (3, 0, 0), 1),  # mean 1 and 1.41
    _c((5,), (3,), 0), _c((0, 1, 0), (0, 0, 0), 1),
    _c((5, 0), (8, 0), 0),  # mean 4 and 4
    _c((5, 0), (9, 0), 1), _c((0, 5), (0, 9), 0), _c((1, 0, 0), (1, 0, 0), 1),
    _c((1, 0, 0), (1, 1, 1), 0),
)  # fmt: skip
TABLES = (
    ROUND_ROBIN, RANDOM, LEAST, POWER_OF_TWO, SESSION_HASH, STICKY, LLM_D_DEFAULT, LLM_D_AFFINITY,
    SGLANG, DYNAMO, PRODUCTION_STACK, AIBRIX,
)  # fmt: skip


@pytest.mark.parametrize(("name", "given", "want"), [row for table in TABLES for row in table])
def test_a_router_chooses_what_was_computed_by_hand(
    name: str, given: dict[str, Any], want: int | None
) -> None:
    assert chosen(name, **given) == want


def test_every_named_router_has_its_table() -> None:
    assert [table[0].values[0] for table in TABLES] == list(ROUTERS)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_prompt_without_full_blocks_goes_somewhere(name: str) -> None:
    assert chosen(name, blocks=()) in (0, 1, 2)


def test_a_router_nobody_knows_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="router: 'best' is not one of round-robin, random"):
        make_router("best", lambda *_: 0)


def test_the_second_best_is_told() -> None:
    router: Scored = make_router("least-outstanding", lambda *_: 0)
    router.begin(16)
    router.sent(RoutedView("a", "a", "c", 1, 1), 0, NOW)
    views = [ReplicaView(i, f"r{i}", "all", ReplicaState.READY) for i in range(3)]
    choice = router.route(RoutedView("b", "b", "c", 1, 1), views, NOW)
    assert (choice.replica, choice.second, choice.why) == (1, 2, "one of equals")
    assert router.route(RoutedView("b", "b", "c", 1, 1), views[:1], NOW).second is None
