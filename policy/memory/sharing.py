"""Prompts that begin alike hold the same device blocks (docs/decisions/0020-prefix-sharing.md).

`Memory` asks where there is such a thing; without one nobody shares:

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

from policy.memory.context import Context
from policy.memory.transfers import Transfer
from policy.pools.allocation import Allocation
from policy.pools.prefix import PrefixPool, SharedBlock
from policy.request import Request, RequestState


class Sharing:
    """See the module. `num_lost_copies`: host copies whose beginning went before they came back."""

    def __init__(self, tree: PrefixPool, block_size: int) -> None:
        self.tree = tree
        self.blocks_each = tree.blocks_each
        self.num_hits = 0  # shared blocks that first prefills found
        self.num_lost_copies = 0
        self.num_lookups = 0  # full blocks of the prompts they looked for
        self._tokens_each = tree.blocks_each * block_size

    # ------------------------------------------------------------------ lookups

    def chain_of(self, context: Context) -> Sequence[SharedBlock]:
        """The shared blocks that the context holds, or would hold if it came to the device now."""
        if context.device is not None:
            return context.device.shared
        flight = context.outgoing
        if flight is not None:
            return () if flight.device is None else flight.device.shared
        if context.host_tokens and self.is_worth_loading(context):
            return self._match(context.owner, context.host_tokens - 1)
        return self._match(context.owner, context.owner.num_tokens - 1)

    def can_use_host_copy(self, context: Context) -> bool:
        """Whether what its host copy continues is there, if it has to come back from one."""
        if context.device is not None or not context.host_base or context.outgoing is not None:
            return True
        found = self._match(context.owner, context.host_tokens - 1)
        return len(found) * self.blocks_each >= context.host_base

    def is_worth_loading(self, context: Context) -> bool:
        """Of a context off the device, with a host copy. A prompt whose blocks are on the device as far
        as that goes has nothing to load."""
        return (
            context.owner.state is RequestState.SWAPPED
            or self.tokens_found(context) < context.host_tokens
        )

    def tokens_found(self, context: Context) -> int:
        """Tokens on the device that it would begin with if it were prefilled now."""
        owner = context.owner
        return len(self._match(owner, owner.num_tokens - 1)) * self._tokens_each

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

    def count_lost(self, context: Context) -> None:
        """A host copy is dropped that `can_use_host_copy` has said no to."""
        self.num_lost_copies += context.host is not None

    def _match(self, owner: Request, most: int) -> list[SharedBlock]:
        return self.tree.match(owner.prefix_keys, max(0, most) // self._tokens_each)

    # ------------------------------------------------------------------ coming and going

    def begin(self, context: Context, most: int) -> int:
        """Begin a new device side with what is there. Returns its tokens, `most` at the most."""
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

    def repeat(self, context: Context, tokens: int) -> None:
        """The owner repeats so many tokens: a shared block that its own keys do not name, or not all of
        which it repeats, is let go, with all behind it."""
        device = context.device
        if device is not None and context.outgoing is None:
            named = self._named(context.owner, device)
            kept = min(named, min(tokens, context.device_tokens) // self._tokens_each)
            if kept < len(device.shared):
                context.device_tokens = min(context.device_tokens, kept * self._tokens_each)

    def leaves_from(self, context: Context) -> int:
        """The logical block that a host copy begins with: behind what others hold too."""
        device = context.device
        assert device is not None
        others = 0
        while others < len(device.shared) and _holders(device.shared[others]) > 1:
            others += 1
        whole = max(0, context.device_tokens - 1) // self._tokens_each
        return min(others, whole) * self.blocks_each

    def is_repeated(self, owner: Request, transfer: Transfer) -> bool:
        """Whether the owner's prompt begins with every shared block of a store's source."""
        source = transfer.device
        assert source is not None
        whole = len(source.shared)
        return self._named(owner, source) == whole and transfer.tokens >= whole * self._tokens_each

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
