"""Traps of a machine that really copies (docs/traps.md, A1 to A11 and what of L applies): on a device
where every kernel and every copy comes as late as it may, and in the worst order."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import FaultError, InvariantError
from policy.integrity import check_integrity
from policy.memory.context import Context
from policy.memory.memory import Memory
from policy.plan import Copy, Direction, Plan
from policy.scheduler import Scheduler
from policy.systems import System
from realrun import batchcopy, swap, transfer
from realrun.kvstore import LAYOUTS
from realrun.pinned import page_lock
from realrun.swap import SwapManager
from tests.helpers.fake_device import ANY, FakeDevice, FakeLocker, numbers
from tests.helpers.late_machine import LateMachine
from tests.helpers.planted import changed
from tests.helpers.scripted import (
    ASYNC,
    KEEPING,
    SYNC,
    assert_both_pools_are_empty,
    assert_nothing_is_held_by_copies,
    crowd,
)
from tests.helpers.shadow import Turn, WrongKV, serve
from tests.helpers.small import scheduler, variant
from tests.helpers.swapping import IN, OUT, SUBMISSIONS, Desk, make_store, one_thread

REUSING = variant("fastswitch", overlap="async")
SYSTEMS = {"sync": SYNC, "async": ASYNC, "keeping": KEEPING}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def served(
    system: System = ASYNC,
    *,
    seed: int = 0,
    last: str = "compute",
    on_put: Callable[[Any, str], None] = lambda _lane, _what: None,
    machine: type[LateMachine] = LateMachine,
    turns: list[Turn] | None = None,
    **how: Any,
) -> LateMachine:
    """Serve a crowd on a device that holds three of eight conversations. Raises WrongKV."""
    made = scheduler(system, "random", device_blocks=14, host_blocks=40, update_every=3)
    device = FakeDevice(seed)
    device.last = {last}
    device.on_put = on_put
    served_by = machine(made, random.Random(seed), device, **how)
    serve(served_by, crowd() if turns is None else turns, check=check_integrity, patience=2000)
    served_by.close()
    assert len(served_by.finished) + len(served_by.rejected) == len(turns or crowd())
    assert_nothing_is_held_by_copies(made)
    return served_by


def caught(error: type[Exception], match: str, **how: Any) -> None:
    """Serving goes wrong, if not with the first seed then with one of the next."""

    def serve_all() -> None:
        for seed in range(20):
            served(seed=seed, **how)

    with pytest.raises(error, match=match):
        serve_all()


def without(line: str, instead: str) -> type[SwapManager]:
    """The swap manager with a line of its source replaced."""
    found: type[SwapManager] = changed(swap, line, instead).SwapManager
    return found


def waits_only_if(condition: str) -> type[SwapManager]:
    """A swap manager of which not every copy waits for the step before it."""
    wait = "lane.wait(transfer.barrier)\n"
    return without(f"                {wait}", f"                if {condition}: {wait}")


# ------------------------------------------------------------------ A: copies and compute


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_a1_a_store_takes_what_the_step_before_it_wrote(submission: str, system: str) -> None:
    machine = served(SYSTEMS[system], submission=submission)
    assert sum(t.copy.direction is OUT for t in machine.ended) > 3


def test_a1_a_store_that_does_not_wait_for_the_step_is_caught() -> None:
    careless = waits_only_if("transfer.copy.direction is Direction.TO_DEVICE")
    caught(WrongKV, "position", swap=careless, submission="merged")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("threads", [0, 2])
def test_a2_a_load_lets_the_step_before_it_read(threads: int, system: str) -> None:
    """How many loads a run has is a matter of threads, now and then only three: so over several runs."""
    loads = [
        sum(
            t.copy.direction is IN
            for t in served(SYSTEMS[system], threads=threads, seed=seed).ended
        )
        for seed in range(4)
    ]
    assert sum(loads) > 12


def test_a2_a_load_that_does_not_wait_for_the_step_is_caught() -> None:
    careless = waits_only_if("transfer.copy.direction is Direction.TO_HOST")
    caught(WrongKV, "position", swap=careless, submission="merged")


def test_a3_sources_of_a_batched_call_are_read_in_stream_order() -> None:
    served(submission="batched")
    served(REUSING, submission="batched", layout="block_major")


def test_a3_sources_read_in_any_order_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchcopy, "SOURCE_IN_STREAM_ORDER", ANY)
    caught(WrongKV, "position", submission="batched")


@pytest.mark.parametrize("last", ["compute", "lane0", "lane1", ""])
@pytest.mark.parametrize("submission", ["merged", "gather"])
def test_a4_both_directions_and_the_steps_go_on_at_once(submission: str, last: str) -> None:
    device_ways: list[int] = []

    class Watching(LateMachine):
        def execute(self, plan: Plan) -> Any:
            outcome = super().execute(plan)
            ways = {t.copy.direction for t in self.swap.in_flight.values()}
            device_ways.append(len(ways))
            return outcome

    for seed in range(3):
        served(REUSING, machine=Watching, submission=submission, last=last, seed=seed)
    assert 2 in device_ways


def test_a5_a_copy_has_ended_when_its_mark_says_so() -> None:
    for seed in range(3):
        served(seed=seed, last="lane0")


def test_a5_a_mark_recorded_before_its_copy_is_caught() -> None:
    put = """\
                transfer.mark = _UNTOLD
                try:
                    put = self._move(self.store, transfer.copy, lane)
                    transfer.calls, transfer.driver_ns = put
                finally:
                    transfer.mark = lane.mark()
