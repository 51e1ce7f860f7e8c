"""Readers of traces that are text: ShareGPT's conversations and LMCache's agent logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from tests.helpers.formats import AIDS
from traces.readers import lmcache
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.readers.lmcache import _common
from traces.readers.sharegpt import EMPTY


def file_of(folder: Path, text: str) -> Path:
    path = folder / "text"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, name: str) -> str:
    with pytest.raises(InputError) as caught:
        list(read_workload(path, name, AIDS))
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("name", ["sharegpt-text", "lmcache-agent"])
def test_a_text_without_a_tokenizer_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"tokens must be counted; .* --tokenizer"):
        read_workload(tmp_path / "absent", name, Aids())


# ---------------------------------------------------------------------- ShareGPT


def record(name: Any, *said: tuple[Any, Any]) -> dict[str, Any]:
    return {"id": name, "conversations": [{"from": who, "value": text} for who, text in said]}


def sharegpt(folder: Path, *records: Any, indent: int | None = None) -> Path:
    return file_of(folder, json.dumps(list(records), indent=indent))


RECORDS = (
    record("a_0", ("human", "one two"), ("gpt", "x")),
    record("b", ("gpt", "hello"), ("human", "y y"), ("human", "z"), ("gpt", "u"), ("gpt", "v w")),
    record("a_10", ("human", "six")),
    record("a_2", ("human", "three"), ("gpt", "four five")),
    record("c_1"),
)


@pytest.mark.parametrize("indent", [None, 1])
def test_chunks_are_joined_in_the_order_of_their_offsets_and_messages_of_one_role_merged(
    tmp_path: Path, indent: int | None
) -> None:
    workload = read_workload(sharegpt(tmp_path, *RECORDS, indent=indent), None, AIDS)
    assert workload.header.timing == "closed"
    found = [
        (t.session_id, t.turn, t.new_input_tokens, t.input_tokens, t.output_tokens)
        for t in workload
    ]
    assert found == [
        ("a", 1, 2, 2, 1),
        ("a", 2, 1, 4, 2),
        ("a", 3, 1, 7, 0),
        ("b", 1, 0, 0, 1),
        ("b", 2, 3, 4, 3),
    ]
    assert workload.left_out == {EMPTY: 1}
    assert list(workload) and workload.left_out == {EMPTY: 1}  # counted anew


def test_items_longer_than_what_is_read_at_once_are_whole(tmp_path: Path) -> None:
    long = " ".join("w" * 9 for _ in range(40_000))
    path = sharegpt(tmp_path, record("a", ("human", long)), record("b", ("human", "é " * 50_000)))
    assert [t.input_tokens for t in read_workload(path, None, AIDS)] == [40_000, 50_000]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ": empty file"),
        ("{}", ":1: conversations: None is not a list"),
        ("7", ":1: not a JSON object"),
        ("[7]", ": [0]: '7' where an object was due"),
        ("[{}", ": '' where a comma was due after item 0"),
        ("[{} {}]", ": '{' where a comma was due after item 0"),
        ("[{}, ]", ": [1]: ']' where an object was due"),
        ('[{"id": 1}]', ": [0].conversations: "),
        ('[{"id": "a"}]', ": [0].conversations: "),
        ('[{"id": "a", "id": "b"}]', ": id: given twice"),
        ('[{"id": NaN}]', ": [0].conversations: None is not a list"),
        (f'[{{"id": {"9" * 4300}}}]', ": a number of 4300 digits"),
        ('[{"id": ' + "[" * 100_000, ": [0]: n"),
        ('[{"id": "a"', ": [0]: not JSON"),
        ("[]]", ": more after the end of the list"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_list_of_records_is_refused(tmp_path: Path, text: str, where: str) -> None:
    path = file_of(tmp_path, text.replace("[{}", '[{"id": "a", "conversations": []}'))
    assert refusal(path, "sharegpt-text").startswith(where)


@pytest.mark.parametrize(
    ("records", "where"),
    [
        ([record("a_1", ("human", "x"))] * 2, ": [1].id: 'a_1' came before"),
        ([record("", ("human", "x"))], ": [0].id: "),
        ([record("a", ("narrator", "x"))], ": [0].conversations[0].from: "),
        ([record("a", (["human"], "x"))], ": [0].conversations[0].from: "),
        ([record("a", ("human", 7))], ": [0].conversations[0].value: "),
        ([record("a", ("human", "\ud800"))], ": [0].conversations[0].value: has half"),
        ([{"id": "a", "conversations": ["x"]}], ": [0].conversations[0]: "),
        ([record("x" * 127, ("human", "x"))], ": id: "),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_a_broken_record_is_refused(tmp_path: Path, records: list[Any], where: str) -> None:
    assert refusal(sharegpt(tmp_path, *records), "sharegpt-text").startswith(where)


# ---------------------------------------------------------------------- LMCache


def call(at: Any, prompt: Any, reply: Any, session: Any = "s") -> dict[str, Any]:
    return {"timestamp": at, "input": prompt, "output": reply, "session_id": session}


def log(folder: Path, *calls: Any) -> Path:
    return file_of(folder, "".join(json.dumps(row) + "\n" for row in calls))


def test_a_session_is_taken_apart_into_chains_that_share_a_prefix(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        call(1000, "hi how can I help", "I want a flight"),
        call(2000, "I want a flight", ""),
        call(3000, "I want a flight", "which one"),
        call(4000, "hi how can I help which one", "the first"),
        call(5000, "I want a flight which one the first", "done"),
        call(6000, "hi there", "yes"),
    )
    found = [
        (
            t.session_id,
            t.turn,
            t.arrival_ns,
            t.input_tokens,
            t.output_tokens,
            t.parent_prefix_tokens,
        )
        for t in read_workload(path, None, AIDS)
    ]
    assert found == [
        ("s/1", 1, 0, 5, 4, None),
        ("s/2", 1, 1_000_000, 4, 0, None),
        ("s/2", 2, 2_000_000, 4, 2, 4),
        ("s/1", 2, 3_000_000, 7, 2, 5),
        ("s/2", 3, 4_000_000, 8, 1, 6),
        ("s/1", 3, 5_000_000, 2, 1, 1),
    ]


@pytest.mark.parametrize(("shared", "chains"), [(4, 2), (5, 1)])
def test_half_of_the_shorter_prompt_must_be_shared(
    tmp_path: Path, shared: int, chains: int
) -> None:
    first, second = ([f"{who}{k}" for k in range(10)] for who in "ab")
    second[:shared] = first[:shared]
    path = log(tmp_path, call(1000, " ".join(first), ""), call(2000, " ".join(second * 2), ""))
    assert len({turn.session_id for turn in read_workload(path, None, AIDS)}) == chains


def test_a_session_that_was_forgotten_is_refused_and_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmcache, "_ROOM", 5)
    rows = [call(k, "one two three", "", f"s{k % 3}") for k in range(1, 4)]
    assert len(list(read_workload(log(tmp_path, *rows), None, AIDS))) == 3
    path = log(tmp_path, *rows, call(9, "one two three", "", "s1"))
    assert refusal(path, "lmcache-agent") == (
        ":4: session_id: 's1' comes back after 5 tokens of others"
    )


def test_sessions_after_one_another_are_brought_in_order_of_time(tmp_path: Path) -> None:
    path = log(tmp_path, call(9000, "a", "b"), call(5000, "c", "d", "t"), call(9500, "a", "b", "t"))
    found = [(t.request_id, t.session_id, t.arrival_ns) for t in read_workload(path, None, AIDS)]
    assert found == [
        ("r0000001", "t/1", 0),
        ("r0000000", "s/1", 4_000_000),
        ("r0000002", "t/2", 4_500_000),
    ]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (call(999, "a", "b"), "timestamp: time runs backwards within a session"),
        (call(-1, "a", "b"), "timestamp: "),
        (call("1", "a", "b"), "timestamp: "),
        (call(1.5, "a", "b"), "timestamp: "),
        (call(1 << 60, "a", "b"), "timestamp: "),
        (call(2000, None, "b"), "input: "),
        (call(2000, "a", 7), "output: "),
        (call(2000, "\udc00", "b"), "input: has half a character"),
        (call(2000, "a", "b", None), "session_id: "),
        (call(2000, "a", "b", "x" * 128), "session_id: "),
        ({**call(2000, "a", "b"), "surprise": 1}, "surprise: unknown key"),
        ({"timestamp": 2000}, "input: missing"),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_a_broken_call_is_refused(tmp_path: Path, row: Any, where: str) -> None:
    path = log(tmp_path, call(1000, "a", "b"), row)
    assert refusal(path, "lmcache-agent").startswith(f":2: {where}")


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_a_common_prefix_found_by_halving_is_the_one_found_one_by_one(
    left: list[int], right: list[int]
) -> None:
    from array import array

    most = min(len(left), len(right))
    slow = next((k for k in range(most) if left[k] != right[k]), most)
    assert _common(array("I", left), array("I", right)) == slow
