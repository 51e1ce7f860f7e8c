"""The kv-cache-tester readers: sessions as JSON and as a table, and that both say the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from traces.generators.arrivals import Poisson
from traces.generators.catalog import think_of
from traces.randomness import Streams
from traces.readers import kv_cache_tester
from traces.readers.base import MAX_BLOCKS, expand_ranges
from traces.readers.catalog import read_workload
from traces.shaping.compose import with_times
from traces.strict import Place
from traces.workload import Header, Turn

NAMES = (
    "id,turn,t,type,model,in,out,api_time,think_time,stop,block_size,tool_tokens,system_tokens,"
    "n_blocks,shared_prefix_blocks,hash_id_ranges"
)
HEADER = Header(
    source="kv-cache-tester",
    licence="Apache-2.0",
    timing="closed",
    time_resolution_s=1e-3,
    block_size=64,
    hash_scope="session",
    may_lack_last_block=True,
    lost=(
        "when sessions began",
        "input_types and output_types: what a request held and a reply was made of",
    ),
)
PARTS = (("tools", "a", 40), ("system", "a", 20))


def file_of(folder: Path, text: str) -> Path:
    path = folder / "kv_cache_tester"
    path.write_text(text, encoding="utf-8")
    return path


def table_of(folder: Path, *rows: str, names: str = NAMES) -> Path:
    return file_of(folder, "\n".join([names, *rows]) + "\n")


def session_of(folder: Path, *requests: Any, **values: Any) -> Path:
    return file_of(folder, json.dumps({**SESSION, "requests": requests, **values}))


def refusal(path: Path, name: str) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, name))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


# ---------------------------------------------------------------------- the table

CELLS = {
    "id": "s",
    "turn": "1",
    "t": "0.0",
    "type": "n",
    "model": "m",
    "in": "130",
    "out": "9",
    "api_time": "2.5",
    "think_time": "0.0",
    "stop": "tool_use",
    "block_size": "64",
    "tool_tokens": "40",
    "system_tokens": "20",
    "n_blocks": "3",
    "shared_prefix_blocks": "0",
    "hash_id_ranges": "1-3",
}


def cells(**values: str) -> str:
    """A row of the table with some cells changed; `in_` is the column `in`."""
    changed = {name.rstrip("_"): value for name, value in values.items()}
    return ",".join({**CELLS, **changed}.values())


def test_rows_of_the_table_become_closed_turns_that_repeat_their_predecessors_blocks(
    tmp_path: Path,
) -> None:
    path = table_of(
        tmp_path,
        "a,1,0.0,n,opus,130,9,7.34,0.0,tool_use,64,40,20,3,0,1-3",
        "a,2,19.0,s,opus,200,8,,12.5,,64,40,20,4,3,1-3;9",
        "a,3,40.0,n,haiku,64,7,0.001,0.25,end_turn,64,40,20,1,1,1",
        "b,1,0.0,n,,0,0,1,99.0,,64,0,0,0,0,",
    )
    workload = read_workload(path)
    assert workload.header == HEADER
    assert list(workload) == [
        Turn(
            *("a/1", "a", 1, 130, 9),
            service_ns=7_340_000_000,
            model="opus",
            kind="agent",
            stop="tool_use",
            hash_ids=(1, 2, 3),
            components=PARTS,
        ),
        Turn(
            *("a/2", "a", 2, 200, 8),
            think_ns=12_500_000_000,
            parent_prefix_tokens=130,
            model="opus",
            kind="agent",
            hash_ids=(1, 2, 3, 9),
            components=PARTS,
        ),
        Turn(
            *("a/3", "a", 3, 64, 7),
            think_ns=250_000_000,
            parent_prefix_tokens=64,
            service_ns=1_000_000,
            model="haiku",
            kind="agent",
            stop="end_turn",
            hash_ids=(1,),
            components=PARTS,
        ),
        Turn("b/1", "b", 1, 0, 0, service_ns=10**9, kind="agent", hash_ids=()),
    ]


def test_a_think_time_that_the_table_lacks_stays_unknown(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        cells(think_time=""),
        cells(turn="2", think_time="", shared_prefix_blocks="3"),
        cells(turn="3", think_time="0.0", shared_prefix_blocks="3"),
    )
    assert [turn.think_ns for turn in read_workload(path)] == [None, None, 0]


def test_what_the_table_lacks_is_composed_by_a_law_that_was_given_and_by_no_other(
    tmp_path: Path,
) -> None:
    path = table_of(
        tmp_path,
        cells(),
        cells(turn="2", think_time=""),
        cells(turn="3", think_time="7.0"),
    )
    workload, streams = read_workload(path), Streams(0)
    composed = list(with_times(workload, streams, Poisson(1.0), think_of("human")))
    assert composed[0].arrival_ns is not None
    assert composed[1].think_ns is not None and composed[1].think_ns > 0
    assert composed[2].think_ns == 7_000_000_000
    with pytest.raises(
        ConfigError, match=r"^workload\.think: .* s/2 has no think time; give human"
    ):
        list(with_times(workload, streams, Poisson(1.0), None))
    with pytest.raises(ConfigError, match=r"^workload\.rate: .* s/1 has no arrival time; give"):
        list(with_times(workload, streams, None, think_of("none")))
    with pytest.raises(ConfigError, match=r"^workload\.rate: 1e-09 per second: session 1 would"):
        list(with_times(workload, streams, Poisson(1e-9), think_of("none")))


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (cells(), "id: 's' came before"),
        (cells(id="b", turn="2"), "turn: 2 where 1 was due"),
        (cells(id="a", turn="3"), "turn: 3 where 2 was due"),
        (cells(id=""), "id: "),
        (cells(id="x" * 129), "id: "),
        (cells(id="a\0"), "id: "),
        (cells(id="b", turn="NaN"), "turn: "),
        (cells(id="b", in_="-1"), "in: "),
        (cells(id="b", in_="NaN"), "in: "),
        (cells(id="b", in_="130.0"), "in: "),
        (cells(id="b", in_="16777217"), "in: "),
        (cells(id="b", in_="9" * 4300), "in: "),
        (cells(id="b", out="True"), "out: "),
        (cells(id="b", out="16777217"), "out: "),
        (cells(id="b", api_time="-1"), "api_time: "),
        (cells(id="b", api_time="NaN"), "api_time: "),
        (cells(id="b", api_time="Infinity"), "api_time: "),
        (cells(id="b", api_time="1e999999"), "api_time: "),
        (cells(id="b", think_time="NaN"), "think_time: "),
        (cells(id="a", turn="2", think_time="-1"), "think_time: "),
        (cells(id="a", turn="2", think_time="1e999"), "think_time: "),
        (cells(id="a", turn="2", think_time="soon"), "think_time: "),
        (cells(id="b", block_size="0"), "block_size: "),
        (cells(id="b", block_size="32"), "block_size: "),
        (cells(id="b", shared_prefix_blocks="-1"), "shared_prefix_blocks: "),
        (cells(id="b", model="x" * 129), "model: "),
        (cells(id="b", model="a\0"), "model: "),
        (cells(id="b", stop="\x1b[2J"), "stop: "),
        (cells(id="b", hash_id_ranges="1-4"), "hash_id_ranges: "),
        (cells(id="b", hash_id_ranges="1"), "hash_id_ranges: "),
        (cells(id="b", hash_id_ranges=""), "hash_id_ranges: "),
        (cells(id="b", hash_id_ranges="3-1"), "hash_id_ranges: "),
        (cells(id="b", hash_id_ranges="1-2-3"), "hash_id_ranges: "),
        (cells(id="b", hash_id_ranges="0-99999999999"), "hash_id_ranges: "),
        ("b,1", "2 fields, the header has 16"),
        (cells(id="b") + ",", "17 fields, the header has 16"),
        ("", "empty line"),
    ],
    ids=lambda value: ascii(value)[:72],
)
def test_a_broken_row_of_the_table_is_refused_with_file_line_and_field(
    tmp_path: Path, row: str, where: str
) -> None:
    path = table_of(tmp_path, cells(), cells(id="a"), row, cells(id="z"))
    assert refusal(path, "kv-cache-tester-table").startswith(f":4: {where}")


@pytest.mark.parametrize(
    ("column", "value"),
    [("t", "NaN"), ("t", "-1"), ("tool_tokens", "1e999"), ("system_tokens", "x"), ("n_blocks", "")],
)
def test_a_number_that_no_turn_carries_must_be_one_all_the_same(
    tmp_path: Path, column: str, value: str
) -> None:
    path = table_of(tmp_path, cells(**{column: value}))
    assert refusal(path, "kv-cache-tester-table").startswith(f":2: {column}: ")


def test_time_may_not_run_backwards_within_a_session_of_the_table(tmp_path: Path) -> None:
    rows = [cells(t="9.0"), cells(turn="2", t="9.0"), cells(turn="3", t="8.9")]
    later_session = cells(id="b", t="0.0")
    assert refusal(table_of(tmp_path, *rows), "kv-cache-tester-table").startswith(":4: t: ")
    fine = table_of(tmp_path, *rows[:2], later_session)
    assert len(list(read_workload(fine))) == 3


def test_the_number_of_blocks_must_be_that_of_the_ranges(tmp_path: Path) -> None:
    path = table_of(tmp_path, cells(n_blocks="4"))
    assert refusal(path, "kv-cache-tester-table").startswith(":2: n_blocks: ")


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (NAMES.replace(",n_blocks", ""), "n_blocks: column missing"),
        (NAMES.replace("id,turn", "turn,id", 1).replace("think_time", "think"), "think_time: "),
        (NAMES + ",stop", "stop: column given twice"),
        (NAMES + ",surprise", "surprise: "),
        ("", "empty file"),
    ],
    ids=["missing", "renamed", "doubled", "unknown", "empty"],
)
def test_columns_must_be_the_tables_own(tmp_path: Path, names: str, where: str) -> None:
    path = table_of(tmp_path, names=names)
    assert refusal(path, "kv-cache-tester-table").startswith(f":1: {where}")


@pytest.mark.parametrize(
    ("text", "ids"),
    [("", ()), ("7", (7,)), ("1-3;9", (1, 2, 3, 9)), ("5-5;0", (5, 0)), ("2;1;2", (2, 1, 2))],
)
def test_ranges_expand_to_the_ids_they_stand_for(text: str, ids: tuple[int, ...]) -> None:
    assert expand_ranges(text, Place(Path("f")), "hash_id_ranges") == ids


@pytest.mark.parametrize(
    "text",
    [
        *(";", "1;", ";1", "-", "-1", "1-", "1--2", "1-2-3", "2-1", "a", "1-b", "1.5", " 1", "NaN"),
        *(f"0-{MAX_BLOCKS}", f"1-{MAX_BLOCKS};1", f"0-{1 << 62}", f"{(1 << 62) + 1}", "9" * 4300),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_not_a_list_of_ranges_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^f:3: hash_id_ranges: "):
        expand_ranges(text, Place(Path("f"), 3), "hash_id_ranges")


def test_ranges_may_be_as_long_as_the_longest_prompt() -> None:
    found = expand_ranges(f"1-{MAX_BLOCKS}", Place(Path("f")), "hash_id_ranges")
    assert found == tuple(range(1, MAX_BLOCKS + 1))


# ---------------------------------------------------------------------- the JSON

SESSION = {"id": "s", "models": ["m"], "block_size": 64, "hash_id_scope": "local"}
REQUEST = {"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 9, "hash_ids": [1, 2, 3]}


def request(**values: Any) -> dict[str, Any]:
    """A request with some values changed; `in_` is the key `in`."""
    return {**REQUEST, **{name.rstrip("_"): value for name, value in values.items()}}


def subagent(agent: Any, t: Any, *requests: Any) -> dict[str, Any]:
    return {"t": t, "type": "subagent", "agent_id": agent, "requests": list(requests)}


NESTED = [
    subagent("early", 0.5, request(in_=64, hash_ids=[1])),
    request(t=1.0, api_time=2.5, think_time=0.0, stop="tool_use"),
    subagent("hasty", 3.0, request(out=1)),
    subagent(
        "helper",
        5.0,
        request(t=0.0, model="small", in_=70, hash_ids=[1], think_time=3.0),
        subagent("deep", 0.25, request(in_=0, hash_ids=[])),
        request(t=9.0, model="small", in_=128, hash_ids=[1, 2], think_time=0.5, stop="end_turn"),
    ),
    request(t=20.0, in_=200, out=8, hash_ids=[1, 2, 7, 8], think_time=12.0),
    request(t=30.0, model=None, in_=300, hash_ids=[1, 2, 7, 8, 9], api_time=None, think_time=None),
]
#: Main session first, each sub-agent after its parent session; a launch waits for the reply's end.
NESTED_TURNS = [
    Turn(
        *("s/1", "s", 1, 130, 9),
        service_ns=2_500_000_000,
        model="m",
        kind="agent",
        stop="tool_use",
        hash_ids=(1, 2, 3),
    ),
    Turn(
        *("s/2", "s", 2, 200, 8),
        think_ns=12_000_000_000,
        parent_prefix_tokens=128,
        model="m",
        kind="agent",
        hash_ids=(1, 2, 7, 8),
    ),
    Turn(
        *("s/3", "s", 3, 300, 9),
        parent_prefix_tokens=200,
        kind="agent",
        hash_ids=(1, 2, 7, 8, 9),
    ),
    Turn("s/early/1", "s/early", 1, 64, 9, model="m", kind="agent", hash_ids=(1,)),
    Turn(
        *("s/hasty/1", "s/hasty", 1, 130, 1),
        think_ns=0,
        parent_id="s/1",
        parent_prefix_tokens=0,
        model="m",
        kind="subagent",
        hash_ids=(1, 2, 3),
    ),
    Turn(
        *("s/helper/1", "s/helper", 1, 70, 9),
        think_ns=1_500_000_000,
        parent_id="s/1",
        parent_prefix_tokens=0,
        model="small",
        kind="subagent",
        hash_ids=(1,),
    ),
    Turn(
        *("s/helper/2", "s/helper", 2, 128, 9),
        think_ns=500_000_000,
        parent_prefix_tokens=64,
        model="small",
        kind="subagent",
        stop="end_turn",
        hash_ids=(1, 2),
    ),
    Turn(
        *("s/helper/deep/1", "s/helper/deep", 1, 0, 9),
        think_ns=250_000_000,
        parent_id="s/helper/1",
        parent_prefix_tokens=0,
        model="m",
        kind="subagent",
        hash_ids=(),
    ),
]


@pytest.mark.parametrize("indent", [None, 1])
def test_sub_agents_become_sessions_launched_by_the_request_before_them(
    tmp_path: Path, indent: int | None
) -> None:
    path = file_of(tmp_path, json.dumps({**SESSION, "requests": NESTED}, indent=indent))
    workload = read_workload(path, "kv-cache-tester")
    assert workload.header == HEADER
    assert list(workload) == NESTED_TURNS


@pytest.mark.parametrize(("tokens", "num_ids"), [(128, 2), (129, 2), (129, 3), (191, 3), (0, 0)])
def test_the_last_partial_block_may_have_a_hash_or_none(
    tmp_path: Path, tokens: int, num_ids: int
) -> None:
    ids = tuple(range(num_ids))
    path = session_of(tmp_path, request(in_=tokens, hash_ids=ids))
    assert [turn.hash_ids for turn in read_workload(path)] == [ids]


BROKEN_REQUESTS: list[tuple[Any, str]] = [
    ([], "requests[1]: "),
    (request(t=None), "requests[1].t: "),
    (request(t=-1), "requests[1].t: "),
    (request(t="0.0"), "requests[1].t: "),
    (request(t=True), "requests[1].t: "),
    (request(t=1e300), "requests[1].t: "),
    (request(t=0.5), "requests[1].t: "),
    (request(in_=None), "requests[1].in: "),
    (request(in_=-1), "requests[1].in: "),
    (request(in_="130"), "requests[1].in: "),
    (request(in_=True), "requests[1].in: "),
    (request(in_=130.0), "requests[1].in: "),
    (request(in_=16777217), "requests[1].in: "),
    (request(out=None), "requests[1].out: "),
    (request(out=-1), "requests[1].out: "),
    (request(out="9"), "requests[1].out: "),
    (request(out=16777217), "requests[1].out: "),
    (request(hash_ids=None), "requests[1].hash_ids: "),
    (request(hash_ids="1-3"), "requests[1].hash_ids: "),
    (request(hash_ids=[1]), "requests[1].hash_ids: "),
    (request(hash_ids=[1, 2, 3, 4]), "requests[1].hash_ids: "),
    (request(hash_ids=[1, 2, -3]), "requests[1].hash_ids: "),
    (request(hash_ids=[1, 2, "3"]), "requests[1].hash_ids: "),
    (request(hash_ids=[1, 2, True]), "requests[1].hash_ids: "),
    (request(hash_ids=[1, 2, 2**62 + 1]), "requests[1].hash_ids: "),
    (request(api_time=-1), "requests[1].api_time: "),
    (request(api_time="2.5"), "requests[1].api_time: "),
    (request(think_time=-0.001), "requests[1].think_time: "),
    (request(think_time=[]), "requests[1].think_time: "),
    (request(model=5), "requests[1].model: "),
    (request(model={"a": [1]}), "requests[1].model: "),
    (request(model="x" * 129), "requests[1].model: "),
    (request(stop=True), "requests[1].stop: "),
    (request(stop="a\nb"), "requests[1].stop: "),
    (subagent(None, 2.0), "requests[1].agent_id: "),
    (subagent("", 2.0), "requests[1].agent_id: "),
    (subagent("x" * 129, 2.0), "requests[1].agent_id: "),
    (subagent("a", None), "requests[1].t: "),
    ({**subagent("a", 2.0), "requests": {}}, "requests[1].requests: "),
    (subagent("a", 2.0, request(in_=-1)), "requests[0].in: "),
]


@pytest.mark.parametrize(
    ("broken", "where"),
    BROKEN_REQUESTS,
    ids=[str(where) + ascii(b)[-20:] for b, where in BROKEN_REQUESTS],
)
def test_a_broken_request_is_refused_with_file_and_field(
    tmp_path: Path, broken: Any, where: str
) -> None:
    path = session_of(tmp_path, request(t=1.0), broken, request(t=9.0))
    assert where in refusal(path, "kv-cache-tester")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"id": None}, "id: "),
        ({"id": 5}, "id: "),
        ({"id": "a\nb"}, "id: "),
        ({"id": "x" * 129}, "id: "),
        ({"block_size": None}, "block_size: "),
        ({"block_size": 0}, "block_size: "),
        ({"block_size": 32}, "block_size: "),
        ({"block_size": "64"}, "block_size: "),
        ({"block_size": True}, "block_size: "),
        ({"requests": None}, "not a session object with a list of requests"),
        ({"requests": {}}, "not a session object with a list of requests"),
    ],
    ids=str,
)
def test_a_broken_session_is_refused_with_file_and_field(
    tmp_path: Path, values: dict[str, Any], where: str
) -> None:
    path = session_of(tmp_path, **values)
    assert refusal(path, "kv-cache-tester").startswith(f": {where}")


WHOLE = json.dumps({**SESSION, "requests": [REQUEST]})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n", "not JSON: "),
        (WHOLE[:-1], "not JSON: "),
        (WHOLE + WHOLE, "not JSON: "),
        ("[]", "not a session object"),
        ("null", "not a session object"),
        (WHOLE.replace("130", "NaN"), "nan is not a whole number"),
        (WHOLE.replace("130", "Infinity"), "inf is not a whole number"),
        (WHOLE.replace("0.0", "1e999"), "inf is not a finite number"),
        (WHOLE.replace("130", "9" * 4300), "a number of 4300 digits"),
        (WHOLE.replace("[1, 2, 3]", "[" * 100_000), "nested too deeply"),
        (WHOLE.replace('"out"', '"in"'), "in: given twice"),
    ],
    ids=lambda value: value[-16:],
)
def test_a_broken_document_is_refused_with_its_file(
    tmp_path: Path, text: str, problem: str
) -> None:
    message = refusal(file_of(tmp_path, text), "kv-cache-tester")
    assert f": {problem}" in message


def test_sub_agents_nested_beyond_sense_are_refused(tmp_path: Path) -> None:
    opening = '{"t": 0, "type": "subagent", "agent_id": "a", "requests": ['
    deep = WHOLE[: WHOLE.index("[{") + 1] + opening * 20_000 + "]}" * 20_000 + "]}"
    assert "nested too deeply" in refusal(file_of(tmp_path, deep), "kv-cache-tester")


def test_two_sub_agents_of_one_name_are_refused(tmp_path: Path) -> None:
    twins = [request(), subagent("a", 2.0, request()), subagent("a", 3.0, request())]
    message = refusal(session_of(tmp_path, *twins), "kv-cache-tester")
    assert message == ": request_id: 's/a/1' came before"


def test_a_document_is_as_long_as_its_limit_at_most_however_its_lines_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache_tester, "MAX_DOCUMENT", 1000)
    for indent in (None, 1):
        text = json.dumps({**SESSION, "requests": [REQUEST] * 50}, indent=indent)
        path = file_of(tmp_path, text)
        assert "longer than 1000 bytes" in refusal(path, "kv-cache-tester")


# ---------------------------------------------------------------------- both

SECONDS = st.integers(0, 10_000_000).map(lambda ms: ms / 1000)
WORDS = st.text("abc -", min_size=1, max_size=8)


@st.composite
def sessions(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests of one session whose hashes partly repeat those before them."""
    requests: list[dict[str, Any]] = []
    before: list[int] = []
    clock = 0.0
    for _ in range(draw(st.integers(1, 6))):
        ids = before[: draw(st.integers(0, 8))] + draw(st.lists(st.integers(0, 9), max_size=8))
        partial = draw(st.integers(0, 63)) if ids else 0
        clock += draw(SECONDS)
        requests.append(
            {
                "t": clock,
                "type": "n",
                "model": draw(st.none() | WORDS),
                "in": 64 * len(ids) - partial,
                "out": draw(st.integers(0, 99)),
                "hash_ids": ids,
                "api_time": draw(st.none() | SECONDS),
                "think_time": draw(st.none() | SECONDS),
                "stop": draw(st.none() | WORDS),
            }
        )
        before = ids
    return requests


