"""What goes wrong with a copy is a value or a clear end, and leaves nothing behind."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import FaultError
from policy.integrity import check_integrity
from realrun.kvstore import LAYOUTS
from realrun.pinned import page_lock
from realrun.swap import TIMEOUT_S, Transfer
from tests.helpers.fake_device import FakeDevice, FakeLocker
from tests.helpers.inside import memory_of
from tests.helpers.late_machine import LateMachine, swapping_scheduler
from tests.helpers.shadow import serve
from tests.helpers.small import random_turns
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

#: A worker that is made to die says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

HANGS = 2e-6  # seconds of a clock that goes on by a microsecond when it is read


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
    assert our_threads() == []


@pytest.fixture
def desks() -> Iterator[Any]:
    """Makes desks over a fake device and closes them."""
    made: list[Desk] = []

    def make(seed: int = 0, **how: Any) -> Desk:
        made.append(Desk(FakeDevice(seed), **how))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


def raises(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def puts_of(submission: str, layout: str) -> int:
    """How often a job of two runs puts something on its lane, marks included."""
    device = FakeDevice()
    found: list[str] = []
    device.on_put = lambda _lane, what: found.append(what)
    desk = Desk(device, submission=submission, layout=layout)
    desk.start(OUT, (0, 0, 2), (4, 4, 1))
    desk.close()
    return len(found) - 1  # the last is the mark, without which nobody could go on


# ---------------------------------------------------------------------- a copy fails


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_wherever_putting_a_copy_fails_it_is_a_value_and_the_next_goes_well(
    desks: Any, submission: str, layout: str, threads: int
) -> None:
    for k in range(puts_of(submission, layout)):
        desk = desks(k, submission=submission, layout=layout, threads=threads)
        left = [k]

        def fail(_lane: Any, _what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise RuntimeError("CUDA error: invalid argument")

        desk.device.on_put = fail
        desk.fill("device", 6, 5)
        bad, good = desk.start(OUT, (0, 0, 2), (4, 4, 1)), desk.start(OUT, (6, 6, 1))
        desk.wait(bad, good)
        assert {t.copy.copy_id: t.ok for t in desk.settle()} == {1: False, 2: True}
        assert str(bad.error) == "CUDA error: invalid argument"
        assert desk.value("host", 6) == 5
        desk.start(IN, (0, 0, 2), (4, 4, 1))  # its blocks are free again
        desk.close()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_batch_that_the_driver_refuses_fails_with_the_piece_it_refused(
    desks: Any, threads: int
) -> None:
    desk = desks(submission="batched", threads=threads)

    def refuse(*args: Any) -> int:
        args[7]._obj.value = 3
        return 1

    desk.device.memcpy_batch = refuse
    desk.start(OUT, (0, 0, 1))
    [ended] = desk.settle()
    assert not ended.ok
    assert isinstance(ended.error, FaultError)
    assert "at piece 3 of 4" in str(ended.error)


def test_a_run_outside_the_pools_fails_and_copies_nothing(desks: Any) -> None:
    desk = desks()
    desk.start(OUT, (7, 0, 1), (7, 6, 3))
    [ended] = desk.settle()
    assert not ended.ok and "is not inside 8 device and 8 host" in str(ended.error)


# ---------------------------------------------------------------------- a copy hangs


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("submission", ["per_block", "merged", "batched"])
def test_waiting_for_a_copy_that_never_ends_ends_with_its_name(
    desks: Any, submission: str, threads: int
) -> None:
    desk = desks(submission=submission, threads=threads, timeout_s=1e-3)
    desk.device.stalled = {lane.stream.name for lane in desk.device.lanes}
    started = desk.start(OUT, (0, 0, 3))
    assert started.submitted.wait(10)
    with pytest.raises(
        FaultError, match=r"copy 1 of r1 \(d2h, 3 blocks\) has not ended after 0\.001 s"
    ):
        desk.wait(started)


@pytest.mark.parametrize("what", ["wait", "copy", "mark"])
def test_so_does_waiting_for_a_worker_that_never_comes_back_from_a_call(
    desks: Any, what: str
) -> None:
    desk, gate = desks(threads=1, timeout_s=HANGS), Gate()
    desk.device.on_put = on_first(what, gate.passes)
    started = desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    try:
        with pytest.raises(FaultError, match=r"copy 1 of r1 .* has not ended"):
            desk.wait(started)
        with pytest.raises(FaultError, match=r"copy 1 of r1 .* has not ended"):
            desk.swap.poll()
    finally:
        gate.open()
        assert started.submitted.wait(10)


def test_a_gathering_worker_hangs_alone(desks: Any) -> None:
    desk = desks(threads=1, submission="gather", timeout_s=HANGS)
    desk.device.stalled = {"lane0"}
    started = desk.start(OUT, (0, 0, 1))
    with pytest.raises(FaultError, match="has not ended"):
        desk.wait(started)
    desk.device.let_go()
    assert started.submitted.wait(10)


def test_polling_finds_the_copy_that_hangs_and_no_other(desks: Any) -> None:
    desk = desks(timeout_s=1e-3)
    desk.device.stalled = {"lane0"}
    desk.start(OUT, (0, 0, 1))
    load = desk.start(IN, (1, 1, 1))
    ended: list[Transfer] = []

    def poll_for_ever() -> None:
        while True:
            ended.extend(desk.swap.poll())

    with pytest.raises(FaultError, match="copy 1 of r1"):
        poll_for_ever()
    assert ended == [load]


def test_a_copy_may_take_a_minute() -> None:
    assert TIMEOUT_S == 60


# ---------------------------------------------------------------------- the device breaks


@pytest.mark.parametrize("ask", ["wait", "poll", "news"])
def test_a_broken_device_is_a_fault_that_names_the_copy_it_was_seen_at(
    desks: Any, ask: str
) -> None:
    desk = desks()
    started = desk.start(OUT, (0, 0, 1))
    desk.device.broken = "CUDA error: an illegal memory access was encountered"
    asks = {
        "wait": lambda: desk.wait(started),
        "poll": desk.swap.poll,
        "news": lambda: desk.swap.wait_for_news(1),
    }
    with pytest.raises(FaultError, match=r"copy 1 of r1 .*: the device broke: .* illegal memory"):
        asks[ask]()


@pytest.mark.parametrize("threads", [0, 1])
def test_without_a_mark_behind_it_nobody_says_that_a_copy_has_ended(
    desks: Any, threads: int
) -> None:
    desk = desks(threads=threads)
    desk.device.on_put = on_first("mark", raises(RuntimeError("out of resources")))
    started = desk.start(OUT, (0, 0, 1))
    with pytest.raises(FaultError, match="no mark could be recorded behind it"):
        desk.wait(started)
    assert str(started.error) == "out of resources"


# ---------------------------------------------------------------------- a worker dies


@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_wherever_a_worker_dies_its_job_has_failed_and_another_takes_over(
    desks: Any, submission: str
) -> None:
    for k in range(puts_of(submission, "layer_major")):
        desk = desks(k, submission=submission, threads=1)
        left = [k]

        def die(_lane: Any, _what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise SystemExit

        desk.device.on_put = die
        desk.fill("device", 6, 5)
        victim = next(worker for worker in desk.swap._workers if worker.way is OUT)
        bad, good = desk.start(OUT, (0, 0, 2), (4, 4, 1)), desk.start(OUT, (6, 6, 1))
        desk.wait(bad, good)
        assert {t.copy.copy_id: t.ok for t in desk.settle()} == {1: False, 2: True}
        assert str(bad.error) == "the worker thread died"
        assert desk.value("host", 6) == 5
        assert not victim.is_alive() and victim not in desk.swap._workers
        assert Counter(our_threads()) == {"swap-d2h": 1, "swap-h2d": 1}
        desk.close()


def test_an_idle_engine_notices_a_dead_worker_at_its_next_poll(desks: Any) -> None:
    desk = desks(threads=2)
    desk.device.on_put = on_first("copy", raises(SystemExit()))
    started = desk.start(OUT, (0, 0, 1))
    ended = []
    while not ended:
        desk.swap.wait_for_news(0.001)
        ended = desk.swap.poll()
    assert ended == [started] and not started.ok
    assert len(our_threads()) == 4


# ---------------------------------------------------------------------- it never begins


@pytest.mark.parametrize("k", range(4))
def test_a_machine_that_cannot_make_a_lane_says_so_at_the_start(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice()
    proper = device.lane

    def lane() -> Any:
        if len(device.lanes) == k:
            raise RuntimeError("out of memory")
        return proper()

    monkeypatch.setattr(device, "lane", lane)
    with pytest.raises(RuntimeError, match="out of memory"):
        Desk(device, threads=2)
    assert our_threads() == []


# ---------------------------------------------------------------------- closing


def test_closing_drops_what_is_queued_and_waits_for_what_is_under_way() -> None:
    device, gate = FakeDevice(), Gate()
    device.on_put = on_first("copy", gate.passes)
    desk = Desk(device, threads=1)
    for block in range(3):
        desk.fill("device", block, 5)
    *_, last = [desk.start(OUT, (block, block, 1)) for block in range(3)]
    gate.wait_until_reached()

    def open_once_the_last_is_unwanted() -> None:
        while not last.cancelled:
            time.sleep(0)
        gate.open()

    threading.Thread(target=open_once_the_last_is_unwanted).start()
    desk.swap.close()
    assert desk.values("host")[:3] == [5, 0, 0]
    assert (desk.swap.in_flight, desk.swap.guard._users, our_threads()) == ({}, {}, [])


def test_closing_over_a_copy_that_hangs_ends_and_keeps_it_in_flight() -> None:
    device = FakeDevice()
    device.stalled = {"lane0"}
    desk = Desk(device, timeout_s=0.5)
    desk.start(OUT, (0, 0, 1))
    desk.start(IN, (1, 1, 1))
    desk.swap.close()
    assert list(desk.swap.in_flight) == [1]


def test_closing_over_a_broken_device_or_a_dead_worker_waits_for_nobody() -> None:
    device = FakeDevice()
    device.on_put = on_first("copy", raises(SystemExit()))
    desk = Desk(device, threads=1)
    desk.start(OUT, (0, 0, 1))
    next(worker for worker in desk.swap._workers if worker.way is OUT).join(10)
    load = desk.start(IN, (1, 1, 1))
    assert load.submitted.wait(10)
    device.broken = "unspecified launch failure"
    desk.swap.close()
    assert (desk.swap.in_flight, our_threads()) == ({}, [])


def test_closing_drops_what_a_dead_worker_had_not_begun() -> None:
    device = FakeDevice()
    device.on_put = on_first("copy", raises(SystemExit()))
    desk = Desk(device, threads=1)
    desk.start(OUT, (0, 0, 1))
    next(worker for worker in desk.swap._workers if worker.way is OUT).join(10)
    dropped = desk.start(OUT, (1, 1, 1))
    desk.swap.close()
    assert not dropped.ok
    assert (desk.swap.in_flight, desk.swap.guard._users, our_threads()) == ({}, {}, [])


def test_closing_frees_a_worker_that_waits_for_what_a_dead_one_held() -> None:
    """Two stores into one host block; the first's worker dies before it has put anything, while the
    second's waits for it."""
    device, gate, other = FakeDevice(), Gate(), Gate()

    def dies() -> None:
        gate.passes()
        raise SystemExit

    device.on_put = on_first("wait", dies)
    desk = Desk(device, threads=2)
    desk.start(OUT, (0, 0, 1))
    gate.wait_until_reached()
    device.on_put = on_first("wait", other.passes)
    desk.start(OUT, (1, 0, 1))
    other.wait_until_reached()
    gate.open()
    other.open()
    begin = time.monotonic()
    desk.swap.close()
    assert time.monotonic() - begin < 5
    assert (desk.swap.in_flight, desk.swap.guard._users, our_threads()) == ({}, {}, [])


