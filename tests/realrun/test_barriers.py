"""Every barrier, taken out of the source in turn, and the check that then fails.

A barrier is a line of `realrun/`. It is replaced in the text of its module, so that one that has gone
or moved is noticed; the check runs with everything in place first. The list is in docs/traps.md.
"""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import FaultError, InvariantError
from realrun import batchcopy, guard, pinned, swap, transfer
from realrun.swap import SwapManager
from tests.helpers.fake_device import FakeDevice, FakeLocker
from tests.helpers.planted import changed
from tests.helpers.swapping import IN, OUT, Desk, Gate, make_store, on_first, one_thread

#: A worker that is made to die says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# ---------------------------------------------------------------------- checks

#: Makes a Desk over a fake device, with the swap manager under test.
Make = Callable[..., Desk]


def device_of(desk: Desk) -> FakeDevice:
    assert desk.device is not None
    return desk.device


def by_hand(desk: Desk) -> FakeDevice:
    """The device moves when the test says so."""
    device = device_of(desk)
    device.goes_on_when_asked = False
    return device


def check_a_store_takes_what_the_step_before_it_wrote(make: Make) -> None:
    desk = make(submission="batched")
    device = device_of(desk)
    device.last = {"compute"}
    for number in (1, 2):
        device.compute(lambda: desk.fill("device", 0, number))  # noqa: B023  # run before the next
        desk.swap.set_barrier()
        desk.wait(desk.start(OUT, (0, 0, 1)))
        device.run()
        assert desk.value("host", 0) == number


def check_a_load_lets_the_step_before_it_read(make: Make) -> None:
    desk = make()
    device = device_of(desk)
    device.last = {"compute"}
    desk.fill("device", 0, 1)
    desk.fill("host", 0, 9)
    seen: list[float] = []

    def attend() -> Iterator[None]:
        seen.append(desk.value("device", 0))
        yield
        seen.append(desk.value("device", 0))

    device.compute(attend)
    desk.swap.set_barrier()
    desk.wait(desk.start(IN, (0, 0, 1)))
    device.run()
    assert (seen, desk.value("device", 0)) == ([1, 1], 9)


def check_what_was_waited_for_has_arrived(make: Make) -> None:
    desk = make()
    desk.fill("device", 0, 5)
    desk.wait(desk.start(OUT, (0, 0, 1)))
    assert desk.value("host", 0) == 5


def check_what_is_reported_has_arrived(make: Make) -> None:
    desk = make()
    device = by_hand(desk)
    for block in range(4):
        desk.fill("device", block, 5)
        desk.start(OUT, (block, block, 1))
    while desk.swap.in_flight:
        for ended in desk.swap.poll():
            [(_, block, _)] = ended.copy.runs
            assert desk.value("host", block) == 5
        device.step()


def check_what_no_worker_has_put_is_not_reported(make: Make) -> None:
    desk = make(threads=1)
    gate = Gate()
    device_of(desk).on_put = on_first("wait", gate.passes)
    desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    early = desk.swap.poll()
    gate.open()
    assert early == [] and len(desk.settle()) == 1


def check_a_cancelled_copy_holds_its_target_until_it_ends(make: Make) -> None:
    desk = make()
    device = by_hand(desk)
    started = desk.start(OUT, (0, 0, 1))
    desk.swap.cancel(started.copy.copy_id)
    assert_moves_nothing_after_its_report(desk, device, 0)


def assert_moves_nothing_after_its_report(desk: Desk, device: FakeDevice, block: int) -> None:
    """Once everything is reported, the host block is whoever's wants it."""
    while True:
        desk.swap.poll()
        if not desk.swap.in_flight:
            break
        device.step()
    desk.fill("host", block, 9)
    device.run()
    assert desk.value("host", block) == 9


def stops_half_way(desk: Desk, error: BaseException) -> None:
    """The next copy goes wrong when some of it is on its lane."""

    def fail() -> None:
        raise error

    device_of(desk).on_put = on_first("copy", fail, after=2)


def check_a_copy_that_was_put_in_part_holds_its_target_until_that_has_landed(make: Make) -> None:
    desk = make()
    device = by_hand(desk)
    stops_half_way(desk, RuntimeError("invalid argument"))
    assert not desk.start(OUT, (0, 0, 1)).ok
    assert_moves_nothing_after_its_report(desk, device, 0)


