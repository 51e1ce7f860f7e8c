"""The Mooncake reader: milliseconds, block hashes, optional sessions, every broken row named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.workload import Header, Turn

ROW = '{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}'


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "mooncake.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, "mooncake"))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


def row(**values: Any) -> str:
    """A row with some values changed; None takes one out."""
    merged = {"timestamp": 3000, "input_length": 600, "output_length": 5, **values}
    return json.dumps({key: value for key, value in merged.items() if value is not None})


def test_rows_become_open_arrivals_with_their_block_hashes(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        '{"timestamp": 0, "input_length": 513, "output_length": 500, "hash_ids": [0, 14]}',
        '{"timestamp": 0.25, "input_length": 512, "output_length": 0, "hash_ids": [7]}',
        '{"timestamp": 27482, "input_length": 0, "output_length": 1, "hash_ids": []}',
        '{"output_length": 2, "input_length": 3, "timestamp": 27482}',
    )
    workload = read_workload(path)
    assert workload.header == Header(
        source="Mooncake trace (FAST'25)",
        licence="Apache-2.0",
        timing="open",
        time_resolution_s=1e-3,
        block_size=512,
        hash_scope="global",
    )
    assert list(workload) == [
        Turn("r0000000", "r0000000", 1, 513, 500, arrival_ns=0, hash_ids=(0, 14)),
        Turn("r0000001", "r0000001", 1, 512, 0, arrival_ns=250_000, hash_ids=(7,)),
        Turn("r0000002", "r0000002", 1, 0, 1, arrival_ns=27_482_000_000, hash_ids=()),
        Turn("r0000003", "r0000003", 1, 3, 2, arrival_ns=27_482_000_000),
    ]


def sessions(path: Path) -> list[tuple[str, int]]:
    aids = Aids(turns="whole")
    return [(turn.session_id, turn.turn) for turn in read_workload(path, aids=aids)]


def test_rows_of_a_named_session_are_its_turns_in_order(tmp_path: Path) -> None:
    names = ["a", "b", "a", None, "a", 5, "5"]
    path = file_of(tmp_path, *(row(session_id=name) for name in names))
    assert sessions(path) == [
        *(("a", 1), ("b", 1), ("a", 2), ("r0000003", 1), ("a", 3), ("5", 1), ("5", 2))
    ]


@pytest.mark.parametrize(
    "names",
    [["r0000001", None, "r0000001"], ["r0000000", "r0000000", "r0000000"]],
    ids=["a later row's", "its own row's"],
)
def test_a_session_named_like_a_rows_own_id_keeps_its_turns_apart(
    tmp_path: Path, names: list[str | None]
) -> None:
    found = sessions(file_of(tmp_path, *(row(session_id=name) for name in names)))
    assert len(set(found)) == len(found)
    named = [turn for name, (_, turn) in zip(names, found, strict=True) if name is not None]
    assert named == list(range(1, len(named) + 1))
    own = [turn for name, (_, turn) in zip(names, found, strict=True) if name is None]
    assert own == [1] * len(own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mooncake")


@given(st.lists(st.tuples(*[st.integers(0, 5000)] * 3), max_size=20))
def test_rows_in_are_rows_out_with_their_own_numbers(
    folder: Path, rows: list[tuple[int, int, int]]
) -> None:
    rows = sorted(rows)
    lines = [row(timestamp=ms, input_length=given, output_length=got) for ms, given, got in rows]
    if not rows:
        assert refusal(file_of(folder, "")).startswith(":1: ")
        return
    assert list(read_workload(file_of(folder, *lines))) == [
        Turn(f"r{k:07d}", f"r{k:07d}", 1, given, got, arrival_ns=ms * 1_000_000)
        for k, (ms, given, got) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (row(timestamp=2999), "timestamp: time runs backwards"),
        (row(timestamp=-1), "timestamp: "),
        (row(timestamp="3000"), "timestamp: "),
        (row(timestamp=True), "timestamp: "),
        (row(timestamp=1e300), "timestamp: "),
        (row(timestamp=11 * 366 * 86_400_000), "arrival: not within"),
        (row(timestamp=[1]), "timestamp: "),
        (row(input_length=-1), "input_length: "),
        (row(input_length="600"), "input_length: "),
        (row(input_length=True), "input_length: "),
        (row(input_length=600.0), "input_length: "),
        (row(input_length=16777217), "input_length: "),
        (row(output_length=-1), "output_length: "),
        (row(output_length="5"), "output_length: "),
        (row(output_length=False), "output_length: "),
        (row(output_length=16777217), "output_length: "),
        (row(timestamp=None), "timestamp: missing"),
        (row(input_length=None), "input_length: missing"),
        (row(output_length=None), "output_length: missing"),
        (row(hash_ids=[1]), "hash_ids: "),
        (row(hash_ids=[1, 2, 3]), "hash_ids: "),
        (row(hash_ids=[]), "hash_ids: "),
        (row(hash_ids=[1, -2]), "hash_ids: "),
        (row(hash_ids=[1, 2.0]), "hash_ids: "),
        (row(hash_ids=[1, True]), "hash_ids: "),
        (row(hash_ids=[1, "2"]), "hash_ids: "),
        (row(hash_ids=[1, 2**62 + 1]), "hash_ids: "),
        (row(hash_ids="1-2"), "hash_ids: "),
        (row(hash_ids={"1": 2}), "hash_ids: "),
        (row(session_id=""), "session_id: "),
        (row(session_id="x" * 129), "session_id: "),
        (row(session_id="a\nb"), "session_id: "),
        (row(session_id="\ud800"), "session_id: "),
        (row(session_id=True), "session_id: "),
        (row(session_id=1.5), "session_id: "),
        (row(session_id=["a"]), "session_id: "),
        (row(session_id={"a": 1}), "session_id: "),
        (row(surprise=1), "surprise: unknown key"),
        (ROW.replace("3000", "NaN"), "timestamp: nan is not a finite number"),
        (ROW.replace("600", "Infinity"), "input_length: inf is not a whole number"),
        (ROW.replace("600", "1e999"), "input_length: inf is not a whole number"),
        (ROW.replace("600", "9" * 4300), "a number of 4300 digits"),
        (ROW.replace("[0, 1]", "[" * 100_000), "nested too deeply"),
        (ROW.replace("output_length", "input_length"), "input_length: given twice"),
        (ROW[:-1], "not JSON: "),
        ("", "empty line that does not end the file"),
        ("[3000, 600, 5]", "not a JSON object"),
        ("null", "not a JSON object"),
    ],
    ids=lambda value: value[-34:],
)
def test_a_broken_row_is_refused_with_file_line_and_field(
    tmp_path: Path, line: str, where: str
) -> None:
    assert refusal(file_of(tmp_path, ROW, line, ROW)).startswith(f":2: {where}")


@pytest.mark.parametrize(
    "key", ["a\nb\nc\nd\ne\nf", "\u2028" * 9, "k" * 100_000], ids=["lines", "separators", "long"]
)
def test_a_hostile_key_cannot_make_its_message_long(tmp_path: Path, key: str) -> None:
    size = len(refusal(file_of(tmp_path, ROW, row(**{key: 1}))))
    assert size < 500
