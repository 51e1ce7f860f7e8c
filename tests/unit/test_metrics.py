"""Every metric on recordings written by hand, with answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from runs.metrics import breakdown, throughput
from runs.metrics.columns import columns_of
from runs.metrics.throughput import tokens_per_step, window_of
from tests.helpers.hand import SECOND, Hand, every

# ---------------------------------------------------------------------- latency


def six(hand: Hand) -> Hand:
    """TTFT 1 to 6 s; then 2, 4, ... s for four more tokens."""
    for i in range(1, 7):
        arrival = 10 * i * SECOND
        first = arrival + i * SECOND
        hand.request(f"r{i}", arrival, first, first + 2 * i * SECOND, outputs=5)
    return hand


def test_ttft_is_arrival_to_first_token_and_e2e_to_the_last() -> None:
    found = six(Hand()).found()
    assert (found["ttft_p50_s"], found["e2e_p50_s"], found["ttft_samples"]) == (3.5, 10.5, 6)


def test_tpot_shares_the_rest_of_the_time_among_the_tokens_after_the_first() -> None:
    assert six(Hand()).found()["tpot_p50_s"] == 3.5 * 2 / 4


def test_one_token_has_no_time_per_token() -> None:
    hand = six(Hand())
    for i in range(30):
        hand.request(f"one{i}", 0, 9 * SECOND, 9 * SECOND, outputs=1)
    found = hand.found()
    assert found["tpot_p50_s"] == 3.5 * 2 / 4
    assert found["ttft_p50_s"] == 9.0


def test_rejected_turns_have_no_latency_and_are_counted_apart() -> None:
    found = six(Hand()).request("refused", 0).found()
    assert (found["ttft_p50_s"], found["ttft_samples"], found["ttft_censored"]) == (3.5, 6, 0)
    statuses = ("rows", "finished", "rejected", "cancelled", "unfinished")
    assert [found[name] for name in statuses] == [7, 6, 1, 0, 0]


def test_a_turn_whose_client_left_after_its_first_token_has_a_ttft_and_no_e2e() -> None:
    """Seven turns of TTFT 1 to 6 and 50 s; of the E2E times, 3 to 18 s, one is longer than all."""
    hand = six(Hand())
    hand.request("left", 0, 50 * SECOND, None, status="cancelled", cancel_ns=60 * SECOND)
    found = hand.found()
    assert (found["ttft_p50_s"], found["ttft_samples"], found["ttft_censored"]) == (4.0, 7, 0)
    assert (found["e2e_p50_s"], found["e2e_censored"]) == (12.0, 1)


def test_who_left_before_a_token_ranks_after_everybody_and_is_told_as_a_bound() -> None:
    """72 turns: 68 answered after a second, four left after 5 to 20 s; P95 is the 68.45th of them,
    between the last answered and the first who left: longer than the shorter of both."""
    hand = Hand()
    for i in range(68):
        hand.request(f"a{i}", 0, SECOND, 2 * SECOND)
    for i, wait in enumerate((20, 5, 9, 7)):
        hand.request(f"l{i}", 0, None, None, status="cancelled", cancel_ns=wait * SECOND)
    found = hand.found()
    assert (found["ttft_p50_s"], found["ttft_samples"], found["ttft_censored"]) == (1.0, 72, 4)
    assert (found["ttft_p95_s"], found["ttft_p95_above_s"]) == (None, 1.0)
    hand.request("l5", 0, None, None, status="cancelled", cancel_ns=6 * SECOND)
    found = hand.found()  # the 69.35th of 73
    assert (found["ttft_p95_s"], found["ttft_p95_above_s"]) == (None, 5.0)
    assert found["ttft_p50_above_s"] is None


def test_a_turn_that_the_run_left_unfinished_is_censored_at_its_end() -> None:
    hand = Hand()
    for i in range(6):
        hand.request(f"u{i}", SECOND, None, None, status="unfinished", end=(10 + i) * SECOND)
    found = hand.found()
    assert (found["ttft_p50_s"], found["ttft_p50_above_s"]) == (None, 9.0)
    assert (found["e2e_p50_above_s"], found["e2e_censored"]) == (9.0, 6)


def test_gaps_are_of_the_turns_that_ttft_is_of() -> None:
    """A turn rejected after it had tokens is in neither; one whose client left is in both."""
    hand = Hand(*every(SECOND, 9)).tokens("r", (0, 3)).tokens("c", (0, 2)).tokens("f", (0, 4))
    hand.request("r", 0, SECOND, None, 4, status="rejected", end=4 * SECOND)
    hand.request("c", 0, SECOND, None, 3, status="cancelled", cancel_ns=4 * SECOND)
    hand.request("f", 0, SECOND, 5 * SECOND, 5)
    found = hand.found()
    assert (found["ttft_samples"], found["tbt_samples"]) == (2, 2 + 4)


def test_the_time_per_token_of_who_left_is_that_until_the_last_token() -> None:
    hand = Hand(*every(SECOND, 9))
    for i in range(6):
        hand.tokens(f"c{i}", (0, 4))
        hand.request(f"c{i}", 0, SECOND, None, 5, status="cancelled", cancel_ns=9 * SECOND)
    assert hand.found()["tpot_p50_s"] == 1.0


def test_waiting_for_the_parents_end_is_counted_from_when_the_turn_was_due() -> None:
    """The shipped case: due at 1.0 s, started at 13.5 s, TTFT 0.06 s."""
    hand = Hand()
    for i in range(6):
        begin = 13_500_000_000
        hand.request(f"w{i}", begin, begin + 60_000_000, begin + SECOND, due=SECOND, turn=2)
    found = hand.request("first", 0, SECOND, SECOND).found()
    assert (found["ttft_p50_s"], found["ttft_due_p50_s"]) == (0.06, 12.56)
    assert (found["waited_for_parent"], found["waited_for_parent_s"]) == (6, 75.0)
    assert found["waited_for_parent_longest_s"] == 12.5


def test_a_percentile_of_too_few_is_none() -> None:
    found = six(Hand()).found()
    assert [found[f"ttft_{p}_s"] for p in ("p95", "p99", "p999")] == [None] * 3
    assert Hand().request("r", 0, 1, 2).found()["ttft_p50_s"] is None


def test_first_and_later_turns_are_told_apart() -> None:
    hand = Hand()
    for i in range(72):
        hand.request(f"a{i}", 0, 2 * SECOND, 3 * SECOND, turn=1)
        hand.request(f"b{i}", 0, 5 * SECOND, 6 * SECOND, turn=2 + i % 3)
    found = hand.found()
    assert (found["ttft_first_turn_p95_s"], found["ttft_later_turn_p95_s"]) == (2.0, 5.0)


# ---------------------------------------------------------------------- gaps between tokens


def test_every_gap_between_tokens_counts_once_for_each_request_that_has_it() -> None:
    hand = Hand(10, 30, 60, 100).tokens("a", (0, 3)).tokens("b", (1, 2))
    assert hand.gaps() == ([20, 30, 30, 40], [])


def test_the_first_token_ends_no_gap() -> None:
    assert Hand(10, 30).tokens("a", (0, 0)).tokens("b", (1, 1)).gaps() == ([], [])


def test_a_gap_with_a_preemption_inside_is_apart_and_reaches_from_token_to_token() -> None:
    hand = Hand(*every(10, 10)).tokens("a", (0, 4), (8, 9)).preempted("a", 5)
    assert hand.gaps() == ([10] * 5, [40])


def test_a_gap_in_which_others_were_prefilled_is_a_gap_in_the_batch() -> None:
    hand = Hand(*every(10, 6)).tokens("a", (0, 2), (4, 5)).tokens("new", (3, 3), (4, 5))
    hand.preempted("other", 3).tokens("other", (0, 2))
    in_batch, parked = hand.gaps()
    assert (in_batch, parked) == ([10] * 7 + [20], [])


@pytest.mark.parametrize(("step", "inside"), [(2, False), (3, True), (5, True), (6, False)])
def test_a_preemption_counts_where_it_falls_between_the_two_tokens(step: int, inside: bool) -> None:
    """Tokens at the ends of steps 2 and 5, and preemptions are decided before a step."""
    hand = Hand(*every(10, 9)).tokens("a", (0, 2), (5, 8)).preempted("a", step)
    in_batch, parked = hand.gaps()
    assert (sorted(in_batch), parked) == (([10] * 5, [30]) if inside else ([10] * 5 + [30], []))


def test_twice_preempted_in_one_gap_is_one_gap() -> None:
    hand = Hand(*every(10, 9)).tokens("a", (0, 1), (7, 8)).preempted("a", 2).preempted("a", 4)
    assert hand.gaps() == ([10, 10], [60])


def test_anothers_preemption_is_not_ones_own() -> None:
    hand = Hand(*every(10, 9)).tokens("a", (0, 1), (4, 5)).tokens("b", (0, 1), (4, 5))
    assert hand.preempted("b", 2).gaps() == ([10, 10, 10, 10, 30], [30])


def test_who_was_preempted_and_never_came_back_has_no_gap() -> None:
    hand = Hand(*every(10, 9)).tokens("a", (0, 1)).preempted("a", 2).preempted("ghost", 3)
    assert hand.gaps() == ([10], [])


def test_the_first_step_need_not_be_number_zero() -> None:
    hand = Hand(*every(10, 9)).tokens("a", (4, 6)).tokens("b", (3, 4), (8, 8)).preempted("b", 6)
    hand.rows["steps"] = hand.rows["steps"][3:]
    assert hand.gaps() == ([10, 10, 10], [40])


def test_pooled_gaps_are_both_kinds_together() -> None:
    hand = Hand(*every(10 * SECOND, 10)).tokens("a", (0, 4), (8, 9)).preempted("a", 5)
    hand.tokens("b", (0, 9))
    found = hand.found()
    assert (found["tbt_samples"], found["tbt_preempted_samples"]) == (15, 1)
    assert (found["tbt_p50_s"], found["tbt_preempted_p50_s"]) == (10.0, None)


# ---------------------------------------------------------------------- throughput


def test_tokens_of_a_step_are_those_of_all_spans_over_it() -> None:
    hand = Hand(10, 20, 30, 40).tokens("a", (0, 2)).tokens("b", (2, 3)).prompt("b", 1, 99)
    made = hand.recording()
    tokens = tokens_per_step(columns_of(made, "steps"), columns_of(made, "spans"))
    assert tokens.tolist() == [1, 1, 2, 1]


def test_the_steady_window_runs_from_a_tenth_of_the_first_turns_to_the_last() -> None:
    hand = Hand()
    for i in range(20):
        hand.request(f"r{i}", i * 100)
        hand.request(f"later{i}", 5000 + i, turn=2)
    assert window_of(columns_of(hand.recording(), "requests")) == (200, 1900)


@pytest.mark.parametrize("arrivals", [[], [5], [5, 5, 5]])
def test_without_a_stretch_of_arrivals_there_is_no_window(arrivals: list[int]) -> None:
    hand = Hand()
    for i, arrival in enumerate(arrivals):
        hand.request(f"r{i}", arrival)
    assert window_of(columns_of(hand.recording(), "requests")) is None


def test_throughput_counts_the_tokens_that_end_inside_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The window is (0, 4 s]; tokens come at 1, 2, ... 8 s, two of them at each of 3 and 4 s."""
    monkeypatch.setattr(throughput, "WINDOW_STEPS", 4)
    hand = Hand(*every(SECOND, 8)).tokens("a", (0, 7)).tokens("b", (2, 3))
    hand.request("a", 0, SECOND, 8 * SECOND).request("b", 4 * SECOND, 4 * SECOND, 4 * SECOND)
    found = hand.found()
    assert (found["window_s"], found["throughput_tok_s"]) == (4.0, 6 / 4)
    assert (found["turns_per_s"], found["output_tokens"]) == (1 / 4, 10)
    assert (found["makespan_s"], found["throughput_live_tok_s"]) == (8.0, 10 / 8)


