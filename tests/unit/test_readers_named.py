"""Any CSV or JSON of requests by naming its columns: units, order, sessions, every refusal named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.readers.named import UNITS, parse_columns
from traces.workload import Turn, Workload

COLUMNS = "arrival=ts:ms,input=in,output=out,session=chat,client=user"


def read(folder: Path, text: str, columns: str = COLUMNS) -> Workload:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return read_workload(path, aids=Aids(columns=columns))


def test_a_table_becomes_an_open_workload_in_order_of_time(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        "user,out,in,ts,chat,colour\nu,3,12,1500,a,red\nv,4,9,200.5,,blue\nu,5,30,1600,a,\n\n",
    )
    assert workload.header.timing == "open"
    assert workload.header.lost == ("colour: not named",)
    assert list(workload) == [
        Turn("r0000001", "r0000001", 1, 9, 4, arrival_ns=200_500_000, client_id="v"),
        Turn("r0000000", "a", 1, 12, 3, arrival_ns=1_500_000_000, client_id="u"),
        Turn("r0000002", "a", 2, 30, 5, arrival_ns=1_600_000_000, client_id="u"),
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs_part_cells_too(tmp_path: Path, mark: str) -> None:
    text = "ts,in,out,chat,user\n7,1,2,a,u\n".replace(",", mark)
    assert [turn.input_tokens for turn in read(tmp_path, text)] == [1]


ROWS: list[dict[str, Any]] = [
    {"at": "2026-05-01 10:00:00.25", "usage": {"prompt": 7, "reply": 2}, "id": "x"},
    {"at": "2026-05-01T12:00:01.25+02:00", "usage": {"prompt": 8.0, "reply": 3}, "id": 9},
]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
    ],
    ids=["lines", "list", "indented list", "indented documents"],
)
def test_keys_of_json_are_columns_also_inside_objects(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text, "arrival=at:iso,input=usage.prompt,output=usage.reply,id=id")
    assert [(t.request_id, t.input_tokens, t.output_tokens, t.arrival_ns) for t in found] == [
        ("x", 7, 2, 0),
        ("9", 8, 3, 1_000_000_000),
    ]


@pytest.mark.parametrize(("field", "timing"), [("think", "closed"), ("gap", "gap")])
def test_with_think_time_or_gaps_sessions_are_brought_together(
    tmp_path: Path, field: str, timing: str
) -> None:
    text = "ts,in,out,chat,user,w\n5,1,1,b,u,0\n1,2,1,a,u,0\n9,5,1,b,u,2\n"
    workload = read(tmp_path, text, f"{COLUMNS},{field}=w:s")
    assert workload.header.timing == timing
    times = [(t.session_id, t.turn, t.arrival_ns, t.think_ns or t.gap_ns) for t in workload]
    assert times == [
        ("a", 1, 1_000_000, None),
        ("b", 1, 5_000_000, None),
        ("b", 2, None, 2 * 10**9),
    ]


def test_a_table_without_times_is_a_closed_loop_that_the_scenario_starts(tmp_path: Path) -> None:
    workload = read(tmp_path, "in,out\n5,6\n", "input=in,output=out")
    assert (workload.header.timing, [t.arrival_ns for t in workload]) == ("closed", [None])


@given(st.sampled_from(sorted(UNITS)), st.integers(0, 10**4))
def test_a_unit_is_so_many_nanoseconds(
    tmp_path_factory: pytest.TempPathFactory, unit: str, value: int
) -> None:
    folder = tmp_path_factory.mktemp("units")
    (turn,) = read(
        folder, f"in,out,t,c\n1,1,0,{value}\n", f"input=in,output=out,arrival=t,cancel=c:{unit}"
    )
    assert turn.cancel_ns == value * UNITS[unit]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ("arrival=ts", "columns: input is needed"),
        ("input=in,output=out,colour=c", "columns: 'colour=c' must be one of input, output,"),
        ("input=in,input=out", "columns: 'input=out' must be one of"),
        ("input=in,output=", "columns: output: names no column"),
        (
            "input=in,output=out,arrival=ts:weeks",
            "columns: arrival: 'weeks' is no unit; give s, ms",
        ),
        ("input=in,output=out,think=ts:iso", "columns: think: 'iso' is no unit"),
        ("input=in,output=out,think=a,gap=b", "columns: think and gap"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_columns(columns)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("ts,in,out,chat\n1,1,1,a\n", ":1: user: column missing; columns are ts, in, out, chat"),
        ("ts,in,out,chat,user\n1,1,1,a\n", ":2: 4 fields, the header has 5"),
        ("ts,in,out,chat,user\n,1,1,a,u\n", ":2: ts: empty"),
        ("ts,in,out,chat,user\n1,,1,a,u\n", ":2: in: empty"),
        ("ts,in,out,chat,user\n1,1.5,1,a,u\n", ":2: in: '1.5' is not a whole number"),
        ("ts,in,out,chat,user\n1,NaN,1,a,u\n", ":2: in: 'NaN' is not a whole number"),
        ("ts,in,out,chat,user\n-1,1,1,a,u\n", ":2: ts: '-1' is not a number >= 0"),
        ("ts,in,out,chat,user\n", ": no requests in it"),
        ('{"ts": 1, "in": 1, "out": 1, "chat": "a"}', ":1: user: column missing"),
        ('{"ts": 1, "in": true, "out": 1, "chat": "a", "user": "u"}', ":1: in: True is not"),
    ],
)
def test_a_broken_table_is_refused_with_its_line_and_its_own_name_of_the_column(
    tmp_path: Path, text: str, where: str
) -> None:
    with pytest.raises(InputError) as caught:
        list(read(tmp_path, text))
    assert str(caught.value).removeprefix(str(tmp_path / "mine.csv")).startswith(where)


def test_columns_and_another_format_are_not_both_obeyed_so_both_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^columns: azure has its own"):
        read_workload(tmp_path / "absent", "azure", Aids(columns=COLUMNS))
    with pytest.raises(ConfigError, match=r"^format columns needs --columns"):
        read_workload(tmp_path / "absent", "columns")