def as_ranges(ids: list[int]) -> str:
    """Run-length coded: 1, 2, 3, 9 is `1-3;9`."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ";".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def num_shared(before: list[int], ids: list[int]) -> int:
    """How many leading ids are equal."""
    most = min(len(before), len(ids))
    return next((k for k in range(most) if before[k] != ids[k]), most)


def as_rows(requests: list[dict[str, Any]]) -> list[str]:
    """The requests as the table has them."""
    hashes = [[], *(request["hash_ids"] for request in requests)]
    shared = [num_shared(before, ids) for before, ids in pairwise(hashes)]
    rows = []
    for number, found in enumerate(requests):
        values = {key: "" if value is None else str(value) for key, value in found.items()}
        del values["hash_ids"]
        values["turn"] = str(number + 1)
        values["n_blocks"] = str(len(found["hash_ids"]))
        values["hash_id_ranges"] = as_ranges(found["hash_ids"])
        values["shared_prefix_blocks"] = str(shared[number])
        rows.append(",".join({**CELLS, **values}.values()))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv_cache_tester")


@given(sessions())
def test_the_table_and_the_json_of_one_session_give_the_same_turns(
    folder: Path, requests: list[dict[str, Any]]
) -> None:
    parts = {"tool_tokens": int(CELLS["tool_tokens"]), "system_tokens": int(CELLS["system_tokens"])}
    from_json = list(read_workload(session_of(folder, *requests, **parts)))
    assert [turn.input_tokens for turn in from_json] == [found["in"] for found in requests]
    assert list(read_workload(table_of(folder, *as_rows(requests)))) == from_json