def test_a_window_of_few_steps_tells_no_throughput() -> None:
    """Of 120 steps 99 or 100 end in the window; the whole run's throughput is told either way."""
    for last, expected in ((throughput.WINDOW_STEPS - 1, None), (throughput.WINDOW_STEPS, 1.0)):
        hand = Hand(*every(SECOND, 120)).tokens("a", (0, 119))
        hand.request("a", 0, SECOND, 120 * SECOND).request("b", last * SECOND)
        found = hand.found()
        assert (found["throughput_tok_s"], found["throughput_live_tok_s"]) == (expected, 1.0)


def test_the_offered_load_lets_every_turn_come_when_its_user_has_thought() -> None:
    """The window is (0, 10 s]: s asks for 100 at 0 s, 200 at 4 s, 400 at 12 s; t for 800 at 10 s."""
    hand = Hand(SECOND).request("s1", 0, status="unfinished")
    hand.request("t1", 10 * SECOND, status="unfinished")
    hand.wanted("s", 1, 100, arrival_s=0.0).wanted("s", 2, 200, think_s=4.0)
    hand.wanted("s", 3, 400, gap_s=8.0).wanted("t", 1, 800, arrival_s=10.0)
    assert hand.found()["offered_tok_s"] == (200 + 800) / 10
    # What nobody can serve is no load.
    hand.request("u1", 5 * SECOND).wanted("u", 1, 1600, arrival_s=5.0)
    assert hand.found()["offered_tok_s"] == (200 + 800) / 10


