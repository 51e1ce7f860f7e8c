"""Memory and ledger under random moves, against bytes and against a naive book of what is valid.

Every token of every context has a tag. Writes, and copies as they land, put tags into the slots of
both pools; copies of one direction land in order, at any later moment, and read their source when
they land. A cancelled copy still moves whatever its source holds by then. After each rule the
claims of `Memory` must be those of the book, and the tags must be where the claims say.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
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

from policy.choices.host_eviction import HOST_EVICTIONS
from policy.memory.context import Context, HostRole
from policy.memory.ledger import Ledger
from policy.memory.memory import Memory
from policy.memory.transfers import Transfer
from policy.plan import Copy, Direction
from policy.pools.allocation import Allocation, Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.request import Request, RequestState

STEPS = {"ci": 12_000, "full": 345_000}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 3_000)
STEPS_PER_RUN = 150

PLACES = st.integers(0, 1 << 12)
TOKENS = st.integers(1, 12)
BITS = st.integers(0, 7)


@dataclass(eq=False)
class Book:
    """What must be true of one context: its tags, and how many are valid on each side."""

    tags: list[int]
    device: int = 0
    host: int = 0
    idle_number: int = 0


@dataclass(eq=False)
class Moving:
    """A copy on the link. `book` is None once nobody wants the KV. `before` and `tokens`: what is
    valid on the target side if it fails, and if it does not."""

    copy: Copy
    flight: Transfer
    context: Context
    book: Book | None
    before: int
    tokens: int
    ok: bool = True
    landed: bool = False


def can_compute(context: Context) -> bool:
    whole = context.device is not None or context.host is None
    return context.owner.is_live and whole and not context.is_busy


def can_leave(context: Context) -> bool:
    return context.owner.is_live and context.device is not None and not context.is_busy


def can_retire(context: Context) -> bool:
    return not context.owner.is_live and context.device is not None and not context.is_busy


def can_load(context: Context) -> bool:
    on_host = context.device is None and context.host is not None
    return context.owner.is_live and on_host and not context.is_busy


def is_leaving(context: Context) -> bool:
    return context.owner.is_live and context.outgoing is not None


def is_idle(context: Context) -> bool:
    return not context.owner.is_live


def is_live(context: Context) -> bool:
    return context.owner.is_live


def exists(wanted: Callable[[Context], bool]) -> Callable[[MemoryMachine], bool]:
    """Some context is wanted, so the rule has somebody to work on."""
    return lambda machine: any(map(wanted, machine.books))


def make_pool(kind: str, name: str, num_blocks: int) -> Pool:
    if kind == "paged":
        return PagedPool(name, num_blocks)
    space = BuddyRuns(num_blocks) if kind == "buddy" else FreeRuns(num_blocks)
    return GroupPool(name, space, lambda n: n // 2)


class MemoryMachine(RuleBasedStateMachine):
    """Requests arrive, compute, leave, come back, finish, are cancelled; pressure all along."""

    steps = 0

    @initialize(
        kind=st.sampled_from(["paged", "groups", "buddy"]),
        device_blocks=st.integers(6, 24),
        host_blocks=st.sampled_from([0, 3, 8, 16, 24]),
        size=st.sampled_from([1, 2, 4]),
        switches=BITS,
        increment=st.integers(0, 2),
    )
    def start(
        self,
        kind: str,
        device_blocks: int,
        host_blocks: int,
        size: int,
        switches: int,
        increment: int,
    ) -> None:
        self.size = size
        self.by_rank = bool(switches & 1)
        self.whole = bool(switches & 2)
        self.reuse = bool(switches & 4)
        eviction = HOST_EVICTIONS["priority" if self.by_rank else "lru"](64)
        host = make_pool(kind, "host", host_blocks)
        self.ledger = Ledger(host, size, eviction, whole=self.whole)
        device = make_pool(kind, "device", device_blocks)
        self.memory = Memory(device, self.ledger, size, reuse=self.reuse, host_increment=increment)
        self.slots = {
            Direction.TO_DEVICE: [[0] * size for _ in range(device_blocks)],
            Direction.TO_HOST: [[0] * size for _ in range(host_blocks)],
        }
        self.books: dict[Context, Book] = {}
        self.keys: dict[Request, tuple[int]] = {}  # as of the last refresh
        self.moving: dict[Direction, deque[Moving]] = {d: deque() for d in Direction}
        self.due: list[Moving] = []  # landed, to be reported with the plan's outcome
        self.count = 0
        self.num_idle = 0
        self.num_contaminated = 0
        self.roles: dict[Context, HostRole] = {}

    # ------------------------------------------------------------------ rules

    @rule(tokens=TOKENS, key=st.integers(0, 3))
    def arrive(self, tokens: int, key: int) -> None:
        """A first turn is prefilled, if it fits."""
        self._report()
        while len(self.books) > 7:
            self._abandon(next(iter(self.books)))
        context = Context(self._owner(key))
        self.books[context] = Book([])
        self._compute(context, tokens)

    @precondition(exists(can_compute))
    @rule(place=PLACES, tokens=TOKENS)
    def compute(self, place: int, tokens: int) -> None:
        """A resident extends its context, or one that lost everything starts again."""
        self._report()
        context = self._one(place, can_compute)
        if context is not None:
            self._compute(context, tokens)

    @precondition(exists(can_leave))
    @rule(place=PLACES, flags=BITS)
    def leave(self, place: int, flags: int) -> None:
        """A victim is copied out, at the cost of whatever may go; without room it recomputes."""
        context = self._one(place, can_leave)
        if context is not None:
            self._copy_out(context, flags, at_any_cost=True)

    @precondition(exists(can_retire))
    @rule(place=PLACES, flags=BITS)
    def retire(self, place: int, flags: int) -> None:
        """A conversation between turns leaves the device."""
        context = self._one(place, can_retire)
        if context is not None:
            self._copy_out(context, flags, at_any_cost=False)
            self.ledger.forget_if_empty(context)
            self._forget_empty()

    @precondition(exists(can_leave))
    @rule(place=PLACES)
    def finish(self, place: int) -> None:
        self._report()
        context = self._one(place, can_leave)
        if context is not None:
            context.owner.state = RequestState.FINISHED
            self.ledger.keep(context)
            self._check()

    @precondition(exists(is_idle))
    @rule(place=PLACES, shared=st.integers(0, 30), key=st.integers(0, 3))
    def next_turn(self, place: int, shared: int, key: int) -> None:
        """The next turn repeats `shared` tokens of its parent's context (Swaps._take_over)."""
        self._report()
        parent = self._one(place, is_idle)
        owner = self._owner(key)
        assert self.ledger.take(owner) is None  # it has no parent
        if parent is None:
            return
        owner.parent_id = parent.owner.request_id
        context = self.ledger.take(owner)
        assert context is parent
        assert self.ledger.take(owner) is None
        memory, book = self.memory, self.books[context]
        context.owner = owner
        context.limit(shared)
        book.device, book.host = min(book.device, shared), min(book.host, shared)
        if context.outgoing is None:
            keep = -(-book.device // self.size)
            if context.device is not None and keep:
                memory.device.truncate(context.device, keep)
            else:
                memory.drop_device(context)
            self.ledger.cut(context, shared)
        else:
            moving = self._moving_of(context)
            moving.before, moving.tokens = min(moving.before, shared), min(moving.tokens, shared)
        self.ledger.classify(context)
        self._check()

    @precondition(exists(can_load))
    @rule(place=PLACES, more=st.integers(0, 4), flags=BITS)
    def load(self, place: int, more: int, flags: int) -> None:
        self._report()
        context = self._one(place, can_load)
        if context is None:
            return
        memory, book = self.memory, self.books[context]
        blocks = memory.blocks_for(book.host + more)
        if memory.device.num_available < blocks:
            return
        assert memory.blocks_to_load(context) == memory.blocks_for(book.host)
        copy = memory.load(context, blocks, self.steps, more, waited=bool(flags & 1))
        assert context.device is not None and len(context.device.blocks) == blocks
        self._start(copy, context, before=0, tokens=book.host, flags=flags)
        self._check()

    @precondition(exists(is_leaving))
    @rule(place=PLACES, more=st.integers(0, 4), flags=BITS)
    def keep_source(self, place: int, more: int, flags: int) -> None:
        """A request that is still leaving comes back."""
        self._report()
        context = self._one(place, is_leaving)
        if context is None:
            return
        memory, book = self.memory, self.books[context]
        moving = self._moving_of(context)
        first, end = self._span(moving.copy, moving)
        blocks = end + more
        usable = moving.tokens > first * self.size
        assert memory.kept_blocks(context) == end - first
        assert memory.can_keep(context, blocks) == usable
        assert not memory.can_keep(context, end - 1)
        if not usable or memory.device.num_available < blocks - (end - first):
            return
        assert memory.blocks_to_load(context) == first
        cancelled, copy = memory.keep_source(context, blocks, self.steps, waited=bool(flags & 1))
        assert cancelled == moving.copy.copy_id
        moving.book = None
        assert (copy is None) == (first == 0)
        assert context.device is not None and len(context.device.blocks) == blocks
        # A partial block that the cancelled copy may still write is nobody's valid copy.
        assert moving.before // self.size * self.size <= context.host_tokens <= moving.before
        book.host = context.host_tokens
        if copy is None:
            book.device = moving.tokens
        else:
            assert copy.num_blocks == first
            self._start(copy, context, before=0, tokens=moving.tokens, flags=flags)
        self._check()

    @precondition(lambda self: self.moving[Direction.TO_HOST])
    @rule(place=PLACES, flags=BITS)
    def wait(self, place: int, flags: int) -> None:
        """A step waits for a copy out that still has its source: what was submitted before it lands before
        it."""
        self._report()
        sources = [m for m in self.moving[Direction.TO_HOST] if m.flight.device is not None]
        if not sources:
            return
        moving = sources[place % len(sources)]
        before = self.memory.device.num_available
        assert moving.flight.device is not None
        freed = len(moving.flight.device.blocks)
        self.memory.wait(moving.flight)
        assert self.memory.device.num_available == before + freed
        self._wait_for(moving, flags)
        self._check()

    @precondition(lambda self: any(self.moving.values()))
    @rule(flags=BITS)
    def end_of_a_copy(self, flags: int) -> None:
        """The oldest copy of one direction ends."""
        self._report()
        first, second = self.moving.values()
        queue = first if first and (flags & 1 or not second) else second
        self._land(queue[0], ok=bool(flags & 6))
        self._complete(queue.popleft())

    @precondition(exists(is_live))
    @rule(place=PLACES)
    def abandon(self, place: int) -> None:
        self._report()
        context = self._one(place, is_live)
        if context is not None:
            self._abandon(context)

    @rule(place=PLACES, count=st.integers(0, 12), flags=BITS)
    def squeeze(self, place: int, count: int, flags: int) -> None:
        """Host room is wanted for somebody."""
        context = self._one(place, lambda _c: True)
        if context is not None:
            self._make_room(count, context, at_any_cost=bool(flags & 1))

    @rule(seed=PLACES)
    def refresh(self, seed: int) -> None:
        """Every key changes: of live requests at once, of idle conversations when somebody asks."""
        for index, context in enumerate(self.books):
            owner = context.owner
            self.keys[owner] = ((seed >> index) & 3,)
            if owner.is_live:
                self._rerank(owner)
        self.ledger.keys_changed(self._rerank)
        self._check()

    def _rerank(self, owner: Request) -> None:
        # one that came since the last refresh has the key it came with
        owner.rank = (self.keys.get(owner, owner.rank[0]), *owner.rank[1:])

    # ------------------------------------------------------------------ what the rules do

    def _owner(self, key: int) -> Request:
        self.count += 1
        owner = Request(f"r{self.count}", arrival_ns=self.count % 3, input_tokens=1)
        owner.rank = ((key,), owner.arrival_ns, owner.request_id)
        return owner

    def _one(self, place: int, wanted: Callable[[Context], bool]) -> Context | None:
        """One of those that are wanted and that no copy of the present plan concerns."""
        busy = [moving.context for moving in self.due]
        found = [c for c in self.books if wanted(c) and c not in busy]
        return found[place % len(found)] if found else None

    def _moving_of(self, context: Context) -> Moving:
        return next(m for m in self.moving[Direction.TO_HOST] if m.flight is context.outgoing)

    def _span(self, copy: Copy, moving: Moving) -> tuple[int, int]:
        """First and last + 1 logical block that a copy out carries."""
        last = -(-max(moving.tokens, 1) // self.size)
        assert moving.flight.device is not None
        first = moving.flight.first_block
        assert copy.num_blocks == len(moving.flight.device.blocks) >= last - first
        return first, first + copy.num_blocks

    def _compute(self, context: Context, tokens: int) -> None:
        memory, book = self.memory, self.books[context]
        total = book.device + tokens
        blocks = memory.blocks_for(total)
        held = 0 if context.device is None else len(context.device.blocks)
        if blocks - held <= memory.device.num_available:
            memory.hold(context, blocks, tokens % 3)
            assert context.device is not None and len(context.device.blocks) == max(blocks, held)
            memory.settle(context, total)
            first = self.count = self.count + 1
            self.count += tokens
            book.tags[book.device :] = range(first, first + tokens)
            table = context.device.blocks
            for position in range(book.device, total):
                slots = self.slots[Direction.TO_DEVICE][table[position // self.size]]
                slots[position % self.size] = book.tags[position]
            book.device = total
        self._check()

    def _copy_out(self, context: Context, flags: int, *, at_any_cost: bool) -> None:
        memory, book = self.memory, self.books[context]
        wanted = memory.host_blocks_wanted(context)
        have = 0 if context.host is None else len(context.host.blocks)
        assert wanted == max(0, memory.blocks_for(book.device) - have)
        if not self._make_room(wanted, context, at_any_cost=at_any_cost):
            memory.drop_device(context)
            book.device = 0
            self._check()
            return
        waited = bool(flags & 1)
        copy = memory.copy_out(context, self.steps, waited=waited)
        assert context.device is None
        tokens, before, book.device = book.device, book.host, 0
        if tokens <= before:
            assert copy is None
        else:
            assert copy is not None
            assert copy.num_blocks == memory.blocks_for(tokens) - before // self.size
            self._start(copy, context, before=before, tokens=tokens, flags=flags)
        self._check()

    def _start(self, copy: Copy, context: Context, *, before: int, tokens: int, flags: int) -> None:
        """A copy is on the link; one that the plan waits for lands at once."""
        assert copy.num_blocks == sum(length for _, _, length in copy.runs)
        assert copy.request_id == context.owner.request_id
        flight = self.memory.in_flight[copy.copy_id]
        book = self.books[context]
        moving = Moving(copy, flight, context, book, before, tokens)
        self.moving[copy.direction].append(moving)
        if flags & 1:
            self._wait_for(moving, flags)

    def _wait_for(self, moving: Moving, flags: int) -> None:
        queue = self.moving[moving.copy.direction]
        while not moving.landed:
            first = queue.popleft()
            self._land(first, ok=first is not moving or bool(flags & 6))
            self.due.append(first)
        if moving.book is not None:
            self._arrived(moving, moving.book)

    def _arrived(self, moving: Moving, book: Book) -> None:
        if moving.copy.direction is Direction.TO_HOST:
            book.host = moving.tokens
        else:
            book.device = moving.tokens
            book.host = book.host if self.reuse else 0

    def _land(self, moving: Moving, *, ok: bool) -> None:
        """Move the bytes as they are now; a failed copy moves nothing."""
        moving.landed = True
        copy = moving.copy
        moving.ok = ok and moving.book is not None
        if not ok:
            return
        to_host = copy.direction is Direction.TO_HOST
        source = self.slots[Direction.TO_DEVICE if to_host else Direction.TO_HOST]
        target = self.slots[copy.direction]
        for device, host, length in copy.runs:
            begin, end = (device, host) if to_host else (host, device)
            for index in range(length):
                target[end + index][:] = source[begin + index]

    def _report(self) -> None:
        """The outcome of the plan: every copy that it waited for, and those before them."""
        while self.due:
            self._complete(self.due.pop(0))

    def _complete(self, moving: Moving) -> None:
        flight = self.memory.complete(moving.copy.copy_id, ok=moving.ok)
        assert flight is moving.flight
        assert flight.device is None and flight.host is None
        book = moving.book
        if book is not None and moving.context in self.books:
            if moving.ok and not flight.is_waited:
                self._arrived(moving, book)
            elif not moving.ok and moving.copy.direction is Direction.TO_HOST:
                book.host = min(book.host, moving.before)
            elif not moving.ok:
                book.device = book.host = 0
            self.ledger.forget_if_empty(moving.context)
            self._forget_empty()
        self._check()

    def _abandon(self, context: Context) -> None:
        if context.owner.is_live:
            context.owner.state = RequestState.CANCELLED
        else:
            owner = self._owner(0)
            owner.parent_id = context.owner.request_id
            assert self.ledger.take(owner) is context
        flights = [f.copy.copy_id for f in (context.outgoing, context.incoming) if f is not None]
        assert list(self.memory.abandon(context)) == flights
        assert context.device is None and context.host is None and not context.is_busy
        for moving in (*self.moving[Direction.TO_HOST], *self.moving[Direction.TO_DEVICE]):
            if moving.context is context:
                moving.book = None
        del self.books[context]
        self._check()

    # ------------------------------------------------------------------ host room

    def _key(self, context: Context) -> tuple[int | float, ...]:
        return self.keys.get(context.owner, context.owner.rank[0]) if self.by_rank else ()

    def _make_room(self, count: int, wanted_by: Context, *, at_any_cost: bool) -> bool:
        """Ask for host room and compare who lost what with the rule at the top of the
        ledger's file."""
        expected = self._losses(count, wanted_by, at_any_cost=at_any_cost)
        hosts = {c: len(c.host.blocks) for c in self.books if c.host is not None}
        got = self.ledger.make_room(count, wanted_by, at_any_cost=at_any_cost)
        assert got == (expected is not None)
        assert not got or self.ledger.host.num_available >= count
        for context, keep in (expected or {}).items():
            book = self.books[context]
            book.host = min(book.host, keep * self.size)
            self.num_contaminated += hosts[context] - keep
            hosts[context] = keep
        assert {c: len(c.host.blocks) for c in self.books if c.host is not None} == {
            c: blocks for c, blocks in hosts.items() if blocks
        }
        self._forget_empty()
        self._check()
        return got

    def _losses(
        self, count: int, wanted_by: Context, *, at_any_cost: bool
    ) -> dict[Context, int] | None:
        """Blocks that each loser keeps; None: all that may go is not enough, so nothing goes."""
        short = count - self.ledger.host.num_available
        roles = {role: [c for c in self.books if self._role(c) is role] for role in HostRole}
        duplicates = sorted(
            roles[HostRole.DUPLICATE], key=lambda c: (self._key(c), c.owner.rank), reverse=True
        )
        idle = sorted(roles[HostRole.IDLE], key=lambda c: self.books[c].idle_number)
        idle.sort(key=self._key, reverse=True)
        if not at_any_cost:
            idle = [c for c in idle if self._key(c) >= self._key(wanted_by)]
        losses: dict[Context, int] = {}
        for context in duplicates + idle:
            if short > 0 and context is not wanted_by:
                assert context.host is not None
                short -= len(context.host.blocks)
                losses[context] = 0 if self.whole or short >= 0 else -short
        return losses if short <= 0 else None

    def _forget_empty(self) -> None:
        """Idle conversations of which nothing is left are nobody's concern any more."""
        for context in list(self.books):
            if not context.owner.is_live and context.device is None and context.host is None:
                del self.books[context]

    # ------------------------------------------------------------------ laws

    @staticmethod
    def _role(context: Context) -> HostRole:
        if context.host is None or context.is_busy:
            return HostRole.NONE
        if not context.owner.is_live:
            return HostRole.IDLE
        return HostRole.NONE if context.device is None else HostRole.DUPLICATE

    def _check(self) -> None:
        type(self).steps += 1
        memory = self.memory
        flights = list(memory.in_flight.values())
        pending = [f.device for f in flights if f.device is not None]
        assert memory.transfers.coming == sum(len(held.blocks) for held in pending)
        memory.device.check(_present([c.device for c in self.books]) + pending)
        memory.host.check(_present([c.host for c in self.books] + [f.host for f in flights]))
        assert len(flights) == len(self.due) + sum(map(len, self.moving.values()))
        kept = {c.owner.request_id: c for c in self.books if not c.owner.is_live}
        assert self.ledger.kept == kept
        assert self.ledger.num_contaminated == self.num_contaminated
        lost = [moving.context for moving in self.due if not moving.ok]
        for context, book in self.books.items():
            self._check_role(context, book)
            if context in lost:
                continue  # the claim is made in advance, and taken back by the outcome
            assert (context.device_tokens, context.host_tokens) == (book.device, book.host)
            self._check_tags(context.device, Direction.TO_DEVICE, book.tags[: book.device])
            self._check_tags(context.host, Direction.TO_HOST, book.tags[: book.host])
        self._check_targets()

    def _check_role(self, context: Context, book: Book) -> None:
        role = self._role(context)
        assert context.role is role
        if role is HostRole.IDLE and self.roles.get(context) is not role:
            self.num_idle += 1
            book.idle_number = self.num_idle
        self.roles[context] = role

    def _check_tags(self, allocation: Allocation | None, where: Direction, tags: list[int]) -> None:
        table = [] if allocation is None else allocation.blocks
        slots = self.slots[where]
        held = [tag for block in table for tag in slots[block]]
        assert held[: len(tags)] == tags

    def _check_targets(self) -> None:
        """A block that a copy out will still write is its context's while it may be wanted, else
        the copy's own."""
        for moving in self.moving[Direction.TO_HOST]:
            if not moving.landed:
                holder = moving.flight.host if moving.book is None else moving.context.host
                own = set() if holder is None else set(holder.blocks)
                for _, host, length in moving.copy.runs:
                    assert own.issuperset(range(host, host + length))


def _present(allocations: list[Allocation | None]) -> list[Allocation]:
    return [allocation for allocation in allocations if allocation is not None]


@pytest.mark.counted
def test_memory_claims_exactly_what_is_there_and_gives_host_copies_up_in_order() -> None:
    MemoryMachine.steps = 0
    run_state_machine_as_test(
        MemoryMachine,
        settings=settings(
            max_examples=STEPS // STEPS_PER_RUN * 3 // 2 + 4,
            stateful_step_count=STEPS_PER_RUN,
        ),
    )
    assert MemoryMachine.steps >= STEPS
