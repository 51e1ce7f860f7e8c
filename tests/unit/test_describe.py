"""What is in a workload: every statistic against rows whose answer can be counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import fastswitch
from tests.helpers.chats import chat_of
from traces.describing.columns import collect
from traces.describing.describe import arrivals, clients, describe, dispersion, distances
from traces.describing.text import as_text
from traces.randomness import Streams
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

S = 1_000_000_000


def made(*turns: Turn, **header: Any) -> Workload:
    return Workload.of(turns, Header(**{"source": "by hand", "timing": "closed", **header}))


TALK = (
    Turn("a1", "a", 1, 10, 5, arrival_ns=0, stop="tool_use", hash_ids=(1, 2), client_id="x"),
    Turn("a2", "a", 2, 18, 7, think_ns=2 * S, stop="end_turn", hash_ids=(1, 3), client_id="x"),
    Turn("a3", "a", 3, 12, 9, think_ns=60 * S, parent_prefix_tokens=10, hash_ids=(1, 4)),
    Turn("b1", "b", 1, 20, 1, arrival_ns=4 * S, hash_ids=(1,), client_id="y"),
)


def test_lengths_turns_and_history_are_those_of_the_rows() -> None:
    found = describe(made(*TALK, block_size=10, hash_scope="global"), [1])
    assert (found["requests"], found["sessions"]) == (4, 2)
    assert (found["sum_input_tokens"], found["sum_output_tokens"]) == (60, 22)
    assert found["input_tokens"]["mean"] == 15
    assert found["first_input_tokens"]["max"] == 20
    assert found["turns_per_session"] == {
        "mean": 2, "p50": 2, "p90": 2.8, "p95": 2.9, "p99": 2.98, "max": 3,
    }  # fmt: skip
    assert (found["multi_turn_sessions"], found["multi_turn_requests"]) == (0.5, 0.75)
    assert found["continuation"] == [0.5, 1.0, 0.0, None, None, None, None, None, None]
    # a2 repeats all 15 tokens of a1's context, a3 ten of a2's
    assert found["history_share"] == round(25 / 60, 4)
    assert found["later_new_tokens"]["mean"] == (3 + 2) / 2
    assert found["shorter_than_context"] == 0.5


def test_gaps_are_split_by_how_the_reply_before_ended() -> None:
    found = describe(made(*TALK))
    assert found["gap_from"] == "reply"
    assert found["gap_s"]["mean"] == 31
    by_stop = found["gap_s_by_stop"]
    assert {name: one["mean"] for name, one in by_stop.items()} == {"tool_use": 2, "end_turn": 60}
    assert [one["share"] for one in by_stop.values()] == [0.5, 0.5]


def test_an_open_workloads_gaps_run_from_start_to_start() -> None:
    rows = [replace(turn, think_ns=None, arrival_ns=i * S) for i, turn in enumerate(TALK)]
    found = describe(made(*rows, timing="open"))
    assert (found["gap_from"], found["gap_s"]["mean"]) == ("start", 1)
    assert found["arrivals"]["rate_per_s"] == 1
    assert found["arrivals"]["cv"] == 0


def test_a_parent_that_is_named_is_the_parent() -> None:
    branch = Turn("a4", "a", 4, 30, 1, think_ns=S, parent_id="a1")
    found = collect(made(*TALK[:3], branch))
    assert found.parent.tolist() == [-1, 0, 1, 0]
    assert found.kept.tolist() == [0, 15, 10, 15]


def test_a_sub_agent_begins_a_session_and_has_no_gap_of_it() -> None:
    agent = Turn("s1", "s", 1, 30, 1, think_ns=S, parent_id="a1", parent_prefix_tokens=0)
    found = collect(made(*TALK[:3], agent))
    assert found.gaps[0].tolist() == [1, 2]
    assert found.kept.tolist() == [0, 15, 10, 0]


def test_block_references_are_counted_with_and_without_a_limit() -> None:
    found = describe(made(*TALK, block_size=10, hash_scope="global"), [1, 2])["prefix_cache"]
    assert found == {
        "references": 7,
        "unlimited_hits": 3,
        "unlimited_share": round(3 / 7, 4),
        "lru_1_share": 0.0,
        "lru_2_share": round(3 / 7, 4),
    }


def test_clients_are_ranked_by_their_requests() -> None:
    codes = np.repeat(np.arange(12), [round(1000 / (i + 1)) for i in range(12)])
    found = clients(np.append(codes, -1))
    assert found is not None
    assert (found["clients"], found["top_1_share"]) == (12, round(1000 / codes.size, 4))
    assert found["rank_rate_slope"] == pytest.approx(-1, abs=0.01)
    assert clients(np.array([-1, -1])) is None


@given(st.lists(st.integers(0, 600), min_size=2, max_size=300), st.sampled_from([1, 10, 60]))
def test_dispersion_is_that_of_every_window_the_empty_ones_too(
    seconds: list[int], window: int
) -> None:
    times = np.sort(np.array(seconds)) * S
    whole = int(times[-1] - times[0]) // (window * S)
    found = dispersion(times, window)
    if whole < 10:
        assert found is None
        return
    counts = np.bincount((times - times[0]) // (window * S), minlength=whole)[:whole]
    assert found == pytest.approx(counts.var() / counts.mean(), abs=1e-3)


def test_arrivals_years_apart_cost_no_memory() -> None:
    found = arrivals(np.array([0, S, 10 * 365 * 86400 * S]))
    assert found is not None and found["rate_per_s"] == 0


def test_poisson_arrivals_are_not_dispersed() -> None:
    found = describe(chat_of(4000, 5.0, think="none").workload(Streams(1)))["arrivals"]
    assert found["rate_per_s"] == pytest.approx(5, rel=0.05)
    for name in ("cv", "cv_per_minute_p50", "idc_1s", "idc_10s"):
        assert found[name] == pytest.approx(1, abs=0.15), name


def test_the_generators_copula_shows_in_neighbouring_replies() -> None:
    found = describe(chat_of(2000, 5.0, None).workload(Streams(1)))
    assert found["neighbouring_replies"] == pytest.approx(0.41, abs=0.06)


def test_a_workload_is_at_no_distance_from_itself() -> None:
    one = collect(chat_of(100, 1.0).workload(Streams(1)))
    found = distances(one, one)
    assert set(found) == {
        "turns",
        "first prompt tokens",
        "later new tokens",
        "reply tokens",
        "gaps s",
        "inter-arrivals s",
    }
    assert {name: row["ks"] for name, row in found.items()} == dict.fromkeys(found, 0.0)


def test_an_empty_workload_has_nothing_in_it() -> None:
    found = describe(made())
    assert (found["requests"], found["input_tokens"], found["arrivals"]) == (0, None, None)
    assert "0 requests in 0 sessions" in as_text(found)


@given(st.permutations(TALK))
def test_what_is_known_of_sessions_does_not_depend_on_the_order_of_rows(rows: list[Turn]) -> None:
    here, there = describe(made(*TALK)), describe(made(*rows))
    for name in ("turns_per_session", "gap_s", "history_share", "clients", "continuation"):
        assert here[name] == there[name]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(fastswitch.main, ["trace", "describe", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    write(chat_of(30, 1.0).workload(Streams(1)), one)
    write(made(*TALK, composed_from=("lengths: here",), priority_process="markov"), other)
    return one, other


def test_two_workloads_are_shown_side_by_side_with_their_distances(
    files: tuple[Path, Path],
) -> None:
    text = run(*files).stdout
    assert "1: chat generator: " in text and "2: by hand: 4 requests in 2 sessions" in text
    assert "  lengths: here" in text
    assert "meant for the priority process markov" in text
    assert "Kolmogorov-Smirnov distance" in text
    data = json.loads(run(*files, "--json").stdout)
    assert [one["requests"] for one in data["workloads"]][1] == 4
    assert 0 <= data["distances"]["turns"]["ks"] <= 1


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_is_written_whole_and_with_the_same_bytes(
    files: tuple[Path, Path], tmp_path: Path, kind: str, magic: bytes
) -> None:
    paths = [tmp_path / f"{i}.{kind}" for i in range(2)]
    for path in paths:
        assert run(*files, "--figure", path).exit_code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--figure", "x.pdf"), "a figure's name ends in .svg or .png"),
        (("--cache", "10,0"), "--cache"),
        (("--cache", "many"), "--cache"),
        (("third.jsonl",), "takes one or two"),
    ],
)
def test_what_cannot_be_described_is_refused(
    files: tuple[Path, Path], extra: tuple[str, ...], word: str
) -> None:
    result = run(*files, *extra)
    assert (result.exit_code, word in result.output) == (2, True)