def test_capacity_is_what_is_made_while_somebody_waits() -> None:
    """Of (0, 20 s], c waits from 1 to 11 s; a and b decode all along."""
    hand = Hand(*every(SECOND, 20), batch=2).tokens("a", (0, 19)).tokens("b", (0, 19))
    hand.request("a", 0, SECOND, 20 * SECOND).request("b", 0, SECOND, 20 * SECOND)
    hand.request("c", SECOND, None, None, status="cancelled", cancel_ns=11 * SECOND)
    hand.request("last", 20 * SECOND)
    found = hand.found()
    # Nobody counts c at the instant it leaves: ten seconds of 20, two tokens each.
    assert (found["backlog_share"], found["capacity_tok_s"]) == (0.5, 2.0)


def test_a_rejected_turn_waits_for_nothing() -> None:
    hand = Hand(*every(SECOND, 20), batch=2).tokens("a", (0, 19)).tokens("b", (0, 19))
    hand.request("a", 0, SECOND, 20 * SECOND).request("b", 0, SECOND, 20 * SECOND)
    hand.request("refused", SECOND).request("last", 20 * SECOND)
    assert (hand.found()["backlog_share"], hand.found()["capacity_tok_s"]) == (0.0, None)


def test_a_short_wait_for_a_seat_is_no_backlog() -> None:
    hand = Hand(*every(SECOND, 20), batch=2).tokens("a", (0, 19)).tokens("b", (0, 19))
    hand.request("a", 0, SECOND, 20 * SECOND).request("b", 0, SECOND, 20 * SECOND)
    hand.request("c", SECOND, None, None, status="cancelled", cancel_ns=5 * SECOND)
    hand.request("last", 20 * SECOND)
    assert (hand.found()["backlog_share"], hand.found()["capacity_tok_s"]) == (0.0, None)


