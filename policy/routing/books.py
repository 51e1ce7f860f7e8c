"""What a router knows by itself, at age zero: what it sent where, and has not heard the end of.

An index of prompts it sent stands for what replicas hold. It knows nothing of replies, and nothing of
what a replica gave up, as the approximate indexes of real routers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from policy.errors import InvariantError
from policy.routing.view import RoutedView


class Sent(NamedTuple):
    """One request under way. `uncached`: prompt tokens that the index did not know there."""

    replica: int
    session_id: str
    tokens: int
    uncached: int


class Load:
    """What one replica has of this router's. `uncached`: of requests without a first token."""

    __slots__ = ("requests", "tokens", "uncached")

    def __init__(self) -> None:
        self.requests = self.tokens = self.uncached = 0


class IndexSpec(NamedTuple):
    """Which prompts an index remembers: names of `blocks_each` blocks together, at most `capacity` of
    them a replica (the oldest goes), and none that was not sent for `ttl_ns` (None: for ever)."""

    blocks_each: int = 1
    capacity: int = 1 << 22
    ttl_ns: int | None = None


class PrefixIndex:
    """Names of blocks by replica, in the order last sent."""

    def __init__(self, spec: IndexSpec) -> None:
        self._spec = spec
        self._known: dict[int, OrderedDict[Hashable, int]] = {}

    def names(self, blocks: Sequence[Hashable]) -> Sequence[Hashable]:
        """Of whole chunks: a chunk is called as its last block, which stands for those before it."""
        each = self._spec.blocks_each
        return blocks[each - 1 :: each]

    def matched(self, blocks: Sequence[Hashable], replica: int, now_ns: int) -> int:
        """Leading blocks of a prompt that were sent there."""
        known = self._known.get(replica)
        if not known:
            return 0
        ttl, count = self._spec.ttl_ns, 0
        for name in self.names(blocks):
            at = known.get(name)
            if at is None or (ttl is not None and now_ns - at > ttl):
                break
            count += 1
        return count * self._spec.blocks_each

    def add(self, blocks: Sequence[Hashable], replica: int, now_ns: int) -> None:
        """A prompt goes there."""
        known = self._known.setdefault(replica, OrderedDict())
        for name in self.names(blocks):
            known[name] = now_ns
            known.move_to_end(name)
        while len(known) > self._spec.capacity:
            known.popitem(last=False)

    def forget(self, replica: int) -> None:
        """It lost all it had."""
        self._known.pop(replica, None)


class Books:
    """Requests under way by replica, each session's latest replica, and the index if there is one.
    `block_tokens`: of one of a request's `blocks`."""

    def __init__(self, block_tokens: int, index: IndexSpec | None = None) -> None:
        self.block_tokens = block_tokens
        self.index = None if index is None else PrefixIndex(index)
        self.homes: dict[str, int] = {}
        self.num_routed = 0
        self._loads: dict[int, Load] = {}
        self._sent: dict[str, Sent] = {}
        self._waits: dict[str, int] = {}  # uncached tokens of those without a first token

    def load(self, replica: int) -> Load:
        """What it has of ours."""
        found = self._loads.get(replica)
        if found is None:
            found = self._loads[replica] = Load()
        return found

    def matched(self, request: RoutedView, replica: int, now_ns: int) -> int:
        """Leading blocks of the prompt that we sent there."""
        return 0 if self.index is None else self.index.matched(request.blocks, replica, now_ns)

    def uncached(self, request: RoutedView, replica: int, now_ns: int) -> int:
        """Tokens of the prompt that we never sent there."""
        found = self.matched(request, replica, now_ns) * self.block_tokens
        return max(0, request.input_tokens - found)

    def sent(self, request: RoutedView, replica: int, now_ns: int) -> None:
        """Write down a request that goes there. Raises InvariantError if it is under way already."""
        name = request.request_id
        if name in self._sent:
            raise InvariantError(
                f"{name} is under way at replica {self._sent[name].replica} already"
            )
        uncached = self.uncached(request, replica, now_ns)
        self._sent[name] = Sent(replica, request.session_id, request.input_tokens, uncached)
        self._waits[name] = uncached
        load = self.load(replica)
        load.requests += 1
        load.tokens += request.input_tokens
        load.uncached += uncached
        self.homes[request.session_id] = replica
        self.num_routed += 1
        if self.index is not None:
            self.index.add(request.blocks, replica, now_ns)

    def first_token(self, request_id: str) -> None:
        """Its prompt has been computed; further tokens say nothing new."""
        waited = self._waits.pop(request_id, None)
        if waited is not None:
            self.load(self._sent[request_id].replica).uncached -= waited

    def ended(self, request_id: str) -> None:
        """It is no longer under way, however it ended. Raises InvariantError if it was not."""
        if request_id not in self._sent:
            raise InvariantError(f"{request_id} ended and was not under way")
        self.first_token(request_id)
        sent = self._sent.pop(request_id)
        load = self.load(sent.replica)
        load.requests -= 1
        load.tokens -= sent.tokens

    def lost(self, replica: int) -> None:
        """It went down and comes back empty: what was under way there is told by `ended`."""
        if self.index is not None:
            self.index.forget(replica)
        for session in [name for name, home in self.homes.items() if home == replica]:
            del self.homes[session]
