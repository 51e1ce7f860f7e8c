"""Room is one subtraction: who comes takes, who goes gives back, a floor stays free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.engines.room import Room, blocks_missing, blocks_needed, floor_of
from policy.memory.context import Context
from policy.request import Request


@pytest.mark.parametrize(
    ("blocks", "seats", "need", "floor", "fits"),
    [
        (4, 1, 4, 0, True),
        (4, 1, 4, 1, False),
        (4, 1, 3, 1, True),
        (4, 0, 1, 0, False),
        (4, -1, 1, 0, True),
        (-1, 1, 0, 0, False),
    ],
)
def test_who_comes_needs_a_seat_and_leaves_the_floor(
    blocks: int, seats: int, need: int, floor: int, fits: bool
) -> None:
    assert Room(blocks, seats).fits(need, floor) == fits


@given(st.lists(st.integers(0, 9)), st.integers(-5, 50), st.integers(-5, 50))
def test_what_comes_and_goes_leaves_the_room_as_it_was(
    needs: list[int], blocks: int, seats: int
) -> None:
    room = Room(blocks, seats)
    for need in needs:
        room.take(need)
    assert (room.blocks, room.seats) == (blocks - sum(needs), seats - len(needs))
    assert room.is_short == (blocks < sum(needs) or seats < len(needs))
    for need in needs:
        room.give(need)
    assert (room.blocks, room.seats) == (blocks, seats)


@pytest.mark.parametrize(("tokens", "needed"), [(3, 1), (4, 2), (5, 2), (8, 3)])
def test_a_context_needs_the_block_of_its_next_token_too(tokens: int, needed: int) -> None:
    request = Request("r", arrival_ns=0, input_tokens=tokens)
    request.holding = request.context = Context(request)
    assert blocks_needed(request, 4) == blocks_missing(request, 4) == needed


@pytest.mark.parametrize(("need", "floor"), [(1, 2), (8, 2), (9, 1), (10, 0), (11, 0)])
def test_who_has_grown_into_what_is_kept_free_leaves_what_it_does_not_need(
    need: int, floor: int
) -> None:
    assert floor_of(need, 10, 2) == floor
