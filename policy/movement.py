"""What is copied to the host before anybody has to leave. A decision; the planner holds the rules.

A movement names requests; the planner backs them up (`policy/backup.py`) only while no other copy to
the host is under way or due, within `BACKUP_BLOCKS`, and into host room that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from policy.request import Request

#: Blocks of all backups under way at once: an urgent copy waits for no more than these.
BACKUP_BLOCKS = 64


class Movement(Protocol):
    """Who should be backed up, the first in need first."""

    def nominate(self, residents: Sequence[Request]) -> Iterable[Request]:
        """Of `residents` that hold full blocks which the host lacks, in rank order."""


class WriteThrough:
    """Every block once it is full, as HiCache and SuperInfer do. Who ranks last goes first, being the
    next to be parked."""

    def nominate(self, residents: Sequence[Request]) -> Iterable[Request]:
        """All of them."""
        return reversed(residents)


MOVEMENTS: dict[str, type[WriteThrough] | None] = {"none": None, "write_through": WriteThrough}
