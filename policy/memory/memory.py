"""The one place where KV moves: both pools, the ledger, and every copy in flight.

Each method does one thing to one context and keeps three laws: no block is handed out while a copy
still reads or writes it, no valid-token count promises more than the blocks hold, and a copy that
the step waits for has its effect at once (its vacated blocks are free in the same plan), while any
other has it when its outcome arrives.
"""

from __future__ import annotations

from policy.memory.context import Context, InFlight
from policy.memory.ledger import Ledger
from policy.plan import Copy, Direction
from policy.pools.allocation import Allocation, Pool
from policy.pools.runs import matching_runs
from policy.request import Request


class Memory:
    """Both tiers. `reuse` keeps the host copy after a load and sends only what is new.

    `host_increment`: host blocks reserved next to a copy for the conversation's next turn.
    """

    def __init__(
        self, device: Pool, ledger: Ledger, block_size: int, *, reuse: bool, host_increment: int
    ) -> None:
        self.device = device
        self.host = ledger.host
        self.ledger = ledger
        self.block_size = block_size
        self.in_flight: dict[int, InFlight] = {}
        self.pending_device = 0  # unshared device blocks that come back when copies in flight end
        self._reuse = reuse
        self._host_increment = host_increment
        self._next_copy_id = 0

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    @property
    def num_coming(self) -> int:
        """Device blocks that come back when copies in flight end."""
        return self.pending_device + self.device.num_leaving

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

    def _begin(self, context: Context, most: int) -> int:  # noqa: ARG002
        """Start a device side. Returns how many tokens are valid on it, `most` at the most."""
        context.device = self.device.new()
        self.ledger.classify(context)
        return 0

    def present_tokens(self, context: Context) -> int:
        """Tokens that need no prefill: on the device, or on the host to be loaded first."""
        return max(context.device_tokens, context.host_tokens)

    def is_to_load(self, context: Context) -> bool:
        """Off the device, with a host copy that is worth loading."""
        return context.device is None and context.host_tokens > 0

    def repeat(self, context: Context, tokens: int) -> None:
        """The owner's prompt repeats the first `tokens` tokens of what the context holds."""
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
        """Decide where the host copy begins, before host room is made for it."""

    def host_blocks_wanted(self, context: Context) -> int:
        """Host blocks a copy of the whole device side would need beyond those it has."""
        have = context.host_base + (0 if context.host is None else len(context.host.blocks))
        return max(0, self.blocks_for(context.device_tokens) - have)

    def copy_out(self, context: Context, now_ns: int, *, waited: bool, urgent: bool) -> Copy | None:
        """Leave the device: send what the host does not have, free the rest now.

        Host room must have been made. Returns None when the host already has everything; then the
        device blocks are free at once. A block that was partial on the host is sent again.
        """
        device = context.device
        assert device is not None and not context.is_busy
        tokens = context.device_tokens
        valid = context.host_tokens
        last = self.blocks_for(tokens)
        if tokens <= valid:
            self.drop_device(context)
            return None
        if context.host is None:
            context.host = self.host.new()
        wanted = last - context.host_base - len(context.host.blocks)
        self.host.allocate(context.host, wanted, self._host_increment)
        first = max(valid // self.block_size, context.host_base)
        copy = self._start(context, device, Direction.TO_HOST, first, last, urgent=urgent)
        flight = InFlight(
            copy, context, tokens=tokens, before=valid, first_block=first, planned_ns=now_ns
        )
        self.in_flight[copy.copy_id] = flight
        context.device = None
        context.device_tokens = 0
        if waited:
            flight.waited = True
            self.device.truncate(device, 0)
            context.host_tokens = tokens
        else:
            self.device.truncate(device, last)
            source = self.device.split(device, max(first, device.num_shared))
            self.device.truncate(device, device.num_shared)
            self.device.join(device, source)
            flight.device = device
            self._start_leaving(device)
            context.outgoing = flight
        self.ledger.classify(context)
        return copy

    def stop_backup(self, context: Context) -> tuple[int, ...]:  # noqa: ARG002
        """Cancel the copy that is made of the context while its owner goes on (`policy/memory/backup.py`), if
        there is one. Returns its id, for the plan's cancel list."""
        return ()

    def wait(self, flight: InFlight) -> None:
        """A step waits for a copy out in flight: its effects count from this plan on."""
        assert flight.to_host and not flight.waited
        flight.waited = True
        self._vacate(flight)
        context = flight.context
        if context is not None:
            context.outgoing = None
            self._arrived_on_host(flight, context)

    def keep_source(
        self, context: Context, num_blocks: int, now_ns: int, *, waited: bool
    ) -> tuple[int, Copy | None]:
        """Cancel the context's copy out and take its source back (magnitudes.md trap 9).

        The target blocks stay with the copy until its outcome arrives, one that was valid in part
        included: the copy may still write it, from a source that is no longer pinned. Clean blocks
        before the source were freed when the copy started, but for shared ones; if there are any,
        they are loaded again from the host. Returns the cancelled copy's id and that load, or None where nothing was
        missing. Room for `num_blocks` in all must be available (`kept_blocks` of them are the
        source).
        """
        flight = context.outgoing
        assert flight is not None and flight.device is not None
        flight.cancelled = True
        flight.context = None
        source, flight.device = flight.device, None
        self._stop_leaving(source)
        context.outgoing = None
        assert context.host is not None
        clean = flight.first_block
        flight.host = self.host.split(context.host, clean - context.host_base)
        context.host_tokens = clean * self.block_size
        if clean == context.host_base:
            context.host = None
            context.host_tokens = context.host_base = 0
        tokens = flight.tokens
        missing = clean - source.num_shared
        context.device = source
        if missing <= 0:
            context.device_tokens = tokens
            self.hold(context, num_blocks, 0)
            self.ledger.classify(context)
            return flight.copy.copy_id, None
        rest = self.device.split(source, source.num_shared)
        self.device.allocate(source, missing)
        self.device.join(source, rest)
        self.hold(context, num_blocks, 0)
        load = self._copy_in(context, source.num_shared, clean, tokens, now_ns, waited=waited)
        return flight.copy.copy_id, load

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
            and self._is_repeated(context.owner, flight)
            and _missing(flight) + len(flight.device.blocks) <= num_blocks
        )

    def _is_repeated(self, owner: Request, flight: InFlight) -> bool:  # noqa: ARG002
        """Whether the owner's prompt begins with every shared block of the source."""
        return True

    # ------------------------------------------------------------------ copies in

    def is_promised(self, context: Context) -> bool:
        """Whether its host copy is one that this very plan waits for: what it holds is known with
        the outcome, so no load of this plan may read it (trap L20)."""
        return any(f.waited and f.context is context for f in self.in_flight.values())

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
        return self.blocks_for(context.host_tokens)

    def _copy_in(
        self, context: Context, first: int, last: int, tokens: int, now_ns: int, *, waited: bool
    ) -> Copy:
        assert context.device is not None
        copy = self._start(context, context.device, Direction.TO_DEVICE, first, last, urgent=True)
        flight = InFlight(
            copy, context, tokens=tokens, before=0, first_block=first, planned_ns=now_ns
        )
        self.in_flight[copy.copy_id] = flight
        if waited:
            flight.waited = True
            self._arrived_on_device(flight, context)
        else:
            context.incoming = flight
            self.ledger.classify(context)
        return copy

    # ------------------------------------------------------------------ the end of a copy

    def complete(self, copy_id: int, *, ok: bool) -> InFlight:
        """Fold in the outcome of a copy and return its record; the caller moves the request.

        A cancelled copy ends with `ok` false and has no effect beyond freeing its target. A failed
        copy out loses what only it carried; a failed copy in loses the device side, and the host
        side is not trusted either (trap L20: the request recomputes).
        """
        flight = self.in_flight.pop(copy_id)
        context = flight.context
        if not flight.waited:
            self._vacate(flight)
        if flight.host is not None:
            self.host.truncate(flight.host, 0)
            flight.host = None
        if context is None:
            return flight
        if flight.to_host:
            if context.outgoing is flight:
                context.outgoing = None
            if not ok:
                self.ledger.cut(context, flight.before)
            elif not flight.waited:
                self._arrived_on_host(flight, context)
        else:
            context.incoming = None
            if not ok:
                self.drop_device(context)
                self.ledger.drop(context)
            elif not flight.waited:
                self._arrived_on_device(flight, context)
        self.ledger.classify(context)
        return flight

    def abandon(self, context: Context) -> tuple[int, ...]:
        """Nobody wants this KV: free what no copy uses, leave the rest to the copies in flight.

        Returns the ids of those copies, for the plan's cancel list.
        """
        cancelled = []
        for flight in (context.outgoing, context.incoming):
            if flight is None:
                continue
            flight.context = None
            flight.cancelled = True
            cancelled.append(flight.copy.copy_id)
            flight.host, context.host = context.host, None
            if not flight.to_host:
                assert context.device is not None
                flight.device, context.device = context.device, None
                self._start_leaving(flight.device)
        context.outgoing = context.incoming = None
        self.drop_device(context)
        self.ledger.drop(context)
        return tuple(cancelled)

    # ------------------------------------------------------------------ pieces

    def _start(
        self,
        context: Context,
        device: Allocation,
        direction: Direction,
        first: int,
        last: int,
        *,
        urgent: bool,
    ) -> Copy:
        assert context.host is not None
        base = context.host_base
        runs = matching_runs(device, first, context.host, first - base, last - first)
        copy = Copy(
            self._next_copy_id,
            direction,
            context.owner.request_id,
            tuple(runs),
            last - first,
            urgent,
        )
        self._next_copy_id += 1
        return copy

    def _vacate(self, flight: InFlight) -> None:
        """Free the device blocks that only this copy needed."""
        if flight.device is not None:
            self._stop_leaving(flight.device)
            self.device.truncate(flight.device, 0)
            flight.device = None

    def _start_leaving(self, source: Allocation) -> None:
        """From now on a copy in flight alone holds this."""
        self.pending_device += len(source.blocks) - source.num_shared

    def _stop_leaving(self, source: Allocation) -> None:
        """It is somebody else's again, or about to be given back."""
        self.pending_device -= len(source.blocks) - source.num_shared

    def _arrived_on_host(self, flight: InFlight, context: Context) -> None:
        context.host_tokens = flight.tokens
        self.ledger.cut(context, flight.tokens)
        self.ledger.classify(context)

    def _arrived_on_device(self, flight: InFlight, context: Context) -> None:
        context.device_tokens = flight.tokens
        if not self._reuse:
            self.ledger.drop(context)
        self.ledger.classify(context)


def _missing(flight: InFlight) -> int:
    """Blocks before the source of a copy out that were freed when it started."""
    shared = 0 if flight.device is None else flight.device.num_shared
    return max(0, flight.first_block - shared)
