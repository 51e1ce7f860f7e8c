"""Files as people have them: saved again, indented, with epochs, with what only some tools write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from tests.helpers.formats import words
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.readers.sharegpt import EMPTY
from traces.workload import Header, Turn, Workload

SECOND = 1_000_000_000


def file_of(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def shape(workload: Workload) -> list[tuple[str, int, int, int | None]]:
    return [(t.session_id, t.turn, t.input_tokens, t.arrival_ns) for t in workload]


# ---------------------------------------------------------------------- tables saved again


@pytest.mark.parametrize(
    "text",
    [
        '"TIMESTAMP","ContextTokens","GeneratedTokens"\r\n"2024-05-10 00:00:01","7","5"\r\n\r\n',
        ",TIMESTAMP,ContextTokens,GeneratedTokens\n0,2024-05-10T00:00:01Z,7,5\n",
        "Unnamed: 0,ContextTokens,TIMESTAMP,GeneratedTokens\n0,7,2024-05-10T00:00:01+00:00,5\n\n\n",
    ],
    ids=["quoted", "numbered by pandas", "numbered again, other order"],
)
def test_a_table_that_was_saved_again_is_the_same_table(tmp_path: Path, text: str) -> None:
    workload = read_workload(file_of(tmp_path, text))
    assert workload.header.source == "Azure LLM inference trace 2024"
    assert list(workload) == [Turn("r0000000", "r0000000", 1, 7, 5, arrival_ns=0)]


def test_splitwise_sim_is_read_and_a_row_of_several_requests_is_not(tmp_path: Path) -> None:
    names = (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size"
    )
    found = list(read_workload(file_of(tmp_path, f"{names}\n4,2,0,1.5,1,40,32\n")))
    assert found == [Turn("4", "4", 1, 40, 32, arrival_ns=1_500_000_000, client_id="0")]
    with pytest.raises(InputError, match=":2: batch_size: 2 is not in 1 to 1"):
        list(read_workload(file_of(tmp_path, f"{names}\n4,2,0,1.5,2,40,32\n")))


def test_frontiers_blocks_tell_their_size_and_what_a_turn_repeats(tmp_path: Path) -> None:
    workload = read_workload(
        file_of(
            tmp_path,
            "arrived_at,num_prefill_tokens,num_decode_tokens,session_id,block_hash_ids\n"
            "0.0,40,5,3,31|32|33\n12.5,64,7,3,31|32|34|35\n13,9,1,,\n",
        )
    )
    assert (workload.header.block_size, workload.header.hash_scope) == (16, "global")
    first, second, third = workload
    assert (second.session_id, second.turn, second.parent_prefix_tokens) == ("3", 2, 32)
    assert first.hash_ids == (31, 32, 33)
    assert (third.session_id, third.hash_ids) == ("r0000002", None)


# ---------------------------------------------------------------------- clocks


EPOCH = 1_787_267_980


@pytest.mark.parametrize(
    "text",
    [
        lines(
            {"format": "fastswitch-workload/2", "timing": "open"},
            {"request_id": "a", "input_tokens": 5, "output_tokens": 1, "arrival_s": EPOCH + 0.08},
            {"request_id": "b", "input_tokens": 5, "output_tokens": 1, "arrival_s": EPOCH + 1.5},
        ),
        f"arrived_at,num_prefill_tokens,num_decode_tokens\n{EPOCH}.08,5,1\n{EPOCH + 1}.5,5,1\n",
        lines(
            {"timestamp": EPOCH * 1000 + 80, "input_length": 5, "output_length": 1},
            {"timestamp": EPOCH * 1000 + 1500, "input_length": 5, "output_length": 1},
        ),
    ],
    ids=["native", "token-lengths", "mooncake"],
)
def test_a_clock_that_counts_from_1970_is_counted_from_the_first_row(
    tmp_path: Path, text: str
) -> None:
    times = [turn.arrival_ns for turn in read_workload(file_of(tmp_path, text))]
    assert times == [0, 1_420_000_000]


def test_a_clock_that_jumps_from_zero_to_the_present_is_refused(tmp_path: Path) -> None:
    text = f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,1\n{EPOCH},5,1\n"
    with pytest.raises(InputError, match=":3: arrival: not within 316224000 seconds after"):
        list(read_workload(file_of(tmp_path, text)))


# ---------------------------------------------------------------------- JSON in other shapes


def span(number: int, session: str, start: int, tokens: int) -> dict[str, Any]:
    return {
        "span_id": f"s{number}",
        "start_time": f"2026-02-25T10:00:{start:02d}.000000",
        "end_time": f"2026-02-25T10:00:{start + 1:02d}.500000",
        "attributes": {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": tokens,
            "gen_ai.usage.output_tokens": 4,
            "gen_ai.conversation.id": session,
        },
    }


SPANS = [span(1, "c", 3, 10), span(2, "c", 7, 20), span(3, "d", 5, 30)]
OTLP = {"resourceSpans": [{"scopeSpans": [{"spans": SPANS}]}]}


@pytest.mark.parametrize(
    "text",
    [
        lines(*SPANS),
        lines(OTLP),
        json.dumps(OTLP, indent=2),
        json.dumps({"trace_id": "t", "span_count": 3, "spans": SPANS}),
        json.dumps(SPANS, indent=1),
        json.dumps({"spans": SPANS[:1]}, indent=1) + "\n" + json.dumps({"spans": SPANS[1:]}),
    ],
    ids=["lines", "batch", "indented batch", "under spans", "list", "two documents"],
)
def test_spans_are_found_wherever_documents_hold_them(tmp_path: Path, text: str) -> None:
    assert shape(read_workload(file_of(tmp_path, text))) == [
        ("c", 1, 10, 0),
        ("d", 1, 30, 2 * SECOND),
        ("c", 2, 20, 4 * SECOND),
    ]


def test_spans_of_which_none_is_a_request_are_an_error_that_counts_them(tmp_path: Path) -> None:
    tool = {"span_id": "x", "attributes": {"gen_ai.operation.name": "execute_tool"}}
    with pytest.raises(InputError, match=r"no requests in it \(left out: 2 x span of another oper"):
        list(read_workload(file_of(tmp_path, lines(tool, tool))))


BENCH = {
    "request_rate": float("inf"),
    "mean_tpot_ms": float("nan"),
    "duration": 2.0,
    "request_throughput": 1.0,
    "input_lens": [6, 5],
    "output_lens": [2, 1],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_infinities_where_nobody_needs_a_number_spoil_no_benchmark(
    tmp_path: Path, indent: int | None
) -> None:
    found = read_workload(file_of(tmp_path, json.dumps(BENCH, indent=indent)))
    assert [turn.input_tokens for turn in found] == [6, 5]
    broken = {**BENCH, "input_lens": [float("inf"), 5]}
    with pytest.raises(InputError, match=r"input_lens\[0\]: inf is not a whole number"):
        list(read_workload(file_of(tmp_path, json.dumps(broken))))


def test_two_results_in_one_file_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r":2: another result begins here.*head -n 1 FILE"):
        read_workload(file_of(tmp_path, lines(BENCH, BENCH)))


@pytest.mark.parametrize("container", ["lines", "list"])
@pytest.mark.parametrize(
    ("key", "role", "text"), [("conversations", "role", "content"), ("messages", "role", "content")]
)
def test_conversations_of_roles_and_contents_are_counted(
    tmp_path: Path, container: str, key: str, role: str, text: str
) -> None:
    said = [("system", "be kind"), ("user", "a b c"), ("assistant", None), ("tool", "d")]
    records = [{"id": 7, key: [{role: who, text: what} for who, what in said]}]
    data = lines(*records) if container == "lines" else json.dumps(records)
    found = list(read_workload(file_of(tmp_path, data), aids=Aids(tokenizer=words)))
    assert [(t.session_id, t.input_tokens, t.output_tokens) for t in found] == [
        ("7", 5, 0),
        ("7", 6, 0),
    ]


def test_records_without_a_message_are_left_out_and_hide_no_record_of_their_id(
    tmp_path: Path,
) -> None:
    records = [
        {"id": "a_0", "conversations": []},
        {"id": "a_0", "conversations": [{"from": "human", "value": "x y"}]},
        {"id": "a_0", "conversations": []},
        {"id": "b", "conversations": []},
    ]
    workload = read_workload(file_of(tmp_path, json.dumps(records)), aids=Aids(tokenizer=words))
    assert [(t.session_id, t.input_tokens) for t in workload] == [("a", 2)]
    assert workload.left_out == {EMPTY: 3}


def test_an_empty_reason_to_stop_is_none(tmp_path: Path) -> None:
    request = {"t": 0.0, "type": "n", "model": "", "in": 3, "out": 1, "hash_ids": [], "stop": ""}
    document = {"id": "s", "block_size": 64, "requests": [request]}
    (turn,) = read_workload(file_of(tmp_path, json.dumps(document)))
    assert (turn.stop, turn.model) == (None, None)


# ---------------------------------------------------------------------- Mooncake rows of other tools


def moon(tokens: int, ids: Sequence[int] | None = None, **values: Any) -> dict[str, Any]:
    row = {"timestamp": 0, "input_length": tokens, "output_length": 5, "hash_ids": ids, **values}
    return {key: value for key, value in row.items() if value is not None}


def test_blocks_of_another_size_are_told_by_the_lengths(tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(moon(40, [0, 1, 2]), moon(56, [0, 1, 3, 4])))
    assert read_workload(path).header.block_size == 16


@given(st.sampled_from([16, 32, 64, 128, 256, 512]), st.lists(st.integers(513, 5000), min_size=20))
def test_a_block_size_that_is_told_covers_every_prompt(
    tmp_path_factory: pytest.TempPathFactory, size: int, prompts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    rows = [moon(tokens, range(-(-tokens // size))) for tokens in prompts]
    text = lines(*({**row, "hash_ids": list(row["hash_ids"])} for row in rows))
    workload = read_workload(file_of(folder, text))
    assert workload.header.block_size == size and len(list(workload)) == len(prompts)


def test_a_block_size_that_lengths_leave_open_must_be_said(tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(moon(1000, [0])))
    with pytest.raises(InputError, match=r"hash_ids: blocks are of 1000 to 65536 tokens") as caught:
        read_workload(path)
    assert "--block-size, workload.block_size" in str(caught.value)
    assert read_workload(path, aids=Aids(block_size=1000)).header.block_size == 1000
    with pytest.raises(ConfigError, match="block_size: azure takes none"):
        read_workload(path, "azure", Aids(block_size=1000))


def test_a_priority_in_a_row_is_read_and_the_header_says_which_way(tmp_path: Path) -> None:
    workload = read_workload(file_of(tmp_path, lines(moon(9, priority=-2), moon(9))))
    assert [turn.priority for turn in workload] == [-2, 0]
    assert workload.header.assumed == ("a lower priority is more urgent",)


# ---------------------------------------------------------------------- increments


TALK = lines(
    {"session_id": "a", "input_length": 300, "output_length": 40},
    {"session_id": "a", "delay": 2, "input_length": 150, "output_length": 20},
    {"session_id": "b", "input_length": 7, "output_length": 1},
)


def test_turns_that_are_all_shorter_than_their_context_are_refused_until_somebody_says_why(
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path, TALK)
    with pytest.raises(InputError, match="Say --turns increments or --turns whole"):
        list(read_workload(path))
    whole = read_workload(path, aids=Aids(turns="whole"))
    assert [turn.input_tokens for turn in whole] == [300, 150, 7]
    added = read_workload(path, aids=Aids(turns="increments"))
    assert [(t.input_tokens, t.parent_prefix_tokens, t.new_input_tokens) for t in added] == [
        (300, None, None),
        (490, 340, 150),
        (7, None, None),
    ]
    assert added.header.assumed == ("a turn's length is only what is new, as told",)


def test_block_ids_of_increments_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, lines(moon(9, [1], session_id="a"), moon(9, [2], session_id="a")))
    with pytest.raises(InputError, match="hash_ids: of prompts that count only what is new"):
        list(read_workload(path, aids=Aids(turns="increments")))


SESSIONS = st.lists(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


@given(SESSIONS)
def test_increments_add_up_to_the_whole_prompts_of_the_same_sessions(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[tuple[int, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("increments")
    new, whole = [], []
    for number, turns in enumerate(sessions):
        history = 0
        for prompt, reply in turns:
            row = {"session_id": f"s{number}", "output_length": reply}
            new.append({**row, "input_length": prompt})
            whole.append({**row, "input_length": history + prompt})
            history += prompt + reply
    added = list(read_workload(file_of(folder, lines(*new)), aids=Aids(turns="increments")))
    read = list(read_workload(file_of(folder, lines(*whole)), aids=Aids(turns="whole")))
    assert [t.input_tokens for t in added] == [t.input_tokens for t in read]


# ---------------------------------------------------------------------- what is assumed


def test_without_its_length_files_ragpulse_repeats_nothing_and_says_so(tmp_path: Path) -> None:
    ids = {
        "sys_prompt": [1],
        "passages_ids": [2],
        "history": [],
        "web_search": [],
        "user_input": [3],
    }
    row = {
        "timestamp": "1",
        "input_length": 9,
        "output_length": 2,
        "hash_ids": ids,
        "session_id": "a",
    }
    workload = read_workload(file_of(tmp_path, lines(row, row)))
    assert [turn.parent_prefix_tokens for turn in workload] == [None, 0]
    assert workload.header.assumed[0].startswith("no prompt repeats anything of the one before it")


def test_what_was_assumed_is_kept_with_a_converted_workload(tmp_path: Path) -> None:
    header = Header(timing="open", assumed=("this", "that"))
    for name in ("w.jsonl", "w.parquet"):
        write(Workload.of([Turn("a", "a", 1, 1, 1, arrival_ns=0)], header), tmp_path / name)
        assert read_workload(tmp_path / name).header.assumed == ("this", "that")


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        (
            '{"displayTimeUnit":"ms","otherData":{},"traceEvents":[\n]}',
            "the folder of the run that",
        ),
        (
            '{"version": "0.2", "results": {"request_performance": {}}}',
            "its export as vllm or aiperf",
        ),
        ("client_id,timestamp,rate,cv,pat,param1,param2\n", "generate from them"),
    ],
)
def test_what_holds_no_requests_says_what_it_is_and_the_way_out(
    tmp_path: Path, text: str, way_out: str
) -> None:
    with pytest.raises(InputError, match=way_out):
        read_workload(file_of(tmp_path, text))
