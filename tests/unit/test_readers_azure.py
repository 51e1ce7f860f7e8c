"""The Azure reader: exact arrivals, and every broken row named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from traces.readers.azure import AzureReader
from traces.readers.catalog import read_workload
from traces.workload import Header, Turn

NAMES = "TIMESTAMP,ContextTokens,GeneratedTokens"
ROW = "2023-11-16 18:15:46.6805900,374,44"


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "azure.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, "azure"))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


def arrivals(path: Path) -> list[int | None]:
    return [turn.arrival_ns for turn in read_workload(path, "azure")]


def test_every_row_is_a_conversation_of_one_turn_and_time_starts_at_the_first(
    tmp_path: Path,
) -> None:
    path = file_of(
        tmp_path, NAMES, ROW, "2023-11-16 18:15:46.6805901,0,0", ROW[:11] + "23:59:59,5,6"
    )
    workload = read_workload(path)
    assert workload.header == Header(
        source="Azure LLM inference trace 2023",
        licence="CC-BY-4.0",
        timing="open",
        time_resolution_s=1e-7,
    )
    assert list(workload) == [
        Turn("r0000000", "r0000000", 1, 374, 44, arrival_ns=0),
        Turn("r0000001", "r0000001", 1, 0, 0, arrival_ns=100),
        Turn("r0000002", "r0000002", 1, 5, 6, arrival_ns=20_652_319_410_000),
    ]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = file_of(
        tmp_path, "GeneratedTokens,TIMESTAMP,ContextTokens", '44,"2023-11-16 18:15:46.68",374'
    )
    header, turns = AzureReader().read(path)
    assert header.timing == "open"
    assert list(turns) == [Turn("r0000000", "r0000000", 1, 374, 44, arrival_ns=0)]


@pytest.mark.parametrize(
    ("stamp", "ns"),
    [
        ("2023-11-16 00:00:01", 10**9),
        ("2023-11-16 00:00:00.000000001", 1),
        ("2023-11-16 00:00:00.5", 500_000_000),
        ("2023-11-17 00:00:00.0000001", 86_400 * 10**9 + 100),
        ("2024-02-29 00:00:00", 105 * 86_400 * 10**9),
        ("2023-11-16 00:00:00.009930+00:00", 9_930_000),
        ("2023-11-16 00:00:01+00:00", 10**9),
        ("2023-11-16T00:00:01.25Z", 1_250_000_000),
        ("2023-11-16 02:00:01.1+02:00", 1_100_000_000),
    ],
)
def test_a_timestamp_is_read_to_its_last_digit(tmp_path: Path, stamp: str, ns: int) -> None:
    path = file_of(tmp_path, NAMES, "2023-11-16 00:00:00,1,1", f"{stamp},1,1")
    assert arrivals(path) == [0, ns]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("azure")


@given(st.lists(st.tuples(*[st.integers(0, 9_999_999)] * 3), min_size=1, max_size=20))
def test_rows_in_are_rows_out_with_their_own_numbers(
    folder: Path, rows: list[tuple[int, int, int]]
) -> None:
    rows = sorted(rows)
    lines = [f"2023-11-16 18:15:46.{tick:07d},{given},{got}" for tick, given, got in rows]
    found = list(read_workload(file_of(folder, NAMES, *lines)))
    assert found == [
        Turn(f"r{k:07d}", f"r{k:07d}", 1, given, got, arrival_ns=100 * (tick - rows[0][0]))
        for k, (tick, given, got) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("2023-11-16 18:15:46.6805899,1,1", "TIMESTAMP: time runs backwards"),
        ("2022-11-16 18:15:46.6805900,1,1", "TIMESTAMP: time runs backwards"),
        ("1969-12-31 23:59:59,1,1", "TIMESTAMP: "),
        ("9999-12-31 23:59:59,1,1", "TIMESTAMP: "),
        ("NaN,1,1", "TIMESTAMP: "),
        (",1,1", "TIMESTAMP: "),
        ("2023-11-16,1,1", "TIMESTAMP: "),
        ("2023-02-30 00:00:00,1,1", "TIMESTAMP: "),
        ("2023-11-16 24:00:00,1,1", "TIMESTAMP: "),
        ("2023-11-16  18:15:47,1,1", "TIMESTAMP: "),
        ("16/11/2023 18:15,1,1", "TIMESTAMP: "),
        ("2023-11-16 18:15:47.1+01:00,1,1", "TIMESTAMP: "),
        ("2023-11-16 18:15:47.1234567890,1,1", "TIMESTAMP: "),
        ("2023-11-16 18:15:47.1e5,1,1", "TIMESTAMP: "),
        ("2023-11-16 18:15:47.-1,1,1", "TIMESTAMP: "),
        ("1700158546,1,1", "TIMESTAMP: "),
        ("2023-11-16 18:15:47,-1,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,NaN,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,Infinity,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,1e999,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,True,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,1.0,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,16777217,1", "ContextTokens: "),
        ("2023-11-16 18:15:47,1,16777217", "GeneratedTokens: "),
        (f"2023-11-16 18:15:47,1,{'9' * 4300}", "GeneratedTokens: "),
        ("2023-11-16 18:15:47,1, 1", "GeneratedTokens: "),
        ("2023-11-16 18:15:47,1", "2 fields, the header has 3"),
        ("2023-11-16 18:15:47,1,1,", "4 fields, the header has 3"),
        ("", "empty line"),
        ('2023-11-16 18:15:47,1,"1', "not CSV: "),
    ],
    ids=lambda value: value[:34],
)
def test_a_broken_row_is_refused_with_file_line_and_field(
    tmp_path: Path, row: str, where: str
) -> None:
    path = file_of(tmp_path, NAMES, ROW, row, "2023-11-16 18:15:48,1,1")
    assert refusal(path).startswith(f":3: {where}")


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ("TIMESTAMP,ContextTokens", "GeneratedTokens: "),
        ("timestamp,ContextTokens,GeneratedTokens", "TIMESTAMP: "),
        (f"{NAMES},ContextTokens", "ContextTokens: column given twice"),
        (f"{NAMES},Surprise", "Surprise: "),
        ("", "empty file"),
    ],
)
def test_columns_must_be_the_formats_own(tmp_path: Path, names: str, where: str) -> None:
    assert refusal(file_of(tmp_path, names)).startswith(f":1: {where}")


def test_a_hostile_column_name_cannot_make_its_message_long(tmp_path: Path) -> None:
    name = "\x85" * 50_000
    size = len(refusal(file_of(tmp_path, f"{NAMES},{name},{name}")))
    assert size < 500