def test_token_efficiency_is_tokens_over_step_and_stall_time() -> None:
    """400 steps of a second, four of them of ten: the worst 1 % of steps makes 0.1 a second."""
    ends, now = [], 0
    for i in range(400):
        now += 10 * SECOND if i % 100 == 0 else SECOND
        ends.append(now)
    found = Hand(*ends).tokens("a", (0, 399)).found()
    assert found["token_efficiency_tok_s"] == pytest.approx(400 / 436, abs=1e-6)
    assert found["token_efficiency_p99_tok_s"] == pytest.approx(0.1 + 0.9 * 0.99, abs=2e-3)
    assert found["token_efficiency_p999_tok_s"] is None  # so few steps have no worst 0.1 %
    assert (
        Hand(*every(SECOND, 4000)).tokens("a", (0, 3999)).found()["token_efficiency_p999_tok_s"]
        == 1
    )


# ---------------------------------------------------------------------- stalls, use, swapping


def test_the_stall_share_is_time_waited_for_copies_by_everybody_over_time_lived() -> None:
    """Three wait 2 s together (two decode, one is prefilled), and one 3 s for its own load."""
    hand = Hand(*every(10 * SECOND, 4), stalls={1: 2 * SECOND}, batch=2)
    hand.request("a", 0, 10 * SECOND, 40 * SECOND).tokens("a", (0, 3))
    hand.request("b", 0, 10 * SECOND, 40 * SECOND).tokens("b", (0, 3))
    hand.request("c", 10 * SECOND, 20 * SECOND, 30 * SECOND).prompt("c", 1, 5).tokens("c", (1, 2))
    hand.request("d", 0, 40 * SECOND, 40 * SECOND).prompt("d", 3, 5).tokens("d", (3, 3))
    hand.copy("h2d", 25 * SECOND, 28 * SECOND, of="d")
    found = hand.found()
    assert found["stall_share"] == round((3 * 2 + 3) / (40 + 40 + 20 + 40), 6)
    assert (found["stall_s"], found["longest_stall_s"]) == (2.0, 2.0)


