"""This project's own format: what is written is read back, and every broken row is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.readers.rows import row_of
from traces.strict import MAX_SECONDS
from traces.workload import Header, Turn, Workload

#: Files give times as seconds in a double. Below 2**23 s (97 days) neighbouring doubles lie less
#: than a nanosecond apart, so every whole nanosecond survives; the tests draw up to 1e15 ns.
EXACT_NS = (1 << 23) * 10**9
HEADER = '{"format": "fastswitch-workload/1", "timing": "closed"}'
ROW = '{"request_id": "a/1", "input_tokens": 5, "output_tokens": 6, "arrival_s": 1}'


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "native.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, "native"))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


def row(**values: Any) -> str:
    """A row with some values changed; None takes one out."""
    merged = {"request_id": "b", "input_tokens": 5, "output_tokens": 6, "arrival_s": 1, **values}
    return json.dumps({key: value for key, value in merged.items() if value is not None})


FULL_ROW = {
    "request_id": "s/2",
    "session_id": "s",
    "turn": 2,
    "input_tokens": 3,
    "output_tokens": 9,
    "gap_s": 2.000000001,
    "parent_id": "s/1",
    "parent_prefix_tokens": 128,
    "new_input_tokens": 2,
    "client_id": "tenant",
    "priority": -3,
    "cancel_s": 60.0,
    "slo_ttft_s": 0.2,
    "slo_tbt_s": 0.05,
    "service_s": 7.34,
    "model": "m",
    "kind": "agent",
    "stop": "tool_use",
    "hash_ids": [1, 2, 9],
    "components": [["system", "c0", 100], ["user", "c1", 30]],
    "priority_process": "markov(0.04)",
}
FULL_TURN = Turn(
    "s/2",
    "s",
    2,
    3,
    9,
    gap_ns=2_000_000_001,
    parent_id="s/1",
    parent_prefix_tokens=128,
    new_input_tokens=2,
    client_id="tenant",
    priority=-3,
    cancel_ns=60_000_000_000,
    slo_ttft_ns=200_000_000,
    slo_tbt_ns=50_000_000,
    service_ns=7_340_000_000,
    model="m",
    kind="agent",
    stop="tool_use",
    hash_ids=(1, 2, 9),
    components=(("system", "c0", 100), ("user", "c1", 30)),
    priority_process="markov(0.04)",
)
#: The turn that the full one extends.
FIRST_ROW = {
    "request_id": "s/1",
    "session_id": "s",
    "turn": 1,
    "input_tokens": 64,
    "output_tokens": 9,
    "arrival_s": 1.5,
    "hash_ids": "7-70",
}
FIRST_TURN = Turn("s/1", "s", 1, 64, 9, arrival_ns=1_500_000_000, hash_ids=tuple(range(7, 71)))
FULL_HEADER = Header(
    source="a test",
    licence="CC0-1.0",
    tokenizer="none",
    timing="gap",
    time_resolution_s=0.001,
    block_size=1,
    hash_scope="session",
    may_lack_last_block=True,
    priority_process="random(0.1)",
    composed_from=("lengths: here", "gaps: there"),
    seed=7,
    notes="none",
    lost=("tools",),
)

FULL_TURNS = [FIRST_TURN, FULL_TURN]
#: One name for every container.
NAMES = ["w.jsonl", "w.jsonl.gz", "w.jsonl.zst", "w.parquet"]


def test_every_column_and_header_key_is_read(tmp_path: Path) -> None:
    header = {
        "format": "fastswitch-workload/2",
        "source": "a test",
        "licence": "CC0-1.0",
        "tokenizer": "none",
        "timing": "gap",
        "time_resolution_s": 0.001,
        "block_size": 1,
        "hash_scope": "session",
        "may_lack_last_block": True,
        "priority_process": "random(0.1)",
        "composed_from": ["lengths: here", "gaps: there"],
        "seed": 7,
        "notes": "none",
        "lost": ["tools"],
    }
    rows = [json.dumps(row) for row in (header, FIRST_ROW, FULL_ROW)]
    workload = read_workload(file_of(tmp_path, *rows))
    assert workload.header == FULL_HEADER
    assert list(workload) == FULL_TURNS
    missing = {field.name for field in fields(Turn) if getattr(FULL_TURN, field.name) is None}
    assert missing == {"arrival_ns", "think_ns"}


def test_a_turn_is_written_as_the_row_it_was_read_from() -> None:
    assert row_of(FULL_TURN) == FULL_ROW
    assert row_of(FIRST_TURN) == FIRST_ROW
    assert row_of(FIRST_TURN, runs=False)["hash_ids"] == list(range(7, 71))
    bare = Turn("a", "a", 1, 2, 3)
    assert row_of(bare) == {
        "request_id": "a",
        "session_id": "a",
        "turn": 1,
        "input_tokens": 2,
        "output_tokens": 3,
    }


def test_a_row_may_leave_out_all_but_its_id_and_its_lengths(tmp_path: Path) -> None:
    nulls = dict.fromkeys([*FULL_ROW, "priority_process"])
    short = {"request_id": "b", "input_tokens": 0, "output_tokens": 0}
    path = file_of(tmp_path, HEADER, row(request_id="a"), json.dumps({**nulls, **short}))
    assert list(read_workload(path)) == [
        Turn("a", "a", 1, 5, 6, arrival_ns=10**9),
        Turn("b", "b", 1, 0, 0),
    ]


def test_a_file_without_a_header_is_open_loop(tmp_path: Path) -> None:
    workload = read_workload(file_of(tmp_path, row(request_id="a"), row(request_id="b")))
    assert workload.header == Header(timing="open", may_lack_last_block=True)
    assert [turn.request_id for turn in workload] == ["a", "b"]


def test_a_header_alone_holds_no_requests_and_is_refused(tmp_path: Path) -> None:
    assert refusal(file_of(tmp_path, HEADER)) == ": no requests in it"


# ---------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (row(request_id=""), "request_id: "),
        (row(request_id=5), "request_id: "),
        (row(request_id="x" * 129), "request_id: "),
        (row(request_id="a\x00"), "request_id: "),
        (row(request_id="\ud800"), "request_id: "),
        (row(request_id="a/1"), "request_id: 'a/1' came before"),
        (row(session_id=True), "session_id: "),
        (row(turn=0), "turn: "),
        (row(turn="1"), "turn: "),
        (row(turn=True), "turn: "),
        (row(turn=1.0), "turn: "),
        (row(input_tokens=-1), "input_tokens: "),
        (row(input_tokens="5"), "input_tokens: "),
        (row(input_tokens=True), "input_tokens: "),
        (row(input_tokens=5.0), "input_tokens: "),
        (row(input_tokens=16777217), "input_tokens: "),
        (row(output_tokens=-1), "output_tokens: "),
        (row(output_tokens=16777217), "output_tokens: "),
        (row(arrival_s=-0.5), "arrival_s: "),
        (row(arrival_s="1"), "arrival_s: "),
        (row(arrival_s=True), "arrival_s: "),
        (row(arrival_s=1e300), "arrival_s: "),
        (row(arrival_s=0.5), "arrival_s: "),
        (row(think_s=-1), "think_s: -1"),
        (row(gap_s=[]), "gap_s: "),
        (row(cancel_s=MAX_SECONDS + 1), "cancel_s: "),
        (row(slo_ttft_s="fast"), "slo_ttft_s: "),
        (row(slo_tbt_s={}), "slo_tbt_s: "),
        (row(service_s=-1), "service_s: "),
        (row(parent_id=5), "parent_id: "),
        (row(client_id=""), "client_id: "),
        (row(model="a\nb"), "model: "),
        (row(kind=["agent"]), "kind: "),
        (row(stop="x" * 129), "stop: "),
        (row(parent_prefix_tokens=-1), "parent_prefix_tokens: "),
        (row(new_input_tokens="5"), "new_input_tokens: "),
        (row(priority=0.5), "priority: "),
        (row(priority="0"), "priority: "),
        (row(priority=True), "priority: "),
        (row(priority=1 << 40), "priority: "),
        (row(hash_ids="3-1"), "hash_ids: "),
        (row(hash_ids=""), "hash_ids: "),
        (row(hash_ids="0-99999999999"), "hash_ids: "),
        (row(turn=2), "turn: 2 where 1 was due"),
        (row(parent_id="z"), "parent_id: 'z' does not come before"),
        (row(parent_id="b"), "parent_id: 'b' does not come before"),
        (row(think_s=1), "think_s: given of a turn that has no parent"),
        (row(parent_id="a/1", think_s=1, arrival_s=None), "think_s: given in open loop"),
        (row(priority_process=1), "priority_process: "),
        (row(hash_ids=[-1]), "hash_ids: "),
        (row(hash_ids=["1"]), "hash_ids: "),
        (row(hash_ids=[True]), "hash_ids: "),
        (row(components={}), "components: "),
        (row(components=[["user", "c"]]), "components: "),
        (row(components=[["user", "c", -1]]), "components: "),
        (row(components=[["user", 5, 1]]), "components: "),
        (row(surprise=1), "surprise: unknown column"),
        (row(request_id=None), "request_id: missing"),
        (row(input_tokens=None), "input_tokens: missing"),
        (row(output_tokens=None), "output_tokens: missing"),
        (ROW.replace("5", "NaN"), "input_tokens: nan is not a whole number"),
        (ROW.replace("5", "-Infinity"), "input_tokens: -inf is not a whole number"),
        (ROW.replace("5", "1e999"), "input_tokens: inf is not a whole number"),
        (ROW.replace("5", "9" * 4300), "a number of 4300 digits"),
        (ROW.replace("5", "[" * 100_000), "nested too deeply"),
        (ROW.replace("output_tokens", "input_tokens"), "input_tokens: given twice"),
        (ROW[:-1], "not JSON: "),
        ("", "empty line that does not end the file"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        (HEADER, "format: "),
    ],
    ids=lambda value: ascii(value)[-40:],
)
def test_a_broken_row_is_refused_with_file_line_and_field(
    tmp_path: Path, line: str, where: str
) -> None:
    path = file_of(
        tmp_path, '{"format": "fastswitch-workload/1"}', ROW, line, row(request_id="z", arrival_s=9)
    )
    assert refusal(path).startswith(f":3: {where}")


def test_a_broken_first_row_of_a_file_without_a_header_is_refused(tmp_path: Path) -> None:
    assert refusal(file_of(tmp_path, row(turn=0), ROW)).startswith(":1: turn: ")


def test_closed_sessions_begin_in_the_order_of_their_rows(tmp_path: Path) -> None:
    rows = [
        row(request_id="a/1", session_id="a", arrival_s=5),
        row(request_id="a/2", session_id="a", turn=2, arrival_s=None, think_s=1),
        row(request_id="b/1", session_id="b", arrival_s=5),
    ]
    assert len(list(read_workload(file_of(tmp_path, HEADER, *rows)))) == 3
    late = row(request_id="c/1", session_id="c", arrival_s=4.9)
    assert refusal(file_of(tmp_path, HEADER, *rows, late)).startswith(":5: arrival_s: ")


@pytest.mark.parametrize("num_ids", [1, 4])
def test_block_hashes_must_cover_the_prompt_in_blocks_of_the_header(
    tmp_path: Path, num_ids: int
) -> None:
    header = '{"format": "fastswitch-workload/1", "block_size": 64}'
    fine = row(request_id="a", input_tokens=130, hash_ids=[1, 2, 3])
    broken = row(input_tokens=130, hash_ids=list(range(num_ids)))
    assert len(list(read_workload(file_of(tmp_path, header, fine)))) == 1
    assert refusal(file_of(tmp_path, header, fine, broken)).startswith(":3: hash_ids: ")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"format": "fastswitch-workload/4"}, "format: "),
        ({"may_lack_last_block": 1}, "may_lack_last_block: "),
        ({"priority_process": None, "surprise": 1}, "surprise: "),
        ({"priority_process": 1}, "priority_process: "),
        ({"format": "fastswitch-workload"}, "format: "),
        ({"format": "fastswitch-workload/1.0"}, "format: "),
        ({"format": "other/1"}, "format: "),
        ({"format": 1}, "format: "),
        ({"format": None}, "format: "),
        ({"surprise": 1}, "surprise: unknown header key"),
        ({"timing": "sometimes"}, "timing: "),
        ({"timing": ["open"]}, "timing: "),
        ({"composed_from": "lengths"}, "composed_from: "),
        ({"lost": {"a": 1}}, "lost: "),
        ({"composed_from": [1]}, "composed_from: "),
        ({"source": 5}, "source: "),
        ({"licence": ["MIT"]}, "licence: "),
        ({"tokenizer": {}}, "tokenizer: "),
        ({"notes": False}, "notes: "),
        ({"seed": "7"}, "seed: "),
        ({"seed": True}, "seed: "),
        ({"block_size": 0}, "block_size: "),
        ({"block_size": -64}, "block_size: "),
        ({"block_size": "64"}, "block_size: "),
        ({"hash_scope": "galaxy"}, "hash_scope: "),
        ({"time_resolution_s": "1"}, "time_resolution_s: "),
        ({"time_resolution_s": -1}, "time_resolution_s: "),
    ],
    ids=str,
)
def test_a_broken_header_is_refused_with_file_line_and_field(
    tmp_path: Path, values: dict[str, Any], where: str
) -> None:
    header = json.dumps({"format": "fastswitch-workload/1", **values})
    assert refusal(file_of(tmp_path, header, ROW)).startswith(f":1: {where}")


@pytest.mark.parametrize("is_header", [True, False])
@pytest.mark.parametrize(
    "key", ["a\nb\nc\nd\ne\nf", "\u2028" * 9, "k" * 100_000], ids=["lines", "separators", "long"]
)
def test_a_hostile_key_cannot_make_its_message_long(
    tmp_path: Path, key: str, *, is_header: bool
) -> None:
    header = json.dumps({"format": "fastswitch-workload/1", key: 1})
    lines = [header, ROW] if is_header else [HEADER, row(**{key: 1})]
    size = len(refusal(file_of(tmp_path, *lines)))
    assert size < 500


# ---------------------------------------------------------------------- round trip

IDS = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=128)
TOKENS = st.integers(0, 1 << 24)
TIMES = st.integers(0, 10**15)
BLOCKS = st.integers(0, (1 << 62) - 40)
RUNS = st.tuples(BLOCKS, st.integers(0, 40)).map(lambda at: tuple(range(at[0], sum(at))))
COMPONENTS = st.lists(st.tuples(IDS, IDS, TOKENS), max_size=3).map(tuple)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "parent_prefix_tokens": TOKENS,
        "new_input_tokens": TOKENS,
        "client_id": IDS,
        "priority": st.integers(-(1 << 31), 1 << 31),
        "priority_process": IDS,
        "cancel_ns": TIMES,
        "slo_ttft_ns": TIMES,
        "slo_tbt_ns": TIMES,
        "service_ns": TIMES,
        "model": IDS,
        "kind": IDS,
        "stop": IDS,
        "components": COMPONENTS,
    },
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    return Header(
        source=draw(TEXTS),
        licence=draw(TEXTS),
        tokenizer=draw(TEXTS),
        timing=draw(st.sampled_from(["open", "closed", "gap"])),
        time_resolution_s=draw(st.floats(1e-9, 60)),
        block_size=draw(st.none() | st.just(16)),
        hash_scope=draw(st.sampled_from(["global", "session", None])),
        may_lack_last_block=draw(st.booleans()),
        priority_process=draw(TEXTS),
        composed_from=tuple(draw(st.lists(TEXTS, max_size=3))),
        seed=draw(st.none() | st.integers(0, 1 << 64)),
        notes=draw(TEXTS),
        lost=tuple(draw(st.lists(TEXTS, max_size=3))),
        assumed=tuple(draw(st.lists(TEXTS, max_size=3))),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Turns in a right order, with any columns: conversations whose turns are together."""
    header = draw(headers())
    names = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    lengths = [draw(st.integers(1, 3)) for _ in names]
    arrivals = iter(sorted(draw(TIMES) for _ in range(sum(lengths))))
    numbers = count()
    turns = []
    for name, length in zip(names, lengths, strict=True):
        for turn in range(1, length + 1):
            blocks = draw(st.none() | st.lists(BLOCKS, max_size=4).map(tuple) | RUNS)
            made = Turn(
                f"{next(numbers)} {name[:100]}",
                name,
                turn,
                draw(TOKENS) if blocks is None else 16 * len(blocks),
                draw(TOKENS),
                parent_id=turns[-1].request_id if turn > 1 and draw(st.booleans()) else None,
                hash_ids=blocks,
                **draw(EXTRAS),
            )
            if header.timing == "open" or turn == 1:
                made = replace(made, arrival_ns=next(arrivals))
            elif header.timing == "closed":
                made = replace(made, think_ns=draw(TIMES))
            else:
                made = replace(made, gap_ns=draw(TIMES))
            turns.append(made)
    return Workload.of(turns, header)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@given(workloads(), st.sampled_from(NAMES))
