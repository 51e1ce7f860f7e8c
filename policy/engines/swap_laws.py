"""Conservation laws of engines that swap: both pools, the ledger, contexts and copies in flight.

The numbers of the laws are those of docs/architecture.md. `SwapEngine.check` calls them.
"""

from __future__ import annotations

from collections import Counter

from policy.engines.swaps import Swaps
from policy.errors import InvariantError
from policy.memory.context import Context, HostRole
from policy.memory.sharing import Sharing
from policy.memory.transfers import Kind, Transfer
from policy.pools.allocation import Allocation
from policy.request import Request, RequestState


def check_counts(swaps: Swaps) -> None:
    """Law 1, by counts: device blocks are free, reserved, held by a context, or by a copy. Shared
    ones count once, however many hold them."""
    device = swaps.memory.device
    held = device.num_shared
    for request in swaps.residents:
        allocation = request.context.device
        held += 0 if allocation is None else len(allocation.blocks) - allocation.num_shared
    for context in (*swaps.idle_device, *swaps.ended):
        if context.device is not None and not context.owner.is_live:
            held += len(context.device.blocks) - context.device.num_shared
    moving = swaps.memory.transfers.coming
    total = device.num_free + device.num_reserved + held + moving
    if total != device.num_blocks:
        raise InvariantError(
            f"device: {device.num_free} free + {device.num_reserved} reserved + {held} held +"
            f" {moving} in flight is not {device.num_blocks}"
        )


def check(swaps: Swaps) -> None:
    """Every law. Raises InvariantError naming what is broken."""
    contexts = _contexts(swaps)
    check_counts(swaps)
    memory = swaps.memory
    flights = list(memory.in_flight.values())
    memory.device.check(
        _present([c.device for c in contexts] + [flight.device for flight in flights])
    )
    memory.host.check(_present([c.host for c in contexts] + [flight.host for flight in flights]))
    if swaps.sharing is not None:
        _check_leaving(swaps.sharing, _present([flight.device for flight in flights]))
    for context in contexts:
        _check_context(swaps, context)
    memory.transfers.check()
    for request in swaps.desk.live.values():
        _check_request(swaps, request)
    _check_prefills(swaps)
    _check_backups(swaps)


def _present(allocations: list[Allocation | None]) -> list[Allocation]:
    return [allocation for allocation in allocations if allocation is not None]


def _contexts(swaps: Swaps) -> list[Context]:
    """Every context that anything still refers to, once each."""
    found: dict[Context, None] = {}
    for request in swaps.desk.live.values():
        if request.context in found:
            raise InvariantError(f"{request.request_id} shares its context with another request")
        found[request.context] = None
    for name, context in swaps.memory.ledger.kept.items():
        if context.owner.is_live or context.owner.request_id != name:
            raise InvariantError(f"kept context of {name} belongs to {context.owner!r}")
        found[context] = None
    for flight in swaps.memory.in_flight.values():
        if flight.context is not None:
            found[flight.context] = None
    return list(found)


def _check_context(swaps: Swaps, context: Context) -> None:
    """Valid prefixes lie inside the blocks held; roles say what they should."""
    memory = swaps.memory
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
    transfer = context.transfer
    if transfer is not None:
        copy_id = transfer.copy.copy_id
        if memory.in_flight.get(copy_id) is not transfer or transfer.context is not context:
            raise InvariantError(f"{context!r}: copy {copy_id} is not in flight for it")
        if transfer.kind is Kind.BACKUP:
            _check_backup(swaps, context, transfer)
    expected = HostRole.NONE
    if context.host is not None and transfer is None:
        if not context.owner.is_live:
            expected = HostRole.IDLE
        elif context.device is not None:
            expected = HostRole.DUPLICATE
    if context.role is not expected:
        raise InvariantError(f"{context!r}: host role {context.role.name}, not {expected.name}")


def _check_backup(swaps: Swaps, context: Context, flight: Transfer) -> None:
    """It reads full blocks that are computed, and has room for them."""
    owner, memory = context.owner, swaps.memory
    copy_id = flight.copy.copy_id
    computed = owner.num_tokens - 1 if owner.is_decoding else context.device_tokens
    if context.device is None or flight.tokens > computed:
        raise InvariantError(f"{context!r}: backup {copy_id} reads {flight.tokens} tokens")
    if context.host is None or len(context.host.blocks) * memory.block_size < flight.tokens:
        raise InvariantError(
            f"{context!r}: backup {copy_id} has no room for {flight.tokens} tokens"
        )


def _check_backups(swaps: Swaps) -> None:
    """All together keep to their limit, so that an urgent copy waits for no more than that."""
    blocks = sum(backup.copy.num_blocks for backup in swaps.memory.backups())
    if blocks > swaps.settings.backup_blocks:
        raise InvariantError(
            f"{blocks} blocks are being backed up, limit {swaps.settings.backup_blocks}"
        )


def _check_leaving(sharing: Sharing, sources: list[Allocation]) -> None:
    """Shared blocks know how many copies in flight hold them."""
    leaving = Counter(shared for source in sources for shared in source.shared)
    for shared in sharing.tree:
        if shared.leaving != leaving[shared]:
            raise InvariantError(f"device: {shared!r} is in {leaving[shared]} copies in flight")


def _check_request(swaps: Swaps, request: Request) -> None:
    """State, memory and membership agree."""
    context = request.context
    kv = request.num_tokens - 1
    on_device = context.device is not None
    if on_device != (request in swaps.residents):
        raise InvariantError(f"{request!r}: on device is {on_device}, resident is not")
    if request.is_decoding and request.state is not RequestState.RUNNING:
        raise InvariantError(f"{request!r} decodes")
    match request.state:
        case RequestState.RUNNING:
            blocks = request.device_blocks
            if request.is_decoding and blocks not in (
                swaps.memory.blocks_for(kv),
                swaps.memory.blocks_for(kv + 1),
            ):
                raise InvariantError(f"{request!r} runs on {blocks} blocks")
            if context.is_busy:
                raise InvariantError(f"{request!r} runs while it is copied")
            if not request.is_decoding and request not in swaps.desk.prefilling:
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


def _check_prefills(swaps: Swaps) -> None:
    """Prompts of the step under way hold the blocks of their whole contexts; chunks stay within the
    token budget, decodes included, and only where the shape knows chunks."""
    chunked = swaps.options.shape == "chunked"
    taken = len(swaps.desk.running)
    for request, computed in swaps.desk.prefilling.items():
        tokens = request.num_tokens
        if not request.context.device_tokens < computed <= tokens:
            raise InvariantError(
                f"{request!r} is prefilled from {request.context.device_tokens} to {computed}"
            )
        if computed < tokens and not chunked:
            raise InvariantError(f"{request!r} is prefilled in part, to {computed}")
        if request.device_blocks < swaps.memory.blocks_for(tokens):
            raise InvariantError(f"{request!r} is prefilled on {request.device_blocks} blocks")
        taken += computed - request.context.device_tokens
    budget = swaps.settings.max_num_batched_tokens
    if chunked and swaps.desk.prefilling and taken > budget:
        raise InvariantError(f"a step of {taken} tokens, max_num_batched_tokens is {budget}")
