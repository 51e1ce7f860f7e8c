"""Readers of CSV traces without texts: Azure 2024, BurstGPT, VTC Arena, tables of lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.errors import InputError
from traces.readers.catalog import read_workload
from traces.workload import Header, Turn

BURST = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
)
ARENA = "req_id,req_time,adapter_dir,prompt_len,output_len"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio"
SECOND = 10**9


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_workload(path))
    return str(caught.value).removeprefix(str(path))


def test_the_azure_week_of_2024_has_the_same_columns_and_times_with_an_offset(
    tmp_path: Path,
) -> None:
    path = file_of(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2024-05-10 00:00:00.009930+00:00,2162,5",
        "2024-05-12 00:00:01+00:00,2399,6",
    )
    workload = read_workload(path)
    assert workload.header == Header(
        source="Azure LLM inference trace 2024",
        licence="CC-BY-4.0",
        timing="open",
        time_resolution_s=1e-6,
    )
    assert [turn.arrival_ns for turn in workload] == [0, (2 * 86_400 + 1) * SECOND - 9_930_000]


def test_burstgpt_sessions_are_those_of_its_conversation_rows(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        BURST,
        "19440110.0,ab-c,43,GPT-4,906,446,1352,Conversation log",
        "19440161.5,,,ChatGPT,36,0,36,API log",
        "19440192.0,ab-c,2.5,GPT-4,1400,29,1429,Conversation log",
        "19440192.0,r0000001,2,GPT-4,1,2,3,Conversation log",
    )
    workload = read_workload(path)
    assert workload.header.timing == "open"
    said = {"model": "GPT-4", "kind": "Conversation log"}
    first, second, third, fourth = workload
    assert first == Turn(
        *("r0000000", "ab-c", 1, 906, 446), arrival_ns=0, service_ns=43 * SECOND, **said
    )
    assert second == Turn(
        *("r0000001", "r0000001", 1, 36, 0),
        arrival_ns=51_500_000_000,
        model="ChatGPT",
        kind="API log",
    )
    assert third == Turn(
        *("r0000002", "ab-c", 2, 1400, 29),
        arrival_ns=82 * SECOND,
        service_ns=2_500_000_000,
        **said,
    )
    assert fourth == Turn(
        *("r0000003", "sr0000001", 1, 1, 2),
        arrival_ns=82 * SECOND,
        service_ns=2 * SECOND,
        **said,
    )


def test_the_first_releases_of_burstgpt_have_no_sessions(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,ChatGPT,472,18,490,Conversation log",
        "45,ChatGPT,1087,230,1317,Conversation log",
    )
    assert [(turn.session_id, turn.arrival_ns) for turn in read_workload(path)] == [
        ("r0000000", 0),
        ("r0000001", 40 * SECOND),
    ]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("4,a,1,m,1,1,2,x", "Timestamp: time runs backwards"),
        ("NaN,a,1,m,1,1,2,x", "Timestamp: "),
        ("-1,a,1,m,1,1,2,x", "Timestamp: "),
        ("1e999,a,1,m,1,1,2,x", "Timestamp: "),
        ("6,a,-1,m,1,1,2,x", "Elapsed time: "),
        ("6,a,1,m,-1,1,2,x", "Request tokens: "),
        ("6,a,1,m,1,1.5,2,x", "Response tokens: "),
        (f"6,a,1,m,1,{'9' * 4300},2,x", "Response tokens: "),
        ("6,a,1,m,1,1,two,x", "Total tokens: "),
        ("6,a,1,,1,1,2,x", "Model: "),
        ("6,a,1,m,1,1,2,", "Log Type: "),
        ("6,\0,1,m,1,1,2,x", "Session ID: "),
        ("6,a,1,m,1,1,2", "7 fields, the header has 8"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_broken_row_of_burstgpt_is_refused(tmp_path: Path, row: str, where: str) -> None:
    path = file_of(tmp_path, BURST, "5,a,1,m,1,1,2,x", row)
    assert refusal(path).startswith(f":3: {where}")


def test_rows_of_the_arena_are_single_turns_of_named_clients(tmp_path: Path) -> None:
    path = file_of(tmp_path, ARENA, "0,0.0,lora-13,13,199", "7,0.25,lora-2,36,0")
    workload = read_workload(path)
    assert workload.header.timing == "open" and "600 s" in workload.header.notes
    assert list(workload) == [
        Turn("0", "0", 1, 13, 199, arrival_ns=0, client_id="lora-13"),
        Turn("7", "7", 1, 36, 0, arrival_ns=250_000_000, client_id="lora-2"),
    ]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("0,1,a,1,1", "request_id: '0' came before"),
        ("1,0.25,a,1,1", "req_time: time runs backwards"),
        ("1,1e400,a,1,1", "req_time: "),
        ("1,1,,1,1", "adapter_dir: "),
        ("1,1,a,x,1", "prompt_len: "),
        ("1,1,a,1,16777217", "output_len: "),
        (",1,a,1,1", "req_id: "),
    ],
)
def test_a_broken_row_of_the_arena_is_refused(tmp_path: Path, row: str, where: str) -> None:
    path = file_of(tmp_path, ARENA, "0,0.5,a,1,1", row)
    assert refusal(path).startswith(f":3: {where}")


def test_a_table_of_lengths_says_nothing_of_time_unless_it_has_it(tmp_path: Path) -> None:
    plain = read_workload(file_of(tmp_path, LENGTHS, "74,918,992,0.08", "290,5,295,58.0"))
    assert (plain.header.timing, plain.header.lost) == ("closed", ("when requests arrived",))
    assert list(plain) == [
        Turn("r0000000", "r0000000", 1, 74, 918),
        Turn("r0000001", "r0000001", 1, 290, 5),
    ]
    names = "arrived_at,num_prefill_tokens,num_decode_tokens"
    timed = read_workload(file_of(tmp_path, names, "0.5,1,2", "0.75,3,4"))
    assert (timed.header.timing, timed.header.lost) == ("open", ())
    assert [turn.arrival_ns for turn in timed] == [500_000_000, 750_000_000]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("1,2,4,0.5", "num_total_tokens: 4 is not 1 + 2"),
        ("1,2,3,NaN", "pd_ratio: "),
        ("-1,2,1,0.5", "num_prefill_tokens: "),
        ("1,,1,0.5", "num_decode_tokens: "),
    ],
)
def test_a_broken_row_of_lengths_is_refused(tmp_path: Path, row: str, where: str) -> None:
    assert refusal(file_of(tmp_path, LENGTHS, "1,2,3,0.5", row)).startswith(f":3: {where}")


def test_time_of_a_table_of_lengths_may_not_run_backwards(tmp_path: Path) -> None:
    names = "num_prefill_tokens,num_decode_tokens,arrived_at"
    path = file_of(tmp_path, names, "1,2,5", "1,2,4.5")
    assert refusal(path) == ":3: arrived_at: time runs backwards"
