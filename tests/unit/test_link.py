"""The host link, told as logs: a small process writes down what it sees, one equality checks it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import simpy

from calibrate.profile import Profile, load
from policy.plan import Copy, Direction
from policy.systems import custom_system
from sim.clock import Clock
from sim.costs import CopyCosts
from sim.link import HostLink

TO_HOST, TO_DEVICE = Direction.TO_HOST, Direction.TO_DEVICE
BLOCK = 2 * 1024 * 1024
#: A block takes 1,000 ns one way alone, and nothing else takes time.
RATE = BLOCK * 1e6
WIRE_ONLY = {
    "transfer.per_job": 0.0,
    "transfer.per_call": 0.0,
    "transfer.per_descriptor": 0.0,
    "transfer.lock_growth": 0.0,
    "transfer.queue_depth": 1000.0,
    "transfer.piece_setup": 0.0,
    "transfer.to_device": RATE,
    "transfer.to_host": RATE,
    "transfer.to_device_duplex": RATE,
    "transfer.to_host_duplex": RATE,
    "transfer.interference_to_device": 0.0,
    "transfer.interference_to_host": 0.0,
}

Log = list[tuple[Any, ...]]
Process = Generator[simpy.Event, object, None]


def profile(**values: float) -> Profile:
    given = {f"transfer.{name}": value for name, value in values.items()}
    return load("a10-llama-3-8b").with_values({**WIRE_ONLY, **given})


class Bench:
    """A clock, a link under it and a log."""

    def __init__(
        self,
        threads: int | None = None,
        submission: str = "per_block",
        fails: Callable[[Copy], bool] | None = None,
        **values: float,
    ) -> None:
        system = custom_system(
            {"submission": submission, "layout": "block_major", "threads": threads or 1}
        )
        self.env = Clock()
        self.costs = CopyCosts(profile(**values), system, 16)
        self.link = HostLink(self.env, self.costs, worker_threads=threads, fails=fails)
        self.log: Log = []

    def copy(self, at: int, copy_id: int, way: Direction, blocks: int) -> None:
        """Submit a copy at a time, by a thread that is free then."""
        self.env.process(self._copy(at, copy_id, way, blocks))

    def cancel(self, at: int, copy_id: int) -> None:
        self.env.process(self._cancel(at, copy_id))

    def _copy(self, at: int, copy_id: int, way: Direction, blocks: int) -> Process:
        yield self.env.timeout(at)
        job = self.link.submit(copy_of(copy_id, way, blocks), self.env.now)
        self.log.append((self.env.now, "submit", copy_id))
        yield job.done
        self.log.append((self.env.now, "end" if job.ok else "not ok", copy_id, job.begin_ns))

    def _cancel(self, at: int, copy_id: int) -> Process:
        yield self.env.timeout(at)
        self.link.cancel(copy_id)
        self.log.append((self.env.now, "cancel", copy_id))

    def run(self) -> Log:
        self.env.run()
        return self.log


def copy_of(copy_id: int, way: Direction, blocks: int) -> Copy:
    return Copy(copy_id, way, f"r{copy_id}", ((0, 0, blocks),), blocks)


# ---------------------------------------------------------------------- one direction


def test_copies_of_one_direction_move_one_after_another_in_submission_order() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 3)
    bench.copy(0, 2, TO_HOST, 1)
    bench.copy(500, 3, TO_HOST, 2)
    bench.copy(9000, 4, TO_HOST, 1)
    assert bench.run() == [
        (0, "submit", 1),
        (0, "submit", 2),
        (500, "submit", 3),
        (3000, "end", 1, 0),
        (4000, "end", 2, 3000),
        (6000, "end", 3, 4000),
        (9000, "submit", 4),
        (10_000, "end", 4, 9000),
    ]


def test_a_link_begins_with_the_first_call_and_ends_no_earlier_than_its_last() -> None:
    """Calls of 1,500 ns are slower than the 1,000 ns that a block takes to move."""
    bench = Bench(threads=1, per_job=200.0, per_call=1500.0)
    bench.copy(0, 1, TO_DEVICE, 3)
    assert bench.run() == [
        (0, "submit", 1),
        (200 + 3 * 1500 + 1000, "end", 1, 200 + 1500),
    ]


def test_a_copy_whose_calls_keep_up_ends_when_its_bytes_have_moved() -> None:
    bench = Bench(threads=1, per_job=200.0, per_call=100.0)
    bench.copy(0, 1, TO_DEVICE, 3)
    assert bench.run() == [(0, "submit", 1), (300 + 3000, "end", 1, 300)]


def test_a_copy_of_nothing_but_set_up_costs_no_time_at_all() -> None:
    bench = Bench(threads=1, to_host=1e16, to_host_duplex=1e16)
    bench.copy(5, 1, TO_HOST, 1)
    bench.copy(5, 2, TO_HOST, 1)
    assert bench.run() == [
        (5, "submit", 1),
        (5, "submit", 2),
        (5, "end", 1, 5),
        (5, "end", 2, 5),
    ]


# ---------------------------------------------------------------------- submitters


def submitted_in_turn(bench: Bench, *copies: Copy) -> list[int]:
    """When the one thread that submits these has done each, from time zero."""
    done, free = [], 0
    for copy in copies:
        free = bench.link.submit(copy, free).submitted_ns
        done.append(free)
    return done


def test_the_engines_own_thread_submits_one_job_after_another_whatever_the_direction() -> None:
    bench = Bench(threads=None, per_job=200.0, per_call=100.0)
    copies = [copy_of(1, TO_HOST, 2), copy_of(2, TO_DEVICE, 3), copy_of(3, TO_HOST, 1)]
    assert submitted_in_turn(bench, *copies) == [400, 900, 1200]


def test_one_worker_thread_serialises_the_jobs_of_its_direction_only() -> None:
    bench = Bench(threads=1, per_job=200.0, per_call=100.0)
    jobs = [
        bench.link.submit(copy_of(i, way, 2), 0)
        for i, way in enumerate([TO_HOST, TO_HOST, TO_DEVICE, TO_DEVICE])
    ]
    assert [(job.ready_ns, job.submitted_ns) for job in jobs] == [
        (300, 400),
        (700, 800),
        (300, 400),
        (700, 800),
    ]


def test_a_second_worker_thread_submits_beside_the_first_and_the_third_job_waits_for_one() -> None:
    bench = Bench(threads=2, per_job=200.0, per_call=100.0)
    jobs = [bench.link.submit(copy_of(i, TO_HOST, blocks), 0) for i, blocks in enumerate((5, 2, 1))]
    assert [job.submitted_ns for job in jobs] == [700, 400, 700]


def test_a_worker_thread_that_has_been_idle_begins_at_once() -> None:
    bench = Bench(threads=1, per_call=100.0)
    bench.link.submit(copy_of(1, TO_HOST, 1), 0)
    bench.env.run(until=5000)
    assert bench.link.submit(copy_of(2, TO_HOST, 1), 0).submitted_ns == 5100


def test_a_full_queue_holds_the_submitter_until_its_last_calls_fit() -> None:
    """Ten calls, a queue of four: the last can be queued when four pieces are left to move."""
    bench = Bench(threads=None, per_call=100.0, queue_depth=4.0)
    job = bench.link.submit(copy_of(1, TO_HOST, 10), 0)
    assert job.submitted_ns == 100 + 10 * 1000 - 4 * 1000
    bench.env.run()
    assert (job.begin_ns, job.end_ns) == (100, 10_100)


def test_a_queue_that_is_deep_enough_holds_nobody() -> None:
    bench = Bench(threads=None, per_call=100.0, queue_depth=10.0)
    assert bench.link.submit(copy_of(1, TO_HOST, 10), 0).submitted_ns == 1000


def test_the_queue_fills_with_the_calls_of_all_jobs_and_not_of_one() -> None:
    """A stream takes so many calls, whoever made them: here eight of two jobs, four at a time."""
    bench = Bench(threads=None, per_call=100.0, queue_depth=4.0)
    first = bench.link.submit(copy_of(1, TO_HOST, 4), 0)
    second = bench.link.submit(copy_of(2, TO_HOST, 4), first.submitted_ns)
    assert second.submitted_ns == 100 + 8 * 1000 - 4 * 1000


# ---------------------------------------------------------------------- both directions


def test_full_duplex_directions_do_not_know_of_each_other() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 3)
    bench.copy(1000, 2, TO_DEVICE, 1)
    assert bench.run() == [
        (0, "submit", 1),
        (1000, "submit", 2),
        (2000, "end", 2, 1000),
        (3000, "end", 1, 0),
    ]


def test_a_direction_slows_down_while_the_other_moves_and_gets_its_rate_back() -> None:
    """To the host at half rate beside a load, the load at a quarter beside a store."""
    bench = Bench(threads=1, to_host_duplex=RATE / 2, to_device_duplex=RATE / 4)
    bench.copy(0, 1, TO_HOST, 3)
    bench.copy(1000, 2, TO_DEVICE, 2)
    # Alone until 1,000; its other 2,000 at half rate take 4,000. By then the load has moved a
    # quarter of 4,000 and the other 1,000 go at full rate.
    assert bench.run() == [
        (0, "submit", 1),
        (1000, "submit", 2),
        (5000, "end", 1, 0),
        (6000, "end", 2, 1000),
    ]


def test_rates_follow_the_other_direction_through_every_stop_and_start() -> None:
    bench = Bench(threads=1, to_host_duplex=RATE / 2)
    bench.copy(0, 1, TO_HOST, 4)
    bench.copy(1000, 2, TO_DEVICE, 1)
    bench.copy(3000, 3, TO_DEVICE, 1)
    # 1,000 alone, 500 beside the first load, 1,000 alone, 500 beside the second, 1,000 alone.
    assert bench.run() == [
        (0, "submit", 1),
        (1000, "submit", 2),
        (2000, "end", 2, 1000),
        (3000, "submit", 3),
        (4000, "end", 3, 3000),
        (5000, "end", 1, 0),
    ]


def test_jobs_back_to_back_leave_no_gap_in_which_the_other_direction_speeds_up() -> None:
    bench = Bench(threads=1, to_host_duplex=RATE / 2)
    bench.copy(0, 1, TO_HOST, 2)
    for copy_id in (2, 3, 4):
        bench.copy(0, copy_id, TO_DEVICE, 1)
    assert bench.run()[-4:] == [
        (1000, "end", 2, 0),
        (2000, "end", 3, 1000),
        (3000, "end", 4, 2000),
        (3000 + 500, "end", 1, 0),
    ]


def test_a_direction_that_waits_for_its_next_call_does_not_slow_the_other() -> None:
    """The load's bytes have moved at 2,000 and its last call comes at 9,000."""
    bench = Bench(threads=1, to_host_duplex=RATE / 2)
    load = bench.link.submit(copy_of(1, TO_DEVICE, 2), 0)
    load.submitted_ns = 9000
    store = bench.link.submit(copy_of(2, TO_HOST, 3), 0)
    bench.env.run()
    assert (load.end_ns, store.end_ns) == (9000 + 1000, 2000 + 2000)


