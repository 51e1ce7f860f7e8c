"""Which host copies of idle conversations are given up first. A decision; the ledger keeps the
safety rules: it never gives up the only copy of live work, one that a copy in flight uses, or more
than it must, and copies of what is on the device too go before all of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from policy.views import HostCopy, RequestView


class HostEviction:
    """Base of every host eviction, and one by itself: the copy untouched for longest goes first
    (vLLM's and LMCache's default). `key` ranks copies, `nominate` may choose otherwise.

    Called at each event and at each shortage; only events may change what it remembers, since what
    is nominated need not go (trap T18).
    """

    name = "lru"

    def __init__(self, num_blocks: int) -> None:
        """`num_blocks`: the host pool."""
        self.num_blocks = num_blocks

    def key(self, owner: RequestView) -> tuple[int | float, ...]:  # noqa: ARG002
        """The copy with the largest key is given up first; ties: the one idle for longest."""
        return ()

    def nominate(
        self,
        wanted_by: RequestView,  # noqa: ARG002
        copies: Iterable[HostCopy],
    ) -> Iterable[HostCopy]:
        """Copies that may go for `wanted_by`'s sake, the first to go first.

        `copies`: those that may, by `key`. The ledger takes as many as it must, or none if all of
        them are too few.
        """
        return copies

    def returned(self, request: RequestView, *, hit: bool) -> None:
        """A conversation's next turn has come. `hit`: its copy is on the host, and complete."""

    def given_up(self, owner: RequestView, blocks: int) -> None:
        """A copy that had been nominated is gone."""


class ByPriority(HostEviction):
    """The copy of the request served last goes first (docs/sources.md#fastswitch-reuse)."""

    name = "priority"

    def key(self, owner: RequestView) -> tuple[int | float, ...]:
        """The order's own key."""
        return owner.rank[0]


class AdaptiveReplacement(HostEviction):
    """ARC (docs/sources.md#arc), as vLLM's offloading has it, in blocks: conversations that
    came once and those that came back are two LRU lists, and how much room the first is to have is
    learnt from which of them one gives up too early.

    `_once`, `_often`: ghosts, sizes of copies given up, each list bounded by the pool. A next turn
    that finds a ghost of the first list asks for more room for that list, one of the second for less,
    by the ghost's blocks times the ratio of the other list of ghosts to its own (at least 1). A turn
    whose copy is still being written counts as no second visit.
    """

    name = "arc"

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.target = 0  # blocks that copies of conversations that came once are to have
        self._came_back: dict[str, None] = {}  # sessions, the latest last
        self._once = _Ghosts(num_blocks)
        self._often = _Ghosts(num_blocks)

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterator[HostCopy]:  # noqa: ARG002
        """From the first list while it is larger than its target, else from the second."""
        once: list[HostCopy] = []
        often: list[HostCopy] = []
        for copy in copies:
            (often if copy.owner.session_id in self._came_back else once).append(copy)
        once.reverse()
        often.reverse()
        size = sum(copy.host_blocks for copy in once)
        while once or often:
            if once and (size > self.target or not often):
                size -= once[-1].host_blocks
                yield once.pop()
            else:
                yield often.pop()

    def returned(self, request: RequestView, *, hit: bool) -> None:
        """One observation per turn: a hit, a ghost, or nothing that was ever here."""
        session = request.session_id
        sizes = (self._once.size, self._often.size)
        blocks = self._once.pop(session)
        if blocks:
            self.target = min(self.num_blocks, self.target + blocks * max(1, sizes[1] // sizes[0]))
            hit = True
        blocks = self._often.pop(session)
        if blocks:
            self.target = max(0, self.target - blocks * max(1, sizes[0] // sizes[1]))
            hit = True
        if hit:
            self._came_back.pop(session, None)
            self._came_back[session] = None
            if len(self._came_back) > 2 * self.num_blocks:  # conversations that never came again
                del self._came_back[next(iter(self._came_back))]

    def given_up(self, owner: RequestView, blocks: int) -> None:
        """It leaves a ghost in its list."""
        session = owner.session_id
        if session in self._came_back:
            del self._came_back[session]
            self._often.push(session, blocks)
        else:
            self._once.push(session, blocks)


class _Ghosts:
    """Names and sizes of copies that are gone, the oldest forgotten beyond `most` blocks."""

    def __init__(self, most: int) -> None:
        self.size = 0
        self._most = most
        self._blocks: dict[str, int] = {}

    def push(self, session: str, blocks: int) -> None:
        """Remember one more."""
        self.pop(session)
        self._blocks[session] = blocks
        self.size += blocks
        while self.size > self._most:
            self.pop(next(iter(self._blocks)))

    def pop(self, session: str) -> int:
        """Forget it; its blocks, 0 if it is not remembered."""
        blocks = self._blocks.pop(session, 0)
        self.size -= blocks
        return blocks


class IsolatedLru(HostEviction):
    """One LRU list per client, so that none can flush another's (docs/sources.md#lmcache).

    A client's share is the pool divided by the clients that have idle copies, or want room. Copies of
    clients that hold more than their share go first, the longest idle of them all, while that is so;
    then those of the client that wants the room. Nobody within its share loses to somebody else.
    """

    name = "isolated_lru"

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterator[HostCopy]:
        """What is beyond its client's share, then the client's own."""
        held = {wanted_by.client_id: 0}
        idle = list(copies)
        for copy in idle:
            client = copy.owner.client_id
            held[client] = held.get(client, 0) + copy.host_blocks
        share = self.num_blocks // len(held)
        own = []
        for copy in idle:
            client = copy.owner.client_id
            if held[client] > share:
                held[client] -= copy.host_blocks
                yield copy
            elif client == wanted_by.client_id:
                own.append(copy)
        yield from own


#: By name, each made from the size of the host pool in blocks.
HOST_EVICTIONS: dict[str, Callable[[int], HostEviction]] = {
    kind.name: kind for kind in (ByPriority, HostEviction, AdaptiveReplacement, IsolatedLru)
}
