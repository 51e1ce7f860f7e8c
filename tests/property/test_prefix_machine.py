"""The pool of shared blocks against a naive book: chains, their holders, and one list by last use.

Prompts of few different names arrive, are computed, published at once or later, and leave; copies
in flight hold some of them. After each rule lookups, counts and what was evicted must be the book's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from policy.pools.allocation import Allocation
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.pools.prefix import PrefixPool

STEPS = {"ci": 5_000, "full": 60_000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 2_000)
STEPS_PER_RUN = 100

PLACES = st.integers(0, 1 << 12)
NAMES = st.text("ab", max_size=5)


@dataclass(eq=False)
class Holder:
    """`chain`: what it shares; `own`: blocks behind that; `keys`: names of all that it computed."""

    held: Allocation
    keys: str
    chain: str
    own: int
    leaving: bool = False


class PrefixMachine(RuleBasedStateMachine):
    """The rules, each followed by a comparison."""

    steps = 0

    @initialize(
        kind=st.sampled_from(["paged", "groups", "buddy"]),
        num_blocks=st.integers(8, 40),
        each=st.integers(1, 3),
    )
    def start(self, kind: str, num_blocks: int, each: int) -> None:
        inner = (
            PagedPool("device", num_blocks)
            if kind == "paged"
            else GroupPool(
                "device",
                BuddyRuns(num_blocks) if kind == "buddy" else FreeRuns(num_blocks),
                lambda n: n - 1,
            )
        )
        self.pool = PrefixPool(inner, each)
        self.each = each
        self.free = num_blocks
        self.users: dict[str, list[Holder]] = {}  # chain -> who holds it
        self.unused: list[str] = []  # chains that nobody holds, unused for longest first
        self.holders: list[Holder] = []

    # ------------------------------------------------------------------ rules

    @rule(keys=NAMES, own=st.integers(0, 4), at_once=st.booleans())
    def arrive(self, keys: str, own: int, at_once: bool) -> None:
        found = 0
        while found < len(keys) and keys[: found + 1] in self.users:
            found += 1
        match = self.pool.match(keys, len(keys))
        assert "".join(str(shared.key) for shared in match) == keys[:found]
        held = self.pool.new()
        holder = Holder(held, keys, "", own + self.each * (len(keys) - found))
        self.pool.share(held, match)
        self._take(holder, keys[:found])
        self.holders.append(holder)
        if holder.own > self.free + self.each * len(self.unused):
            holder.own = 0
            self._leave(holder)
            return
        self.pool.allocate(held, holder.own)
        while self.free < holder.own:
            del self.users[self.unused.pop(0)]
            self.free += self.each
        self.free -= holder.own
        if at_once:
            self._publish(holder)
        self._check()

    @precondition(lambda self: self.holders)
    @rule(place=PLACES)
    def publish(self, place: int) -> None:
        holder = self.holders[place % len(self.holders)]
        if not holder.leaving:
            self._publish(holder)
        self._check()

    @precondition(lambda self: self.holders)
    @rule(place=PLACES)
    def leave(self, place: int) -> None:
        self._leave(self.holders[place % len(self.holders)])

    @precondition(lambda self: self.holders)
    @rule(place=PLACES)
    def copy(self, place: int) -> None:
        """A copy in flight takes it over, or is cancelled."""
        holder = self.holders[place % len(self.holders)]
        (self.pool.stop_leaving if holder.leaving else self.pool.start_leaving)(holder.held)
        holder.leaving = not holder.leaving
        self._check()

    # ------------------------------------------------------------------ pieces

    def _take(self, holder: Holder, chain: str) -> None:
        for end in range(len(holder.chain) + 1, len(chain) + 1):
            if not self.users[chain[:end]]:
                self.unused.remove(chain[:end])
            self.users[chain[:end]].append(holder)
        holder.chain = chain

    def _publish(self, holder: Holder) -> None:
        self.pool.publish(holder.held, holder.keys, len(holder.keys))
        for end in range(len(holder.chain) + 1, len(holder.keys) + 1):
            chain = holder.keys[:end]
            holder.own -= self.each
            if chain in self.users:
                self.free += self.each  # somebody was quicker
                self._take(holder, chain)
            else:
                self.users[chain] = [holder]
                holder.chain = chain

    def _leave(self, holder: Holder) -> None:
        if holder.leaving:
            self.pool.stop_leaving(holder.held)
        self.pool.truncate(holder.held, 0)
        self.holders.remove(holder)
        self.free += holder.own
        for end in range(len(holder.chain), 0, -1):
            self.users[holder.chain[:end]].remove(holder)
            if not self.users[holder.chain[:end]]:
                self.unused.append(holder.chain[:end])
        self._check()

    def _check(self) -> None:
        type(self).steps += 1
        pool, each = self.pool, self.each
        pool.check([holder.held for holder in self.holders])
        used = {chain: who for chain, who in self.users.items() if who}
        assert pool.num_free == pool.num_available == self.free + each * len(self.unused)
        assert pool.num_shared == each * len(used)
        assert pool.num_leaving == each * sum(
            all(holder.leaving for holder in who) for who in used.values()
        )
        assert sum(1 for _ in pool) == len(self.users)
        for holder in self.holders:
            assert len(holder.held.blocks) == each * len(holder.chain) + holder.own
            assert holder.held.num_shared == each * len(holder.chain)


@pytest.mark.counted
def test_the_tree_is_what_a_naive_book_says() -> None:
    PrefixMachine.steps = 0
    run_state_machine_as_test(
        PrefixMachine,
        settings=settings(
            max_examples=max(1, STEPS // STEPS_PER_RUN), stateful_step_count=STEPS_PER_RUN
        ),
    )
    assert PrefixMachine.steps > STEPS // 4
