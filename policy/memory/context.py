"""The KV of one conversation so far: where it is, and how much of it is valid there."""

from __future__ import annotations

from enum import Enum, auto

from policy.plan import Copy, Direction
from policy.pools.allocation import Allocation
from policy.request import Request


class HostRole(Enum):
    """What a host copy is, which decides when it may be given up (paper.md 2c)."""

    NONE = auto()  # no copy, or one that a copy in flight uses, or the only copy of live work
    DUPLICATE = auto()  # its owner also holds this KV on the device
    IDLE = auto()  # its conversation is between turns


class Context:
    """KV of a request and of the turns before it. A next turn takes its parent's context over.

    `device_tokens` and `host_tokens` count the valid prefix on each side; a block is valid as far
    as its tokens are. While the owner decodes, `device_tokens` is stale: `Request.num_tokens - 1`
    is the truth, and `Memory.settle` writes it down when the owner leaves the batch.

    The host copy begins with logical block `host_base`: what comes before it was shared with others
    when the copy was made and stayed with them, so it must be on the device when the copy comes
    back. 0 without prefix sharing.
    """

    __slots__ = (
        "backup",
        "device",
        "device_tokens",
        "host",
        "host_base",
        "host_tokens",
        "idle_since",
        "incoming",
        "outgoing",
        "owner",
        "role",
    )

    def __init__(self, owner: Request) -> None:
        self.owner = owner
        self.device: Allocation | None = None
        self.device_tokens = 0
        self.host: Allocation | None = None
        self.host_tokens = 0
        self.host_base = 0
        self.outgoing: InFlight | None = None
        self.incoming: InFlight | None = None
        self.backup: InFlight | None = (
            None  # full blocks on their way to the host, the owner going on
        )
        self.role = HostRole.NONE
        self.idle_since = 0  # rising number, set when the conversation went idle

    def __repr__(self) -> str:
        return (
            f"<context of {self.owner.request_id}: device {self.device_tokens}, "
            f"host {self.host_tokens} tokens>"
        )

    @property
    def is_busy(self) -> bool:
        """A copy that the step did not wait for reads or writes it."""
        return self.outgoing is not None or self.incoming is not None

    @property
    def is_resident(self) -> bool:
        """It has a device side."""
        return self.device is not None

    @property
    def device_blocks(self) -> int:
        """Blocks held on the device."""
        return 0 if self.device is None else len(self.device.blocks)

    @property
    def host_blocks(self) -> int:
        """Blocks held on the host."""
        return 0 if self.host is None else len(self.host.blocks)

    def limit(self, tokens: int) -> None:
        """Only the first `tokens` tokens are the new owner's context (parent_prefix_tokens)."""
        self.device_tokens = min(self.device_tokens, tokens)
        self.host_tokens = min(self.host_tokens, tokens)
        flight = self.outgoing
        if flight is not None:
            flight.tokens = min(flight.tokens, tokens)
            flight.before = min(flight.before, tokens)


class InFlight:
    """A copy that has started and not ended.

    `context` is None once nobody wants the KV any more; then the record alone owns the blocks.
    `device`: blocks that only this copy still needs (its source, on the way to the host).
    `host`: blocks that only this copy still needs (target or source of an unwanted copy).
    """

    __slots__ = (
        "before",
        "cancelled",
        "context",
        "copy",
        "device",
        "first_block",
        "host",
        "planned_ns",
        "tokens",
        "waited",
    )

    def __init__(
        self,
        copy: Copy,
        context: Context,
        *,
        tokens: int,
        before: int,
        first_block: int,
        planned_ns: int,
    ) -> None:
        self.copy = copy
        self.context: Context | None = context
        self.tokens = tokens  # valid tokens on the target side once it has ended
        self.before = before  # valid tokens on the target side if it fails
        self.first_block = first_block
        self.planned_ns = planned_ns
        self.device: Allocation | None = None
        self.host: Allocation | None = None
        self.waited = False
        self.cancelled = False

    @property
    def to_host(self) -> bool:
        """Direction, as a claim."""
        return self.copy.direction is Direction.TO_HOST
