"""Copies that have started and not ended, and who holds their blocks meanwhile: one table.

A copy is a `Transfer`, and of it one word changes, its fate. `HOLDERS` says for every kind and fate who holds
the device blocks that the copy reads or writes, and who the host blocks: the context, so that they are
the conversation's; the copy, so that nobody is given them before it has ended; or nobody any more.
`Transfers.turn` moves the blocks as the table says, and is the only code that does. Law 1 is read off it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from policy.errors import InvariantError
from policy.plan import Copy, Direction
from policy.pools.allocation import Allocation, Pool
from policy.pools.prefix import PrefixPool
from policy.pools.runs import matching_runs

if TYPE_CHECKING:
    from policy.memory.context import Context


class Kind(Enum):
    """What a copy is for."""

    STORE = auto()  # its owner leaves the device
    LOAD = auto()  # its owner comes back to the device
    BACKUP = auto()  # full blocks go to the host, and their owner goes on


class Fate(Enum):
    """What has become of it."""

    MOVING = auto()
    WAITED = auto()  # a step waits for it, so what it does counts as done
    KEPT = auto()  # cancelled: its owner stays, or comes back, on the source
    UNWANTED = auto()  # nobody wants the KV any more
    VACATED = auto()  # the same, and a step waits until its source can be given out


class Holder(Enum):
    """Who has blocks of a copy."""

    CONTEXT = auto()
    COPY = auto()
    NOBODY = auto()


#: (kind, fate) -> holders of the device blocks and of the host blocks. What is kept of the host side
#: goes on from the copy's first block; what comes before stays with the context.
HOLDERS: dict[tuple[Kind, Fate], tuple[Holder, Holder]] = {
    (Kind.STORE, Fate.MOVING): (Holder.COPY, Holder.CONTEXT),
    (Kind.STORE, Fate.WAITED): (Holder.NOBODY, Holder.CONTEXT),
    (Kind.STORE, Fate.KEPT): (Holder.CONTEXT, Holder.COPY),
    (Kind.STORE, Fate.UNWANTED): (Holder.COPY, Holder.COPY),
    (Kind.STORE, Fate.VACATED): (Holder.NOBODY, Holder.COPY),
    (Kind.LOAD, Fate.MOVING): (Holder.CONTEXT, Holder.CONTEXT),
    (Kind.LOAD, Fate.WAITED): (Holder.CONTEXT, Holder.CONTEXT),
    (Kind.LOAD, Fate.UNWANTED): (Holder.COPY, Holder.COPY),
    (Kind.BACKUP, Fate.MOVING): (Holder.CONTEXT, Holder.CONTEXT),
    (Kind.BACKUP, Fate.KEPT): (Holder.CONTEXT, Holder.COPY),
}
#: What a copy may turn to. It starts as MOVING, a store or load also as WAITED.
TURNS: dict[tuple[Kind, Fate], tuple[Fate, ...]] = {
    (Kind.STORE, Fate.MOVING): (Fate.WAITED, Fate.KEPT, Fate.UNWANTED),
    (Kind.STORE, Fate.UNWANTED): (Fate.VACATED,),
    (Kind.LOAD, Fate.MOVING): (Fate.UNWANTED,),
    (Kind.BACKUP, Fate.MOVING): (Fate.KEPT,),
}


class Transfer:
    """A copy under way. Its `copy` covers blocks from `first_block` on.

    `tokens`: valid on the target side once it has ended; `before`: if it fails. `context` is None once
    nobody waits for its effect. `device`, `host`: what the table says that the copy holds.
    """

    __slots__ = (
        "before",
        "context",
        "copy",
        "device",
        "fate",
        "first_block",
        "host",
        "kind",
        "planned_ns",
        "tokens",
    )

    def __init__(
        self,
        kind: Kind,
        fate: Fate,
        copy: Copy,
        context: Context,
        *,
        tokens: int,
        before: int,
        first_block: int,
        planned_ns: int,
    ) -> None:
        self.kind = kind
        self.fate = fate
        self.copy = copy
        self.context: Context | None = context
        self.tokens = tokens
        self.before = before
        self.first_block = first_block
        self.planned_ns = planned_ns
        self.device: Allocation | None = None
        self.host: Allocation | None = None

    def limit(self, tokens: int) -> None:
        """Only so many tokens of what it carries are wanted."""
        self.tokens = min(self.tokens, tokens)
        self.before = min(self.before, tokens)

    @property
    def to_host(self) -> bool:
        """Direction, as a claim."""
        return self.kind is not Kind.LOAD

    @property
    def is_waited(self) -> bool:
        """A step waits for it."""
        return self.fate is Fate.WAITED


class Transfers:
    """All copies in flight, by id, between two pools."""

    def __init__(self, device: Pool, host: Pool, block_size: int) -> None:
        self.in_flight: dict[int, Transfer] = {}
        self._device = device
        self._host = host
        self._block_size = block_size
        self._tree = device if isinstance(device, PrefixPool) else None
        self._next_id = 0

    @property
    def coming(self) -> int:
        """Unshared device blocks that come back when copies end."""
        found = 0
        for transfer in self.in_flight.values():
            device = transfer.device
            if device is not None:
                found += len(device.blocks) - device.num_shared
        return found

    def start(
        self,
        kind: Kind,
        context: Context,
        blocks: tuple[int, int],
        *,
        tokens: int,
        before: int,
        now_ns: int,
        waited: bool,
    ) -> Transfer:
        """Copy the context's logical blocks from `blocks[0]` to before `blocks[1]`; it has room on both
        sides. Its blocks are held as the table says from now on."""
        first, last = blocks
        device, host, base = context.device, context.host, context.host_base
        assert device is not None and host is not None and context.transfer is None
        runs = matching_runs(device, first, host, first - base, last - first)
        way = Direction.TO_DEVICE if kind is Kind.LOAD else Direction.TO_HOST
        owner = context.owner.request_id
        copy = Copy(self._next_id, way, owner, tuple(runs), last - first)
        self._next_id += 1
        fate = Fate.WAITED if waited else Fate.MOVING
        transfer = Transfer(
            kind,
            fate,
            copy,
            context,
            tokens=tokens,
            before=before,
            first_block=first,
            planned_ns=now_ns,
        )
        self.in_flight[copy.copy_id] = transfer
        if fate is Fate.MOVING:
            context.transfer = transfer
        if kind is Kind.STORE:
            if not waited:  # clean blocks are free at once; shared ones stay, to be found again
                self._device.truncate(device, last)
                source = self._device.split(device, max(first, device.num_shared))
                self._device.truncate(device, device.num_shared)
                self._device.join(device, source)
            self._pass_device(transfer, context, Holder.CONTEXT, HOLDERS[kind, fate][0])
        return transfer

    def turn(self, transfer: Transfer, fate: Fate) -> int:
        """Another fate for a copy: its blocks go where the table says. Returns its id.

        Raises InvariantError, with nothing changed, for what no copy of its kind can turn to.
        """
        kind, context = transfer.kind, transfer.context
        if fate not in TURNS.get((kind, transfer.fate), ()):
            raise InvariantError(
                f"copy {transfer.copy.copy_id}: {kind.name} {transfer.fate.name} cannot become"
                f" {fate.name}"
            )
        before, after = HOLDERS[kind, transfer.fate], HOLDERS[kind, fate]
        transfer.fate = fate
        if context is None:
            self._vacate(transfer)  # VACATED; nothing else is left to change hands
            return transfer.copy.copy_id
        context.transfer = None
        self._pass_device(transfer, context, before[0], after[0])
        self._pass_host(transfer, context, before[1], after[1])
        if fate is not Fate.WAITED:
            transfer.context = None
        return transfer.copy.copy_id

    def end(self, copy_id: int) -> Transfer:
        """It has ended, well or not: what it held is free."""
        transfer = self.in_flight.pop(copy_id)
        context = transfer.context
        if context is not None and context.transfer is transfer:
            context.transfer = None
        self._vacate(transfer)
        if transfer.host is not None:
            self._host.truncate(transfer.host, 0)
            transfer.host = None
        return transfer

    # ------------------------------------------------------------------ from one holder to another

    def _pass_device(self, transfer: Transfer, context: Context, old: Holder, new: Holder) -> None:
        if old is new:
            return
        if old is Holder.CONTEXT:
            device = context.device
            assert device is not None
            context.device = None
            context.device_tokens = 0
            if new is Holder.NOBODY:
                self._device.truncate(device, 0)
                return
            transfer.device = device
            if self._tree is not None:
                self._tree.start_leaving(device)
        elif new is Holder.NOBODY:
            self._vacate(transfer)
        else:
            assert transfer.device is not None
            context.device, transfer.device = transfer.device, None
            if self._tree is not None:
                self._tree.stop_leaving(context.device)

    def _pass_host(self, transfer: Transfer, context: Context, old: Holder, new: Holder) -> None:
        if old is new:
            return
        host = context.host
        assert host is not None
        transfer.host = host
        if transfer.fate is Fate.KEPT:
            # The block that was valid in part goes too: the copy may still write it.
            clean = transfer.first_block - context.host_base
            transfer.host = self._host.split(host, clean)
            if clean:
                context.host_tokens = transfer.first_block * self._block_size
                return
        context.host = None
        context.host_tokens = context.host_base = 0

    def _vacate(self, transfer: Transfer) -> None:
        """Free the device blocks that only this copy needed."""
        device = transfer.device
        if device is not None:
            if self._tree is not None:
                self._tree.stop_leaving(device)
            self._device.truncate(device, 0)
            transfer.device = None

    # ------------------------------------------------------------------ laws

    def check(self) -> None:
        """Everybody holds what the table says, and a context knows of a copy that moves its blocks.

        Raises InvariantError naming the first copy of which that is not so.
        """
        for copy_id, transfer in self.in_flight.items():
            row = HOLDERS.get((transfer.kind, transfer.fate))
            context = transfer.context
            is_moving = transfer.fate is Fate.MOVING
            if row is None or copy_id != transfer.copy.copy_id:
                raise InvariantError(
                    f"copy {copy_id}: no {transfer.kind.name} is {transfer.fate.name}"
                )
            held = (transfer.device is not None, transfer.host is not None)
            if held != tuple(holder is Holder.COPY for holder in row):
                raise InvariantError(
                    f"copy {copy_id}: holds {held} of device and host, not as {row}"
                )
            if is_moving and (context is None or context.transfer is not transfer):
                raise InvariantError(f"copy {copy_id}: its context does not know of it")
            if is_moving and context is not None:
                sides = (context.device is not None, context.host is not None)
                if sides != (row[0] is Holder.CONTEXT, row[1] is Holder.CONTEXT):
                    raise InvariantError(f"copy {copy_id}: {context!r} holds {sides}, not as {row}")
            if not is_moving and context is not None and context.transfer is transfer:
                raise InvariantError(
                    f"copy {copy_id} is settled already, and {context!r} awaits it"
                )
