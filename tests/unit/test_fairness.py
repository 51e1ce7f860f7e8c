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
    """Steps of a second each, requests and what they got."""

    def __init__(self, minutes: int) -> None:
        self.seconds = minutes * MINUTE
        self.requests: list[dict[str, Any]] = []
        self.spans: list[tuple[str, str, int, int, int]] = []
        self.long: dict[str, int] = {}  # prompts that went through in chunks

    def request(
        self,
        name: str,
        arrival: float,
        end: float | None,
        *,
        client: str | None = None,
        session: str | None = None,
        first_token: float | None = None,
        cancelled: bool = False,
    ) -> Minutes:
        over = -1 if end is None else round(end * SECOND)
        self.requests.append(
            {
                "request_id": name,
                "client_id": client,
                "session_id": session or name,
                "turn": 1,
                "arrival_ns": round(arrival * SECOND),
                "finish_ns": -1 if cancelled else over,
                "cancel_ns": over if cancelled else -1,
                "first_token_ns": -1 if first_token is None else round(first_token * SECOND),
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
        requests: dict[str, Any] = {
            key: [row[key] for row in self.requests] for key in self.requests[0]
        }
        prompts: dict[str, int] = {}
        for name, kind, _, _, count in self.spans:
            if kind == "prefill":
                prompts.setdefault(name, count)
        lengths = [prompts.get(name, 0) for name in requests["request_id"]]
        requests["input_tokens"] = [
            self.long.get(n, k) for n, k in zip(requests["request_id"], lengths, strict=True)
        ]
        requests["cached_tokens"] = [0] * len(lengths)
        for table in (spans, requests):
            for key, column in table.items():
                if key not in ("request_id", "kind", "client_id", "session_id"):
                    table[key] = np.array(column, dtype=np.int64)
        ends = {"step": steps, "end_ns": steps * SECOND + SECOND // 2}
        return fairness.summarise(requests, ends, spans)


def test_equal_service_is_an_index_of_one_and_no_gap() -> None:
    run = Minutes(2).request("a", 0, 120).request("b", 0, 120)
    found = run.tokens("a", 0, 119).tokens("b", 0, 119).found()
    assert (found["jain"], found["service_gap_max"], found["fairness_windows"]) == (1.0, 0, 2)


def test_each_window_counts_by_itself_and_a_span_is_cut_where_windows_meet() -> None:
    """Both are served in the first minute, one alone in the second: 1 and 1/2."""
    run = Minutes(2).request("a", 0, 120).request("b", 0, 120)
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


def test_only_clients_with_work_all_through_a_window_are_compared() -> None:
    """c came a second late and is out of the first minute; b left a second early."""
    run = Minutes(2).request("a", 0, 120).request("b", 0, 119).request("c", 1, 120)
    run.tokens("a", 0, 119).tokens("b", 0, 29).tokens("c", 60, 119)
    found = run.found()
    # First minute: a has 120, b 60. Second: a and c have 120 each.
    assert found["fairness_windows"] == 2
    assert found["jain"] == pytest.approx((180**2 / (2 * (120**2 + 60**2)) + 1) / 2, abs=1e-6)
    assert (found["service_gap_max"], found["service_gap_mean"]) == (60, 30.0)


def test_a_client_with_one_request_after_another_has_work_all_the_time() -> None:
    run = Minutes(1).request("a", 0, 60)
    run.request("b1", 0, 20, client="b").request("b2", 15, 45, client="b")
    run.request("b3", 45, 60, client="b")
    found = run.tokens("a", 0, 59).tokens("b1", 0, 19).tokens("b3", 45, 54).found()
    assert (found["fairness_windows"], found["service_gap_max"]) == (1, 60)


def test_a_moment_without_work_takes_a_client_out_of_the_window() -> None:
    run = Minutes(1).request("a", 0, 60)
    run.request("b1", 0, 20, client="b").request("b2", 21, 60, client="b")
    found = run.tokens("a", 0, 59).found()
    assert (found["fairness_windows"], found["jain"], found["service_gap_max"]) == (0, None, None)


def test_turns_of_a_session_are_one_client_when_none_is_named() -> None:
    run = Minutes(1).request("a", 0, 60)
    run.request("b1", 0, 30, session="b").request("b2", 30, 60, session="b")
    found = run.tokens("a", 0, 59).tokens("b2", 30, 59).found()
    assert (found["fairness_windows"], found["service_gap_max"]) == (1, 60)


def test_one_client_alone_is_compared_with_nobody() -> None:
    found = Minutes(1).request("a", 0, 60).tokens("a", 0, 59).found()
    assert (found["jain"], found["fairness_windows"]) == (None, 0)


def test_a_minute_in_which_nobody_is_served_has_a_gap_and_no_index() -> None:
    found = Minutes(1).request("a", 0, 60).request("b", 0, 60).tokens("a", 0, 0).found()
    assert found["jain"] == 0.5
    nothing = Minutes(2).request("a", 60, 120).request("b", 60, 120).tokens("a", 0, 0).found()
    assert (nothing["jain"], nothing["service_gap_max"]) == (None, 0)


def test_a_client_who_left_had_work_until_then_and_a_rejected_one_never() -> None:
    run = Minutes(1).request("a", 0, 60).request("gone", 0, 60, cancelled=True)
    run.request("rejected", 0, None)
    found = run.tokens("a", 0, 59).found()
    assert (found["jain"], found["fairness_windows"]) == (0.5, 1)


def test_starvation_is_the_longest_wait_for_a_first_or_a_next_token() -> None:
    run = Minutes(1).request("a", 0, 60, first_token=4.5).request("b", 2, 60, first_token=3.5)
    run.tokens("a", 4, 10).tokens("a", 18, 20).tokens("b", 3, 30)
    assert run.found()["starvation_age_s"] == 8.0
    late = Minutes(1).request("a", 0, 60, first_token=30.5).tokens("a", 30, 40)
    assert late.found()["starvation_age_s"] == 30.5


def test_from_one_request_to_the_next_nobody_starves() -> None:
    run = Minutes(1).request("a", 0, 5, first_token=1.5).request("b", 50, 60, first_token=50.5)
    assert run.tokens("a", 1, 4).tokens("b", 50, 59).found()["starvation_age_s"] == 1.5


def test_without_steps_there_is_nothing_to_say() -> None:
    found = Minutes(0).request("a", 0, None).found()
    assert set(found.values()) == {None, 0}
