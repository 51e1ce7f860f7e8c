"""Whose blocks are copied to the host before anybody has to leave. A decision; the rules are elsewhere.

A movement names requests. They are backed up (`policy/engines/ahead.py`, `policy/memory/memory.py`) only while no other
copy to the host is under way or due, within `Settings.backup_blocks`, and into host room that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from policy.request import Request
from policy.settings import Settings


class Movement(Protocol):
    """Who should be backed up. `is_lazy`: in rounds, `Settings.backup_every` steps apart, and not as
    soon as blocks are full."""

    is_lazy: bool

    def nominate(self, residents: Sequence[Request], free: int) -> Iterable[Request]:
        """Of `residents`, in the order in which they are served, the first in need first. `free`: device
        blocks that nobody holds, or that copies under way give back."""


class WriteThrough:
    """Every block once it is full, as HiCache and SuperInfer do. Who ranks last goes first, being the
    next to be parked."""

    is_lazy = False

    def __init__(self, settings: Settings) -> None:
        """It has no numbers."""

    def nominate(self, residents: Sequence[Request], free: int) -> Iterable[Request]:  # noqa: ARG002
        """All of them."""
        return reversed(residents)


class Incremental:
    """Likely victims alone, every so many steps: from the end of the order on, those that decode, until
    with what is free they hold `backup_depth` of the device. What vLLM's lazy offload does from the
    eviction end of its free queue (docs/sources.md#vllm-v1)."""

    is_lazy = True

    def __init__(self, settings: Settings) -> None:
        self._depth = int(settings.backup_depth * settings.device_blocks)

    def nominate(self, residents: Sequence[Request], free: int) -> Iterable[Request]:
        """Nobody while enough is free."""
        short = self._depth - free
        for request in reversed(residents):
            if short <= 0:
                return
            short -= request.device_blocks
            if request.is_decoding:
                yield request


#: Movements that back blocks up, by the name of the switch.
BACKUPS: dict[str, type[WriteThrough] | type[Incremental]] = {
    "write_through": WriteThrough,
    "incremental": Incremental,
}
