"""Every metric on recordings written by hand, with answers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from runs.metrics import breakdown
from runs.metrics import summary as metrics
from runs.metrics.summary import columns_of, summarise, token_gaps, tokens_per_step, window_of
from runs.recording import SCHEMAS, Recording

SECOND = 1_000_000_000


class Hand:
    """Tables row by row. Step i runs from one of `ends` to the next; it decodes `batch`."""

    def __init__(self, *ends: int, stalls: dict[int, int] | None = None, batch: int = 0) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        begin = 0
        for step, end in enumerate(ends):
            stall = (stalls or {}).get(step, 0)
            row = {"step": step, "start_ns": begin, "end_ns": end, "stall_ns": stall}
            more = {"prefill_tokens": 0, "kv_tokens": 0, "free_blocks": 0, "free_host_blocks": 0}
            self.rows["steps"].append({**row, **more, "batch": batch})
            begin = end

    def request(
        self,
        name: str,
        arrival: int,
        first: int | None = None,
        finish: int | None = None,
        outputs: int = 1,
        **more: Any,
    ) -> Hand:
        turn = more.pop("turn", 1)
        row = {
            "request_id": name,
            "session_id": more.pop("session", name),
            "turn": turn,
            "arrival_ns": arrival,
            "input_tokens": 10,
            "cached_tokens": more.pop("cached", 0),
            "output_tokens": outputs,
            "first_token_ns": first,
            "finish_ns": finish,
            "preemptions": 0,
            "status": more.pop("status", "rejected" if finish is None else "finished"),
            "reason": "",
            **more,
        }
        self.rows["requests"].append(row)
        return self

    def tokens(self, name: str, *spans: tuple[int, int]) -> Hand:
        """Tokens at the end of every step of these spans."""
        for first, last in spans:
            self._span(name, "token", first, last, last - first + 1)
        return self

    def prompt(self, name: str, step: int, tokens: int) -> Hand:
        self._span(name, "prefill", step, step, tokens)
        return self

    def preempted(self, name: str, step: int, mode: str = "swap") -> Hand:
        self.rows["preemptions"].append({"request_id": name, "step": step, "mode": mode})
        return self

    def copy(self, way: str, submit: int, end: int, blocks: int = 1, **more: Any) -> Hand:
        row = {
            "copy_id": len(self.rows["copies"]),
            "request_id": "r",
            "direction": way,
            "blocks": blocks,
            "runs": 1,
            "calls": 1,
            "bytes": 100 * blocks,
            "submit_ns": submit,
            "start_ns": submit,
            "end_ns": end,
            "ok": True,
            "waited_for": False,
        }
        self.rows["copies"].append({**row, **more})
        return self

    def wanted(self, session: str, turn: int, outputs: int, **times: float) -> Hand:
        """A row of the workload."""
        row = {"request_id": f"{session}{turn}", "session_id": session, "turn": turn}
        self.rows["workload"].append({**row, "output_tokens": outputs, **times})
        return self

    def _span(self, name: str, kind: str, first: int, last: int, tokens: int) -> None:
        row = {"request_id": name, "kind": kind, "first_step": first, "last_step": last}
        self.rows["spans"].append({**row, "tokens": tokens})

    def recording(self) -> Recording:
        tables = {
            name: pa.Table.from_pylist(rows, schema=SCHEMAS[name])
            for name, rows in self.rows.items()
        }
        return Recording({"link_bytes_per_s": {"h2d": 1e9, "d2h": 2e9}}, tables=tables)

    def found(self) -> dict[str, Any]:
        return summarise(self.recording())

    def gaps(self) -> tuple[list[int], list[int]]:
        """Every gap in the batch, and every one with a preemption inside, sorted."""
        made = self.recording()
        names = ("steps", "spans", "preemptions")
        (values, weights), parked = token_gaps(*(columns_of(made, name) for name in names))
        return sorted(np.repeat(values, weights).tolist()), sorted(parked.tolist())


def every(period: int, count: int) -> list[int]:
    return [period * (i + 1) for i in range(count)]


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


def test_only_finished_turns_have_a_latency() -> None:
    hand = six(Hand()).request("refused", 0)
    hand.request("left", 0, 50 * SECOND, None, status="cancelled", cancel_ns=60 * SECOND)
    found = hand.found()
    assert (found["ttft_p50_s"], found["ttft_samples"]) == (3.5, 6)
    statuses = ("rows", "finished", "rejected", "cancelled", "unfinished")
    assert [found[name] for name in statuses] == [8, 6, 1, 1, 0]


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
    monkeypatch.setattr(metrics, "WINDOW_STEPS", 4)
    hand = Hand(*every(SECOND, 8)).tokens("a", (0, 7)).tokens("b", (2, 3))
    hand.request("a", 0, SECOND, 8 * SECOND).request("b", 4 * SECOND, 4 * SECOND, 4 * SECOND)
    found = hand.found()
    assert (found["window_s"], found["throughput_tok_s"]) == (4.0, 6 / 4)
    assert (found["turns_per_s"], found["output_tokens"]) == (1 / 4, 10)
    assert (found["makespan_s"], found["throughput_makespan_tok_s"]) == (8.0, 10 / 8)


def test_a_window_of_few_steps_tells_no_throughput() -> None:
    """Of 120 steps 99 or 100 end in the window; the whole run's throughput is told either way."""
    for last, expected in ((metrics.WINDOW_STEPS - 1, None), (metrics.WINDOW_STEPS, 1.0)):
        hand = Hand(*every(SECOND, 120)).tokens("a", (0, 119))
        hand.request("a", 0, SECOND, 120 * SECOND).request("b", last * SECOND)
        found = hand.found()
        assert (found["throughput_tok_s"], found["throughput_makespan_tok_s"]) == (expected, 1.0)


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
    hand.request("a", 0, SECOND, 40 * SECOND).request("b", 0, SECOND, 40 * SECOND)
    hand.request("c", 10 * SECOND, 20 * SECOND, 30 * SECOND).prompt("c", 1, 5)
    hand.copy("h2d", 5 * SECOND, 8 * SECOND)
    found = hand.found()
    assert found["stall_share"] == round((3 * 2 + 3) / (40 + 40 + 20), 6)
    assert (found["stall_s"], found["longest_stall_s"]) == (2.0, 2.0)


