"""The KV of one conversation so far: where it is, and how much of it is valid there."""

from __future__ import annotations

from enum import Enum, auto

from policy.memory.transfers import Kind, Transfer
from policy.pools.allocation import Allocation
from policy.request import Request


class HostRole(Enum):
    """What a host copy is, which decides when it may be given up (docs/sources.md#fastswitch-reuse)."""

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

    `transfer`: the copy that moves its blocks and that no step has waited for; one at a time.
    """

    __slots__ = (
        "device",
        "device_tokens",
        "host",
        "host_base",
        "host_tokens",
        "idle_since",
        "owner",
        "role",
        "transfer",
    )

    def __init__(self, owner: Request) -> None:
        self.owner = owner
        self.device: Allocation | None = None
        self.device_tokens = 0
        self.host: Allocation | None = None
        self.host_tokens = 0
        self.host_base = 0
        self.transfer: Transfer | None = None
        self.role = HostRole.NONE
        self.idle_since = 0  # rising number, set when the conversation went idle

    def __repr__(self) -> str:
        return (
            f"<context of {self.owner.request_id}: device {self.device_tokens}, "
            f"host {self.host_tokens} tokens>"
        )

    @property
    def is_busy(self) -> bool:
        """A copy that the step did not wait for takes it off the device, or brings it there."""
        return self.transfer is not None and self.transfer.kind is not Kind.BACKUP

    @property
    def outgoing(self) -> Transfer | None:
        """That copy, if it takes it off the device."""
        return self._moving(Kind.STORE)

    @property
    def incoming(self) -> Transfer | None:
        """That copy, if it brings it to the device."""
        return self._moving(Kind.LOAD)

    @property
    def backup(self) -> Transfer | None:
        """A copy of full blocks to the host, the owner going on."""
        return self._moving(Kind.BACKUP)

    def _moving(self, kind: Kind) -> Transfer | None:
        transfer = self.transfer
        return transfer if transfer is not None and transfer.kind is kind else None

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
        if self.transfer is not None:
            self.transfer.limit(tokens)