@pytest.mark.parametrize("rate", [1, 3, 7, 511, 1023])
def test_a_slowed_copy_is_late_by_less_than_a_nanosecond_per_change_of_rate(rate: int) -> None:
    bench = Bench(threads=1, to_host_duplex=RATE * rate / 1024)
    bench.copy(0, 1, TO_HOST, 5)
    bench.copy(333, 2, TO_DEVICE, 1)
    end = next(entry[0] for entry in bench.run() if entry[1:3] == ("end", 1))
    exact = 333 + 1000 + (5000 - 333 - 1000 * rate / 1024)
    assert exact <= end < exact + 3


# ---------------------------------------------------------------------- the same instant


def two_that_end_together() -> Bench:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_DEVICE, 2)
    bench.copy(0, 2, TO_HOST, 2)
    return bench


def test_copies_that_end_at_one_instant_are_reported_in_the_order_in_which_they_are_seen() -> None:
    bench = two_that_end_together()
    log = bench.run()
    assert sorted(log[2:]) == [(2000, "end", 1, 0), (2000, "end", 2, 0)]
    assert [job.copy.copy_id for job in bench.link.ended_jobs] == [entry[2] for entry in log[2:]]
    assert log == two_that_end_together().run()


def test_slowed_copies_that_end_together_end_at_one_instant() -> None:
    bench = Bench(threads=1, to_host_duplex=RATE / 2, to_device_duplex=RATE / 2)
    bench.copy(0, 1, TO_HOST, 2)
    bench.copy(0, 2, TO_DEVICE, 2)
    assert sorted(bench.run()[2:]) == [(4000, "end", 1, 0), (4000, "end", 2, 0)]


