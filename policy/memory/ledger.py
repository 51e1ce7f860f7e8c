"""The host side: which copies exist, which may be given up, and who kept what between turns.

Host pressure is met in this order (docs/sources.md#fastswitch-reuse): free blocks and reserved tails (the pool's own
business), copies of requests that are on the device too, copies of conversations between turns.
The only copy of an unfinished request is never touched, nor one that a copy in flight uses. Room is
made all or nothing: if everything that may go is not enough, nothing goes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from typing import cast

from policy.choices.host_eviction import HostEviction
from policy.memory.context import Context, HostRole
from policy.pools.allocation import Pool
from policy.request import Request

_IdleEntry = tuple[tuple[int | float, ...], int, Context]
#: Entries of conversations that came back which a short list may have.
_STALE = 16


class Ledger:
    """Host copies by role, and the contexts that finished turns left behind.

    `whole`: give up a copy as a whole (the default); otherwise cut it from the end, as the paper is
    recalled to do, which shreds the pool (docs/traps.md, M3).
    """

    def __init__(self, host: Pool, block_size: int, eviction: HostEviction, *, whole: bool) -> None:
        self.host = host
        self.kept: dict[str, Context] = {}  # finished request id -> its context
        self.num_contaminated = 0  # blocks of valid copies given up
        self._block_size = block_size
        self._eviction = eviction
        self._whole = whole
        self._duplicates: dict[Context, None] = {}
        self._idle: dict[Context, None] = {}
        self._idle_order: list[_IdleEntry] | None = None  # best first; None: keys have changed
        self._idle_count = 0
        self._rerank: Callable[[Request], None] | None = None  # owed to every idle owner

    # ------------------------------------------------------------------ roles

    def classify(self, context: Context) -> None:
        """Put a context's host copy where it belongs after anything about it changed."""
        role = self._role_of(context)
        if role is context.role:
            return
        if context.role is HostRole.DUPLICATE:
            del self._duplicates[context]
        elif context.role is HostRole.IDLE:
            del self._idle[context]
        context.role = role
        if role is HostRole.DUPLICATE:
            self._duplicates[context] = None
        elif role is HostRole.IDLE:
            self._idle[context] = None
            self._idle_count += 1
            context.idle_since = self._idle_count
            if self._idle_order is not None:
                insort(self._idle_order, self._idle_entry(context))
                if len(self._idle_order) > 2 * len(self._idle) + _STALE:
                    self._idle_order = (
                        None  # most of it has come back: sorted anew when next asked for
                    )

    def keys_changed(self, rerank: Callable[[Request], None]) -> None:
        """The order's keys were refreshed. `rerank` asks it for one more: that of an idle conversation,
        once somebody wants to know."""
        self._idle_order = None
        self._rerank = rerank

    def rank_idle(self) -> None:
        """Have idle conversations stand where the order has put them since their turns ended."""
        if self._rerank is not None:
            for context in self.kept.values():
                self._rerank(context.owner)
            self._rerank = None

    def _role_of(self, context: Context) -> HostRole:
        if context.host is None or context.transfer is not None:
            return HostRole.NONE
        if not context.owner.is_live:
            return HostRole.IDLE
        return HostRole.DUPLICATE if context.device is not None else HostRole.NONE

    # ------------------------------------------------------------------ between turns

    def keep(self, context: Context) -> None:
        """Remember a finished turn's context until its next turn or until pressure takes it."""
        self.kept[context.owner.request_id] = context
        self.classify(context)

    def take(self, request: Request) -> Context | None:
        """The context that the request's parent left, if it is still there; it is the caller's now."""
        if request.parent_id is None:
            return None
        context = self.kept.pop(request.parent_id, None)
        hit = context is not None and context.role is HostRole.IDLE
        self._eviction.returned(request, hit=hit)
        return context

    def forget_if_empty(self, context: Context) -> None:
        """An idle conversation of which nothing is left need not be remembered."""
        if context.host is None and context.device is None and not context.owner.is_live:
            self.kept.pop(context.owner.request_id, None)

    # ------------------------------------------------------------------ room

    def make_room(self, count: int, wanted_by: Context, *, at_any_cost: bool) -> bool:
        """Have `count` host blocks available; whether that was possible.

        `at_any_cost` False (keeping an idle turn's KV): copies of conversations that rank before
        `wanted_by` stay, since keeping the worse by losing the better helps nobody.
        """
        short = count - self.host.num_available
        if short <= 0:
            return True
        chosen: list[Context] = []
        for context in self._candidates(wanted_by, at_any_cost=at_any_cost):
            assert context.host is not None
            chosen.append(context)
            short -= len(context.host.blocks)
            if short <= 0:
                break
        if short > 0:
            return False
        last = chosen.pop()
        for context in chosen:
            self._give_up(context, keep=0)
        self._give_up(last, keep=0 if self._whole else -short)
        return True

    def drop(self, context: Context) -> None:
        """Free a context's host copy."""
        if context.host is not None:
            self.host.truncate(context.host, 0)
            context.host = None
            context.host_tokens = 0
        context.host_base = 0
        self.classify(context)

    def cut(self, context: Context, tokens: int) -> None:
        """Keep only the blocks that hold the first `tokens` tokens of a host copy."""
        if context.host is None:
            return
        context.host_tokens = min(context.host_tokens, tokens)
        keep = -(-context.host_tokens // self._block_size) - context.host_base
        if keep > 0:
            if keep < len(context.host.blocks):
                self.host.truncate(context.host, keep)
        else:
            self.drop(context)

    def _candidates(self, wanted_by: Context, *, at_any_cost: bool) -> Iterator[Context]:
        if self._duplicates:
            key = self._eviction.key
            for context in sorted(
                self._duplicates,
                key=lambda c: (key(c.owner), c.owner.rank),
                reverse=True,
            ):
                if context is not wanted_by:
                    yield context
        if not self._idle:
            return
        chosen: dict[Context, None] = {}
        idle = self._idle_by_key(wanted_by, at_any_cost=at_any_cost)
        for copy in self._eviction.nominate(wanted_by.owner, idle):
            context = cast(Context, copy)
            if context in self._idle and context not in chosen and context is not wanted_by:
                chosen[context] = None
                yield context

    def _idle_by_key(self, wanted_by: Context, *, at_any_cost: bool) -> Iterator[Context]:
        """Copies of idle conversations that may go, the largest key first, then the longest idle."""
        order = self._idle_order
        if order is None:
            self.rank_idle()
            order = self._idle_order = sorted(self._idle_entry(context) for context in self._idle)
        while order and not self._is_current(order[-1]):
            order.pop()
        own_key = self._eviction.key(wanted_by.owner)
        for entry in reversed(order):
            if not at_any_cost and entry[0] < own_key:
                return
            if self._is_current(entry) and entry[2] is not wanted_by:
                yield entry[2]

    @staticmethod
    def _is_current(entry: _IdleEntry) -> bool:
        context = entry[2]
        return context.role is HostRole.IDLE and context.idle_since == -entry[1]

    def _idle_entry(self, context: Context) -> _IdleEntry:
        return (self._eviction.key(context.owner), -context.idle_since, context)

    def _give_up(self, context: Context, keep: int) -> None:
        assert context.host is not None
        blocks = len(context.host.blocks)
        if context.role is HostRole.IDLE and not keep:
            self._eviction.given_up(context.owner, blocks)
        self.num_contaminated += blocks - keep
        self.cut(context, (context.host_base + keep) * self._block_size)
        self.forget_if_empty(context)
