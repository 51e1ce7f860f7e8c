"""The ShareGPT reader: contexts that grow, and every broken row named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from traces.readers.catalog import read_workload
from traces.workload import MAX_TOKENS, Header, Turn

NAMES = "conversation_id,turn,user_tokens,assistant_tokens"


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "sharegpt.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, "sharegpt"))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_prompt_is_all_that_was_said_before_and_the_new_words(tmp_path: Path) -> None:
    path = file_of(tmp_path, NAMES, "a,1,33,255", "a,2,35,328", "a,3,0,1", "b,1,0,7", "b,2,5,0")
    workload = read_workload(path)
    assert workload.header == Header(
        source="ShareGPT turn lengths",
        timing="closed",
        lost=("when anything was said", "the text"),
    )
    assert list(workload) == [
        Turn("a/1", "a", 1, 33, 255, new_input_tokens=33),
        Turn("a/2", "a", 2, 323, 328, parent_prefix_tokens=288, new_input_tokens=35),
        Turn("a/3", "a", 3, 651, 1, parent_prefix_tokens=651, new_input_tokens=0),
        Turn("b/1", "b", 1, 0, 7, new_input_tokens=0),
        Turn("b/2", "b", 2, 12, 0, parent_prefix_tokens=7, new_input_tokens=5),
    ]


def test_a_conversation_may_reach_the_token_limit_and_not_pass_it(tmp_path: Path) -> None:
    half = MAX_TOKENS // 2
    rows = [NAMES, f"a,1,0,{half}", f"a,2,{half},1"]
    assert [turn.input_tokens for turn in read_workload(file_of(tmp_path, *rows))] == [
        0,
        MAX_TOKENS,
    ]
    message = refusal(file_of(tmp_path, *rows, "a,3,0,0"))
    assert message == f":4: user_tokens plus history: {MAX_TOKENS + 1} is not in 0 to {MAX_TOKENS}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharegpt")


PAIRS = st.tuples(st.integers(0, 10_000), st.integers(0, 10_000))


@given(
    st.dictionaries(
        st.text("abc/-_", min_size=1), st.lists(PAIRS, min_size=1), min_size=1, max_size=5
    )
)
def test_rows_in_are_rows_out_and_a_prompt_adds_up(
    folder: Path, sessions: dict[str, list[tuple[int, int]]]
) -> None:
    rows = [
        f"{name},{turn},{user},{reply}"
        for name, pairs in sessions.items()
        for turn, (user, reply) in enumerate(pairs, start=1)
    ]
    found = list(read_workload(file_of(folder, NAMES, *rows)))
    assert [
        f"{turn.session_id},{turn.turn},{turn.new_input_tokens},{turn.output_tokens}"
        for turn in found
    ] == rows
    for turn in found:
        said = sessions[turn.session_id][: turn.turn]
        assert turn.input_tokens == sum(map(sum, said)) - turn.output_tokens


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ("a,3,1,1", "turn: 3 where 2 was due"),
        ("a,1,1,1", "turn: 1 where 2 was due"),
        ("b,2,1,1", "turn: 2 where 1 was due"),
        ("b,0,1,1", "turn: "),
        ("first,2,1,1", "conversation_id: 'first' came before"),
        ("first,1,1,1", "conversation_id: 'first' came before"),
        (",1,1,1", "conversation_id: "),
        (f"{'x' * 129},1,1,1", "conversation_id: "),
        ("b\x1b[2J,1,1,1", "conversation_id: "),
        ("b\u2028,1,1,1", "conversation_id: "),
        ("a,NaN,1,1", "turn: "),
        ("a,-2,1,1", "turn: "),
        ("a,2.0,1,1", "turn: "),
        ("a,2,-1,1", "user_tokens: "),
        ("a,2,NaN,1", "user_tokens: "),
        ("a,2,1e999,1", "user_tokens: "),
        ("a,2,True,1", "user_tokens: "),
        (f"a,2,{'9' * 4300},1", "user_tokens: "),
        ("a,2,16777217,1", "user_tokens: "),
        ("a,2,1,16777217", "assistant_tokens: "),
        ("a,2,1,Infinity", "assistant_tokens: "),
        ("a,2,1,", "assistant_tokens: "),
        ("a,2,1", "3 fields, the header has 4"),
        ("a,2,1,1,1", "5 fields, the header has 4"),
        ("", "empty line"),
        ('"a,2,1,1', "not CSV: "),
    ],
    ids=lambda value: ascii(value)[:26],
)
def test_a_broken_row_is_refused_with_file_line_and_field(
    tmp_path: Path, row: str, where: str
) -> None:
    path = file_of(tmp_path, NAMES, "first,1,1,1", "a,1,1,1", row, "z,1,1,1")
    assert refusal(path).startswith(f":4: {where}")


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ("conversation_id,turn,user_tokens", "assistant_tokens: "),
        ("id,turn,user_tokens,assistant_tokens", "conversation_id: "),
        (f"{NAMES},turn", "turn: column given twice"),
        (f"{NAMES},surprise", "surprise: "),
        ("", "empty file"),
    ],
)
def test_columns_must_be_the_formats_own(tmp_path: Path, names: str, where: str) -> None:
    assert refusal(file_of(tmp_path, names)).startswith(f":1: {where}")