def test_a_copy_that_begins_as_the_other_direction_ends_is_not_slowed() -> None:
    bench = Bench(threads=1, to_host_duplex=RATE / 2, to_device_duplex=RATE / 2)
    bench.copy(0, 1, TO_HOST, 2)
    bench.copy(2000, 2, TO_DEVICE, 1)
    assert bench.run() == [
        (0, "submit", 1),
        (2000, "submit", 2),
        (2000, "end", 1, 0),
        (3000, "end", 2, 2000),
    ]


def test_somebody_idle_is_woken_once_by_the_first_copy_that_ends() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 1)
    bench.copy(500, 2, TO_DEVICE, 1)

    def sleeper() -> Process:
        bench.link.on_end = bench.env.event()
        yield bench.link.on_end
        bench.log.append((bench.env.now, "awake", len(bench.link.in_flight)))

    bench.env.process(sleeper())
    assert bench.run() == [
        (0, "submit", 1),
        (500, "submit", 2),
        (1000, "end", 1, 0),
        (1000, "awake", 1),
        (1500, "end", 2, 500),
    ]


# ---------------------------------------------------------------------- ends that are not ok


def test_a_cancelled_copy_takes_its_time_and_ends_not_ok() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 2)
    bench.copy(0, 2, TO_HOST, 1)
    bench.cancel(500, 1)
    bench.cancel(600, 2)  # not begun yet
    assert bench.run() == [
        (0, "submit", 1),
        (0, "submit", 2),
        (500, "cancel", 1),
        (600, "cancel", 2),
        (2000, "not ok", 1, 0),
        (3000, "not ok", 2, 2000),
    ]


