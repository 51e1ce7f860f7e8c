"""Jain's index and the service gap, on minutes that can be done by hand.

A step ends in the middle of every second, so a minute has sixty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runs.metrics import fairness

SECOND = 1_000_000_000
MINUTE = 60


class Minutes:
    """Steps of a second each from `begin` on, requests and what they got."""

    def __init__(self, minutes: int, begin: int = 0) -> None:
        self.seconds = minutes * MINUTE
        self.begin = begin
        self.requests: list[dict[str, Any]] = []
        self.workload: list[dict[str, Any]] = []
        self.spans: list[tuple[str, str, int, int, int]] = []
        self.long: dict[str, int] = {}  # prompts that went through in chunks

    def request(
        self,
        name: str,
        due: float | None,
        end: float | None,
        *,
        client: str | None = None,
        session: str | None = None,
        turn: int = 1,
        think: float | None = None,
        arrival: float | None = None,
        cancelled: bool = False,
        asks: bool = True,
    ) -> Minutes:
        """`due`: as the workload has it; it comes then, or at `arrival`."""
        came = due if arrival is None else arrival
        assert came is not None
        begin = round((came + self.begin) * SECOND)
        over = begin if end is None else round((end + self.begin) * SECOND)
        known = {"request_id": name, "client_id": client, "session_id": session or name}
        self.requests.append(
            {
                **known,
                "turn": turn,
                "arrival_ns": begin,
                "finish_ns": -1 if cancelled or end is None else over,
                "cancel_ns": over if cancelled else -1,
                "end_ns": over,
            }
        )
        self.workload.append(
            {
                **known,
                "turn": turn,
                "input_tokens": 9 * asks,
                "output_tokens": 9,
                "arrival_s": None if due is None else due + self.begin,
                "think_s": think,
                "gap_s": None,
                "parent_id": None,
            }
        )
        return self

    def tokens(self, name: str, first: int, last: int) -> Minutes:
        """One output token in each of the seconds from `first` to `last`."""
        self.spans.append((name, "token", first, last, last - first + 1))
        return self

    def prompt(self, name: str, second: int, tokens: int) -> Minutes:
        self.spans.append((name, "prefill", second, second, tokens))
        return self

    def found(self) -> dict[str, Any]:
        steps = np.arange(self.seconds, dtype=np.int64)
        keys = ("request_id", "kind", "first_step", "last_step", "tokens")
        spans: dict[str, Any] = {key: [row[i] for row in self.spans] for i, key in enumerate(keys)}
        requests: dict[str, Any] = {k: [row[k] for row in self.requests] for k in self.requests[0]}
        workload: dict[str, Any] = {k: [row[k] for row in self.workload] for k in self.workload[0]}
        prompts: dict[str, int] = {}
        for name, kind, _, _, count in self.spans:
            if kind == "prefill":
                prompts.setdefault(name, count)
        lengths = [prompts.get(name, 0) for name in requests["request_id"]]
        requests["input_tokens"] = [
            self.long.get(n, k) for n, k in zip(requests["request_id"], lengths, strict=True)
        ]
        requests["cached_tokens"] = [0] * len(lengths)
        for table in (spans, requests, workload):
            for key, column in table.items():
                if key not in _TEXTS:
                    table[key] = np.array(column, dtype=np.int64)
        ends = {"step": steps, "end_ns": (steps + self.begin) * SECOND + SECOND // 2}
        return fairness.summarise(workload, requests, ends, spans)


_TEXTS = {
    "request_id",
    "kind",
    "client_id",
    "session_id",
    "arrival_s",
    "think_s",
    "gap_s",
    "parent_id",
}


def test_equal_service_is_an_index_of_one_and_no_gap() -> None:
    run = Minutes(1).request("a", 0, 60).request("b", 0, 60)
    found = run.tokens("a", 0, 59).tokens("b", 0, 59).found()
    assert (found["jain"], found["service_gap_max"], found["fairness_windows"]) == (1.0, 0, 1)


def test_each_window_counts_by_itself_and_a_span_is_cut_where_windows_meet() -> None:
    """Turns of both are due in both minutes; both are served in the first, one alone in the second."""
    run = Minutes(2).request("a", 0, 120).request("b", 0, 120)
    run.request("a2", 70, 120, session="a", turn=2).request("b2", 80, 120, session="b", turn=2)
    found = run.tokens("a", 0, 119).tokens("b", 0, 59).found()
    assert (found["jain"], found["fairness_windows"]) == (0.75, 2)
    assert (found["service_gap_max"], found["service_gap_mean"]) == (2 * 60, 60.0)


def test_one_of_n_served_alone_is_an_index_of_one_over_n() -> None:
    run = Minutes(1)
    for name in "abcd":
        run.request(name, 0, 60)
    assert run.tokens("a", 0, 59).found()["jain"] == 0.25


def test_an_output_token_weighs_two_prompt_tokens() -> None:
    run = Minutes(1).request("a", 0, 60).request("b", 0, 60)
    found = run.prompt("a", 3, 40).tokens("b", 10, 29).found()
    assert (found["jain"], found["service_gap_max"]) == (1.0, 0)


def test_recomputed_tokens_are_nobodys_service() -> None:
    run = Minutes(1).request("a", 0, 60).request("b", 0, 60)
    run.prompt("a", 3, 40).tokens("a", 3, 5).prompt("a", 20, 43).prompt("b", 4, 46)
    assert run.found()["service_gap_max"] == 0


def test_chunks_of_a_prompt_are_served_until_it_is_whole_and_not_again() -> None:
    run = Minutes(1).request("a", 0, 60).request("b", 0, 60)
    run.long["a"] = 50
    run.prompt("a", 3, 30).prompt("a", 4, 30).prompt("a", 5, 20).tokens("a", 5, 5)
    assert run.prompt("b", 4, 52).found()["service_gap_max"] == 0


def test_clients_are_those_with_a_turn_due_in_the_window_however_late_it_is_served() -> None:
    """b's turn is due in the first minute and is served in the third; c's is due in the second, alone."""
    run = Minutes(3).request("a", 0, 60).request("b", 59, 180).request("c", 61, 180)
    found = run.tokens("a", 0, 29).tokens("b", 120, 149).tokens("c", 61, 149).found()
    assert (found["fairness_windows"], found["jain"], found["service_gap_max"]) == (1, 0.5, 60)


@pytest.mark.parametrize("late", [0, 40, 200])
def test_windows_do_not_hang_on_how_slow_a_system_is(late: int) -> None:
    """Closed loop: b's second turn would be due at 65 s, were the first reply there at once."""
    run = Minutes(6).request("a", 0, 60).request("a2", 65, 300, session="a", turn=2)
    run.request("b", 0, 30 + late)
    run.request("b2", None, 300, session="b", turn=2, think=65, arrival=95 + late)
    assert run.tokens("a", 0, 59).found()["fairness_windows"] == 2


