"""`benchmarks/equal.py` finds what differs between the answers of two trees, and names where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import equal


def answers(folder: Path, **changed: Any) -> Path:
    """What a tree might have given, with some of it changed."""
    run = folder / "runs/chat/fcfs/fastswitch"
    run.mkdir(parents=True)
    lines = changed.get("lines", ['{"step":0}', '{"step":1}'])
    (run / "decisions.jsonl").write_text("\n".join(lines) + "\n")
    columns = {"step": changed.get("steps", [0, 1]), "batch": [2.0, float("nan")]}
    pq.write_table(pa.table({**columns, **changed.get("columns", {})}), run / "steps.parquet")
    summary = {"system": "fastswitch", "provenance": {"commit": str(folder)}, "metrics": {"a.b": 1}}
    (run / "run.json").write_text(json.dumps({**summary, **changed.get("summary", {})}))
    page = folder / "made/report-run/page.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        f"<dt>commit</dt><dd>{changed.get('commit', 'a' * 12)}</dd>\n{changed.get('page')}"
    )
    store = folder / "made/sweep/objects"
    store.mkdir(parents=True)
    (store / "key.json").write_text(json.dumps(str(folder)))
    (folder / "made/sweep/results.csv").write_text(changed.get("table", "a,b\n1,2\n"))
    return folder


def differences(tmp_path: Path, **changed: Any) -> list[str]:
    """What differs once some of an answer was changed."""
    found = equal.compare(answers(tmp_path / "old"), answers(tmp_path / "new", **changed))
    return found.differences


def test_equal_answers_of_other_commits_and_stores_differ_in_nothing(tmp_path: Path) -> None:
    found = equal.compare(answers(tmp_path / "old"), answers(tmp_path / "new", commit="b" * 12))
    assert not found.differences
    assert found.counts["decision lines"] == 2
    assert found.counts["table rows"] == 2


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"lines": ['{"step":0}', '{"step":2}']}, "decisions.jsonl:2"),
        ({"lines": ['{"step":0}']}, "decisions.jsonl:2"),
        ({"steps": [0, 7]}, "steps.parquet: step[1]"),
        ({"summary": {"metrics": {"a.b": 2}}}, "run.json: metrics.a.b"),
        ({"summary": {"metrics": {"a.b": 1.0}}}, "run.json: metrics.a.b"),
        ({"summary": {"metrics": {}}}, "run.json: metrics.a.b"),
        ({"summary": {"more": 1}}, "has new keys: more"),
        ({"summary": {"system": "vllm"}}, "run.json: system"),
        ({"page": "another"}, "page.html:2"),
        ({"table": "a,b\n1,3\n"}, "made/sweep/results.csv:2"),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, changed: dict[str, Any], where: str) -> None:
    found = differences(tmp_path, **changed)
    assert len(found) == 1
    assert where in found[0]


def test_a_file_that_only_one_tree_writes_is_a_difference(tmp_path: Path) -> None:
    old, new = answers(tmp_path / "old"), answers(tmp_path / "new")
    (old / "made/gone.txt").write_text("")
    (new / "made/more.txt").write_text("")
    assert equal.compare(old, new).differences == [
        "made/gone.txt: is not written any more",
        "made/more.txt: was not written before",
    ]


def test_what_was_renamed_is_equal_under_its_new_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = {"system": "paged", "metrics": {"c": 1}}
    monkeypatch.setitem(equal.RENAMED_SYSTEMS, ("fastswitch", "fcfs"), "paged")
    monkeypatch.setitem(equal.RENAMED_FIELDS, "metrics.a.b", "metrics.c")
    assert not differences(tmp_path, summary=renamed)
    assert differences(tmp_path / "again", summary={**renamed, "metrics": {"c": 2}})


def test_a_tree_is_asked_for_every_named_system_under_three_orders_at_least() -> None:
    for small in (True, False):
        question = equal.asked(small=small)
        named = [
            (name, order)
            for name, order, alternatives in question["systems"]
            if name in equal.SYSTEMS
        ]
        assert len(named) == len(set(named)) == 33 * len(question["orders"])
        assert len(question["orders"]) >= 3


def test_differences_of_one_kind_are_told_once() -> None:
    told = equal.grouped(
        [
            "runs/a/b/c/steps.parquet: step[1]: was 1, is 2",
            "runs/a/b/d/steps.parquet: step[9]: was 3, is 4",
            "runs/a/b/d/steps.parquet: batch[9]: was 3, is 4",
            "runs/a/b/d/run.json: system: was x, is y",
        ]
    )
    assert {key: len(found) for key, found in told.items()} == {
        ("steps.parquet", "step"): 2,
        ("steps.parquet", "batch"): 1,
        ("run.json", "system"): 1,
    }


def test_columns_that_are_new_do_not_hide_what_differs_in_the_others(tmp_path: Path) -> None:
    found = differences(tmp_path, columns={"more": [1, 2]}, steps=[0, 7])
    assert list(equal.grouped(found)) == [
        ("steps.parquet", "has new columns: more int64"),
        ("steps.parquet", "step"),
    ]
