"""Readers of traces that say what prompts share: Qwen-Bailian, RAGPulse, Mooncake's dialects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy.errors import ConfigError, InputError
from traces.readers.base import Aids, Prompts, in_time_order
from traces.readers.catalog import read_workload
from traces.strict import Place
from traces.workload import Turn, Workload

SECOND = 10**9


def file_of(folder: Path, *rows: Any, name: str = "trace.jsonl") -> Path:
    path = folder / name
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def refusal(path: Path, aids: Aids | None = None) -> str:
    with pytest.raises(InputError) as caught:
        list(read_workload(path, None, aids))
    return str(caught.value)


# ---------------------------------------------------------------------- Qwen-Bailian


def chat(number: Any, parent: Any, at: Any, tokens: Any, ids: Any, **more: Any) -> dict[str, Any]:
    return {
        "chat_id": number,
        "parent_chat_id": parent,
        "timestamp": at,
        "input_length": tokens,
        "output_length": 5,
        "type": "text",
        "turn": 1,
        "hash_ids": ids,
        **more,
    }


def test_a_conversation_is_the_chain_of_parents_and_may_branch_and_shrink(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        chat(10, -1, 0.0, 40, [1, 2, 3]),
        chat(11, -1, 0.5, 16, [9]),
        chat(12, 10, 1.0, 64, [1, 2, 4, 5], turn=2),
        chat(13, 10, 2.0, 20, [1, 6], turn=2, type="search"),
        chat(14, 12, 3.0, 33, [1, 2, 4], turn=3),
        chat(15, 99, 4.0, 16, [1], turn=7),
    )
    workload = read_workload(path)
    assert (workload.header.block_size, workload.header.hash_scope) == (16, "global")
    assert [
        (t.request_id, t.session_id, t.turn, t.parent_id, t.parent_prefix_tokens) for t in workload
    ] == [
        ("10", "10", 1, None, None),
        ("11", "11", 1, None, None),
        ("12", "10", 2, "10", 32),
        ("13", "10", 3, "10", 16),
        ("14", "10", 4, "12", 33),
        ("15", "15", 1, None, None),
    ]
    assert [turn.kind for turn in workload][3] == "search"


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (chat(1, -1, 0.5, 16, [1]), "timestamp: time runs backwards"),
        (chat(0, -1, 1.5, 16, [1]), "chat_id: '0' came before"),
        (chat(1, -1, 1.5, 33, [1, 2]), "hash_ids: 2 ids for 33 tokens"),
        (chat(1, -1, 1.5, 33, "1-3"), "hash_ids: "),
        (chat(1, [], 1.5, 16, [1]), "parent_chat_id: "),
        (chat(None, -1, 1.5, 16, [1]), "chat_id: missing"),
        (chat(1, -1, "1.5", 16, [1]), "timestamp: "),
        (chat(1, -1, -1, 16, [1]), "timestamp: "),
        (chat(1, -1, 1.5, -1, []), "input_length: "),
        (chat(1, -1, 1.5, 16, [1], turn=0), "turn: "),
        (chat(1, -1, 1.5, 16, [1], type=7), "type: "),
        (chat(1, -1, 1.5, 16, [1], surprise=7), "surprise: unknown key"),
        ("[]", "not a JSON object"),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_a_broken_row_of_qwen_is_refused(tmp_path: Path, row: Any, where: str) -> None:
    path = file_of(tmp_path, chat(0, -1, 1.0, 16, [7]), row)
    assert refusal(path).startswith(f"{path}:2: {where}")


def test_prompts_that_were_long_ago_are_forgotten_and_nothing_is_invented() -> None:
    prompts = Prompts(16, limit=4)
    prompts.keep("a", 40, (1, 2, 3))
    assert prompts.shared("a", 48, (1, 2, 9)) == 32
    assert prompts.shared("a", 64, (1, 2, 3, 4)) == 40
    assert prompts.shared("a", 20, (1, 2)) == 20
    prompts.keep("a", 16, (5,))
    prompts.keep("b", 48, (1, 2, 3))
    assert prompts.shared("a", 32, (5, 6)) == 16
    prompts.keep("c", 16, (8,))
    assert prompts.shared("a", 32, (5, 6)) is None
    assert prompts.shared("b", 16, (1,)) == 16


# ---------------------------------------------------------------------- RAGPulse


def ask(at: Any, session: Any, system: Any, user: Any, **more: Any) -> dict[str, Any]:
    parts = {"sys_prompt": system, "passages_ids": [], "history": [], "web_search": []}
    return {
        "timestamp": at,
        "input_length": 100,
        "output_length": 7,
        "hash_ids": {**parts, "user_input": user},
        "session_id": session,
        **more,
    }


SIZES = "file,hash_id,token_length\n1_sys_prompt,1,10\n1_sys_prompt,2,20\n4_user,3,5\n4_user,4,6"


def test_ragpulse_rows_are_sorted_by_time_and_numbered_by_session(tmp_path: Path) -> None:
    rows = [ask("5", "a", [1], [3]), ask("9", "a", [1], [4]), ask("8", "a", [1], [3])]
    path = file_of(tmp_path, *rows, "")
    workload = read_workload(path)
    assert workload.header.lost and workload.header.time_resolution_s == 1.0
    found = [(t.request_id, t.turn, t.arrival_ns, t.components) for t in workload]
    assert found == [
        ("r0000000", 1, 5 * SECOND, None),
        ("r0000002", 2, 8 * SECOND, None),
        ("r0000001", 3, 9 * SECOND, None),
    ]


@pytest.mark.parametrize("kind", ["table", "published"])
def test_the_length_files_make_parts_components_and_tell_what_a_turn_repeats(
    tmp_path: Path, kind: str
) -> None:
    if kind == "table":
        companions: tuple[Path, ...] = (file_of(tmp_path, SIZES, name="lengths.csv"),)
    else:
        system = [{"sys_prompt_id": k, "token_length": 10 * k} for k in (1, 2)]
        user = [{"user_input_id": k, "token_length": 2 + k} for k in (3, 4)]
        companions = (
            file_of(tmp_path, *system, name="1_sys_prompt.jsonl"),
            file_of(tmp_path, *user, name="4_user_input.jsonl"),
        )
    rows = [ask("5", "a", [1, 2], [3]), ask("6", "b", [1], [3]), ask("8", "a", [1, 2], [4])]
    workload = read_workload(file_of(tmp_path, *rows), None, Aids(companions=companions))
    assert workload.header.lost == ()
    first, second, third = workload
    assert first.components == (
        ("sys_prompt", "1", 10),
        ("sys_prompt", "2", 20),
        ("user_input", "3", 5),
    )
    shared = [turn.parent_prefix_tokens for turn in (first, second, third)]
    assert shared == [None, None, 30]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (ask(5, "a", [1], [3], surprise=1), "surprise: "),
        (ask("x", "a", [1], [3]), "timestamp: "),
        (ask("-5", "a", [1], [3]), "timestamp: "),
        (ask(None, "a", [1], [3]), "timestamp: missing"),
        (ask("5", None, [1], [3]), "session_id: missing"),
        (ask("5", "a", [9], [3]), "hash_ids.sys_prompt: 9 is in none of the length files"),
        (ask("5", "a", "1", [3]), "hash_ids.sys_prompt: "),
        (ask("5", "a", [1], [3], hash_ids=[1]), "hash_ids: "),
        (ask("5", "a", [1], [3], hash_ids={"other": []}), "hash_ids: "),
        (ask("5", "a", [1], [3], output_length=-1), "output_length: "),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_broken_row_of_ragpulse_is_refused(tmp_path: Path, row: Any, where: str) -> None:
    aids = Aids(companions=(file_of(tmp_path, SIZES, name="lengths.csv"),))
    path = file_of(tmp_path, ask("1", "a", [1], [3]), row)
    assert refusal(path, aids).startswith(f"{path}:2: {where}")


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("4_user,4,7", "hash_id: 4 came before"),
        ("4_user,x,7", "hash_id: "),
        ("4_user,5,-1", "token_length: "),
    ],
)
def test_a_broken_length_file_is_refused(tmp_path: Path, line: str, where: str) -> None:
    lengths = file_of(tmp_path, SIZES, line, name="lengths.csv")
    path = file_of(tmp_path, ask("1", "a", [1], [3]))
    assert refusal(path, Aids(companions=(lengths,))).startswith(f"{lengths}:6: {where}")


def test_a_reader_without_companions_refuses_one(tmp_path: Path) -> None:
    path = file_of(tmp_path, chat(0, -1, 1.0, 16, [7]))
    with pytest.raises(ConfigError, match=r"^companion: qwen-bailian takes none"):
        read_workload(path, None, Aids(companions=(path,)))


def test_a_row_that_is_later_than_the_window_holds_is_refused() -> None:
    turns = [Turn(str(at), str(at), 1, 1, 1, arrival_ns=at) for at in (5, 7, 6, 3)]
    place = Place(Path("f"))
    assert [t.arrival_ns for t in in_time_order(turns, place)] == [3, 5, 6, 7]
    with pytest.raises(InputError, match=r"^f: time runs backwards by more than 2 rows"):
        list(in_time_order(turns, place, window=2))


# ---------------------------------------------------------------------- Mooncake


def times(workload: Workload) -> list[tuple[str, int, int | None, int | None, int | None]]:
    return [(t.session_id, t.turn, t.arrival_ns, t.think_ns, t.gap_ns) for t in workload]


def moon(**values: Any) -> dict[str, Any]:
    return {"input_length": 600, "output_length": 5, **values}


def test_other_tools_names_of_the_keys_mean_the_same(tmp_path: Path) -> None:
    ours = read_workload(file_of(tmp_path, moon(timestamp=5, hash_ids=[0, 1])))
    theirs = read_workload(
        file_of(
            tmp_path,
            {"created_time": 5.0, "input_tokens": 600, "output_tokens": 5, "hash_ids": [0, 1]},
            name="theirs.jsonl",
        )
    )
    assert list(ours) == list(theirs)
    assert ours.header == theirs.header


def test_a_delay_makes_a_closed_loop_and_a_bare_timestamp_a_gap(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        moon(session_id="a", timestamp=1000),
        moon(session_id="a", delay=250),
        moon(session_id="a", delay_ms=0.5),
        moon(session_id="b", timestamp=2000),
        moon(session_id="b", timestamp=9000),
        moon(session_id="c"),
        moon(session_id="c"),
    )
    workload = read_workload(path, aids=Aids(turns="whole"))
    assert workload.header.timing == "closed"
    assert times(workload) == [
        ("a", 1, SECOND, None, None),
        ("a", 2, None, 250_000_000, None),
        ("a", 3, None, 500_000, None),
        ("b", 1, 2 * SECOND, None, None),
        ("b", 2, None, None, 7 * SECOND),
        ("c", 1, None, None, None),
        ("c", 2, None, None, None),
    ]


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([moon(session_id="b", timestamp=1), moon(session_id="a", delay=1)], "session_id: 'a' c"),
        ([moon(session_id="b", delay=1)], "delay: given of the first row"),
        ([moon(session_id="a", timestamp=0.5)], "timestamp: not after"),
        ([moon(session_id="a", delay=-1)], "delay: "),
        ([moon(session_id="a", delay="1")], "delay: "),
        ([moon(session_id="a", delay=1, delay_ms=1)], "delay_ms: given twice, also as delay"),
        ([moon(session_id="a", delay=1, surprise=1)], "surprise: unknown key"),
    ],
    ids=str,
)
def test_a_broken_closed_loop_of_mooncake_is_refused(
    tmp_path: Path, rows: list[Any], where: str
) -> None:
    first = [moon(session_id="a", timestamp=1), moon(session_id="a", delay=1)]
    path = file_of(tmp_path, *first, *rows)
    assert refusal(path).startswith(f"{path}:{2 + len(rows)}: {where}")


def test_what_a_turn_repeats_is_read_from_the_blocks(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        moon(timestamp=0, session_id="a", hash_ids=[0, 1]),
        moon(timestamp=1, session_id="a", hash_ids=[0, 1, 2], input_length=1100),
        moon(timestamp=2, session_id="a", hash_ids=[0, 8], input_length=520),
        moon(timestamp=3, session_id="a", input_length=100),
    )
    shared = [turn.parent_prefix_tokens for turn in read_workload(path)]
    assert shared == [None, 600, 512, None]


def test_ids_of_requests_are_kept_and_other_keys_named_as_lost(tmp_path: Path) -> None:
    rows = [moon(timestamp=0, request_id="q", extra={"a": 1}), moon(timestamp=0, request_id=7)]
    workload = read_workload(file_of(tmp_path, *rows))
    assert workload.header.lost == ("extra: additions to the request's body",)
    assert [turn.request_id for turn in workload] == ["q", "7"]
    twice = file_of(tmp_path, rows[0], rows[0])
    assert refusal(twice) == f"{twice}:2: request_id: 'q' came before"


TABLE = "row,timestamp,session,turn,parent_row,matched_blocks"


def test_the_table_of_sessions_gives_rows_their_conversations(tmp_path: Path) -> None:
    rows = [moon(timestamp=k, hash_ids=[0, k + 1]) for k in range(4)]
    table = file_of(
        tmp_path, TABLE, "0,0,0,1,-1,0", "1,1,1,1,-1,0", "2,2,0,2,0,1", "3,3,0,3,0,9", name="t.csv"
    )
    workload = read_workload(file_of(tmp_path, *rows), None, Aids(companions=(table,)))
    assert [(t.session_id, t.turn, t.parent_id, t.parent_prefix_tokens) for t in workload] == [
        ("c0", 1, None, None),
        ("c1", 1, None, None),
        ("c0", 2, "r0000000", 512),
        ("c0", 3, "r0000000", 600),
    ]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("2,0,0,1,-1,0", "t.csv:3: row: 2 where 1 was due"),
        ("1,0,0,2,1,0", "t.csv:3: parent_row: 1 is no earlier row"),
        ("1,0,1,2,0,0", "t.csv:3: parent_row: 0 is no earlier row of the session"),
        ("1,0,x,1,-1,0", "t.csv:3: session: "),
        ("1,0,0,1,-1,0\n2,0,1,1,-1,0", "trace.jsonl:2: the table of sessions has more rows"),
    ],
)
def test_a_broken_table_of_sessions_is_refused(tmp_path: Path, line: str, where: str) -> None:
    table = file_of(tmp_path, TABLE, "0,0,0,1,-1,0", line, name="t.csv")
    path = file_of(tmp_path, moon(timestamp=0), moon(timestamp=0))
    assert refusal(path, Aids(companions=(table,))).startswith(f"{tmp_path}/{where}")


def test_a_table_of_sessions_that_is_too_short_is_refused(tmp_path: Path) -> None:
    table = file_of(tmp_path, TABLE, "0,0,0,1,-1,0", name="t.csv")
    path = file_of(tmp_path, moon(timestamp=0), moon(timestamp=0))
    assert refusal(path, Aids(companions=(table,))) == (
        f"{path}:2: no such row in the table of sessions"
    )
