"""What a plan does ahead of need, behind everything else in it (docs/decisions/0032-movement.md).

`BackupRounds` copies full blocks of requests that go on; `ProactiveParking` takes requests off the device
before its blocks run out. The planner calls `act` once per plan. `is_behind`: a copy that ends may let it do more.
`wake_step`: decide again in this step, whatever happens. `headroom`: device blocks that who comes to
the device leaves free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from policy.choices.movement import BACKUPS, Movement
from policy.engines.draft import Draft
from policy.engines.swaps import Swaps
from policy.request import Request

#: Those live that hold device memory, in order, now.
Residents = Callable[[], list[Request]]


class Ahead(Protocol):
    """See the module."""

    is_behind: bool
    wake_step: int | None
    headroom: int

    def act(self, residents: Residents, draft: Draft) -> bool:
        """`residents` tells who holds device memory, in the order in which they are served. Returns
        whether somebody was parked."""


def make_ahead(swaps: Swaps) -> Ahead | None:
    """What the system's `movement` asks for."""
    name = swaps.options.movement
    if name == "proactive":
        return ProactiveParking(swaps)
    return BackupRounds(swaps, BACKUPS[name](swaps.settings)) if name in BACKUPS else None


class BackupRounds:
    """Backs up whom a movement names: in every plan, or in rounds. A round that is due waits until no
    other copy goes to the host, and the next one is counted from it."""

    headroom = 0

    def __init__(self, swaps: Swaps, movement: Movement) -> None:
        self.is_behind = False
        self.wake_step: int | None = None
        self._swaps = swaps
        self._movement = movement
        self._next_round = 0  # lazy movements: the step from which on it is due

    def act(self, residents: Residents, draft: Draft) -> bool:
        """See Ahead. Parks nobody."""
        swaps = self._swaps
        if not self._movement.is_lazy:
            self._back_up(residents(), draft)
        elif swaps.desk.step >= self._next_round:
            if self._back_up(residents(), draft):
                self.is_behind = False  # what is left over is the next round's
                self._next_round = swaps.desk.step + swaps.settings.backup_every
                self.wake_step = self._next_round
            else:
                self.wake_step = None  # the end of the copy in the way is waited for
        return False

    def _back_up(self, residents: list[Request], draft: Draft) -> bool:
        """Copy full blocks to the host, behind every other copy that goes there; False if one does."""
        swaps = self._swaps
        memory = swaps.memory
        self.is_behind = draft.acts or bool(draft.prefill)  # what it changes may allow more
        unsaved = {
            request: tokens
            for request in residents
            if memory.unsaved(request.context, tokens := _computed(request))
        }
        if not unsaved:
            return True
        self.is_behind = True
        left = swaps.settings.backup_blocks
        flights = memory.in_flight.values()
        for flight in flights:
            if flight.to_host:
                context = flight.context
                if context is not None and context.backup is not flight:
                    return False  # somebody waits for the room, or a turn's KV goes
                left -= flight.copy.num_blocks
        moving = {flight.context for flight in flights}
        free = memory.num_soon
        for request in self._movement.nominate(residents, free):
            context = request.context
            if request not in unsaved or context in moving or left <= 0:
                continue
            copy = memory.back_up(context, unsaved[request], left, swaps.desk.now_ns)
            if copy is not None:
                left -= copy.num_blocks
                draft.add_store(copy, waited=False)
        return True


class ProactiveParking:
    """Between two thresholds of free device blocks: below the low one the last in order that decode are
    swapped out, by copies that no step waits for, until the high one is reached. Who comes to the
    device leaves the high one free, unless nobody else is there; so who was parked does not come back
    to be parked again (NEO's two thresholds, docs/sources.md#neo)."""

    wake_step: int | None = None

    def __init__(self, swaps: Swaps) -> None:
        self.is_behind = False
        self.headroom = swaps.settings.high_blocks
        self._swaps = swaps

    def act(self, residents: Residents, draft: Draft) -> bool:
        """See Ahead. Idle conversations give way first. The first in order that holds blocks always
        stays, and so do those that rule 10 shields and who came in this very plan.

        Not in a plan that loads (NEO's assertion): a load that the step waits for may have given back
        host blocks that it reads only after the stores of its plan have begun.
        """
        swaps = self._swaps
        low = swaps.settings.low_blocks
        self.is_behind = swaps.room_left() < low
        if not self.is_behind or draft.to_device:
            return False
        swaps.retire_idle(self.headroom + len(swaps.desk.growing()), draft, only_to_host=True)
        standing = residents()
        parked = False
        for request in reversed(standing):
            if swaps.room_left() >= self.headroom:
                break
            if (
                request.is_decoding
                and request is not standing[0]
                and request.resident_since < swaps.desk.step
                and not swaps.is_shielded(request)
            ):
                # nothing is recomputed for room that nobody needs yet
                if not swaps.fits_host(request.context, request.num_tokens - 1):
                    break
                swaps.preempt(request, draft, waited=False)
                parked = True
        return parked


def _computed(request: Request) -> int:
    """Tokens of a resident whose KV is on the device."""
    if request.is_decoding:
        return request.num_tokens - 1
    return request.context.device_tokens