def test_who_would_decode_waits_through_the_copies_of_a_step_of_prompts_alone() -> None:
    """a has its token in step 0, waits through step 1 (b's prompt, of which 4 s are copies) and
    decodes in step 2; c is preempted before step 1 and waits for its turn, not for the copy."""
    hand = Hand(*every(10 * SECOND, 3), stalls={1: 4 * SECOND})
    hand.request("a", 0, 10 * SECOND, 30 * SECOND, 2).prompt("a", 0, 5).tokens("a", (0, 0), (2, 2))
    hand.request("b", 5 * SECOND, 20 * SECOND, 30 * SECOND, 2).prompt("b", 1, 5)
    hand.tokens("b", (1, 2))
    hand.request("c", 0, 10 * SECOND, None, 1, status="unfinished", end=30 * SECOND)
    hand.prompt("c", 0, 5).tokens("c", (0, 0)).preempted("c", 1)
    assert hand.found()["stall_share"] == round((4 + 4) / (30 + 25 + 30), 6)


def test_an_engine_that_is_idle_for_a_copy_stalls_though_it_makes_no_step() -> None:
    """a decodes to 10 s and is preempted there (step 1 runs nothing); for 5 s nothing runs, while its
    KV goes and comes back; b queues all the time and is prefilled last."""
    hand = Hand(10 * SECOND, 10 * SECOND, batch=1)
    hand.rows["steps"][1]["batch"] = 0
    for step, begin, end in ((2, 15, 20), (3, 20, 30)):
        row = {**hand.rows["steps"][0], "step": step, "batch": 3 - step, "prefill_tokens": step - 2}
        hand.rows["steps"].append({**row, "start_ns": begin * SECOND, "end_ns": end * SECOND})
    hand.waited(2, 10 * SECOND, 15 * SECOND)
    hand.request("a", 0, 10 * SECOND, 20 * SECOND, 2).tokens("a", (0, 0), (2, 2))
    hand.preempted("a", 1).copy("h2d", 11 * SECOND, 15 * SECOND, of="a")
    hand.request("b", 0, 30 * SECOND, 30 * SECOND).prompt("b", 3, 5).tokens("b", (3, 3))
    found = hand.found()
    assert (found["stall_s"], found["longest_stall_s"]) == (5.0, 5.0)
    assert found["stall_share"] == round(5 / (20 + 30), 6)
    assert found["token_efficiency_tok_s"] == round(3 / 30, 6)


def test_stores_after_the_last_turn_lengthen_nothing_and_stall_nobody() -> None:
    """Two steps of ten seconds, then one that only stores for 80 s with nobody there."""
    hand = Hand(10 * SECOND, 20 * SECOND, 100 * SECOND, stalls={2: 80 * SECOND})
    found = hand.request("a", 0, 10 * SECOND, 20 * SECOND, 2).tokens("a", (0, 1)).found()
    assert (found["makespan_s"], found["live_s"]) == (20.0, 20.0)
    assert found["throughput_live_tok_s"] == 0.1
    assert (found["stall_s"], found["stall_share"]) == (0.0, 0.0)
    assert found["token_efficiency_tok_s"] == 0.1