# ---------------------------------------------------------------------- a thousand cycles


def goes_wrong_at_random(rng: random.Random, share: float, *, deadly: bool) -> Any:
    """Calls fail, and in workers also take the thread along."""

    def on_put(_lane: Any, what: str) -> None:
        if what == "mark" or rng.random() >= share:
            return
        if deadly and threading.current_thread().name.startswith("swap-") and rng.random() < 0.3:
            raise SystemExit
        raise RuntimeError("it failed")

    return on_put


def one_cycle(seed: int, locker: FakeLocker, seen: Counter[str]) -> None:
    """A store and a manager come and go; in between copies fail, are cancelled, or arrive."""
    rng = random.Random(seed)
    device = FakeDevice(seed)
    device.on_put = goes_wrong_at_random(rng, 0.05, deadly=True)
    desk = Desk(
        device,
        threads=rng.choice([0, 0, 1, 2]),
        submission=rng.choice(SUBMISSIONS),
        layout=rng.choice(LAYOUTS),
        timeout_s=5,
    )
    store = desk.store
    assert store.host.whole is not None
    store.registered = page_lock(store.host.whole, locker, chunk=1, is_locked=locker.is_locked)
    for block in range(8):
        desk.fill("device", block, 10 + block)
        desk.fill("host", block, 20 + block)
    ended: list[Transfer] = []
    for block in rng.sample(range(8), rng.randrange(1, 6)):
        way = rng.choice([OUT, IN])
        started = desk.start(way, (block, block, 1))
        if rng.random() < 0.3:
            desk.swap.cancel(started.copy.copy_id)
        if rng.random() < 0.3:
            desk.wait(started)
        if rng.random() < 0.5:
            ended += desk.swap.poll()
    if rng.random() < 0.5:
        ended += desk.settle()
    else:
        seen["in flight at the end"] += len(desk.swap.in_flight)
    desk.swap.close()
    store.close()
    for transfer in ended:
        seen[kind_of(transfer)] += 1
        [(block, _, _)] = transfer.copy.runs
        if transfer.ok:
            number = (10 if transfer.copy.direction is OUT else 20) + block
            assert desk.value("device", block) == desk.value("host", block) == number
    device.run()
    assert (desk.swap.in_flight, desk.swap.guard._users) == ({}, {})
    assert (locker.chunks, store.registered.num_bytes) == ({}, 0)