@pytest.mark.parametrize("begin", [0, 7, 1302, 59_999])
def test_windows_are_counted_from_the_first_turn_due(begin: int) -> None:
    run = Minutes(2, begin).request("a", 0, 120).request("b", 5, 120)
    run.request("a2", 70, 120, session="a", turn=2).request("b2", 80, 120, session="b", turn=2)
    found = run.tokens("a", 0, 119).tokens("b", 5, 59).found()
    assert (found["fairness_windows"], found["service_gap_max"]) == (2, 120)
    assert found["jain"] == pytest.approx((115**2 / (2 * (60**2 + 55**2)) + 0.5) / 2, abs=1e-6)


def test_turns_of_a_session_are_one_client_when_none_is_named() -> None:
    run = Minutes(1).request("a", 0, 60)
    run.request("b1", 0, 30, session="b").request("b2", 30, 60, session="b", turn=2)
    found = run.tokens("a", 0, 59).tokens("b2", 30, 59).found()
    assert (found["fairness_windows"], found["service_gap_max"]) == (1, 60)


def test_a_named_client_is_one_over_all_its_sessions() -> None:
    run = Minutes(1).request("a", 0, 60, client="k").request("b", 0, 60, client="k")
    run.request("c", 0, 60, client="l")
    found = run.tokens("a", 0, 29).tokens("b", 30, 59).tokens("c", 0, 59).found()
    assert (found["jain"], found["service_gap_max"]) == (1.0, 0)