def check_so_does_one_whose_worker_died(make: Make) -> None:
    desk = make(threads=1)
    device = by_hand(desk)
    stops_half_way(desk, SystemExit())
    started = desk.start(OUT, (0, 0, 1))
    [worker] = [w for w in desk.swap._workers if w.way is OUT]
    worker.join(10)
    assert_moves_nothing_after_its_report(desk, device, 0)
    assert not started.ok


def two_workers(desk: Desk) -> tuple[Any, Any]:
    """Two stores into host block 0 by two workers; the first is held up before it puts anything,
    and its lane is the last to move."""
    device, gate = by_hand(desk), Gate()

    def hold(lane: Any) -> None:
        device.last = {lane.stream.name}
        gate.passes()

    def on_put(lane: Any, what: str) -> None:
        if what == "copy":
            device.on_put = lambda *_: None
            hold(lane)

    device.on_put = on_put
    desk.fill("device", 0, 1)
    desk.fill("device", 1, 2)
    first = desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    return first, gate


def check_the_later_of_two_stores_into_a_block_counts(make: Make) -> None:
    desk = make(threads=2)
    first, gate = two_workers(desk)
    second = desk.start(OUT, (1, 0, 1))
    second.submitted.wait(0.05)  # time to go wrong
    gate.open()
    assert first.submitted.wait(10) and second.submitted.wait(10)
    device_of(desk).run()
    assert desk.value("host", 0) == 2


def check_it_counts_even_if_one_between_them_was_dropped(make: Make) -> None:
    desk = make(threads=2)
    first, gate = two_workers(desk)
    device, other = device_of(desk), Gate()
    device.on_put = on_first("copy", other.passes)
    desk.start(OUT, (7, 7, 1))
    other.wait_until_reached()
    dropped = desk.start(OUT, (2, 0, 1))
    desk.swap.cancel(dropped.copy.copy_id)
    last = desk.start(OUT, (1, 0, 1))
    other.open()
    last.submitted.wait(0.05)  # time to go wrong
    gate.open()
    assert first.submitted.wait(10) and last.submitted.wait(10)
    device.run()
    assert desk.value("host", 0) == 2


def check_a_copy_that_was_never_put_ends_after_those_before_it(make: Make) -> None:
    desk = make()
    device = by_hand(desk)
    first = desk.start(OUT, (0, 0, 1))
    device.on_put = on_first("wait", lambda: (_ for _ in ()).throw(RuntimeError("no stream")))
    second = desk.start(OUT, (1, 0, 1))
    assert second.mark is None and desk.swap.poll() == []
    device.run()
    assert desk.swap.poll() == [first, second]


def check_a_gathered_store_is_unpacked_after_it_landed(make: Make) -> None:
    desk = make(submission="gather")
    desk.fill("device", 0, 5)
    desk.wait(desk.start(OUT, (0, 0, 1)))
    assert desk.value("host", 0) == 5


def check_copies_of_opposite_directions_do_not_meet(make: Make) -> None:
    desk = make()
    by_hand(desk)
    desk.start(OUT, (0, 0, 1))
    with pytest.raises(InvariantError, match="meet"):
        desk.start(IN, (0, 1, 1))


def check_a_step_does_not_write_what_a_copy_uses(make: Make) -> None:
    desk = make()
    by_hand(desk)
    desk.start(OUT, (0, 0, 1))
    with pytest.raises(InvariantError, match="a step writes"):
        desk.swap.guard.check_compute([0])


def check_nor_the_target_of_a_load_that_was_cancelled(make: Make) -> None:
    desk = make()
    by_hand(desk)
    desk.swap.cancel(desk.start(IN, (0, 0, 1)).copy.copy_id)
    with pytest.raises(InvariantError, match="a step writes"):
        desk.swap.guard.check_compute([0])


def check_nothing_moves_once_the_manager_is_closed(make: Make) -> None:
    desk = make(threads=1)
    for started in (desk.start(OUT, (0, 0, 1)), desk.start(IN, (1, 1, 1))):
        assert started.submitted.wait(10)
    desk.swap.close()
    desk.fill("host", 0, 9)
    desk.fill("device", 1, 9)
    device_of(desk).run()
    assert (desk.value("host", 0), desk.value("device", 1)) == (9, 9)
    assert desk.swap.in_flight == {}


