"""Who holds the blocks of a copy: every legal move of the table, and every illegal one."""

from __future__ import annotations

import itertools

import pytest

from policy.errors import InvariantError
from policy.memory.context import Context
from policy.memory.transfers import HOLDERS, TURNS, Fate, Holder, Kind, Transfer, Transfers
from policy.pools.allocation import Pool
from policy.pools.free_runs import FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.request import Request

SIZE, BLOCKS, FIRST = 4, 6, 2
ROWS = list(HOLDERS)
LEGAL = [(k, fate) for (k, of), fates in TURNS.items() if of is Fate.MOVING for fate in fates]
ILLEGAL = [pair for pair in itertools.product(Kind, Fate) if pair not in LEGAL]


class Bench:
    """One context of six blocks on both sides, the first two of them clean, and its copy."""

    def __init__(
        self, kind: Kind, *, waited: bool = False, first: int = FIRST, host: Pool | None = None
    ) -> None:
        self.device: Pool = PagedPool("device", 16)
        self.host: Pool = host or PagedPool("host", 16)
        self.transfers = Transfers(self.device, self.host, SIZE)
        self.context = context = Context(Request("r", arrival_ns=0, input_tokens=24))
        context.device, context.host = self.device.new(), self.host.new()
        self.device.allocate(context.device, BLOCKS)
        self.host.allocate(context.host, BLOCKS, 2)
        context.device_tokens, context.host_tokens = BLOCKS * SIZE, first * SIZE + 1
        self.transfer = self.transfers.start(
            kind,
            context,
            (first, BLOCKS),
            tokens=BLOCKS * SIZE,
            before=first * SIZE,
            now_ns=0,
            waited=waited,
        )
        self.check()

    @property
    def copy_id(self) -> int:
        return self.transfer.copy.copy_id

    def held(self, side: str) -> tuple[int, int]:
        """Blocks that the context and the copy hold."""
        found = [getattr(holder, side) for holder in (self.context, self.transfer)]
        here, there = (0 if blocks is None else len(blocks.blocks) for blocks in found)
        return here, there

    def check(self) -> None:
        """Holders are the table's, and every block has one."""
        self.transfers.check()
        holders = (self.context, *self.transfers.in_flight.values())
        for pool, side in ((self.device, "device"), (self.host, "host")):
            found = [getattr(holder, side) for holder in holders]
            pool.check([blocks for blocks in found if blocks is not None])


def test_a_store_takes_its_source_along_and_frees_what_is_clean() -> None:
    bench = Bench(Kind.STORE)
    assert bench.held("device") == (0, BLOCKS - FIRST)
    assert bench.held("host") == (BLOCKS, 0)
    assert bench.transfers.coming == BLOCKS - FIRST
    assert (bench.context.outgoing, bench.context.device_tokens) == (bench.transfer, 0)


def test_what_a_step_waits_for_counts_as_done() -> None:
    store = Bench(Kind.STORE, waited=True)
    assert store.held("device") == (0, 0) and store.held("host") == (BLOCKS, 0)
    load = Bench(Kind.LOAD, waited=True)
    assert load.held("device") == load.held("host") == (BLOCKS, 0)
    for bench in (store, load):
        assert bench.context.transfer is None and bench.transfer.is_waited
        assert bench.transfers.coming == 0
        assert bench.transfers.end(bench.copy_id).context is bench.context


@pytest.mark.parametrize(("kind", "fate"), LEGAL)
def test_a_legal_turn_moves_blocks_as_the_table_says(kind: Kind, fate: Fate) -> None:
    bench = Bench(kind)
    device, host = HOLDERS[kind, fate]
    whole = BLOCKS - FIRST if kind is Kind.STORE else BLOCKS
    assert bench.transfers.turn(bench.transfer, fate) == bench.copy_id
    bench.check()
    sides = {Holder.CONTEXT: (whole, 0), Holder.COPY: (0, whole), Holder.NOBODY: (0, 0)}
    assert bench.held("device") == sides[device]
    kept = FIRST if fate is Fate.KEPT else 0
    there = {Holder.CONTEXT: (BLOCKS, 0), Holder.COPY: (kept, BLOCKS - kept)}
    assert bench.held("host") == there[host]
    assert (bench.transfer.context is None) == (fate is not Fate.WAITED)
    if fate is Fate.KEPT:
        assert bench.context.host_tokens == FIRST * SIZE  # not the block that was valid in part
    bench.transfers.end(bench.copy_id)
    assert bench.held("device")[1] == bench.held("host")[1] == bench.transfers.coming == 0
    bench.check()