def test_cancelling_a_copy_that_has_ended_or_never_was_changes_nothing() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 1)
    bench.cancel(2000, 1)
    bench.cancel(2000, 77)
    assert bench.run() == [
        (0, "submit", 1),
        (1000, "end", 1, 0),
        (2000, "cancel", 1),
        (2000, "cancel", 77),
    ]


def test_a_fault_ends_the_copies_it_picks_as_not_ok_and_in_their_time() -> None:
    bench = Bench(threads=1, fails=lambda copy: copy.copy_id == 2)
    for copy_id in (1, 2, 3):
        bench.copy(0, copy_id, TO_DEVICE, 1)
    assert bench.run()[3:] == [
        (1000, "end", 1, 0),
        (2000, "not ok", 2, 1000),
        (3000, "end", 3, 2000),
    ]


def test_a_copy_is_in_flight_from_its_submission_to_its_end() -> None:
    bench = Bench(threads=1)
    bench.copy(0, 1, TO_HOST, 1)
    bench.copy(0, 2, TO_DEVICE, 2)
    seen = []
    for now in (1, 999, 1001, 1999, 2001):
        bench.env.run(until=now)
        seen.append((now, list(bench.link.in_flight)))
    assert seen == [(1, [1, 2]), (999, [1, 2]), (1001, [2]), (1999, [2]), (2001, [])]


def test_the_record_of_a_job_says_what_happened() -> None:
    bench = Bench(threads=1, per_job=200.0, per_call=100.0)
    bench.env.run(until=50)
    job = bench.link.submit(copy_of(7, TO_HOST, 2), 0)
    bench.env.run()
    assert job.record() == (
        7,
        "r7",
        "d2h",
        2,
        1,
        2,
        2 * BLOCK,
        50,
        350,
        2350,
        True,
        False,
    )


# ---------------------------------------------------------------------- interference


@pytest.mark.parametrize(
    ("step_ns", "extra"),
    [
        (1000, 250),  # the copy outlasts the step
        (2000, 500),
        (8000, 500),  # the step outlasts the copy
    ],
)
def test_a_step_gains_the_overlap_times_the_interference(step_ns: int, extra: int) -> None:
    bench = Bench(threads=1, interference_to_host=0.25)
    bench.link.submit(copy_of(1, TO_HOST, 2), 0)
    assert bench.link.slowdown(0, step_ns) == extra


def test_interference_of_both_directions_adds_up() -> None:
    bench = Bench(threads=1, interference_to_host=0.25, interference_to_device=0.5)
    bench.link.submit(copy_of(1, TO_HOST, 2), 0)
    bench.link.submit(copy_of(2, TO_DEVICE, 1), 0)
    assert bench.link.slowdown(0, 4000) == 500 + 500


def test_a_link_at_rest_slows_no_step() -> None:
    bench = Bench(threads=1, interference_to_host=0.25)
    bench.copy(0, 1, TO_HOST, 2)
    bench.run()
    assert bench.link.slowdown(bench.env.now, 1000) == 0


def test_a_copy_that_the_other_direction_slows_interferes_for_as_long_as_it_moves() -> None:
    """At half rate beside the load, the store of two blocks moves for 3,000 ns."""
    bench = Bench(threads=1, interference_to_host=0.25, to_host_duplex=RATE / 2)
    bench.link.submit(copy_of(1, TO_HOST, 2), 0)
    bench.link.submit(copy_of(2, TO_DEVICE, 2), 0)
    bench.env.run(until=1)
    assert bench.link.slowdown(1, 10_000) == 2999 // 4
