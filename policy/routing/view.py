"""What a router may see: a request, and each replica by signals that say how old they are.

All are values: nothing can be changed through them. A true output length is not among them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple


class ReplicaState(Enum):
    """Only `READY` replicas are given requests."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # goes on with what it has, and is given nothing
    DOWN = "down"


class Seen(NamedTuple):
    """A signal and when it was true. `seen_ns` -1: nothing was heard yet."""

    value: float
    seen_ns: int


UNHEARD = Seen(0, -1)


class ReplicaView(NamedTuple):
    """One replica. `number`: counted from 0. `waiting`, `running`: requests; `kv_share`: of device blocks that are taken, 0 to 1."""

    number: int
    name: str
    group: str
    state: ReplicaState
    waiting: Seen = UNHEARD
    running: Seen = UNHEARD
    kv_share: Seen = UNHEARD


class RoutedView(NamedTuple):
    """A request at the gateway. `blocks`: names of the prompt's full blocks, each standing for the
    tokens before it too; empty where the router asks for none. `attempt`: 0, or how often it was sent
    before and failed."""

    request_id: str
    session_id: str
    client_id: str
    turn: int
    input_tokens: int
    blocks: Sequence[Hashable] = ()
    attempt: int = 0


class Choice(NamedTuple):
    """Where a request goes: the replica's number, None if there is nobody who could serve it. `scores`:
    of those that were left to choose from, by index, larger is better."""

    replica: int | None
    why: str
    scores: tuple[tuple[int, float], ...] = ()

    @property
    def second(self) -> int | None:
        """The next best of those scored."""
        others = [(-score, index) for index, score in self.scores if index != self.replica]
        return min(others)[1] if others else None


NOBODY = Choice(None, "no replica is ready")
