"""A request makes the moves of its table and no others, and always knows how long it is."""

from __future__ import annotations

from itertools import product

import pytest

from policy.errors import IllegalMove
from policy.memory.context import Context
from policy.request import DecodeClock, Move, OwnNames, Request, RequestState
from tests.helpers.inside import memory_of
from tests.helpers.small import scheduler

STATES = RequestState
#: Written down by hand, so that a slip in the product's table shows.
LEGAL = {
    (STATES.WAITING, Move.PREFILL): STATES.RUNNING,
    (STATES.WAITING, Move.LOAD): STATES.LOADING,
    (STATES.WAITING, Move.SWAP_OUT): STATES.WAITING,
    (STATES.WAITING, Move.RECOMPUTE): STATES.WAITING,
    (STATES.WAITING, Move.REJECT): STATES.REJECTED,
    (STATES.WAITING, Move.CANCEL): STATES.CANCELLED,
    (STATES.LOADING, Move.LOADED): STATES.WAITING,
    (STATES.LOADING, Move.RESUME): STATES.RUNNING,
    (STATES.LOADING, Move.RECOMPUTE): STATES.WAITING,
    (STATES.LOADING, Move.CANCEL): STATES.CANCELLED,
    (STATES.RUNNING, Move.CHUNK): STATES.WAITING,
    (STATES.RUNNING, Move.SWAP_OUT): STATES.SWAPPED,
    (STATES.RUNNING, Move.RECOMPUTE): STATES.WAITING,
    (STATES.RUNNING, Move.FINISH): STATES.FINISHED,
    (STATES.RUNNING, Move.REJECT): STATES.REJECTED,
    (STATES.RUNNING, Move.CANCEL): STATES.CANCELLED,
    (STATES.SWAPPED, Move.LOAD): STATES.LOADING,
    (STATES.SWAPPED, Move.RESUME): STATES.RUNNING,
    (STATES.SWAPPED, Move.RECOMPUTE): STATES.WAITING,
    (STATES.SWAPPED, Move.REJECT): STATES.REJECTED,
    (STATES.SWAPPED, Move.CANCEL): STATES.CANCELLED,
}
ALL = list(product(RequestState, Move))


def make(state: RequestState = STATES.WAITING, tokens: int = 5) -> Request:
    request = Request("r", arrival_ns=3, input_tokens=tokens)
    request.holding = request.context = Context(request)
    request.state = state
    return request


def picture(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in Request.__slots__}


@pytest.mark.parametrize(("state", "move"), [pair for pair in ALL if pair in LEGAL])
def test_a_legal_move_changes_the_state_and_nothing_else(state: RequestState, move: Move) -> None:
    request = make(state)
    before = picture(request)
    request.move(move)
    assert picture(request) == {**before, "state": LEGAL[state, move]}


@pytest.mark.parametrize(("state", "move"), [pair for pair in ALL if pair not in LEGAL])
def test_an_illegal_move_says_so_and_changes_nothing(state: RequestState, move: Move) -> None:
    request = make(state)
    before = picture(request)
    with pytest.raises(IllegalMove, match=f"^r: {move.name} is illegal in {state.name}$"):
        request.move(move)
    assert picture(request) == before


@pytest.mark.parametrize("state", RequestState)
def test_nothing_leaves_the_end(state: RequestState) -> None:
    has_exit = any((state, move) in LEGAL for move in Move)
    assert make(state).is_live == has_exit


def test_a_request_without_session_or_client_is_its_own() -> None:
    alone = Request("r", arrival_ns=0, input_tokens=1)
    assert (alone.session_id, alone.client_id) == ("r", "r")
    talk = Request("r", arrival_ns=0, input_tokens=1, session_id="s")
    assert (talk.session_id, talk.client_id) == ("s", "s")
    assert Request("r", arrival_ns=0, input_tokens=1, client_id="c").client_id == "c"


def test_while_it_decodes_every_count_of_the_clock_is_a_token() -> None:
    clock = DecodeClock()
    clock.count = 40
    request = make()
    request.add_token()
    request.start_decoding(clock)
    clock.count += 3
    assert (request.num_tokens, request.num_generated, request.is_decoding) == (9, 4, True)
    request.withhold_token()
    assert request.num_tokens == 8
    request.stop_decoding()
    clock.count += 100
    assert (request.num_tokens, request.num_generated, request.is_decoding) == (8, 3, False)


def test_a_request_shows_its_state_and_length() -> None:
    assert repr(make(STATES.SWAPPED, 17)) == "<r SWAPPED 17 tokens>"


def test_what_a_request_holds_is_what_its_context_holds() -> None:
    made = scheduler("fastswitch")
    request = Request("r", arrival_ns=0, input_tokens=9)
    made.add(request, 0)
    assert (request.device_blocks, request.host_blocks, request.is_resident) == (0, 0, False)
    made.schedule(0)
    assert (request.device_blocks, request.host_blocks, request.is_resident) == (3, 0, True)
    context = request.context
    memory_of(made).settle(context, 9)
    memory_of(made).copy_out(context, 0, waited=True)
    assert (request.device_blocks, request.host_blocks, request.is_resident) == (0, 3, False)


def test_a_request_that_repeats_nobody_names_its_blocks_by_itself() -> None:
    assert OwnNames("one")[3] == ("one", 3) != OwnNames("other")[3]