"""
    early = """\
                transfer.mark = lane.mark()
                transfer.calls, _ = self._move(self.store, transfer.copy, lane)
"""
    caught(WrongKV, "position", swap=without(put, early), submission="per_block", last="lane1")


def test_a6_a_load_into_what_a_store_still_reads_is_refused() -> None:
    class AllAtOnce(LateMachine):
        def _copy(self, plan: Plan) -> set[str]:
            for copy in plan.copies:
                self.swap.submit(copy)
            return super()._copy(plan._replace(copies=()))

    caught(InvariantError, "meet in device block", system=SYNC, machine=AllAtOnce)


def test_a7_steps_that_nobody_waits_for_come_before_the_copies_behind_them() -> None:
    late: list[int] = []

    class Watching(LateMachine):
        def _copy(self, plan: Plan) -> set[str]:
            if plan.copies:
                late.append(len(self.fake.compute_stream.queue))
            return super()._copy(plan)

    for system in SYSTEMS.values():
        served(system, machine=Watching)
    assert max(late) > 1  # copies were submitted with steps still to come


def test_a7_a_barrier_that_is_set_once_and_never_again_is_caught() -> None:
    line = 'submitted from now on."""\n        self._barrier = self._runtime.barrier()\n'
    careless = without(line, 'submitted from now on."""\n')
    caught(WrongKV, "position", swap=careless, submission="merged")


def test_a8_memory_that_was_not_page_locked_is_refused_at_the_start() -> None:
    locker = FakeLocker(forgetful=True)
    with pytest.raises(FaultError, match="registered and are not page-locked"):
        page_lock(make_store().host.whole, locker, is_locked=locker.is_locked)
    assert locker.chunks == {}


def test_a8_the_host_reads_what_was_gathered_once_it_has_landed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served(submission="gather", last="lane0")
    careless = changed(transfer, "            lane.mark().synchronize()", "            lane.mark()")
    monkeypatch.setattr(swap, "MOVERS", careless.MOVERS)
    caught(WrongKV, "position", submission="gather", last="lane0")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a9_a_batched_call_is_given_nothing_that_could_be_freed(layout: str) -> None:
    device = FakeDevice()
    proper = device.memcpy_batch
    given: list[int] = []

    def look(targets: int, sources: int, sizes: int, count: int, *rest: Any) -> int:
        given.extend(numbers(targets, count) + numbers(sources, count))
        return int(proper(targets, sources, sizes, count, *rest))

    device.memcpy_batch = look
    desk = Desk(device, submission="batched", layout=layout)
    desk.start(OUT, (0, 4, 3), (5, 1, 1))
    desk.settle()
    spans = [
        (piece.data_ptr(), piece.data_ptr() + piece.nbytes)
        for piece in (*desk.store.device.pieces, *desk.store.host.pieces)
    ]
    assert given
    assert all(any(begin <= address < end for begin, end in spans) for address in given)


@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_a9_memory_freed_right_after_submission_may_be_used_by_others(
    submission: str, way: Direction
) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = Desk(device, submission=submission)
    for block in range(8):
        desk.fill("device", block, 10 + block)
        desk.fill("host", block, 20 + block)
    desk.start(way, (1, 1, 3))
    gc.collect()
    others = [torch.full((3, 2, 1, 2), -5.0, dtype=torch.float64) for _ in range(200)]
    device.run()
    source = [11, 12, 13] if way is OUT else [21, 22, 23]
    assert desk.values("host")[1:4] == desk.values("device")[1:4] == source
    assert {float(other.max()) for other in others} == {-5}


@pytest.mark.parametrize("threads", [0, 1])
def test_a10_a_full_stream_stalls_who_puts_and_that_is_no_engine_with_worker_threads(
    threads: int,
) -> None:
    device = FakeDevice(depth=10)
    desk = Desk(device, submission="per_block", threads=threads, blocks=100)
    for block in range(100):
        desk.fill("device", block, block)
    desk.start(OUT, (0, 0, 100))
    desk.settle()
    desk.swap.close()
    assert desk.values("host") == list(range(100))
    assert set(device.blocked) == ({"swap-d2h"} if threads else {"MainThread"})


def a_hundred_transfers(**how: Any) -> None:
    """On two lanes, of which one does not move until the end."""
    device = FakeDevice(**how)
    device.goes_on_when_asked = False
    device.stalled = {"lane0"}
    desk = Desk(device, blocks=100)
    for block in range(50):
        desk.start(OUT, (block, block, 1))
        desk.start(IN, (50 + block, 50 + block, 1))
        device.run()
        assert [t.copy.direction for t in desk.swap.poll()] == [IN]
    device.let_go()
    device.run()
    assert len(desk.swap.poll()) == 50