def kind_of(transfer: Transfer) -> str:
    if transfer.error is not None:
        return "died" if "died" in str(transfer.error) else "failed"
    return "cancelled" if transfer.cancelled else "arrived"


def test_a_thousand_cycles_of_faults_and_cancels_leave_no_block_thread_or_locked_byte() -> None:
    locker, seen = FakeLocker(), Counter[str]()
    threads = set(threading.enumerate())
    for seed in range(1000):
        one_cycle(seed, locker, seen)
        assert set(threading.enumerate()) == threads
    assert min(seen[k] for k in ("arrived", "cancelled", "failed", "in flight at the end")) > 100
    assert seen["died"] > 10


@pytest.mark.parametrize("threads", [0, 2])
def test_under_faults_and_cancels_nobody_computes_on_kv_that_is_not_its_own(threads: int) -> None:
    seen = Counter[str]()
    for seed in range(40):
        rng = random.Random(1000 * threads + seed)
        made = swapping_scheduler(rng)
        device = FakeDevice(seed)
        device.on_put = goes_wrong_at_random(rng, rng.choice([0.0, 0.01, 0.1]), deadly=True)
        machine = LateMachine(made, rng, device, threads=threads, layout=rng.choice(LAYOUTS))

        def check(scheduler: Any, machine: LateMachine = machine, rng: Any = rng) -> None:
            check_integrity(scheduler)
            machine.num_checks += 1
            between_plans = machine.num_checks % 2 == 0
            if between_plans and machine.served and rng.random() < 0.01:
                machine.cancel(rng.choice(sorted(machine.served)))

        turns = random_turns(rng, made.settings.block_size)
        serve(machine, turns, check=check, patience=2000)
        machine.close()
        assert len(machine.finished) + len(machine.rejected) == len(turns)
        assert (machine.swap.in_flight, machine.swap.guard._users) == ({}, {})
        assert memory_of(made).in_flight == {} and memory_of(made).transfers.coming == 0
        seen.update(kind_of(transfer) for transfer in machine.ended)
        seen["kernels"] += machine.num_kernels
    assert seen["arrived"] > 200 and seen["failed"] > 10 and seen["cancelled"] > 3
    assert bool(seen["died"]) == bool(threads)
