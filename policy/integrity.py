"""Conservation laws of the whole scheduler, as one method that raises.

The numbers of the laws are those of docs/architecture.md. `check_integrity` is called after every
step in test mode; `check_counts` is its cheap part, for long runs.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from policy.errors import InvariantError
from policy.memory.context import Context, HostRole, InFlight
from policy.memory.sharing import SharedMemory
from policy.pools.allocation import Allocation
from policy.request import Request, RequestState
from policy.scheduler import Scheduler
from policy.state import State


def check_counts(scheduler: Scheduler) -> None:
    """Law 1, by counts: device blocks are free, reserved, held by a context, or by a copy. Shared
    ones count once, however many hold them."""
    state = scheduler.state
    device = state.memory.device
    held = device.num_shared
    for request in state.residents:
        allocation = request.context.device
        held += 0 if allocation is None else len(allocation.blocks) - allocation.num_shared
    for context in (*state.idle_device, *state.ended):
        if context.device is not None and not context.owner.is_live:
            held += len(context.device.blocks) - context.device.num_shared
    total = device.num_free + device.num_reserved + held + state.memory.pending_device
    if total != device.num_blocks:
        raise InvariantError(
            f"device: {device.num_free} free + {device.num_reserved} reserved + {held} held +"
            f" {state.memory.pending_device} in flight is not {device.num_blocks}"
        )
    if len(state.running) > state.settings.max_num_seqs:
        raise InvariantError(
            f"{len(state.running)} requests run, limit {state.settings.max_num_seqs}"
        )


def check_integrity(scheduler: Scheduler) -> None:
    """Every law. Raises InvariantError naming what is broken."""
    state = scheduler.state
    contexts = _contexts(state)
    check_counts(scheduler)
    memory = state.memory
    flights = list(memory.in_flight.values())
    memory.device.check(
        _present([c.device for c in contexts] + [flight.device for flight in flights])
    )
    memory.host.check(_present([c.host for c in contexts] + [flight.host for flight in flights]))
    sources = _present([flight.device for flight in flights])
    pending = sum(len(source.blocks) - source.num_shared for source in sources)
    if pending != memory.pending_device:
        raise InvariantError(f"{pending} device blocks in flight, {memory.pending_device} counted")
    if scheduler.sharing is not None:
        _check_leaving(scheduler.sharing, sources)
    for context in contexts:
        _check_context(state, context)
    for request in state.live.values():
        _check_request(state, request)
    _check_queues(state)
    _check_batch(state)
    _check_prefills(state)
    _check_backups(state)


def _present(allocations: list[Allocation | None]) -> list[Allocation]:
    return [allocation for allocation in allocations if allocation is not None]


def _contexts(state: State) -> list[Context]:
    """Every context that anything still refers to, once each."""
    found: dict[Context, None] = {}
    for request in state.live.values():
        if request.context in found:
            raise InvariantError(f"{request.request_id} shares its context with another request")
        found[request.context] = None
    for name, context in state.memory.ledger.kept.items():
        if context.owner.is_live or context.owner.request_id != name:
            raise InvariantError(f"kept context of {name} belongs to {context.owner!r}")
        found[context] = None
    for flight in state.memory.in_flight.values():
        if flight.context is not None:
            found[flight.context] = None
    return list(found)


def _check_context(state: State, context: Context) -> None:
    """Valid prefixes lie inside the blocks held; roles say what they should."""
    memory = state.memory
    for side, allocation, tokens, base in (
        ("device", context.device, context.device_tokens, 0),
        ("host", context.host, context.host_tokens, context.host_base),
    ):
        blocks = 0 if allocation is None else len(allocation.blocks) + base
        if memory.blocks_for(tokens) > blocks:
            raise InvariantError(f"{context!r}: {blocks} {side} blocks hold not {tokens} tokens")
    device = context.device
    if device is not None and context.incoming is None:
        shared_tokens = device.num_shared * memory.block_size
        if shared_tokens > context.device_tokens:
            raise InvariantError(
                f"{context!r}: the next token goes into {shared_tokens} shared tokens"
            )
    if context.outgoing is not None and context.incoming is not None:
        raise InvariantError(f"{context!r} is copied both ways at once")
    for flight in (context.outgoing, context.incoming):
        if flight is None:
            continue
        if memory.in_flight.get(flight.copy.copy_id) is not flight or flight.context is not context:
            raise InvariantError(f"{context!r}: copy {flight.copy.copy_id} is not in flight for it")
        if flight.waited or flight.cancelled:
            raise InvariantError(f"{context!r}: copy {flight.copy.copy_id} is settled already")
    expected = HostRole.NONE
    if context.backup is not None:
        _check_backup(state, context, context.backup)
    elif context.host is not None and not context.is_busy:
        if not context.owner.is_live:
            expected = HostRole.IDLE
        elif context.device is not None:
            expected = HostRole.DUPLICATE
    if context.role is not expected:
        raise InvariantError(f"{context!r}: host role {context.role.name}, not {expected.name}")


def _check_backup(state: State, context: Context, flight: InFlight) -> None:
    """It is in flight for its context, and reads full blocks that are computed."""
    owner, memory = context.owner, state.memory
    copy_id = flight.copy.copy_id
    if memory.in_flight.get(copy_id) is not flight or flight.context is not context:
        raise InvariantError(f"{context!r}: backup {copy_id} is not in flight for it")
    if flight.waited or flight.cancelled or context.is_busy:
        raise InvariantError(f"{context!r}: backup {copy_id} is settled already, or in the way")
    computed = owner.num_tokens - 1 if owner.is_decoding else context.device_tokens
    if context.device is None or flight.tokens > computed:
        raise InvariantError(f"{context!r}: backup {copy_id} reads {flight.tokens} tokens")
    if context.host is None or len(context.host.blocks) * memory.block_size < flight.tokens:
        raise InvariantError(
            f"{context!r}: backup {copy_id} has no room for {flight.tokens} tokens"
        )


def _check_backups(state: State) -> None:
    """All together keep to their limit, so that an urgent copy waits for no more than that."""
    backing = state.backing
    blocks = 0 if backing is None else sum(f.copy.num_blocks for f in backing.backups())
    if blocks > state.settings.backup_blocks:
        raise InvariantError(
            f"{blocks} blocks are being backed up, limit {state.settings.backup_blocks}"
        )


def _check_leaving(sharing: SharedMemory, sources: list[Allocation]) -> None:
    """Shared blocks know how many copies in flight hold them."""
    leaving = Counter(shared for source in sources for shared in source.shared)
    for shared in sharing.tree:
        if shared.leaving != leaving[shared]:
            raise InvariantError(f"device: {shared!r} is in {leaving[shared]} copies in flight")


def _check_request(state: State, request: Request) -> None:
    """State, memory and membership agree."""
    context = request.context
    kv = request.num_tokens - 1
    on_device = context.device is not None
    if on_device != (request in state.residents):
        raise InvariantError(f"{request!r}: on device is {on_device}, resident is not")
    if request.is_decoding and request.state is not RequestState.RUNNING:
        raise InvariantError(f"{request!r} decodes")
    match request.state:
        case RequestState.RUNNING:
            blocks = request.device_blocks
            if request.is_decoding and blocks not in (
                state.memory.blocks_for(kv),
                state.memory.blocks_for(kv + 1),
            ):
                raise InvariantError(f"{request!r} runs on {blocks} blocks")
            if context.is_busy:
                raise InvariantError(f"{request!r} runs while it is copied")
            if not request.is_decoding and request not in state.prefilling:
                raise InvariantError(f"{request!r} runs and computes nothing")
        case RequestState.LOADING:
            if context.incoming is None:
                raise InvariantError(f"{request!r} loads without a copy")
        case RequestState.SWAPPED:
            if on_device:
                raise InvariantError(f"{request!r} holds device blocks")
            if context.outgoing is None and context.host_tokens != kv:
                raise InvariantError(f"{request!r}: {context.host_tokens} of {kv} tokens on host")
        case RequestState.WAITING:
            if context.incoming is not None:
                raise InvariantError(f"{request!r} waits while it is loaded")
        case _:
            raise InvariantError(f"{request!r} is among the live")


def _check_queues(state: State) -> None:
    """One total order over exactly the live requests."""
    if len(state.ranked) != len(state.live):
        raise InvariantError(f"{len(state.ranked)} ranked, {len(state.live)} live")
    for before, after in pairwise(state.ranked):
        if not before.rank < after.rank:
            raise InvariantError(f"{before!r} does not rank before {after!r}")


def _check_batch(state: State) -> None:
    """The decode batch, the growth buckets and the token sum are the same set of requests."""
    decoding = [request for request in state.live.values() if request.is_decoding]
    if sorted(r.request_id for r in decoding) != sorted(r.request_id for r in state.running):
        raise InvariantError("the batch is not the requests that decode")
    size = state.settings.block_size
    buckets = state._growth
    if sum(map(len, buckets)) != len(decoding):
        raise InvariantError("growth buckets do not hold the batch")
    for request in decoding:
        if request not in buckets[(1 - request.offset) % size]:
            raise InvariantError(f"{request!r} is in the wrong growth bucket")
    if sum(request.offset for request in decoding) != state._offset_sum:
        raise InvariantError("the sum of offsets is not the batch's")


def _check_prefills(state: State) -> None:
    """Prompts of the step under way hold the blocks of their whole contexts; chunks stay within the
    token budget, decodes included, and only where the shape knows chunks."""
    chunked = state.system.shape == "chunked"
    taken = len(state.running)
    for request, computed in state.prefilling.items():
        tokens = request.num_tokens
        if not request.context.device_tokens < computed <= tokens:
            raise InvariantError(
                f"{request!r} is prefilled from {request.context.device_tokens} to {computed}"
            )
        if computed < tokens and not chunked:
            raise InvariantError(f"{request!r} is prefilled in part, to {computed}")
        if request.device_blocks < state.memory.blocks_for(tokens):
            raise InvariantError(f"{request!r} is prefilled on {request.device_blocks} blocks")
        taken += computed - request.context.device_tokens
    budget = state.settings.max_num_batched_tokens
    if chunked and state.prefilling and taken > budget:
        raise InvariantError(f"a step of {taken} tokens, max_num_batched_tokens is {budget}")
