"""What must hold of a V1 engine after every decision and update (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from policy.engines.v1_held import Held, place, place_of
from policy.errors import InvariantError
from policy.request import Request

if TYPE_CHECKING:
    from policy.engines.v1_holdings import V1Holdings


def state_of(engine: V1Holdings) -> Hashable:
    """All that its next decisions depend on, if nobody comes or leaves."""
    return (
        tuple([(request.request_id, held.computed) for request, held in engine.running.items()]),
        tuple([request.request_id for queue in engine.queues() for request in queue]),
        engine.device.state(),
    )


def check_seats(engine: V1Holdings) -> None:
    """No more run than may. Raises InvariantError."""
    seats = engine.settings.max_num_seqs
    if len(engine.running) > seats:
        raise InvariantError(f"{len(engine.running)} requests run, limit {seats}")


def check_laws(engine: V1Holdings) -> None:
    """All of them. Raises InvariantError naming what is broken."""
    engine.device.check(engine.tables())
    _check_queues(engine)
    for held in engine.running.values():
        _check_held(engine, held)


def _check_queues(engine: V1Holdings) -> None:
    """Everybody live runs or waits; who runs is in order of admission, and decodes or is partial."""
    running = engine.running
    here = [*running, *[request for queue in engine.queues() for request in queue]]
    if sorted(here, key=_name) != sorted(engine.held, key=_name):
        raise InvariantError("running and waiting are not the live requests, once each")
    if list(running.values()) != sorted(running.values(), key=place):
        raise InvariantError("those who run are not in order of admission")
    decoding = [request for request in running if request.is_decoding]
    if sorted(decoding, key=_name) != sorted(engine.desk.running, key=_name):
        raise InvariantError("the batch is not those of the running who decode")
    partial = [request for request in running if not request.is_decoding]
    if partial != sorted(engine.partial, key=place_of):
        raise InvariantError("partial is not those of the running who do not decode")


def _check_held(engine: V1Holdings, held: Held) -> None:
    """Law 15: blocks for what is computed or planned, and no more names than blocks."""
    request, size = held.request, engine.settings.block_size
    computed = request.num_tokens - 1 if request.is_decoding else held.computed
    planned = max(computed + 1, engine.desk.prefilling.get(request, 0))
    if not -(-computed // size) <= len(held.blocks) <= -(-planned // size):
        raise InvariantError(f"{request!r}: {len(held.blocks)} blocks for {computed} tokens")
    if held.num_named > len(held.blocks):
        raise InvariantError(f"{request!r}: {held.num_named} names, {len(held.blocks)} blocks")


def _name(request: Request) -> str:
    return request.request_id