@pytest.mark.parametrize(
    "copy", [("d2h", {}), ("h2d", {"waited_for": True}), ("h2d", {"ok": False})]
)
def test_a_turn_waits_for_its_own_loads_whether_they_end_well_and_never_for_stores(
    copy: tuple[str, dict[str, bool]],
) -> None:
    way, more = copy
    hand = Hand(*every(SECOND, 4)).request("a", 0, 4 * SECOND, 4 * SECOND).tokens("a", (3, 3))
    found = hand.copy(way, 0, SECOND, of="a", **more).found()
    assert found["stall_share"] == (0.25 if way == "h2d" else 0.0)


def test_the_accelerator_is_used_while_it_computes_out_of_the_time_with_work() -> None:
    """Lived: 0 to 4 s and 6 to 10 s. Steps of 8 s in all, 2 of them stalls."""
    hand = Hand(2 * SECOND, 4 * SECOND, stalls={0: 2 * SECOND})
    late = {**hand.rows["steps"][0], "step": 2, "start_ns": 6 * SECOND, "end_ns": 10 * SECOND}
    hand.rows["steps"].append({**late, "stall_ns": 0})
    hand.request("a", 0, SECOND, 4 * SECOND).request("b", 1 * SECOND, 2 * SECOND, 3 * SECOND)
    hand.request("c", 6 * SECOND, 7 * SECOND, 10 * SECOND)
    assert hand.found()["gpu_utilisation"] == 6 / 8


def test_what_was_rejected_late_lived_until_then_so_nothing_is_used_beyond_all_of_it() -> None:
    """Once 107.66 %: the machine computed for a request that was rejected in the end."""
    hand = Hand(*every(SECOND, 4), batch=1).tokens("r", (0, 3))
    hand.request("r", 0, SECOND, None, 4, status="rejected", end=4 * SECOND)
    found = hand.request("a", 0, SECOND, 2 * SECOND).found()
    assert (found["gpu_utilisation"], found["live_s"]) == (1.0, 4.0)


def test_the_link_is_busy_a_share_of_the_time_in_which_anybody_is_there() -> None:
    hand = Hand(10 * SECOND).request("a", 0, SECOND, 10 * SECOND)
    hand.copy("h2d", 0, 2 * SECOND).copy("d2h", 9 * SECOND, 14 * SECOND)
    found = hand.found()
    assert (found["link_busy_h2d"], found["link_busy_d2h"]) == (0.2, 0.1)
    assert (found["io_busy_h2d_s"], found["io_busy_d2h_s"]) == (2.0, 5.0)


def test_the_link_is_used_as_bytes_over_what_it_could_move_while_it_had_work() -> None:
    """To the device 1 GB/s, and a copy waits or moves from 0 to 3 and from 5 to 6 s."""
    hand = Hand(SECOND).copy("h2d", 0, 2 * SECOND, bytes=10**9)
    hand.copy("h2d", SECOND, 3 * SECOND, bytes=10**9).copy("h2d", 5 * SECOND, 6 * SECOND, bytes=0)
    hand.copy("d2h", 0, SECOND, bytes=10**9)
    found = hand.found()
    assert (found["io_utilisation_h2d"], found["io_busy_h2d_s"]) == (0.5, 4.0)
    assert (found["io_utilisation_d2h"], found["io_busy_d2h_s"]) == (0.5, 1.0)


def test_both_directions_together_are_used_as_bytes_over_what_both_could_move() -> None:
    """To the device 4 s at 1 GB/s, to the host 1 s at 2 GB/s: 6 GB could have moved, and 3 did."""
    hand = Hand(SECOND).copy("h2d", 0, 4 * SECOND, bytes=2 * 10**9)
    assert hand.copy("d2h", 0, SECOND, bytes=10**9).found()["io_utilisation"] == 0.5
    assert Hand(SECOND).found()["io_utilisation"] is None


