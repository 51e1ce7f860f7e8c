"""Who should hold device memory now: one pure choice per decision (docs/traps.md, M1).

The target set is the longest prefix of the order whose whole contexts, plus one step, fit the
device. All of its members that need room are named beneficiaries, and all victims that this takes
are nominated together: pending room is theirs and nobody else's, so an update is reached however
many plans the copies take. Rules, by number, are those at the top of `ranked.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from policy.engines.room import Room, blocks_missing, blocks_needed, floor_of
from policy.memory.sharing import Sharing
from policy.pools.prefix import SharedBlock
from policy.request import Request, RequestState

#: How far down the order the leader is looked for.
_FAR_IN_FRONT = 8
_RUNNING, _WAITING, _LOADING = RequestState.RUNNING, RequestState.WAITING, RequestState.LOADING


class Target(NamedTuple):
    """`incoming` need room or a prefill, in order; `victims` lose theirs, last in order first.

    `head_of_line`: the first request that could not be fitted; `never` cannot fit even alone.
    `is_final`: choosing again once this is reached would choose the same. Not if one of `incoming`
    ranks before the leader, who then loses the leader's protection, nor if a shield was overruled.
    """

    incoming: list[Request]
    victims: list[Request]
    head_of_line: Request | None
    never: list[Request]
    is_final: bool


class Bounds(NamedTuple):
    """What there is, in blocks and seats. `coming`: free now, or coming, or held by idle contexts.

    `growth`: blocks that the decode batch needs in this very step. `sharing`: where prompts share
    what they begin with, whoever holds it; such blocks are counted once. `protects_leader`: rule 9.
    `place`: what the order that was given is sorted by, where that is not the rank. `headroom`: blocks
    that who has none leaves free, unless nobody else would be there.
    """

    total: int
    watermark: int
    coming: int
    growth: int
    block_size: int
    max_num_seqs: int
    sharing: Sharing | None = None
    protects_leader: bool = True
    place: Callable[[Request], tuple[Any, ...]] | None = None
    headroom: int = 0

    @property
    def roomy(self) -> int:
        """What one request alone may need when it first comes."""
        return self.total - self.watermark


def choose_target(
    order: Iterable[Request],
    residents: Collection[Request],
    shielded: Sequence[Request],
    bounds: Bounds,
) -> Target:
    """Choose over the live requests, in order, and those of them that hold device blocks. `order` is
    begun twice.

    `shielded` residents are no victims: requests that a copy is loading, and those that rule 10 or
    hysteresis protects. Pure: reads requests, changes nothing. Costs one look at each request down
    to the head of the line.
    """
    size, watermark, roomy = bounds.block_size, bounds.watermark, bounds.roomy
    entry = max(watermark, bounds.headroom) if bounds.headroom else watermark
    place = bounds.place or _rank
    leader = leader_of(order, residents, place) if bounds.protects_leader else None
    protected = _with_leader(leader, shielded)
    inside = set(protected)
    incoming: list[Request] = []
    never: list[Request] = []
    room = Room(bounds.total, bounds.max_num_seqs)
    once = None if bounds.sharing is None else _Once(bounds.sharing)
    for request in protected:
        need = blocks_needed(request, size)
        if need > roomy and _is_hopeless(request, bounds):
            never.append(request)
        need = max(need, request.device_blocks)
        if once is not None:
            need -= once.counted(request)
            once.count(request)
        room.take(need)
        if request.state is _WAITING:
            incoming.append(request)
    newcomers = 0
    kept = watermark  # what newcomers leave free
    head_of_line: Request | None = None
    enter = inside.add
    for request in order:
        if request in inside:
            continue
        need = request.num_tokens // size + 1  # blocks_needed, for nearly all that are live
        if need > roomy and _is_hopeless(request, bounds):
            never.append(request)
            continue
        is_new, floor = False, kept if newcomers else 0
        if request.state is not _RUNNING:  # nearly all that fit are running
            device = request.context.device
            is_new = device is None
            if device is None:
                floor = entry if inside else floor_of(need, bounds.total, watermark)
            else:
                need = max(need, len(device.blocks))
        if once is not None:
            need -= once.counted(request)
        if not room.fits(need, floor):
            head_of_line = request  # rule 5: nothing below it may take room
            break
        room.take(need)
        if request.state is not _RUNNING:
            incoming.append(request)
            newcomers += is_new
            if is_new and need > roomy:
                kept = floor_of(need, bounds.total, watermark)
        enter(request)
        if once is not None:
            once.count(request)
    coming = _room_for(incoming, len(residents), newcomers, kept, bounds)
    victims: list[Request] = []
    if coming.is_short:
        gains = _Gains(size)
        if bounds.sharing is not None:
            gains = _SharedGains(size, bounds.sharing, incoming)
        victims = _choose_victims(residents, inside, leader, protected, coming, bounds, gains)
        incoming = [request for request in incoming if request not in victims]
    incoming += _holders(residents, inside, victims, size)
    if len(incoming) > 1:
        incoming.sort(key=place)
    leads_on = not incoming or leader is None or place(leader) <= place(incoming[0])
    is_final = head_of_line is None or (leads_on and inside.isdisjoint(victims))
    return Target(incoming, victims, head_of_line, never, is_final)


def leader_of(
    order: Iterable[Request],
    residents: Collection[Request],
    place: Callable[[Request], tuple[Any, ...]],
) -> Request | None:
    """The first in order that is resident is never a victim, so someone always finishes (rule 9).

    It stands far in front nearly always; behind many who wait it is found among the residents.
    """
    for request in islice(order, _FAR_IN_FRONT):
        if request.context.device is not None:
            return request
    return min(residents, key=place, default=None)


def _with_leader(leader: Request | None, shielded: Sequence[Request]) -> list[Request]:
    if leader is None:
        return list(shielded)
    return [leader, *(other for other in shielded if other is not leader)]


def _is_hopeless(request: Request, bounds: Bounds) -> bool:
    """Cannot fit even alone, or has grown out of the device (rule 11). Of one that needs more than
    what is roomy."""
    if request.state is _RUNNING:
        return -(-request.num_tokens // bounds.block_size) > bounds.total
    if request.num_generated:
        return blocks_needed(request, bounds.block_size) > bounds.total
    return request.state is not _LOADING


def _room_for(
    incoming: Sequence[Request], residents: int, newcomers: int, kept: int, bounds: Bounds
) -> Room:
    """What is left of free and coming room once they have come and the batch has grown (rule 3).
    `kept`: what newcomers leave free."""
    room = Room(
        bounds.coming - bounds.growth - (kept if newcomers else 0),
        bounds.max_num_seqs - residents - newcomers,
    )
    sharing = bounds.sharing
    taken: dict[SharedBlock, None] = {}
    for request in incoming:
        more = blocks_needed(request, bounds.block_size) - request.device_blocks
        if sharing is not None:
            more -= sharing.blocks_that_stay(request.context, taken)
        room.blocks -= max(0, more)
    return room


def _choose_victims(
    residents: Collection[Request],
    inside: set[Request],
    leader: Request | None,
    protected: Sequence[Request],
    room: Room,
    bounds: Bounds,
    gains: _Gains,
) -> list[Request]:
    """The last in order outside the target, until nothing is short (rule 4)."""
    place = bounds.place or _rank
    outside = [request for request in residents if request not in inside]
    outside.sort(key=place, reverse=True)
    victims: list[Request] = []
    before = room.blocks
    for request in outside:
        victims.append(request)
        room.give(gains.of(request))
        if not room.is_short:
            return victims
    # Only shields and loads can have overfilled the device. They give way to growth and to the
    # leader, who must always be able to finish.
    room = Room(bounds.coming + room.blocks - before - bounds.growth, 0)
    if leader is not None and leader.state is _WAITING:
        room.blocks -= blocks_missing(leader, bounds.block_size)
    for request in sorted(protected, key=place, reverse=True):
        if not room.is_short:
            break
        if request.state is not _LOADING and request is not leader:
            victims.append(request)
            room.give(gains.of(request))
    return victims


def _holders(
    residents: Collection[Request], inside: set[Request], victims: Sequence[Request], size: int
) -> list[Request]:
    """Waiting requests behind the line that hold all the blocks they need: they take no room, so
    they may go on, and the room they hold comes back (rule 7)."""
    return [
        request
        for request in residents
        if request.state is _WAITING
        and request not in inside
        and request not in victims
        and -(-request.num_tokens // size) <= request.device_blocks
    ]


class _Gains:
    """Blocks that parking one request after the other gives."""

    def __init__(self, size: int) -> None:
        self._size = size

    def of(self, request: Request) -> int:
        """The next one's: what it holds and what it would grow by."""
        held = request.device_blocks
        grows = request.is_decoding and -(-request.num_tokens // self._size) > held
        return held + int(grows)


class _SharedGains(_Gains):
    """With shared blocks: what it alone holds, those parked before it and copies in flight left
    out of the count, and what nobody among `incoming` is about to hold (trap L15)."""

    def __init__(self, size: int, sharing: Sharing, incoming: Sequence[Request]) -> None:
        super().__init__(size)
        self._each = sharing.blocks_each
        self._left: dict[SharedBlock, int] = {}  # holders that have not been parked
        self._wanted: dict[SharedBlock, None] = {}
        for request in incoming:
            self._wanted.update(dict.fromkeys(sharing.chain_of(request.context)))

    def of(self, request: Request) -> int:
        """See _Gains."""
        gain = super().of(request)
        device = request.context.device
        for shared in () if device is None else device.shared:
            left = self._left.get(shared, shared.users - shared.leaving) - 1
            self._left[shared] = left
            if left or shared in self._wanted:
                gain -= self._each
        return gain


class _Once:
    """Shared blocks of those in the target so far, since they take room once."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._seen: dict[SharedBlock, None] = {}

    def counted(self, request: Request) -> int:
        """Blocks of the request that were counted for somebody else."""
        chain = self._sharing.chain_of(request.context)
        return sum(shared in self._seen for shared in chain) * self._sharing.blocks_each

    def count(self, request: Request) -> None:
        """The request is in the target."""
        self._seen.update(dict.fromkeys(self._sharing.chain_of(request.context)))


def _rank(request: Request) -> tuple[tuple[int | float, ...], int, str]:
    return request.rank