def check_memory_that_is_not_page_locked_is_refused(make: Make) -> None:
    memory, locker = make_store().host.whole, FakeLocker(forgetful=True)
    with pytest.raises(FaultError, match="not page-locked"):
        pinned.page_lock(memory, locker, is_locked=locker.is_locked)


# ---------------------------------------------------------------------- the list


class Barrier(NamedTuple):
    """A line of a module, what is there without it, and the check that misses it."""

    what: str
    trap: str
    module: ModuleType
    line: str
    without: str
    check: Callable[[Make], None]


PUT = """\
                transfer.mark = _UNTOLD
                try:
                    put = self._move(self.store, transfer.copy, lane)
                    transfer.calls, transfer.driver_ns = put
                finally:
                    transfer.mark = lane.mark()
"""
MOVE = "                transfer.calls, _ = self._move(self.store, transfer.copy, lane)\n"
MARK = "                transfer.mark = lane.mark()\n"

BARRIERS = [
    Barrier(
        "a copy waits for the step's barrier: store",
        "A1",
        swap,
        "                lane.wait(transfer.barrier)\n",
        "",
        check_a_store_takes_what_the_step_before_it_wrote,
    ),
    Barrier(
        "a copy waits for the step's barrier: load",
        "A2",
        swap,
        "                lane.wait(transfer.barrier)\n",
        "",
        check_a_load_lets_the_step_before_it_read,
    ),
    Barrier(
        "a new barrier behind every step",
        "A7",
        swap,
        'submitted from now on."""\n        self._barrier = self._runtime.barrier()\n',
        'submitted from now on."""\n',
        check_a_store_takes_what_the_step_before_it_wrote,
    ),
    Barrier(
        "a batched call reads sources in stream order",
        "A3",
        batchcopy,
        "SOURCE_IN_STREAM_ORDER = 1\n",
        "SOURCE_IN_STREAM_ORDER = 3\n",
        check_a_store_takes_what_the_step_before_it_wrote,
    ),
    Barrier(
        "the mark is recorded behind the copy",
        "A5",
        swap,
        PUT,
        MARK + MOVE,
        check_what_is_reported_has_arrived,
    ),
    Barrier(
        "also behind one put in part",
        "L1",
        swap,
        PUT,
        MOVE + MARK,
        check_a_copy_that_was_put_in_part_holds_its_target_until_that_has_landed,
    ),
    Barrier(
        "also when its worker dies",
        "L1",
        swap,
        PUT,
        MOVE + MARK,
        check_so_does_one_whose_worker_died,
    ),
    Barrier(
        "`wait` waits for the mark",
        "A1",
        swap,
        "            while not self._has_ended(transfer):\n",
        "            while False:\n",
        check_what_was_waited_for_has_arrived,
    ),
    Barrier(
        "`poll` asks the mark",
        "L1",
        swap,
        "        return self.mark.is_done()\n",
        "        return True\n",
        check_what_is_reported_has_arrived,
    ),
    Barrier(
        "`poll` asks whether it was put at all",
        "L1",
        swap,
        "        if not self.submitted.is_set():\n            return False\n",
        "",
        check_what_no_worker_has_put_is_not_reported,
    ),
    Barrier(
        "a cancelled copy ends with its mark",
        "L6",
        swap,
        "        return self.mark.is_done()\n",
        "        return self.cancelled or self.mark.is_done()\n",
        check_a_cancelled_copy_holds_its_target_until_it_ends,
    ),
    Barrier(
        "copies that share a block are told apart",
        "L10",
        guard,
        "            after[other.copy_id] = None\n",
        "",
        check_the_later_of_two_stores_into_a_block_counts,
    ),
    Barrier(
        "the later waits for the earlier's mark",
        "L10",
        swap,
        "                        lane.wait(mark)\n",
        "                        pass\n",
        check_the_later_of_two_stores_into_a_block_counts,
    ),
    Barrier(
        "and until there is one",
        "L10",
        swap,
        "        self.submitted.wait()\n",
        "",
        check_the_later_of_two_stores_into_a_block_counts,
    ),
    Barrier(
        "a dropped copy hands on what it came after",
        "L10",
        swap,
        "                yield from earlier.marks()\n",
        "                pass\n",
        check_it_counts_even_if_one_between_them_was_dropped,
    ),
    Barrier(
        "and does not end before it",
        "L10",
        swap,
        "            return all(earlier.is_done() for earlier in self.after)\n",
        "            return True\n",
        check_a_copy_that_was_never_put_ends_after_those_before_it,
    ),
    Barrier(
        "a gathered store has landed before the CPU unpacks it",
        "A8",
        transfer,
        "            lane.mark().synchronize()",
        "            lane.mark()",
        check_a_gathered_store_is_unpacked_after_it_landed,
    ),
    Barrier(
        "copies of opposite directions do not share a block",
        "A4",
        guard,
        "            if other.direction is not copy.direction:\n",
        "            if False:\n",
        check_copies_of_opposite_directions_do_not_meet,
    ),
    Barrier(
        "no step writes a block that a copy uses",
        "L1",
        guard,
        "            if user is not None:\n",
        "            if False:\n",
        check_a_step_does_not_write_what_a_copy_uses,
    ),
    Barrier(
        "a cancelled load keeps its target",
        "L6",
        guard,
        "        if copy.direction is Direction.TO_DEVICE:\n            return\n",
        "",
        check_nor_the_target_of_a_load_that_was_cancelled,
    ),
    Barrier(
        "`close` waits for what is under way",
        "L17",
        swap,
        "        while any(self._is_moving(transfer) for transfer in self.in_flight.values()):\n",
        "        while False:\n",
        check_nothing_moves_once_the_manager_is_closed,
    ),
    Barrier(
        "host memory is seen to be page-locked",
        "A8",
        pinned,
        "            if not (is_locked(blocks[:1]) and is_locked(blocks[-1:])):\n",
        "            if False:\n",
        check_memory_that_is_not_page_locked_is_refused,
    ),
]