@pytest.mark.parametrize(
    "copy", [("d2h", {}), ("h2d", {"waited_for": True}), ("h2d", {"ok": False})]
)
def test_nobody_stalls_for_a_store_nor_twice_for_a_load(copy: tuple[str, dict[str, bool]]) -> None:
    """A load that a step waited for is in the step's stall already."""
    way, more = copy
    hand = Hand(*every(SECOND, 4)).request("a", 0, SECOND, 4 * SECOND)
    assert hand.copy(way, 0, SECOND, **more).found()["stall_share"] == 0.0


def test_the_accelerator_is_used_while_it_computes_out_of_the_time_with_work() -> None:
    """Lived: 0 to 4 s and 6 to 10 s. Steps of 8 s in all, 2 of them stalls."""
    hand = Hand(2 * SECOND, 4 * SECOND, stalls={0: 2 * SECOND})
    late = {**hand.rows["steps"][0], "step": 2, "start_ns": 6 * SECOND, "end_ns": 10 * SECOND}
    hand.rows["steps"].append({**late, "stall_ns": 0})
    hand.request("a", 0, SECOND, 4 * SECOND).request("b", 1 * SECOND, 2 * SECOND, 3 * SECOND)
    hand.request("c", 6 * SECOND, 7 * SECOND, 10 * SECOND)
    assert hand.found()["gpu_utilisation"] == 6 / 8


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
    hand.copy("h2d", 0, 1, blocks=4).copy("d2h", 0, 1, blocks=6, runs=3)
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
    hand.copy("d2h", 0, 1, 6, runs=2, calls=12).copy("h2d", 0, 1, 4, runs=3, calls=5)
    hand.request("a", 0, cached=7).request("b", 0, cached=8)
    found = hand.found()
    expected = {
        "preemptions": 3,
        "preemptions_swap": 2,
        "preemptions_recompute": 1,
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
