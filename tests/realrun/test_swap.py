"""The swap manager: what it promises on a CPU, and on a device that does things when it likes."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import InvariantError
from realrun.guard import BlockGuard
from realrun.kvstore import LAYOUTS
from tests.helpers.fake_device import FakeDevice
from tests.helpers.swapping import (
    IN,
    OUT,
    SUBMISSIONS,
    Desk,
    Gate,
    on_first,
    one_thread,
    our_threads,
)

ALL = [(submission, threads) for submission in SUBMISSIONS for threads in (0, 2)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
    assert our_threads() == []


@pytest.fixture
def desks() -> Iterator[Any]:
    """Makes desks and closes them."""
    made: list[Desk] = []

    def make(*args: Any, **rest: Any) -> Desk:
        made.append(Desk(*args, **rest))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


# ---------------------------------------------------------------------- out and back


@pytest.mark.parametrize("machine", ["cpu", "fake"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("submission", "threads"), ALL)
def test_kv_goes_out_and_comes_back_to_other_blocks(
    desks: Any, submission: str, threads: int, layout: str, machine: str
) -> None:
    device = FakeDevice(3) if machine == "fake" else None
    desk = desks(device, submission=submission, threads=threads, layout=layout)
    for block in range(4):
        desk.fill("device", block, 10 + block)
    desk.wait(desk.start(OUT, (0, 4, 3), (3, 0, 1)))
    assert desk.values("host") == [13, 0, 0, 0, 10, 11, 12, 0]
    desk.settle()
    desk.wait(desk.start(IN, (5, 4, 3)))
    assert desk.values("device") == [10, 11, 12, 13, 0, 10, 11, 12]
    [ended] = desk.settle()
    assert ended.ok and ended.waited


def test_on_a_cpu_without_threads_a_copy_has_ended_when_it_was_submitted(desks: Any) -> None:
    desk = desks()
    desk.fill("device", 1, 5)
    transfer = desk.start(OUT, (1, 2, 1))
    assert desk.value("host", 2) == 5
    assert desk.swap.poll() == [transfer]
    assert desk.swap.in_flight == {}


# ---------------------------------------------------------------------- ends


def test_copies_of_a_lane_are_reported_in_the_order_they_were_submitted(desks: Any) -> None:
    device = FakeDevice(1)
    desk = desks(device)
    started = [desk.start(OUT, (block, block, 1)) for block in range(6)]
    assert desk.settle() == started


def test_a_poll_reports_what_has_ended_and_each_copy_once(desks: Any) -> None:
    device = FakeDevice(1)
    device.goes_on_when_asked = False
    device.stalled = {"lane0"}
    desk = desks(device)
    store, load = desk.start(OUT, (0, 0, 1)), desk.start(IN, (1, 1, 1))
    assert desk.swap.poll() == []
    device.run()
    assert desk.swap.poll() == [load]
    device.let_go()
    device.run()
    assert (desk.swap.poll(), desk.swap.poll()) == ([store], [])


def test_waiting_ends_a_copy_and_leaves_the_report_to_the_poll(desks: Any) -> None:
    desk = desks(FakeDevice(2), threads=1)
    first, second = desk.start(OUT, (0, 0, 1)), desk.start(OUT, (1, 1, 1))
    desk.wait(second)
    assert set(desk.swap.in_flight) == {1, 2}
    assert desk.settle() == [first, second]
    assert (first.waited, second.waited) == (False, True)


def test_an_idle_engine_is_woken_by_the_end_of_a_copy_and_not_by_the_clock(desks: Any) -> None:
    device, gate = FakeDevice(), Gate()
    device.on_put = on_first("copy", gate.passes)
    desk = desks(device, threads=1)
    desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    threading.Timer(0.01, gate.open).start()
    desk.swap.wait_for_news(60)
    assert len(desk.settle()) == 1


def test_with_nothing_in_flight_news_does_not_come_before_its_time(desks: Any) -> None:
    begin = time.monotonic()
    desks(threads=1).swap.wait_for_news(0.001)
    assert time.monotonic() - begin >= 0.001


def test_the_record_of_a_copy_says_what_it_moved_when_and_how(desks: Any) -> None:
    desk = desks(submission="per_block")
    transfer = desk.start(OUT, (0, 4, 3), (5, 1, 1))
    desk.swap.poll()
    row = desk.swap.record(transfer)
    assert (row.blocks, row.runs, row.calls, row.ok) == (4, 2, 4 * 4, True)
    assert row.bytes == 4 * desk.store.device.block_bytes
    assert 0 < row.submit_ns < row.start_ns < row.end_ns


def test_a_copy_that_ends_late_has_its_end_from_the_poll_that_saw_it(desks: Any) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    transfer = desk.start(OUT, (0, 0, 1))
    desk.clock.now_ns = 5_000_000
    device.run()
    assert desk.swap.poll() == [transfer]
    assert transfer.start_ns < 5_000_000 <= transfer.end_ns


def test_a_copy_that_was_waited_for_ended_when_the_wait_did_and_not_a_step_later(
    desks: Any,
) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    transfer = desk.start(OUT, (0, 0, 1))
    device.run()
    desk.wait(transfer)
    desk.clock.now_ns = 30_000_000  # the step that came after it
    assert desk.swap.poll() == [transfer]
    assert transfer.start_ns < transfer.end_ns < 1_000_000


# ---------------------------------------------------------------------- cancelling


def test_what_no_worker_has_begun_is_dropped_when_cancelled(desks: Any) -> None:
    device, gate = FakeDevice(), Gate()
    device.on_put = on_first("copy", gate.passes)
    desk = desks(device, threads=1)
    desk.fill("device", 1, 5)
    first = desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    second = desk.start(OUT, (1, 1, 1))
    desk.swap.cancel(second.copy.copy_id)
    gate.open()
    assert sorted(t.copy.copy_id for t in desk.settle()) == [1, 2]
    assert (first.ok, second.ok, second.calls) == (True, False, 0)
    assert desk.value("host", 1) == 0


def test_what_was_begun_goes_on_when_cancelled_and_holds_its_target_until_it_ends(
    desks: Any,
) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    desk.fill("device", 1, 5)
    transfer = desk.start(OUT, (1, 1, 1))
    desk.swap.cancel(transfer.copy.copy_id)
    assert desk.swap.poll() == []
    with pytest.raises(InvariantError, match="meet in host block 1"):
        desk.start(IN, (2, 1, 1))
    device.run()
    assert desk.swap.poll() == [transfer]
    assert not transfer.ok
    assert not desk.swap.record(transfer).ok


def test_a_copy_cancelled_after_its_end_and_before_the_poll_has_failed(desks: Any) -> None:
    desk = desks()
    transfer = desk.start(OUT, (0, 0, 1))
    desk.swap.cancel(transfer.copy.copy_id)
    assert desk.swap.poll() == [transfer]
    assert not transfer.ok


def test_the_source_of_a_cancelled_store_may_be_written_at_once(desks: Any) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    transfer = desk.start(OUT, (1, 1, 1))
    with pytest.raises(InvariantError, match="a step writes device block 1 of copy 1"):
        desk.swap.guard.check_compute([0, 1])
    desk.swap.cancel(transfer.copy.copy_id)
    desk.swap.guard.check_compute([0, 1])


def test_the_target_of_a_cancelled_load_may_not(desks: Any) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    transfer = desk.start(IN, (1, 1, 1))
    desk.swap.cancel(transfer.copy.copy_id)
    with pytest.raises(InvariantError, match="a step writes device block 1"):
        desk.swap.guard.check_compute([1])
    device.run()
    desk.swap.poll()
    desk.swap.guard.check_compute([1])


# ---------------------------------------------------------------------- copies that share blocks


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("submission", SUBMISSIONS)
@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 30))
def test_stores_into_one_host_block_take_effect_in_the_order_of_submission(
    submission: str, threads: int, seed: int
) -> None:
    device = FakeDevice(seed)
    device.last = {f"lane{seed % 3}"}
    desk = Desk(device, submission=submission, threads=threads)
    for block in range(5):
        desk.fill("device", block, 10 + block)
    desk.start(OUT, (0, 2, 2))
    desk.start(OUT, (2, 3, 2))
    desk.start(OUT, (4, 3, 1))
    desk.settle()
    desk.swap.close()
    assert desk.values("host")[2:5] == [10, 14, 13]


def test_copies_of_opposite_directions_that_share_a_block_are_refused(desks: Any) -> None:
    device = FakeDevice()
    device.goes_on_when_asked = False
    desk = desks(device)
    desk.start(OUT, (1, 4, 2))
    for run in ((2, 7, 1), (7, 5, 1)):
        with pytest.raises(InvariantError, match="copy 1 meet in"):
            desk.start(IN, run)
    desk.start(IN, (0, 0, 1))
    assert list(desk.swap.in_flight) == [1, 4]


def test_a_guard_that_refused_a_copy_holds_none_of_its_blocks() -> None:
    guard, desk = BlockGuard(), Desk()
    first = desk.copy(OUT, (1, 1, 1))
    guard.take(first)
    with pytest.raises(InvariantError):
        guard.take(desk.copy(IN, (0, 0, 1), (5, 1, 1)))
    assert guard.take(desk.copy(OUT, (0, 0, 1))) == []


def test_a_guard_names_each_earlier_copy_once_and_forgets_what_was_given_back() -> None:
    guard, desk = BlockGuard(), Desk()
    first, second = desk.copy(OUT, (0, 0, 2)), desk.copy(OUT, (4, 1, 2))
    assert guard.take(first) == []
    assert guard.take(second) == [first.copy_id]
    assert guard.take(desk.copy(OUT, (0, 6, 2))) == [first.copy_id]
    guard.give_back(first)
    guard.give_back(first)
    with pytest.raises(InvariantError, match="host block 1"):
        guard.take(desk.copy(IN, (7, 1, 1)))
    guard.give_back(second)
    guard.take(desk.copy(IN, (7, 1, 1)))


# ---------------------------------------------------------------------- threads


def test_each_worker_has_a_lane_of_its_own_and_ends_with_the_manager() -> None:
    device = FakeDevice()
    desk = Desk(device, threads=3)
    assert sorted(our_threads()) == ["swap-d2h"] * 3 + ["swap-h2d"] * 3
    assert len(device.lanes) == 6
    desk.swap.close()
    assert our_threads() == []
    desk.swap.close()


def test_without_threads_each_direction_has_a_lane() -> None:
    device = FakeDevice()
    desk = Desk(device)
    assert (our_threads(), len(device.lanes)) == ([], 2)
    desk.swap.close()