def name_of(check: Callable[[Make], None]) -> str:
    return check.__name__.removeprefix("check_")


CHECKS = list(dict.fromkeys(barrier.check for barrier in BARRIERS))


def maker(manager: type[SwapManager], desks: list[Desk], **device: Any) -> Make:
    def make(**how: Any) -> Desk:
        desks.append(Desk(FakeDevice(**device), swap=manager, **how))
        return desks[-1]

    return make


def run(check: Callable[[Make], None], manager: type[SwapManager], **device: Any) -> None:
    desks: list[Desk] = []
    try:
        check(maker(manager, desks, **device))
    finally:
        for desk in desks:
            device_of(desk).on_put = lambda *_: None
            desk.close()


def plant(barrier: Barrier, monkeypatch: pytest.MonkeyPatch) -> type[SwapManager]:
    """Put the changed module to use; returns the swap manager to use with it."""
    copy = changed(barrier.module, barrier.line, barrier.without)
    if barrier.module is batchcopy:
        monkeypatch.setattr(batchcopy, "copy_batch", copy.copy_batch)
    elif barrier.module is guard:
        monkeypatch.setattr(swap, "BlockGuard", copy.BlockGuard)
    elif barrier.module is transfer:
        monkeypatch.setattr(swap, "MOVERS", copy.MOVERS)
    elif barrier.module is pinned:
        monkeypatch.setattr(pinned, "page_lock", copy.page_lock)
    else:
        found: type[SwapManager] = copy.SwapManager
        return found
    return SwapManager


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_with_every_barrier_in_place(check: Callable[[Make], None]) -> None:
    for seed in range(3):
        run(check, SwapManager, seed=seed)


@pytest.mark.parametrize("barrier", BARRIERS, ids=[b.what.replace(" ", "-") for b in BARRIERS])
def test_without_it_its_check_fails(barrier: Barrier, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(barrier.check, plant(barrier, monkeypatch))


def test_the_list_is_that_of_the_page_on_traps() -> None:
    page = (ROOT / "docs/traps.md").read_text()
    section = page.split("## Barriers, and the test that misses each")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| `(\w+)\.py` \| `(\w+)` \|$", section, re.MULTILINE)
    assert rows == [
        (b.what, b.trap, b.module.__name__.split(".")[-1], name_of(b.check)) for b in BARRIERS
    ]
