"""What an engine is: it decides, and says until when its plan holds.

`Scheduler` is thin over it. An engine is one file and one line in `policy/engines/catalog.py`. What every
engine needs (live requests, their order, the decode clock, the standing batch) is `policy.desk.Desk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from policy.desk import Desk
from policy.plan import CopyResult, Plan
from policy.pools.allocation import Pool
from policy.request import Move, Request


class Event:
    """What may happen while a plan is in force, as bits to be added up."""

    MADE = 1  # it was handed out; an engine that decides in every step waits for no more
    PLANNED = 2  # it held commands, which happen once
    ARRIVED = 4
    LEFT = 8  # a request finished or was cancelled
    RANKED = 16  # the order's keys were refreshed
    LOADED = 32  # a copy to the device ended
    STORED = 64  # a copy to the host ended well
    LOST = 128  # a copy to the host ended otherwise


#: What ends every plan, however content the engine is with it.
ALWAYS = Event.ARRIVED | Event.LEFT | Event.RANKED | Event.LOADED | Event.LOST


class Until(NamedTuple):
    """How long a plan holds. Until then the same plan is handed out, and the batch grows by itself.

    `events`: any of them ends it. `step`: so does this one. Otherwise it holds while the blocks that
    its next step grows by are available, and `spare` more; while so many as `room` are available
    after that, or about to be; and, with `as_blocks_fill`, while no block has filled up.
    """

    events: int = ALWAYS
    step: int | None = None
    spare: int = 0
    room: int = 0
    as_blocks_fill: bool = False

    def is_over(self, seen: int, step: int) -> bool:
        """`seen`: events since the plan was made; `step`: the number that the next plan gets."""
        return bool(seen & self.events) or step == self.step

    def is_short(self, growing: int, engine: Engine) -> bool:
        """Whether a step in which so many requests need a block wants another decision first."""
        if growing and self.as_blocks_fill:
            return True
        if self.room and engine.num_available + engine.num_coming - growing < self.room:
            return True
        return engine.num_available < growing + self.spare


class Levels(NamedTuple):
    """Blocks that could be handed out now."""

    device: int
    host: int


class Engine(Protocol):
    """One way to decide. `name` as in the catalog. The scheduler calls; machines only read."""

    name: str
    desk: Desk

    # ---- what happened

    def enter(self, request: Request) -> None:
        """A turn has arrived, at `desk.now_ns`; it joins the desk, or is rejected there."""

    def leave(self, request: Request, move: Move) -> None:
        """A live request has finished or was cancelled, as `move` says; it leaves the desk."""

    def ranks_changed(self) -> None:
        """The order's keys were refreshed."""

    def computed(self, request: Request, tokens: int) -> None:
        """The step computed its prompt up to so many tokens; all of them, or a chunk."""

    def copy_ended(self, result: CopyResult) -> int:
        """Fold in the end of a copy. Returns what that was, of `Event`."""

    # ---- the decision

    def decide(self) -> tuple[Plan, Until]:
        """The next plan, and how long it holds. Raises ProgressError if nothing can ever run."""

    def grow(self, growing: Mapping[Request, None]) -> None:
        """Give each of these, which decode, the block that its next token goes into."""

    @property
    def num_available(self) -> int:
        """Device blocks that growth may take now, tails reserved for others included."""

    @property
    def num_coming(self) -> int:
        """Device blocks that copies in flight give back."""

    # ---- what machines and people read

    def block_table(self, request_id: str) -> Sequence[int]:
        """See views.Tables."""

    def num_computed(self, request_id: str) -> int:
        """See views.Tables."""

    def levels(self) -> Levels:
        """Free blocks, for the line of decisions.jsonl."""

    def pools(self) -> Sequence[tuple[Pool, int]]:
        """Those that `pool.aging` uses before time zero, the device's and then the host's, each with the
        blocks that are reserved beside what is handed out."""

    def facts(self) -> dict[str, Any]:
        """Counts of a run that no table says, for run.json."""

    def check(self, *, full: bool) -> None:
        """Its own laws: cheap counts, or all. Raises InvariantError."""
