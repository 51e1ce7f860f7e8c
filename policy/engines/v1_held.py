"""What V1 keeps of a live request, and how those who run are sorted."""

from __future__ import annotations

from collections.abc import Collection

from policy.request import Request


class Held:
    """What the engine keeps of a live request (its `holding`).

    `computed`: tokens whose KV its blocks hold, stale while it decodes. `num_named`: so many of its
    blocks, from the first on, have names, and `num_found` were found when it was admitted. `place`: a
    running number of its admission; who runs is sorted by it. `host_blocks` is 0: what is on the host
    belongs to nobody.
    """

    __slots__ = (
        "blocks",
        "computed",
        "is_stalled",
        "num_found",
        "num_named",
        "place",
        "request",
    )

    host_blocks = 0

    def __init__(self, request: Request) -> None:
        self.request = request
        self.blocks: list[int] = []
        self.computed = 0
        self.num_named = self.num_found = 0
        self.place = 0
        self.is_stalled = False  # it decodes, and the step before left it out (R9)

    @property
    def device_blocks(self) -> int:
        """Blocks in its table."""
        return len(self.blocks)

    @property
    def num_computed(self) -> int:
        """Tokens with KV: of who decodes all but the last one sampled."""
        request = self.request
        return request.num_tokens - 1 if request.is_decoding else self.computed

    @property
    def is_resident(self) -> bool:
        """Holds device blocks."""
        return bool(self.blocks)


def place(held: Held) -> int:
    """Sort key of those who run: their order of admission."""
    return held.place


def place_of(request: Request) -> int:
    """The same, of the request."""
    held = request.holding
    assert isinstance(held, Held)
    return held.place


def in_order(requests: Collection[Request]) -> Collection[Request]:
    """Some who run, in order of admission."""
    return sorted(requests, key=place_of) if len(requests) > 1 else requests


def urgency(held: Held) -> tuple[object, ...]:
    """The greatest is preempted first; an id breaks no ties here, unlike in the queue."""
    return held.request.rank[:2]