@pytest.mark.parametrize(("kind", "fate"), ILLEGAL)
def test_an_illegal_turn_says_so_and_changes_nothing(kind: Kind, fate: Fate) -> None:
    bench = Bench(kind)
    before = bench.held("device"), bench.held("host")
    with pytest.raises(InvariantError, match=f"{kind.name} MOVING cannot become {fate.name}"):
        bench.transfers.turn(bench.transfer, fate)
    assert (bench.held("device"), bench.held("host")) == before
    bench.check()


@pytest.mark.parametrize(("kind", "fate"), LEGAL)
def test_a_fate_is_not_changed_twice(kind: Kind, fate: Fate) -> None:
    bench = Bench(kind)
    bench.transfers.turn(bench.transfer, fate)
    for other in (f for f in Fate if f not in TURNS.get((kind, fate), ())):
        with pytest.raises(InvariantError, match=f"{fate.name} cannot become"):
            bench.transfers.turn(bench.transfer, other)
    bench.check()


def test_a_step_may_wait_for_the_source_of_a_store_that_nobody_wants() -> None:
    bench = Bench(Kind.STORE)
    bench.transfers.turn(bench.transfer, Fate.UNWANTED)
    bench.check()
    bench.transfers.turn(bench.transfer, Fate.VACATED)
    bench.check()
    assert (bench.held("device"), bench.held("host")) == ((0, 0), (0, BLOCKS))
    bench.transfers.end(bench.copy_id)
    assert bench.host.num_free == 16


def test_a_source_that_is_kept_from_its_first_block_on_leaves_nothing_on_the_host() -> None:
    bench = Bench(Kind.STORE, first=0)
    bench.transfers.turn(bench.transfer, Fate.KEPT)
    assert (bench.context.host, bench.context.host_tokens) == (None, 0)
    assert bench.held("host") == (0, BLOCKS)


def test_the_tail_of_a_target_that_becomes_the_copys_is_as_old_as_that() -> None:
    """Which tail is taken back first hangs on it, whether a part of the target stays or none."""
    for first in (0, FIRST):
        bench = Bench(Kind.STORE, first=first, host=GroupPool("host", FreeRuns(16), lambda _: 0))
        other = bench.host.new()
        bench.host.allocate(other, 1, 3)
        bench.transfers.turn(bench.transfer, Fate.KEPT)
        bench.host.allocate(bench.host.new(), bench.host.num_free + 1)
        assert bench.transfer.host is not None
        assert (other.reserved, bench.transfer.host.reserved) == (0, 2)


def test_every_row_of_the_table_is_reached_and_no_other() -> None:
    starts = [(kind, Fate.MOVING) for kind in Kind]
    starts += [(Kind.STORE, Fate.WAITED), (Kind.LOAD, Fate.WAITED)]
    starts += [(kind, fate) for (kind, _), fates in TURNS.items() for fate in fates]
    assert sorted({*starts, *LEGAL}, key=str) == sorted(ROWS, key=str)


# ---------------------------------------------------------------------- the law, broken


def forget(bench: Bench) -> None:
    bench.context.transfer = None


def give_away(bench: Bench) -> None:
    bench.context.host = None


def hold_too_much(bench: Bench) -> None:
    bench.transfer.host = bench.host.new()


def no_such_fate(bench: Bench) -> None:
    bench.transfer.kind, bench.transfer.fate = Kind.BACKUP, Fate.WAITED


def await_what_is_settled(bench: Bench) -> None:
    bench.transfers.turn(bench.transfer, Fate.WAITED)
    bench.context.transfer = bench.transfer


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (forget, "its context does not know of it"),
        (give_away, "<context of r: .* holds"),
        (hold_too_much, "holds .* of device and host, not as"),
        (no_such_fate, "no BACKUP is WAITED"),
        (await_what_is_settled, "is settled already"),
    ],
)
def test_the_law_names_what_is_not_as_the_table_says(broken: object, says: str) -> None:
    bench = Bench(Kind.STORE)
    assert callable(broken)
    broken(bench)
    with pytest.raises(InvariantError, match=says):
        bench.transfers.check()


def test_a_transfer_carries_no_more_than_is_wanted() -> None:
    bench = Bench(Kind.STORE)
    bench.context.limit(3)
    assert isinstance(bench.transfer, Transfer)
    assert (bench.transfer.tokens, bench.transfer.before) == (3, 3)
