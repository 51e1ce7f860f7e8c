"""A router's own books: what is under way, what was sent where, and for how long it is believed."""

from __future__ import annotations

import pytest

from policy.errors import InvariantError
from policy.routing.base import Router
from policy.routing.books import Books, IndexSpec
from policy.routing.view import NOBODY, ReplicaState, ReplicaView, RoutedView


def request(name: str, tokens: int = 40, *blocks: int, session: str = "s") -> RoutedView:
    return RoutedView(name, session, "c", 1, tokens, blocks)


def test_a_request_counts_until_it_ends_and_its_prompt_until_the_first_token() -> None:
    books = Books(16, IndexSpec())
    books.sent(request("a", 40, 1, 2), 0, 0)
    books.sent(request("b", 40, 1, 3), 0, 0)  # one block of it was sent there
    load = books.load(0)
    assert (load.requests, load.tokens, load.uncached) == (2, 80, 40 + 24)
    books.first_token("a")
    books.first_token("a")  # every further token
    assert (load.requests, load.tokens, load.uncached) == (2, 80, 24)
    books.ended("a")
    books.ended("b")
    assert (load.requests, load.tokens, load.uncached) == (0, 0, 0)
    assert books.num_routed == 2


def test_what_is_sent_twice_or_ends_twice_is_an_error() -> None:
    books = Books(16)
    books.sent(request("a"), 0, 0)
    with pytest.raises(InvariantError, match="a is under way at replica 0 already"):
        books.sent(request("a"), 1, 0)
    books.ended("a")
    with pytest.raises(InvariantError, match="a ended and was not under way"):
        books.ended("a")


def test_without_an_index_nothing_matches_and_a_short_prompt_is_never_negative() -> None:
    assert Books(16).matched(request("a", 40, 1, 2), 0, 0) == 0
    books = Books(16, IndexSpec())
    books.sent(request("a", 20, 1, 2), 0, 0)
    assert books.uncached(request("b", 20, 1, 2), 0, 0) == 0
    assert books.uncached(request("b", 20, 1, 2), 1, 0) == 20


def test_a_match_ends_at_the_first_block_that_was_not_sent() -> None:
    books = Books(16, IndexSpec())
    books.sent(request("a", 64, 1, 2, 3, 4), 0, 0)
    for blocks, found in (((1, 2, 9, 4), 2), ((9, 2, 3, 4), 0), ((1, 2, 3, 4, 5), 4), ((), 0)):
        assert books.matched(request("b", 80, *blocks), 0, 0) == found


def test_the_oldest_names_go_when_an_index_is_full() -> None:
    books = Books(16, IndexSpec(capacity=2))
    books.sent(request("a", 40, 1, 2), 0, 0)
    books.sent(request("b", 40, 3), 0, 0)  # 1 goes
    assert books.matched(request("c", 40, 1, 2), 0, 0) == 0
    assert books.matched(request("c", 40, 3), 0, 0) == 1


def test_names_that_were_not_sent_for_too_long_are_forgotten() -> None:
    books = Books(16, IndexSpec(ttl_ns=100))
    books.sent(request("a", 40, 1, 2), 0, 50)
    assert books.matched(request("b", 40, 1, 2), 0, 150) == 2
    assert books.matched(request("b", 40, 1, 2), 0, 151) == 0


def test_chunks_are_known_as_a_whole() -> None:
    books = Books(16, IndexSpec(blocks_each=2))
    books.sent(request("a", 80, 1, 2, 3), 0, 0)
    assert books.matched(request("b", 80, 1, 2, 3, 4), 0, 0) == 2


def test_a_replica_that_went_down_holds_nothing_any_more() -> None:
    books = Books(16, IndexSpec())
    books.sent(request("a", 40, 1, 2, session="s"), 0, 0)
    books.sent(request("b", 40, 1, 2, session="t"), 1, 0)
    books.lost(0)
    assert books.homes == {"t": 1}
    assert books.matched(request("c", 40, 1, 2), 0, 0) == 0
    assert books.matched(request("c", 40, 1, 2), 1, 0) == 2
    books = Books(16)
    books.lost(0)
    assert books.homes == {}


def test_nobody_is_chosen_while_nobody_is_ready() -> None:
    router = Router()
    router.begin(16)
    router.up(0, 0)
    views = [
        ReplicaView(0, "r0", "all", ReplicaState.STARTING),
        ReplicaView(1, "r1", "all", ReplicaState.DRAINING),
        ReplicaView(2, "r2", "all", ReplicaState.DOWN),
    ]
    assert router.route(request("a"), views, 0) is NOBODY
    ready = views[0]._replace(state=ReplicaState.READY)
    with pytest.raises(NotImplementedError):
        router.route(request("a"), [ready], 0)