def test_one_client_alone_is_compared_with_nobody() -> None:
    found = Minutes(1).request("a", 0, 60).tokens("a", 0, 59).found()
    assert (found["jain"], found["fairness_windows"]) == (None, 0)


def test_a_minute_in_which_nobody_is_served_has_a_gap_and_no_index() -> None:
    nothing = Minutes(2).request("a", 0, 120).request("b", 10, 120).tokens("a", 100, 119).found()
    assert (nothing["jain"], nothing["service_gap_max"]) == (None, 0)


def test_a_client_who_left_asked_for_service_and_a_row_nobody_can_serve_did_not() -> None:
    run = Minutes(1).request("a", 0, 60).request("gone", 0, 60, cancelled=True)
    run.request("empty", 0, None, asks=False)
    found = run.tokens("a", 0, 59).found()
    assert (found["jain"], found["fairness_windows"]) == (0.5, 1)


def test_starvation_is_the_longest_wait_for_a_first_or_a_next_token() -> None:
    run = Minutes(1).request("a", 0, 21).request("b", 2, 31)
    run.tokens("a", 4, 10).tokens("a", 18, 20).tokens("b", 3, 30)
    assert run.found()["starvation_age_s"] == 8.0
    late = Minutes(1).request("a", 0, 40.5).tokens("a", 30, 40)
    assert late.found()["starvation_age_s"] == 30.5


def test_who_was_never_served_starved_until_the_client_left() -> None:
    run = Minutes(1).request("a", 0, 40.5).tokens("a", 1, 40)
    assert run.request("never", 1, 51, cancelled=True).found()["starvation_age_s"] == 50.0


def test_who_got_tokens_and_then_none_until_the_client_left_starved_too() -> None:
    run = Minutes(1).request("a", 0, 50.5, cancelled=True).tokens("a", 1, 10)
    assert run.found()["starvation_age_s"] == 40.0


def test_from_one_request_to_the_next_nobody_starves() -> None:
    run = Minutes(1).request("a", 0, 4.5).request("b", 50, 59.5)
    assert run.tokens("a", 1, 4).tokens("b", 50, 59).found()["starvation_age_s"] == 1.5


def test_without_turns_that_ask_for_anything_there_is_nothing_to_say() -> None:
    found = Minutes(0).request("a", 0, None, asks=False).found()
    assert set(found.values()) == {None, 0}


def test_a_reply_over_a_hundred_million_windows_costs_as_many_entries_as_it_has_steps() -> None:
    """A bandwidth typed in the wrong unit stretches a run over centuries; its metrics must not."""
    far = 10**8 * fairness.WINDOW_NS
    steps = {
        "step": np.array([0, 1]),
        "start_ns": np.array([0, 1]),
        "end_ns": np.array([fairness.WINDOW_NS // 2, far + 5]),
    }
    spans = {
        "request_id": ["a"],
        "kind": ["token"],
        "first_step": np.array([0]),
        "last_step": np.array([1]),
        "tokens": np.array([2]),
    }
    requests = {
        "request_id": ["a"],
        "input_tokens": np.array([5]),
        "cached_tokens": np.array([0]),
    }
    served = fairness._service(requests, steps, spans, {"a": "c"}, 0)
    assert served == {("c", 0): 2, ("c", 10**8): 2}
