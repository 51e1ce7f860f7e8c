"""The one place where KV moves: both pools, the ledger, and every copy in flight.

Each method does one thing to one context and keeps three laws: no block is handed out while a copy
still reads or writes it, no valid-token count promises more than the blocks hold, and a copy that
the step waits for has its effect at once (its vacated blocks are free in the same plan), while any
other has it when its outcome arrives.
"""

from __future__ import annotations

from policy.memory.context import Context
from policy.memory.ledger import Ledger
from policy.memory.sharing import Sharing
from policy.memory.transfers import Fate, Kind, Transfer, Transfers
from policy.plan import Copy
from policy.pools.allocation import Pool


class Memory:
    """Both tiers. `reuse` keeps the host copy after a load and sends only what is new.

    `host_increment`: host blocks reserved next to a copy for the conversation's next turn. `sharing`:
    where prompts that begin alike hold the same device blocks.
    """

    def __init__(
        self,
        device: Pool,
        ledger: Ledger,
        block_size: int,
        *,
        reuse: bool,
        host_increment: int,
        sharing: Sharing | None = None,
    ) -> None:
        self.device = device
        self.host = ledger.host
        self.ledger = ledger
        self.sharing = sharing
        self.block_size = block_size
        self.transfers = Transfers(device, ledger.host, block_size)
        self.in_flight = self.transfers.in_flight
        self._reuse = reuse
        self._host_increment = host_increment

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    @property
    def num_coming(self) -> int:
        """Device blocks that come back when copies in flight end."""
        return self.transfers.coming + self.device.num_leaving

    @property
    def num_soon(self) -> int:
        """Device blocks that are available, or coming."""
        return self.device.num_available + self.num_coming

    # ------------------------------------------------------------------ device blocks

    def hold(self, context: Context, num_blocks: int, reserve: int) -> None:
        """Make the context hold `num_blocks` device blocks; room must be available."""
        if context.device is None:
            context.device_tokens = self._begin(context, context.owner.num_tokens - 1)
        assert context.device is not None
        missing = num_blocks - len(context.device.blocks)
        if missing > 0:
            self.device.allocate(context.device, missing, reserve)

    def _begin(self, context: Context, most: int) -> int:
        """Start a device side. Returns how many tokens are valid on it, `most` at the most."""
        context.device = self.device.new()
        self.ledger.classify(context)
        return 0 if self.sharing is None else self.sharing.begin(context, most)

    def present_tokens(self, context: Context) -> int:
        """Tokens that need no prefill: on the device, or on the host to be loaded first."""
        there = max(context.device_tokens, context.host_tokens)
        if self.sharing is None or context.device is not None:
            return there
        return max(there, self.sharing.tokens_found(context))

    def is_to_load(self, context: Context) -> bool:
        """Off the device, with a host copy that is worth loading."""
        if context.device is not None or not context.host_tokens:
            return False
        return self.sharing is None or self.sharing.is_worth_loading(context)

    def repeat(self, context: Context, tokens: int) -> None:
        """The owner's prompt repeats the first `tokens` tokens of what the context holds."""
        if self.sharing is not None:
            self.sharing.repeat(context, tokens)
        context.limit(tokens)
        if context.outgoing is None:
            if context.device is not None:
                keep = self.blocks_for(context.device_tokens)
                if keep:
                    self.device.truncate(context.device, keep)
                else:
                    self.drop_device(context)
            self.ledger.cut(context, tokens)

    def drop_device(self, context: Context) -> None:
        """Free the context's device blocks; KV that is not on the host too is lost."""
        if context.device is not None:
            self.device.truncate(context.device, 0)
            context.device = None
            context.device_tokens = 0
            self.ledger.classify(context)

    def settle(self, context: Context, tokens: int) -> None:
        """Write down how many tokens are valid on the device, as the owner leaves the batch."""
        context.device_tokens = tokens

    # ------------------------------------------------------------------ copies out

    def prepare_to_leave(self, context: Context) -> None:
        """Decide where the host copy begins, before host room is made for it: where prompts share
        blocks, behind those that others hold too. An older copy that begins later is dropped: what was
        others' is the context's alone by now, and would be lost."""
        if self.sharing is None:
            return
        base = self.sharing.leaves_from(context)
        if context.host is not None and context.host_base > base:
            self.ledger.drop(context)
        if context.host is None:
            context.host_base = base

    def host_blocks_wanted(self, context: Context) -> int:
        """Host blocks a copy of the whole device side would need beyond those it has."""
        have = context.host_base + context.host_blocks
        return max(0, self.blocks_for(context.device_tokens) - have)

    def copy_out(self, context: Context, now_ns: int, *, waited: bool) -> Copy | None:
        """Leave the device: send what the host does not have, free the rest now.

        Host room must have been made. Returns None when the host already has everything; then the
        device blocks are free at once. A block that was partial on the host is sent again.
        """
        assert context.device is not None
        tokens = context.device_tokens
        valid = context.host_tokens
        last = self.blocks_for(tokens)
        if tokens <= valid:
            self.drop_device(context)
            return None
        self._extend_host(context, last)
        first = max(valid // self.block_size, context.host_base)
        transfer = self.transfers.start(
            Kind.STORE,
            context,
            (first, last),
            tokens=tokens,
            before=valid,
            now_ns=now_ns,
            waited=waited,
        )
        if waited:
            context.host_tokens = tokens
        self.ledger.classify(context)
        return transfer.copy

    def _extend_host(self, context: Context, last: int) -> None:
        """Host blocks up to logical block `last`; there is room."""
        if context.host is None:
            context.host = self.host.new()
        wanted = last - context.host_base - len(context.host.blocks)
        if wanted > 0:
            self.host.allocate(context.host, wanted, self._host_increment)

    def wait(self, transfer: Transfer) -> None:
        """A step waits for a copy out in flight: its effects count from this plan on."""
        context = transfer.context
        if context is None:
            self.transfers.turn(transfer, Fate.VACATED)
        else:
            self.transfers.turn(transfer, Fate.WAITED)
            self._arrived_on_host(transfer, context)

    def keep_source(
        self, context: Context, num_blocks: int, now_ns: int, *, waited: bool
    ) -> tuple[int, Copy | None]:
        """Cancel the context's copy out and take its source back (docs/traps.md, M9).

        The target blocks stay with the copy until its outcome arrives, one that was valid in part
        included: the copy may still write it, from a source that is no longer pinned. Clean blocks
        before the source were freed when the copy started, but for shared ones; if there are any,
        they are loaded again from the host. Returns the cancelled copy's id and that load, or None where nothing was
        missing. Room for `num_blocks` in all must be available (`kept_blocks` of them are the
        source).
        """
        transfer = context.outgoing
        assert transfer is not None
        cancelled = self.transfers.turn(transfer, Fate.KEPT)
        source, clean, tokens = context.device, transfer.first_block, transfer.tokens
        assert source is not None
        missing = clean - source.num_shared
        if missing <= 0:
            context.device_tokens = tokens
            self.hold(context, num_blocks, 0)
            self.ledger.classify(context)
            return cancelled, None
        rest = self.device.split(source, source.num_shared)
        self.device.allocate(source, missing)
        self.device.join(source, rest)
        self.hold(context, num_blocks, 0)
        load = self._copy_in(context, source.num_shared, clean, tokens, now_ns, waited=waited)
        return cancelled, load

    def kept_blocks(self, context: Context) -> int:
        """Device blocks that `keep_source` would give back."""
        flight = context.outgoing
        return 0 if flight is None or flight.device is None else len(flight.device.blocks)

    def can_keep(self, context: Context, num_blocks: int) -> bool:
        """Whether `keep_source` makes sense: the source holds KV of the owner, whose `num_blocks`
        include all of it.

        A next turn that repeats only part of its parent's context may need less; its copy is left
        to end, since a block that is still being read must not become free.
        """
        flight = context.outgoing
        return (
            flight is not None
            and flight.device is not None
            and flight.tokens > flight.first_block * self.block_size
            and (self.sharing is None or self.sharing.is_repeated(context.owner, flight))
            and _missing(flight) + len(flight.device.blocks) <= num_blocks
        )

    # ------------------------------------------------------------------ copies in

    def is_promised(self, context: Context) -> bool:
        """Whether its host copy is one that this very plan waits for: what it holds is known with
        the outcome, so no load of this plan may read it (trap L20)."""
        return any(f.is_waited and f.context is context for f in self.in_flight.values())

    def load(
        self, context: Context, num_blocks: int, now_ns: int, reserve: int, *, waited: bool
    ) -> Copy:
        """Bring the host copy to the device, holding `num_blocks` there; room must be available."""
        assert context.host is not None and context.device is None and not context.is_busy
        tokens = context.host_tokens
        last = self.blocks_for(tokens)
        first = self.blocks_for(self._begin(context, tokens - 1))
        assert first >= context.host_base
        self.hold(context, max(num_blocks, last), reserve)
        return self._copy_in(context, first, last, tokens, now_ns, waited=waited)

    def blocks_to_load(self, context: Context) -> int:
        """Blocks that `load`, or `keep_source`, would copy in."""
        if context.outgoing is not None:
            return _missing(context.outgoing)
        blocks = self.blocks_for(context.host_tokens)
        if self.sharing is None:
            return blocks
        return blocks - len(self.sharing.chain_of(context)) * self.sharing.blocks_each

    def _copy_in(
        self, context: Context, first: int, last: int, tokens: int, now_ns: int, *, waited: bool
    ) -> Copy:
        transfer = self.transfers.start(
            Kind.LOAD,
            context,
            (first, last),
            tokens=tokens,
            before=0,
            now_ns=now_ns,
            waited=waited,
        )
        if waited:
            self._arrived_on_device(transfer, context)
        else:
            self.ledger.classify(context)
        return transfer.copy

    # ------------------------------------------------------------------ backups

    def unsaved(self, context: Context, tokens: int) -> int:
        """Full blocks of a device side with `tokens` valid tokens that the host lacks."""
        return tokens // self.block_size - context.host_tokens // self.block_size

    def back_up(self, context: Context, tokens: int, most: int, now_ns: int) -> Copy | None:
        """Copy full blocks that the host lacks, `most` at the most, into room that is free: nobody's
        copy goes for a backup. None where there is no such room (docs/decisions/0032-movement.md).

        KV is appended, so nobody writes a full block again. A backup gives way to everything else: it
        is stopped when its owner leaves the device for any reason, and what it carried was never sent.
        """
        size = self.block_size
        first = context.host_tokens // size
        have = context.host_blocks
        last = min(tokens // size, first + most, have + self.host.num_available)
        if last <= first:
            return None
        self._extend_host(context, last)
        transfer = self.transfers.start(
            Kind.BACKUP,
            context,
            (first, last),
            tokens=last * size,
            before=first * size,
            now_ns=now_ns,
            waited=False,
        )
        self.ledger.classify(context)
        return transfer.copy

    def backups(self) -> list[Transfer]:
        """Those under way that somebody still wants."""
        return [
            transfer
            for transfer in self.in_flight.values()
            if transfer.kind is Kind.BACKUP and transfer.fate is Fate.MOVING
        ]

    def stop_backup(self, context: Context) -> tuple[int, ...]:
        """Cancel the backup that is made of the context, if there is one; its target stays with the
        copy. Returns its id, for the plan's cancel list."""
        if context.backup is None:
            return ()
        cancelled = self.transfers.turn(context.backup, Fate.KEPT)
        self.ledger.classify(context)
        return (cancelled,)

    # ------------------------------------------------------------------ the end of a copy

    def complete(self, copy_id: int, *, ok: bool) -> Transfer:
        """Fold in the outcome of a copy and return its record; the caller moves the request.

        A cancelled copy ends with `ok` false and has no effect beyond freeing what it holds. A failed
        copy out loses what only it carried; a failed copy in loses the device side, and the host
        side is not trusted either (trap L20: the request recomputes). A backup moves no request.
        """
        transfer = self.transfers.end(copy_id)
        context = transfer.context
        if context is None:
            return transfer
        is_done = transfer.is_waited  # its effects have counted since then
        if transfer.to_host:
            if not ok:
                self.ledger.cut(context, transfer.before)
            elif not is_done:
                self._arrived_on_host(transfer, context)
        elif not ok:
            self.drop_device(context)
            self.ledger.drop(context)
        elif not is_done:
            self._arrived_on_device(transfer, context)
        self.ledger.classify(context)
        if transfer.kind is Kind.BACKUP:
            transfer.context = None
        elif (
            not transfer.to_host and ok and self.sharing is not None and context.device is not None
        ):
            self.sharing.publish(context)  # unless who was waited for has left meanwhile
        return transfer

    def abandon(self, context: Context) -> tuple[int, ...]:
        """Nobody wants this KV: free what no copy uses, leave the rest to the copies in flight.

        Returns the ids of those copies, for the plan's cancel list.
        """
        cancelled = self.stop_backup(context)
        if context.transfer is not None:
            cancelled = (self.transfers.turn(context.transfer, Fate.UNWANTED),)
        self.drop_device(context)
        self.ledger.drop(context)
        return cancelled

    # ------------------------------------------------------------------ pieces

    def _arrived_on_host(self, transfer: Transfer, context: Context) -> None:
        context.host_tokens = transfer.tokens
        self.ledger.cut(context, transfer.tokens)
        self.ledger.classify(context)

    def _arrived_on_device(self, transfer: Transfer, context: Context) -> None:
        context.device_tokens = transfer.tokens
        if not self._reuse:
            self.ledger.drop(context)
        self.ledger.classify(context)


def _missing(transfer: Transfer) -> int:
    """Blocks before the source of a copy out that were freed when it started."""
    shared = 0 if transfer.device is None else transfer.device.num_shared
    return max(0, transfer.first_block - shared)
