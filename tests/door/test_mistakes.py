"""What others' doors got wrong, one by one: ours does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

from explore.validation.validate import replay
from tests.helpers.door import Door, Raw, open_door, requests_of, wait_for

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def said(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "ignore_eos": True, **more}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One for all that leave it as it was."""
    with open_door(tmp_path_factory.mktemp("door") / "run") as found:
        yield found
    assert found.error is None
    assert found.recording is not None
    assert found.recording.summary["served"]


def number(page: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_a_stream_has_one_event_a_token_then_usage_then_done(door: Door, path: str) -> None:
    body = (
        said(max_tokens=5)
        if path == CHAT
        else {"prompt": "abc", "max_tokens": 5, "ignore_eos": True}
    )
    events = door.stream(path, {**body, "stream_options": {"include_usage": True}})
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 5
    tokens = events[:-2]
    if path == CHAT:
        assert tokens[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        tokens = tokens[1:]
    assert len(tokens) == 5
    assert [one["choices"][0]["finish_reason"] for one in tokens] == [None] * 4 + ["length"]
    assert all("usage" not in one for one in tokens)


def test_usage_comes_when_it_is_asked_for_and_with_every_event_when_that_is(door: Door) -> None:
    assert all("usage" not in one for one in door.stream(CHAT, said(max_tokens=3))[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = door.stream(CHAT, said(max_tokens=3, stream_options=options))
    counts = [one["usage"]["completion_tokens"] for one in events[1:-1]]
    assert counts == [1, 2, 3, 3]


def test_a_stream_that_the_engine_refuses_gets_its_status_and_no_200(tmp_path: Path) -> None:
    tiny = {"pool": {"device_blocks": 8, "host_blocks": 8, "aging": "none"}}
    with open_door(tmp_path / "run", tiny) as door:
        status, answer = door.ask(PLAIN, {"prompt": "x" * 300, "max_tokens": 4, "stream": True})
        assert status == 400
        assert answer["error"]["type"] == "BadRequestError"
        assert requests_of_later(door)["q1"]["status"] == "rejected"


def requests_of_later(door: Door) -> dict[str, Any]:
    door.stop()
    return requests_of(door.run)


def test_the_numbers_of_a_reply_are_there_before_its_end_is_told(door: Door) -> None:
    before = number(door.ask("/metrics")[1], "vllm:generation_tokens_total")
    door.stream(CHAT, said(max_tokens=7))
    page = door.ask("/metrics")[1]
    assert number(page, "vllm:generation_tokens_total") == before + 7
    assert number(page, "vllm:num_requests_running") == 0


# ---------------------------------------------------------------------- time


def test_time_to_first_token_includes_the_wait_and_later_load_slows_earlier_requests(
    tmp_path: Path,
) -> None:
    """Two seats and eight clients; the first is alone for its first tokens."""
    crowd = {"limits": {"max_model_len": 400, "max_num_seqs": 2}}
    with open_door(tmp_path / "run", crowd, scale=20) as door:
        streams = [Raw(door, said(max_tokens=60, priority=k)) for k in range(8)]
        for one in streams:
            assert one.rest().endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
        page = door.ask("/metrics")[1]
        mean = number(page, "vllm:time_to_first_token_seconds_sum") / 8
    rows = requests_of(door.run)
    recorded = [(one["first_token_ns"] - one["arrival_ns"]) / 20e9 for one in rows.values()]
    assert mean >= sum(recorded) / 8
    assert max(recorded) > 4 * min(recorded)


# ---------------------------------------------------------------------- bad requests


BAD: list[tuple[dict[str, Any] | bytes, str]] = [
    (b'{"prompt":"a","max_tokens":NaN}', "NaN"),
    (b'{"prompt":"a","max_tokens":1e400}', "max_tokens"),
    (b'{"prompt":"a","priority":1e400}', "priority"),
    (b'{"prompt":"\\ud800"}', "prompt"),
    (b"\xff\xfe", "JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b"[" * 100_000, "JSON"),
    ({}, "prompt"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ""}, "empty"),
    ({"prompt": [256]}, "vocabulary"),
    ({"prompt": "a", "n": 2}, "n is not served"),
    ({"prompt": "a", "logprobs": 1}, "logprobs"),
    ({"prompt": "a", "echo": True}, "echo"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "min_tokens": 9, "max_tokens": 2}, "min_tokens"),
]


@pytest.mark.parametrize(("body", "word"), BAD, ids=lambda one: str(one)[:40])
def test_a_bad_request_is_refused_by_name_and_costs_nobody_anything(
    door: Door, body: Any, word: str
) -> None:
    status, answer = door.ask(PLAIN, body)
    assert status == 400, answer
    assert word in answer["error"]["message"]
    assert answer["error"]["code"] == 400
    assert door.ask("/health")[0] == 200


def test_a_prompt_over_the_limit_is_told_in_the_words_that_clients_match(door: Door) -> None:
    for body in (
        {"prompt": "x" * 400},
        {"prompt": "x" * 300, "max_tokens": 200},
        {"prompt": "x" * 99999},
    ):
        status, answer = door.ask(PLAIN, body)
        assert status == 400
        assert "maximum context length is 400 tokens" in answer["error"]["message"]


def test_every_error_has_the_same_shape(door: Door) -> None:
    for path, body, method, wanted in (
        ("/nowhere", None, None, 404),
        ("/v1/responses", {}, None, 404),
        (CHAT, None, "GET", 405),
        (PLAIN, {"prompt": "a", "model": "other"}, None, 404),
    ):
        status, answer = door.ask(path, body, method)
        assert status == wanted
        assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_priority_that_the_order_does_not_read_is_refused_in_vllms_words(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", {"order": "fcfs"}) as door:
        status, answer = door.ask(PLAIN, {"prompt": "a", "priority": -1})
        assert status == 400
        assert "Priority scheduling is not enabled" in answer["error"]["message"]


def test_fields_that_nobody_knows_are_ignored_and_counted(door: Door) -> None:
    assert door.ask(PLAIN, {"prompt": "a", "max_tokens": 1, "wibble": 1})[0] == 200
    assert 'field="wibble"' in door.ask("/metrics")[1]


def test_a_full_queue_refuses_with_429_and_drops_nothing(tmp_path: Path) -> None:
    one_seat = {"limits": {"max_model_len": 400, "max_num_seqs": 1}}
    with open_door(tmp_path / "run", one_seat, scale=0.5, waiting=3) as door:
        first = Raw(door, said(max_tokens=300))
        first.until(b"finish_reason")
        streams = [first, *(Raw(door, said(max_tokens=2)) for _ in range(3))]
        for _ in range(200):
            if door.front.num_waiting == 3:
                break
            time.sleep(0.01)
        status, answer = door.ask(CHAT, said(max_tokens=2))
        assert status == 429
        assert door.headers["retry-after"] == "1"
        assert answer["error"]["type"] == "RateLimitError"
        for one in streams:
            one.close()
    assert len(requests_of(door.run)) == 4


def test_metrics_have_the_names_that_gateways_read(door: Door) -> None:
    page = door.ask("/metrics")[1]
    for name in (
        "num_requests_running", "num_requests_waiting", "num_requests_swapped", "kv_cache_usage_perc",
        "cpu_cache_usage_perc", "num_preemptions_total", "prompt_tokens_total",
        "generation_tokens_total", "request_success_total", "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket", "e2e_request_latency_seconds_bucket",
    ):  # fmt: skip
        assert f"vllm:{name}{{" in page, name


# ---------------------------------------------------------------------- leaving


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_cancelled_and_the_session_replays(
    tmp_path: Path, stream: bool
) -> None:
    with open_door(tmp_path / "run", scale=5) as door:
        leaver = Raw(door, said(max_tokens=300, stream=stream))
        if stream:
            leaver.until(b"finish_reason")
        wait_for(lambda: door.front.live)
        leaver.close()
        wait_for(lambda: not door.front.live)
    row = requests_of(door.run)["q1"]
    assert row["status"] == "cancelled"
    assert row["output_tokens"] < 300
    assert replay(door.run).difference is None


def test_the_end_comes_in_order_whole_and_with_a_recording(tmp_path: Path) -> None:
    """What SIGTERM does: nobody new, who is here is served, then the folder is whole."""
    with open_door(tmp_path / "run", scale=20, grace_s=20) as door:
        stream = Raw(door, said(max_tokens=100))
        stream.until(b"finish_reason")
        door.stop(hurry=False, wait=False)
        wait_for(lambda: door.front.is_draining)
        assert door.ask("/health")[0] == 503
        assert door.ask(CHAT, said(max_tokens=2))[0] == 503
        assert b"[DONE]" in stream.rest()
        door.stop(hurry=False)
    assert requests_of(door.run)["q1"]["status"] == "finished"


def test_after_the_grace_time_streams_are_told_and_recorded_as_cancelled(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", scale=1, grace_s=0.1) as door:
        stream = Raw(door, said(max_tokens=300))
        stream.until(b"finish_reason")
        door.stop(hurry=False, wait=False)
        assert b'"code": 503' in stream.rest()
        door.stop(hurry=False)
    assert requests_of(door.run)["q1"]["status"] == "cancelled"
