"""A plan: the fewest replicas, run by run, and what is not known said so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fastswitch
from explore.plan import page, size
from explore.plan.candidates import Candidate, candidates
from explore.plan.size import Asked, Point, Sized
from policy.errors import ConfigError
from runs.scenario import build
from runs.turns import TurnDriver, Users
from traces.randomness import Streams
from traces.sources import open_workload
from traces.workload import Header, Turn, Workload

#: A device that eight people fill, and answers that come at once.
SMALL: dict[str, Any] = {
    "name": "small",
    "profile": "a10-llama-3-8b",
    "workload": {
        "generator": "chat",
        "conversations": 100,
        "users": 24,
        "context_cap": 400,
        "think": "exponential",
        "think_mean_s": 2.0,
    },
    "pool": {"device_blocks": 60, "aging": "none"},
    "limits": {"max_model_len": 400},
    "system": "vllm-v1",
}


def planned(monkeypatch: pytest.MonkeyPatch, needs: list[int | None], most: int = 16) -> Sized:
    """A plan in which each run keeps the limit from a size on, without simulating."""

    def point(asked: Asked, one: Candidate, replicas: int, run: int, kept: Any) -> Point:
        need = needs[run]
        good = need is not None and replicas >= need
        metrics = {
            "ttft_p99_s": 1.0 if good else 9.0,
            "throughput_tok_s": 1000.0,
            "idle_while_others_wait": 0.0,
        }
        return Point(replicas, metrics, 0.9, 0.5, 0, 0.0)

    monkeypatch.setattr(size, "simulated", point)
    asked = Asked(build(SMALL, "test"), {"ttft_p99_s": 2.0}, len(needs), 1.0, most)
    return size.size(asked, Candidate("a10", "a10-llama-3-8b", 2, 3.0), lambda: None)


@pytest.mark.parametrize("need", range(1, 17))
def test_the_fewest_is_found_whatever_it_is(monkeypatch: pytest.MonkeyPatch, need: int) -> None:
    found = planned(monkeypatch, [need])
    assert found.needed == (need,)
    assert found.answer == need


def test_the_answer_is_enough_in_every_run_and_its_neighbours_are_known_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = planned(monkeypatch, [3, 5, 4])
    assert (found.needed, found.answer) == ((3, 5, 4), 5)
    assert [found.worst(at, "ttft_p99_s") for at in (4, 5, 6)] == [9.0, 1.0, 1.0]
    assert found.worst(16, "ttft_p99_s") is None
    assert size.gpus_of(found) == 10
    assert size.hours_per_million(found) == pytest.approx(10 / 1000 / 3600 * 1e6)


def test_more_than_were_tried_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(monkeypatch, [3, None])
    assert found.answer is None
    asked = Asked(build(SMALL, "test"), {"ttft_p99_s": 2.0}, 2, 1.0, 16)
    told = page.as_text(asked, [found])
    assert "a10: not known, because 16 replicas do not keep it" in told
    assert size.hours_per_million(found) is None


def point(**values: Any) -> Point:
    given = {"busy": 0.5, "kv": 0.5, "preempted": 0, "link": 0.0, **values}
    uneven = given.pop("uneven", 0.0)
    return Point(1, {"idle_while_others_wait": uneven}, **given)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "compute"),
        ({"preempted": 1}, "KV room"),
        ({"link": 0.6}, "link"),
        ({"uneven": 0.3}, "router"),
    ],
)
def test_the_bottleneck_is_of_the_size_below(values: dict[str, Any], word: str) -> None:
    found = Sized(Candidate("x", "x", 1, None), (2,), {1: [point(**values)], 2: [point()]})
    assert size.bottleneck(found).startswith(word)
    assert size.bottleneck(found).count("at 1:") == 1


def test_gpus_are_as_few_as_hold_the_model_and_what_is_not_known_says_why() -> None:
    found = candidates(
        (), ("h100-sxm", "a10"), ("llama-3.1-8b", "llama-3.1-70b"), {"a10": 1.5}, 8192
    )
    told = {one.name: one for one in found}
    assert told["h100-sxm-llama-3.1-8b"].gpus == 1
    missing = told["a10-llama-3.1-70b"]
    assert missing.profile is None
    assert "no profile a10-llama-3.1-70b ships" in missing.because
    large = next(one for one in found if one.name.startswith("h100-sxm-llama-3.1-70b"))
    assert (large.gpus, large.profile) == (2, "h100-sxm-llama-3.1-70b")
    assert candidates(("h100-sxm-llama-3.1-70b@tp4",), (), (), {}, 8192)[0].gpus == 4
    assert told["a10-llama-3.1-8b"].price == 1.5
    with pytest.raises(ConfigError, match="--price: 't4' is not one of a10"):
        candidates((), ("a10",), ("llama-3.1-8b",), {"t4": 1.0}, 8192)
    with pytest.raises(ConfigError, match="plan: name machines"):
        candidates((), (), (), {}, 8192)
    room = candidates(("a10-llama-3-8b",), (), (), {}, 10_000_000)[0]
    assert room.profile is None
    assert "less than a context of 10,000,000" in room.because


def run(*words: str) -> Result:
    return CliRunner().invoke(fastswitch.main, list(words))


def test_the_command_answers_first_and_writes_the_same(tmp_path: Path) -> None:
    given = tmp_path / "small.yaml"
    given.write_text(build(SMALL, "test").as_yaml())
    done = run(
        "plan", str(given), "--slo", "ttft_p50_s=0.6", "--machines", "a10-llama-3-8b", "--gpus", "t4",
        "--models", "llama-3.1-8b", "--seeds", "1", "--warm-up", "50", "--price",
        "a10-llama-3-8b=0.75", "--out", str(tmp_path / "plan.json"), "--most", "8",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    answer = told[0]["replicas"]
    sizes = told[0]["sizes"]
    assert sizes[str(answer)]["ttft_p50_s"] <= 0.6
    assert answer == 1 or sizes[str(answer - 1)]["ttft_p50_s"] > 0.6
    assert told[1]["because"].startswith("no profile t4-llama-3.1-8b ships")
    lines = done.output.splitlines()
    at = [next(i for i, x in enumerate(lines) if x.strip().startswith(word)) for word in ORDER]
    assert at == sorted(at)
    assert "a user costs" in done.output


ORDER = ("a10-llama-3-8b: ", "runs: ", "bottleneck: ", "with one less: ", "Assumed:")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--slo", "ttft_p99_s"), "--slo: 'ttft_p99_s' must be like name=2"),
        (("--slo", "ttft_p99_s=-1"), "must be like name=2"),
        (("--slo", "stall_share=1"), "--slo: 'stall_share' is not one of ttft_p50_s"),
        (("--slo", "ttft_p99_s=2", "--set", "replicas=2"), "take `replicas` out"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(words: tuple[str, ...], error: str) -> None:
    done = run("plan", "--users", "5", "--machines", "a10-llama-3-8b", *words)
    assert done.exit_code == 2
    assert error in done.output


# ---------------------------------------------------------------------- users


def test_users_are_in_one_conversation_each_and_pause_between_two() -> None:
    turns = [
        Turn("a/1", "a", 1, 10, 5),
        Turn("a/2", "a", 2, 20, 5, think_ns=7),
        *(Turn(f"{name}/1", name, 1, 10, 5) for name in "bcd"),
    ]
    users = Users(2, pause_ns=100, start_ns=50)
    driver = TurnDriver(Workload.of(turns, Header(timing="closed")), users=users)
    assert driver.next_ns == 0
    assert [a.request_id for a in driver.due(0)] == ["a/1"]
    assert driver.next_ns == 25
    assert [(a.arrival_ns, a.request_id) for a in driver.due(30)] == [(25, "b/1")]
    driver.ended("a/1", 40)
    assert [(a.arrival_ns, a.request_id) for a in driver.due(50)] == [(47, "a/2")]
    driver.ended("b/1", 60)
    assert driver.next_ns == 160
    assert driver.due(159) == []
    assert [(a.arrival_ns, a.request_id) for a in driver.due(161)] == [(160, "c/1")]
    assert not driver.is_done
    driver.ended("a/2", 162)
    assert [(a.arrival_ns, a.request_id) for a in driver.due(262)] == [(262, "d/1")]
    assert driver.is_done


def test_users_take_the_place_of_a_rate() -> None:
    workload = {"generator": "chat", "conversations": 3, "users": 2, "rate": 1.0}
    with pytest.raises(ConfigError, match="users begin their conversations themselves, and rate"):
        build({**SMALL, "workload": workload}, "test")
    spec = build(SMALL, "test").workload
    firsts = [t for t in open_workload(spec, Streams(0)) if t.turn == 1]
    assert len(firsts) == 100
    assert all(turn.arrival_ns is None for turn in firsts)


def test_a_trace_with_arrivals_of_its_own_has_no_users(tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text(
        '{"format": "fastswitch-workload/3", "source": "x", "timing": "open"}\n'
        '{"request_id": "a", "session_id": "a", "turn": 1, "input_tokens": 5, "output_tokens": 5,'
        ' "arrival_s": 0}\n'
    )
    spec = build({**SMALL, "workload": {"file": str(path), "users": 2}}, "test").workload
    with pytest.raises(ConfigError, match="has arrivals of its own, which users would not keep to"):
        open_workload(spec, Streams(0))
