"""The rules between rows: parents, drivers, order, blocks; each broken once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from policy.errors import InputError
from traces.readers.catalog import read_workload
from traces.rules import checked
from traces.strict import Place
from traces.workload import Header, Turn

FIRST = Turn("a/1", "a", 1, 20, 5, arrival_ns=5)
NEXT = Turn("a/2", "a", 2, 40, 5, think_ns=7)
OTHER = Turn("b/1", "b", 1, 20, 5, arrival_ns=6)
CLOSED = Header(timing="closed")


def check(header: Header, *turns: Turn) -> list[Turn]:
    return list(checked(turns, header, Place(Path("f"))))


def refusal(header: Header, *turns: Turn) -> str:
    with pytest.raises(InputError) as caught:
        check(header, *turns)
    return str(caught.value).removeprefix("f: ")


def test_branches_retries_and_sub_agents_are_turns_with_a_parent_of_their_own() -> None:
    turns = [
        FIRST,
        NEXT,
        replace(NEXT, request_id="a/3", turn=3, parent_id="a/1"),
        Turn("a/x/1", "a/x", 1, 9, 9, parent_id="a/2", think_ns=0, parent_prefix_tokens=0),
        Turn("a/x/2", "a/x", 2, 4, 9, gap_ns=3, parent_prefix_tokens=2),
    ]
    assert check(CLOSED, *turns) == turns


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ((FIRST, FIRST), "request_id: 'a/1' came before"),
        ((NEXT,), "turn: 2 where 1 was due"),
        ((FIRST, replace(NEXT, turn=3)), "turn: 3 where 2 was due"),
        ((FIRST, replace(NEXT, turn=1)), "turn: 1 where 2 was due"),
        ((FIRST, replace(NEXT, parent_id="z")), "parent_id: 'z' does not come before"),
        ((FIRST, replace(NEXT, parent_id="a/2")), "parent_id: 'a/2' does not come before"),
        (
            (replace(FIRST, parent_id="b/1"), replace(OTHER, parent_id="a/1")),
            "parent_id: 'b/1' does not come before",
        ),
        ((replace(FIRST, think_ns=1),), "think_s: given of a turn that has no parent"),
        ((replace(FIRST, gap_ns=1),), "gap_s: given of a turn that has no parent"),
        ((FIRST, replace(NEXT, gap_ns=1)), "gap_s: given, and think_s too: only one drives"),
        ((FIRST, replace(NEXT, arrival_ns=9)), "think_s: given, and arrival_s too"),
        ((FIRST, OTHER, NEXT), "session_id: 'a' came before, its rows must be together"),
        ((OTHER, FIRST), "arrival_s: time runs backwards"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_closed_loop_that_breaks_a_rule_is_refused(turns: tuple[Turn, ...], problem: str) -> None:
    assert refusal(CLOSED, *turns).startswith(problem)


def test_an_open_loop_is_driven_by_arrivals_alone_and_may_interleave() -> None:
    later = replace(NEXT, think_ns=None, arrival_ns=8)
    assert check(Header(), FIRST, OTHER, later) == [FIRST, OTHER, later]
    assert refusal(Header(), FIRST, NEXT).startswith("think_s: given in open loop")
    assert refusal(Header(), OTHER, FIRST) == "arrival_s: time runs backwards"
    assert refusal(Header(), OTHER, replace(later, turn=1, arrival_ns=1)) == (
        "arrival_s: time runs backwards"
    )


@pytest.mark.parametrize(
    ("tokens", "ids", "may_lack", "is_fine"),
    [
        (32, 2, False, True),
        (33, 3, False, True),
        (33, 2, False, False),
        (33, 2, True, True),
        (33, 4, True, False),
        (33, 1, True, False),
        (0, 0, False, True),
    ],
)
def test_block_ids_cover_the_prompt(
    tokens: int, ids: int, *, may_lack: bool, is_fine: bool
) -> None:
    header = Header(block_size=16, may_lack_last_block=may_lack)
    turn = Turn("a", "a", 1, tokens, 1, hash_ids=tuple(range(ids)))
    if is_fine:
        assert check(header, turn) == [turn]
    else:
        assert refusal(header, turn).startswith(f"hash_ids: {ids} ids for {tokens} tokens")


@pytest.mark.parametrize(("version", "is_fine"), [(1, True), (2, False)])
def test_version_1_never_asked_for_the_id_of_the_last_block(
    tmp_path: Path, version: int, *, is_fine: bool
) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(
        f'{{"format": "fastswitch-workload/{version}", "block_size": 16}}\n'
        '{"request_id": "a", "input_tokens": 33, "output_tokens": 1, "hash_ids": [1, 2]}\n'
    )
    if is_fine:
        assert [turn.hash_ids for turn in read_workload(path)] == [(1, 2)]
    else:
        with pytest.raises(InputError, match="hash_ids: 2 ids for 33 tokens"):
            list(read_workload(path))