def test_a11_no_mark_is_taken_again_before_its_copy_has_ended() -> None:
    a_hundred_transfers()


def test_a11_marks_out_of_a_pool_of_two_are_caught() -> None:
    with pytest.raises(AssertionError):
        a_hundred_transfers(pooled_marks=2)


# ------------------------------------------------------------------ L: lifetime, byte by byte


def test_l1_a_step_that_writes_what_a_store_still_reads_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proper = Memory.copy_out

    def copy_out(self: Memory, context: Context, now_ns: int, *, waited: bool) -> Copy | None:
        return proper(self, context, now_ns, waited=True)

    served(last="lane0")
    monkeypatch.setattr(Memory, "copy_out", copy_out)
    caught(InvariantError, "a step writes device block|meet in device block", last="lane0")


@pytest.mark.parametrize("threads", [0, 2])
def test_l6_clients_may_leave_at_any_moment_of_their_copies(threads: int) -> None:
    left = 0
    for seed in range(6):
        made = scheduler(ASYNC, "random", device_blocks=14, host_blocks=40, update_every=3)
        machine = LateMachine(made, random.Random(seed), FakeDevice(seed), threads=threads)
        serve_with_cancels(machine, seed)
        left += sum(why == "left" for why in machine.rejected.values())
        assert any(t.cancelled for t in machine.ended)
        assert_both_pools_are_empty(made)
    assert left > 6


def serve_with_cancels(machine: LateMachine, seed: int) -> None:
    """Whoever a copy is under way for leaves now and then, between two plans."""
    rng = random.Random(seed)

    def check(made: Scheduler) -> None:
        check_integrity(made)
        machine.num_checks += 1
        if machine.num_checks % 2:
            return
        moving = {t.copy.request_id for t in machine.swap.in_flight.values()}
        for name in sorted(moving & machine.served.keys()):
            if rng.random() < 0.1:
                machine.cancel(name)

    serve(machine, crowd(), check=check, patience=2000)
    machine.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_l10_of_two_stores_into_one_host_block_the_later_counts(threads: int) -> None:
    for seed in range(10):
        device = FakeDevice(seed)
        desk = Desk(device, threads=threads)
        for block in (0, 1, 2):
            desk.fill("device", block, block + 1)
            desk.start(OUT, (block, 5, 1))
        desk.settle()
        desk.swap.close()
        assert desk.value("host", 5) == 3


@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_l13_every_block_that_a_plan_moves_is_so_many_bytes_on_the_way(submission: str) -> None:
    machine = served(REUSING, submission=submission)
    blocks = sum(t.copy.num_blocks for t in machine.ended if t.calls)
    assert all(t.error is None for t in machine.ended)
    assert machine.fake.num_bytes == blocks * machine.store.device.block_bytes > 0


def test_l17_a_turn_may_end_and_its_next_begin_while_its_bytes_move() -> None:
    followed: list[str] = []

    class Watching(LateMachine):
        def arrive(self, turn: Turn) -> None:
            if any(t.copy.request_id == turn.parent_id for t in self.swap.in_flight.values()):
                followed.append(turn.request_id)
            super().arrive(turn)

    turns = [
        turn if turn.parent_id is None else Turn(**{**vars(turn), "arrival_ns": 0})
        for turn in crowd()
    ]
    for seed in range(4):
        served(KEEPING, machine=Watching, turns=turns, last="lane0", seed=seed)
    assert followed


@pytest.mark.parametrize("system", SYSTEMS)
def test_l20_a_request_whose_load_failed_recomputes_and_computes_on_its_own_kv(
    system: str,
) -> None:
    rng, failed = random.Random(1), 0

    def on_put(lane: Any, what: str) -> None:
        if lane.stream.name == "lane1" and what != "mark" and rng.random() < 0.2:
            raise RuntimeError("no such block")

    for seed in range(3):
        machine = served(SYSTEMS[system], on_put=on_put, seed=seed)
        assert len(machine.finished) == len(crowd())
        failed += sum(t.error is not None for t in machine.ended)
    assert failed > 3


# ------------------------------------------------------------------ T: what a policy means


@pytest.mark.parametrize("system", SYSTEMS)
def test_t12_what_comes_back_has_the_bytes_of_generated_tokens_too(system: str) -> None:
    came_back: dict[str, int] = {}

    class Watching(LateMachine):
        def _launch(self, name: str, past: int, count: int) -> None:
            if self.served[name].produced:
                assert count == 1  # what was generated is not computed again
            super()._launch(name, past, count)

        def _copy(self, plan: Plan) -> set[str]:
            for copy in plan.copies:
                if copy.direction is IN and copy.request_id in self.served:
                    came_back[copy.request_id] = self.served[copy.request_id].produced
            return super()._copy(plan)

    served(SYSTEMS[system], machine=Watching)
    assert max(came_back.values()) > 1
