"""What is known of one conversation's KV."""

from __future__ import annotations

import pytest

from policy.memory.context import Context
from policy.memory.transfers import Fate, Kind, Transfer
from policy.plan import Copy, Direction
from policy.request import Request


def context(device_tokens: int = 0, host_tokens: int = 0) -> Context:
    made = Context(Request("r", arrival_ns=0, input_tokens=1))
    made.device_tokens, made.host_tokens = device_tokens, host_tokens
    return made


def flight(of: Context, tokens: int, before: int, kind: Kind = Kind.STORE) -> Transfer:
    copy = Copy(1, Direction.TO_HOST, "r", ((0, 0, 1),), 1)
    numbers = {"tokens": tokens, "before": before, "first_block": 0, "planned_ns": 0}
    return Transfer(kind, Fate.MOVING, copy, of, **numbers)


def test_a_context_shows_its_owner_and_both_sides() -> None:
    assert repr(context(5, 7)) == "<context of r: device 5, host 7 tokens>"


@pytest.mark.parametrize("kind", Kind)
def test_a_copy_under_way_makes_it_busy_unless_its_owner_goes_on(kind: Kind) -> None:
    made = context()
    assert not made.is_busy
    made.transfer = on_the_way = flight(made, 4, 0, kind)
    assert made.is_busy == (kind is not Kind.BACKUP)
    ways = {Kind.STORE: made.outgoing, Kind.LOAD: made.incoming, Kind.BACKUP: made.backup}
    assert [way for way, found in ways.items() if found is on_the_way] == [kind]
    assert on_the_way.to_host == (kind is not Kind.LOAD)


@pytest.mark.parametrize(
    ("limit", "expected"), [(3, (3, 3, 3, 3)), (6, (6, 5, 6, 5)), (50, (9, 5, 9, 5))]
)
def test_a_shorter_prefix_cuts_what_is_valid_here_there_and_on_the_way(
    limit: int, expected: tuple[int, ...]
) -> None:
    made = context(9, 5)
    made.transfer = on_the_way = flight(made, 9, 5)
    made.limit(limit)
    valid = (made.device_tokens, made.host_tokens, on_the_way.tokens, on_the_way.before)
    assert valid == expected
