"""Memory whose device side lets prompts that begin alike hold the same blocks.

What `Memory` does, with five differences (docs/decisions/0020-prefix-sharing.md):

- a device side begins with the longest chain of shared blocks that the owner's keys name, one token
  at least left to compute;
- blocks become shared once their KV is known to be there: after the prefill, or a load that went
  well, and never while a copy is on its way;
- who leaves frees what it alone holds, and sends only that to the host: the copy begins with
  `Context.host_base`, behind what others hold, and says nothing of it;
- a load brings what the device does not have. If what the host copy continues is no longer there,
  the copy is useless and the request recomputes, so nobody who is away pins a block and nothing can
  be waited for in a circle;
- a copy in flight holds every shared block of its source, so that its cancellation finds them.
"""

from __future__ import annotations

from collections.abc import Sequence

from policy.memory.context import Context, InFlight
from policy.memory.ledger import Ledger
from policy.memory.memory import Memory
from policy.pools.allocation import Allocation
from policy.pools.prefix import PrefixPool, SharedBlock
from policy.request import Request, RequestState


class SharedMemory(Memory):
    """See the module. `num_lost_copies`: host copies whose beginning went before they came back."""

    def __init__(
        self,
        device: PrefixPool,
        ledger: Ledger,
        block_size: int,
        *,
        reuse: bool,
        host_increment: int,
    ) -> None:
        super().__init__(device, ledger, block_size, reuse=reuse, host_increment=host_increment)
        self.tree = device
        self.blocks_each = device.blocks_each
        self.num_hits = 0  # shared blocks that first prefills found
        self.num_lost_copies = 0
        self.num_lookups = 0  # full blocks of the prompts they looked for
        self._tokens_each = device.blocks_each * block_size

    # ------------------------------------------------------------------ lookups

    def chain_of(self, context: Context) -> Sequence[SharedBlock]:
        """The shared blocks that the context holds, or would hold if it came to the device now."""
        if context.device is not None:
            return context.device.shared
        flight = context.outgoing
        if flight is not None:
            return () if flight.device is None else flight.device.shared
        if self.is_to_load(context):
            return self._match(context.owner, context.host_tokens - 1)
        return self._match(context.owner, context.owner.num_tokens - 1)

    def can_use_host_copy(self, context: Context) -> bool:
        """Whether what its host copy continues is there, if it has to come back from one."""
        if context.device is not None or not context.host_base or context.outgoing is not None:
            return True
        found = self._match(context.owner, context.host_tokens - 1)
        return len(found) * self.blocks_each >= context.host_base

    def is_to_load(self, context: Context) -> bool:
        """See Memory. A prompt whose blocks are on the device as far as the host copy goes has
        nothing to load."""
        if not super().is_to_load(context):
            return False
        owner = context.owner
        return (
            owner.state is RequestState.SWAPPED
            or len(self._match(owner, owner.num_tokens - 1)) * self._tokens_each
            < context.host_tokens
        )

    def present_tokens(self, context: Context) -> int:
        """See Memory."""
        tokens = super().present_tokens(context)
        if context.device is None:
            found = self._match(context.owner, context.owner.num_tokens - 1)
            tokens = max(tokens, len(found) * self._tokens_each)
        return tokens

    def blocks_to_load(self, context: Context) -> int:
        """See Memory."""
        blocks = super().blocks_to_load(context)
        if context.outgoing is None:
            blocks -= len(self.chain_of(context)) * self.blocks_each
        return blocks

    def blocks_for_nothing(self, context: Context, booked: dict[SharedBlock, None]) -> int:
        """Blocks it would hold that cost no room: somebody holds them, or booked them before."""
        if context.device is not None or context.outgoing is not None:
            return 0
        chain = self.chain_of(context)
        return sum(shared.users > 0 or shared in booked for shared in chain) * self.blocks_each

    def book(self, context: Context, booked: dict[SharedBlock, None]) -> None:
        """It will come to the device in this plan: nobody else of the plan makes room out of the
        shared blocks that it will hold. They are added to `booked`."""
        chain = self.chain_of(context)
        booked.update(dict.fromkeys(chain))
        self.tree.spare(chain, booked)

    def blocks_that_stay(self, context: Context, taken: dict[SharedBlock, None]) -> int:
        """Blocks it would hold that take nothing of the room that is coming: somebody holds them,
        and not as a copy in flight, or one before it would: `taken`, to which its own are added."""
        if context.device is not None:
            return 0
        held = 0
        for shared in self.chain_of(context):
            held += _holders(shared) > 0 or shared in taken
            taken[shared] = None
        return held * self.blocks_each

    def forget_host_copy(self, context: Context) -> None:
        """Drop a host copy that `can_use_host_copy` has said no to."""
        self.num_lost_copies += context.host is not None
        self.ledger.drop(context)

    def _match(self, owner: Request, most: int) -> list[SharedBlock]:
        return self.tree.match(owner.prefix_keys, max(0, most) // self._tokens_each)

    # ------------------------------------------------------------------ coming and going

    def _begin(self, context: Context, most: int) -> int:
        super()._begin(context, most)
        assert context.device is not None
        owner = context.owner
        found = self._match(owner, most)
        self.tree.share(context.device, found)
        if not owner.num_generated and not owner.num_preemptions:
            self.num_hits += len(found)
            self.num_lookups += len(owner.prefix_keys)
        return len(found) * self._tokens_each

    def publish(self, context: Context) -> None:
        """Share the full blocks of the prompt whose KV is there."""
        assert context.device is not None and not context.is_busy
        keys = context.owner.prefix_keys
        self.tree.publish(context.device, keys, context.device_tokens // self._tokens_each)

    def complete(self, copy_id: int, *, ok: bool) -> InFlight:
        """See Memory."""
        flight = super().complete(copy_id, ok=ok)
        context = flight.context
        if ok and not flight.to_host and context is not None and context.device is not None:
            self.publish(context)
        return flight

    def repeat(self, context: Context, tokens: int) -> None:
        """See Memory. A shared block that the owner's own keys do not name, or not all of which it
        repeats, is let go, with all behind it."""
        device = context.device
        if device is not None and context.outgoing is None:
            named = self._named(context.owner, device)
            kept = min(named, min(tokens, context.device_tokens) // self._tokens_each)
            if kept < len(device.shared):
                context.device_tokens = min(context.device_tokens, kept * self._tokens_each)
        super().repeat(context, tokens)

    def prepare_to_leave(self, context: Context) -> None:
        """The copy begins behind what others hold too. An older copy that begins later is dropped:
        what was others' is the context's alone by now, and would be lost."""
        device = context.device
        assert device is not None
        others = 0
        while others < len(device.shared) and _holders(device.shared[others]) > 1:
            others += 1
        whole = max(0, context.device_tokens - 1) // self._tokens_each
        base = min(others, whole) * self.blocks_each
        if context.host is not None and context.host_base > base:
            self.ledger.drop(context)
        if context.host is None:
            context.host_base = base

    def _start_leaving(self, source: Allocation) -> None:
        super()._start_leaving(source)
        self.tree.start_leaving(source)

    def _stop_leaving(self, source: Allocation) -> None:
        super()._stop_leaving(source)
        self.tree.stop_leaving(source)

    def _is_repeated(self, owner: Request, flight: InFlight) -> bool:
        source = flight.device
        assert source is not None
        whole = len(source.shared)
        return self._named(owner, source) == whole and flight.tokens >= whole * self._tokens_each

    @staticmethod
    def _named(owner: Request, held: Allocation) -> int:
        """How many of the shared blocks held, from the first on, the owner's keys name."""
        count = 0
        for shared, key in zip(held.shared, owner.prefix_keys, strict=False):
            if shared.key != key:
                break
            count += 1
        return count


def _holders(shared: SharedBlock) -> int:
    """Who holds it and is no copy in flight."""
    return shared.users - shared.leaving