def test_the_overhead_of_a_switch_is_the_time_steps_wait_per_block_moved() -> None:
    hand = Hand(*every(SECOND, 3), stalls={0: 400, 2: 200})
    hand.copy("h2d", 0, 1, blocks=4).copy("d2h", 0, 1, blocks=6, runs=3).tokens("a", (0, 2))
    found = hand.copy("d2h", 0, 1, blocks=2, runs=2).found()
    assert (found["stall_ns_per_block"], found["runs_out"]) == (50.0, 5)


def test_stalls_at_p99_are_those_of_the_gaps_and_steps_around_it() -> None:
    """1,000 steps: the 6 longest wait for nothing, the 10 below them half their time; these are P98.5
    to P99.5. Everybody else waits all the time, which must not count."""
    lengths = [100 + i for i in range(1000)]
    stalls = dict(enumerate(lengths))
    stalls.update({i: 0 if i >= 995 else lengths[i] // 2 for i in range(985, 1000)})
    found = Hand(*np.cumsum(lengths).tolist(), stalls=stalls).tokens("a", (0, 999)).found()
    assert found["stall_share_p99_steps"] == pytest.approx(0.5, abs=0.03)
    assert found["stall_share_p99_gaps"] == pytest.approx(0.5, abs=0.03)


def test_a_preempted_gap_has_the_stalls_of_all_its_steps() -> None:
    values, stalls, weights = (np.array(row) for row in ([10, 40], [0, 10], [999, 1]))
    assert breakdown.stall_share(values, stalls, weights) == 0.0
    assert breakdown.stall_share(values, stalls, np.array([1, 999])) == 0.25
    assert breakdown.stall_share(values, stalls, np.array([1, 9])) is None
    hand = Hand(*every(10, 400), stalls=dict.fromkeys(range(2, 399), 5))
    hand.tokens("a", (0, 1), (399, 399)).preempted("a", 2)
    for name in range(400):
        hand.tokens(f"b{name}", (399, 399))
    found = hand.found()
    assert found["stall_share_p99_gaps"] is None  # two gaps
    for name in range(400):
        hand.tokens(f"c{name}", (0, 1), (399, 399)).preempted(f"c{name}", 2)
    # Of the longest gaps, each 398 steps of 10 ns, 397 steps wait for 5.
    assert hand.found()["stall_share_p99_gaps"] == round(397 * 5 / (398 * 10), 6)


def test_swaps_and_recomputes_blocks_and_calls_are_counted() -> None:
    hand = Hand(SECOND).preempted("a", 0).preempted("b", 0).preempted("c", 0, "recompute")
    hand.preempted("d", 0, was="waiting").preempted("d", 0, "recompute", was="waiting")
    hand.copy("d2h", 0, 1, 6, runs=2, calls=12, of="a").copy("h2d", 0, 1, 4, runs=3, calls=5)
    hand.request("a", 0, cached=7).request("b", 0, cached=8)
    found = hand.found()
    expected = {
        "preemptions": 3,
        "preemptions_swap": 2,
        "preemptions_recompute": 1,
        "parkings": 3,
        "parkings_waiting": 2,
        "parkings_idle": 1,
        "blocks_out": 6,
        "blocks_in": 4,
        "copy_jobs": 2,
        "copy_calls": 17,
        "copy_bytes": 1000,
        "mean_run_blocks": 2.0,
        "cached_tokens": 15,
    }
    assert {name: found[name] for name in expected} == expected


def test_only_a_prefill_after_a_token_is_a_recompute() -> None:
    hand = Hand(*every(10, 9)).prompt("a", 0, 50).tokens("a", (0, 2)).prompt("a", 5, 53)
    hand.tokens("a", (5, 6)).prompt("b", 6, 20).prompt("b", 7, 20).tokens("b", (7, 7))
    assert hand.found()["recomputed_tokens"] == 53


def test_a_run_in_which_nothing_happened_has_every_metric_and_no_made_up_number() -> None:
    empty, full = Hand().found(), six(Hand(*every(SECOND, 3)).tokens("r1", (0, 2))).found()
    assert empty.keys() == full.keys()
    assert {value for value in empty.values() if value is not None} == {0}