def test_what_is_written_is_what_is_read(folder: Path, workload: Workload, name: str) -> None:
    turns = list(workload)
    assert write(workload, folder / name) == len(turns)
    again = read_workload(folder / name)
    assert (again.header, list(again)) == (workload.header, turns)
    assert not list(folder.glob(".*"))


@given(st.lists(st.integers(0, EXACT_NS - 1), min_size=1))
@example([EXACT_NS - 1, EXACT_NS - 2, EXACT_NS // 2 + 1])
def test_times_survive_to_the_nanosecond_below_2_to_the_23_seconds(
    folder: Path, times: list[int]
) -> None:
    turns = [Turn(str(k), str(k), 1, 0, 0, cancel_ns=ns) for k, ns in enumerate(times)]
    write(Workload.of(turns), folder / "times.jsonl")
    assert list(read_workload(folder / "times.jsonl")) == turns


@given(st.integers(0, MAX_SECONDS * 10**9))
@example(MAX_SECONDS * 10**9)
def test_times_of_years_are_read_back_within_32_nanoseconds(folder: Path, ns: int) -> None:
    write(Workload.of([Turn("a", "a", 1, 0, 0, cancel_ns=ns)]), folder / "years.jsonl")
    (turn,) = read_workload(folder / "years.jsonl")
    assert turn.cancel_ns is not None and abs(turn.cancel_ns - ns) <= 32


def sharegpt_of(folder: Path, name: str) -> Workload:
    """A table of another format, with one conversation of that name."""
    table = folder / "sharegpt.csv"
    table.write_text(
        f"conversation_id,turn,user_tokens,assistant_tokens\n{name},1,2,3\n", encoding="utf-8"
    )
    return read_workload(table)


def test_what_any_reader_accepts_can_be_written_and_read_back(tmp_path: Path) -> None:
    workload = sharegpt_of(tmp_path, "x" * 126)  # the request is called .../1, of 128 characters
    write(workload, tmp_path / "again.jsonl")
    assert list(read_workload(tmp_path / "again.jsonl")) == list(workload)


def test_a_name_that_leaves_no_room_for_the_number_of_a_turn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sharegpt\.csv:2: conversation_id: .* 129 characters"):
        list(sharegpt_of(tmp_path, "x" * 127))


def test_a_name_that_ends_in_gz_is_compressed_and_other_turns_may_be_given(tmp_path: Path) -> None:
    workload = Workload.of(FULL_TURNS, FULL_HEADER)
    others = [Turn(str(k), str(k), 1, k, 0) for k in range(3)]
    assert write(workload, tmp_path / "w.jsonl.gz", others) == 3
    lines = gzip.decompress((tmp_path / "w.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line).get("input_tokens") for line in lines] == [None, 0, 1, 2]


# ---------------------------------------------------------------------- writes that fail


def broken_workload() -> Workload:
    def turns() -> Iterator[Turn]:
        yield FIRST_TURN
        raise InputError("the source broke")

    return Workload(FULL_HEADER, turns)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_breaks_leaves_the_folder_as_it_was(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="the source broke"):
        write(broken_workload(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).write_bytes(b"older")
    with pytest.raises(InputError, match="the source broke"):
        write(broken_workload(), tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


@pytest.mark.parametrize(
    "name",
    [
        "absent/w.jsonl",
        "w.jsonl",
        "file/w.jsonl",
        "x" * 247 + ".jsonl",
        "x" * 300 + ".jsonl",
        "folder/w.gz/w.jsonl.gz",
    ],
)
def test_a_place_that_cannot_be_written_is_a_config_error_and_nothing_is_left(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "w.jsonl").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        write(Workload.of(FULL_TURNS, FULL_HEADER), tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be written: ")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file",
        "folder",
        "w.jsonl",
    ]
