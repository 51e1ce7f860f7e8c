"""Memory that copies blocks to the host while their request goes on computing.

What `Memory` does, and a copy out that keeps its source (docs/decisions/0032-movement.md). Only full
blocks are copied: KV is appended, so nobody writes them again. A backup gives way to everything else:
it is stopped when its request leaves the batch's device side for any reason, its target stays with
the copy until that has ended, and what it carried counts as never sent.
"""

from __future__ import annotations

from policy.memory.context import Context, InFlight
from policy.memory.memory import Memory
from policy.plan import Copy, Direction


class BackupMemory(Memory):
    """See the module. One backup of a context at a time."""

    def unsaved(self, context: Context, tokens: int) -> int:
        """Full blocks of a device side with `tokens` valid tokens that the host lacks."""
        return tokens // self.block_size - context.host_tokens // self.block_size

    def back_up(self, context: Context, tokens: int, most: int, now_ns: int) -> Copy | None:
        """Copy full blocks that the host lacks, `most` at the most, into room that is free: nobody's
        copy goes for a backup. None where there is no such room."""
        device = context.device
        assert device is not None and not context.is_busy and context.backup is None
        size = self.block_size
        first = context.host_tokens // size
        have = 0 if context.host is None else len(context.host.blocks)
        last = min(tokens // size, first + most, have + self.host.num_available)
        if last <= first:
            return None
        if context.host is None:
            context.host = self.host.new()
        if last > have:
            self.host.allocate(context.host, last - have, self._host_increment)
        copy = self._start(context, device, Direction.TO_HOST, first, last, urgent=False)
        flight = InFlight(
            copy,
            context,
            tokens=last * size,
            before=first * size,
            first_block=first,
            planned_ns=now_ns,
        )
        self.in_flight[copy.copy_id] = context.backup = flight
        self.ledger.classify(context)
        return copy

    def backups(self) -> list[InFlight]:
        """Those under way that somebody still wants."""
        return [
            flight
            for flight in self.in_flight.values()
            if flight.context is not None and flight.context.backup is flight
        ]

    def stop_backup(self, context: Context) -> tuple[int, ...]:
        """See Memory. The target stays with the copy, a block that was valid in part included."""
        flight = context.backup
        if flight is None:
            return ()
        assert context.host is not None
        context.backup = flight.context = None
        flight.cancelled = True
        flight.host = self.host.split(context.host, flight.first_block)
        context.host_tokens = flight.before
        if not flight.first_block:
            context.host = None
        self.ledger.classify(context)
        return (flight.copy.copy_id,)

    def complete(self, copy_id: int, *, ok: bool) -> InFlight:
        """See Memory. A backup that has ended moves no request."""
        flight = self.in_flight[copy_id]
        context = flight.context
        if context is None or context.backup is not flight:
            return super().complete(copy_id, ok=ok)
        del self.in_flight[copy_id]
        context.backup = flight.context = None
        if ok:
            context.host_tokens = flight.tokens
        else:
            self.ledger.cut(context, flight.before)
        self.ledger.classify(context)
        return flight

    def abandon(self, context: Context) -> tuple[int, ...]:
        """See Memory."""
        return (*self.stop_backup(context), *super().abandon(context))
