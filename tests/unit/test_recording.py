"""Recordings as folders: claimed, published, replaced, refused and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policy.errors import ConfigError, InputError
from runs.recorder import Recorder
from runs.recording import (
    SCHEMAS,
    IntTable,
    Recording,
    Table,
    begin,
    claimed,
    load,
    write_summary,
)
from runs.scenario import Scenario, build

SUMMARY = {"machine": "by hand", "metrics": {"rows": 1, "ttft_p50_s": None}}
STEPS = [
    (0, 5, 9, 0, 7, 0, 0, 3, 4, IntTable.NULL, IntTable.NULL),
    (1, 9, 12, 1, 0, 1, 8, 3, 4, 2, 0),
]


def scenario() -> Scenario:
    chat = {"generator": "chat", "conversations": 3, "rate": 1.0}
    return build({"workload": chat, "profile": "a10-llama-3-8b", "name": "mine"}, "here")


def record(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    """What `simulate(out=folder)` does, with two steps."""
    with claimed(folder) as part:
        begin(part, scenario())
        recorder = Recorder(part, decisions=True)
        for row in STEPS:
            recorder.stepped(row)
        recorder.close({})
        write_summary(part, summary or SUMMARY)
    return folder


def claim(folder: Path) -> None:
    """As far as a run gets that is refused its folder."""
    with claimed(folder):
        raise AssertionError("the run begins")


def fail(folder: Path, error: type[BaseException]) -> None:
    """A run that ends half-way through."""
    with claimed(folder) as part:
        begin(part, scenario())
        recorder = Recorder(part, decisions=True)
        try:
            raise error
        finally:
            recorder.close({})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


FILES = {
    "run.json",
    "scenario.yaml",
    "decisions.jsonl",
    "replay.jsonl",
    *(f"{name}.parquet" for name in SCHEMAS),
}


# ---------------------------------------------------------------------- written


def test_a_recording_is_one_folder_with_nothing_left_beside_it(tmp_path: Path) -> None:
    folder = record(tmp_path / "deep" / "run")
    assert set(contents(folder)) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_until_it_is_finished_a_recording_has_another_name(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as part:
        assert [path.name for path in tmp_path.iterdir()] == [part.name]
        assert part.name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    found = load(record(tmp_path / "run"))
    assert found.summary == SUMMARY
    rows = [tuple(row.values()) for row in found.table("steps").to_pylist()]
    assert rows == [(*STEPS[0][:9], None, None), STEPS[1]]
    assert list(found.decision_lines()) == []
    assert build_back(tmp_path / "run") == scenario()


def build_back(folder: Path) -> Scenario:
    from runs.scenario import load as load_scenario

    return load_scenario(str(folder / "scenario.yaml"))


def test_some_columns_of_a_table_can_be_had_alone(tmp_path: Path) -> None:
    wanted = {"step": [0, 1], "end_ns": [9, 12]}
    in_memory = Recorder()
    for row in STEPS:
        in_memory.stepped(row)
    for found in (load(record(tmp_path / "run")), in_memory.close({})):
        assert found.table("steps", ["step", "end_ns"]).to_pydict() == wanted


def test_a_folder_name_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    found = load(record(tmp_path / "step=7" / "rate=0.5"))
    assert found.table("steps").schema.equals(SCHEMAS["steps"])


# ---------------------------------------------------------------------- replaced or refused


def test_a_new_recording_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", {"machine": "earlier"})
    (folder / "extra.parquet").write_bytes(b"of an earlier version")
    assert load(folder).summary == {"machine": "earlier"}
    record(folder)
    assert load(folder).summary == SUMMARY
    assert set(contents(folder)) == FILES


def test_an_earlier_recording_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    folder = record(tmp_path / "run")
    before = contents(folder)
    with claimed(folder) as part:
        Recorder(part).close({})
        assert contents(folder) == before
    assert contents(folder) != before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_what_was_there_and_nothing_of_its_own(
    tmp_path: Path, error: type[BaseException]
) -> None:
    before = contents(record(tmp_path / "run").parent)
    for name in ("run", "new"):
        with pytest.raises(error):
            fail(tmp_path / name, error)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as part:
        name = part.name
    killed = tmp_path / name
    killed.mkdir()
    (killed / "steps.parquet").write_bytes(b"torn")
    record(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert set(contents(tmp_path / "run")) == FILES


def test_an_empty_folder_may_be_recorded_into(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert set(contents(record(tmp_path / "run"))) == FILES


@pytest.mark.parametrize("name", ["thesis.tex", "sub/run.json", "steps.parquet"])
def test_a_folder_that_is_no_recording_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not a recording; it is left alone"):
        claim(tmp_path / "theirs")
    assert contents(tmp_path) == {f"theirs/{name}": b"years of work"}


def test_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("years of work")
    with pytest.raises(ConfigError, match="theirs: "):
        claim(theirs)
    assert contents(tmp_path) == {"theirs": b"years of work"}


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("years of work")
    with pytest.raises(ConfigError, match="run: cannot be written: Not a directory"):
        claim(tmp_path / "theirs" / "run")


def test_the_working_folder_may_be_recorded_into_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out .` has no name of its own to put a dot before."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        record(Path())
    except ConfigError as error:
        assert str(error).startswith(".: ")
        assert list((tmp_path / "here").iterdir()) == []
    else:
        assert set(contents(tmp_path / "here")) == FILES


def test_a_folder_that_somebody_put_into_a_recording_is_never_half_removed(tmp_path: Path) -> None:
    """Refused before the run, or replaced as a whole: not found out after hours of running."""
    folder = record(tmp_path / "run")
    (folder / "figures").mkdir()
    (folder / "figures" / "mine.svg").write_text("drawn by hand")
    before = contents(folder)
    try:
        record(folder)
    except ConfigError:
        assert contents(folder) == before
    else:
        assert set(contents(folder)) == FILES


# ---------------------------------------------------------------------- broken folders


def broken(folder: Path, name: str, data: bytes | None) -> Recording:
    """A recording of which one file is other bytes, or missing."""
    record(folder)
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    return load(folder)


@pytest.mark.parametrize(
    "data", [None, b"", b"{", b"\xff", b"[1]", b"null"], ids=lambda data: str(data)[:12]
)
def test_a_broken_summary_is_refused_by_name(tmp_path: Path, data: bytes | None) -> None:
    with pytest.raises(InputError, match=r"run\.json: "):
        broken(tmp_path / "run", "run.json", data)


def test_a_recording_of_an_older_version_is_refused_in_words(tmp_path: Path) -> None:
    older = json.dumps({"format": "fastswitch-run/1"}).encode()
    with pytest.raises(
        InputError, match=r"its format is .*fastswitch-run/1.* reads .*make the"
    ) as e:
        broken(tmp_path / "run", "run.json", older)
    assert len(str(e.value).splitlines()) == 1


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/run\.json: cannot be read"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "data", [None, b"", b"PAR1", b"PAR1" + bytes(64) + b"PAR1"], ids=lambda data: str(data)[:12]
)
def test_a_broken_table_is_refused_by_name(tmp_path: Path, data: bytes | None) -> None:
    found = broken(tmp_path / "run", "steps.parquet", data)
    with pytest.raises(InputError, match=r"steps\.parquet: cannot be read") as refused:
        found.table("steps")
    assert len(str(refused.value).splitlines()) == 1
    assert found.table("spans").num_rows == 0


def test_a_torn_table_is_refused_by_name(tmp_path: Path) -> None:
    data = (record(tmp_path / "whole") / "steps.parquet").read_bytes()
    found = broken(tmp_path / "run", "steps.parquet", data[: len(data) // 2])
    with pytest.raises(InputError, match=r"steps\.parquet: cannot be read"):
        found.table("steps")


@pytest.mark.parametrize(
    "read",
    [lambda found: found.table("steps"), lambda found: found.table("steps", ["step", "end_ns"])],
    ids=["whole", "columns"],
)
def test_a_table_of_something_else_is_refused_by_name(
    tmp_path: Path, read: Callable[[Recording], Any]
) -> None:
    folder = record(tmp_path / "run")
    pq.write_table(pa.table({"step": [0, 1], "colour": ["red", "blue"]}), folder / "steps.parquet")
    with pytest.raises(InputError, match=r"steps\.parquet: "):
        read(load(folder))


def test_decisions_that_nobody_asked_for_are_missed_by_name(tmp_path: Path) -> None:
    found = broken(tmp_path / "run", "decisions.jsonl", None)
    with pytest.raises(InputError, match=r"decisions\.jsonl: the run was made without --decisions"):
        list(found.decision_lines())


def test_the_summary_is_json_that_anybody_reads(tmp_path: Path) -> None:
    text = (record(tmp_path / "run") / "run.json").read_text()
    assert json.loads(text) == SUMMARY
    assert text.endswith("}\n")


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_keeps_its_value_and_its_absence(tmp_path: Path, name: str) -> None:
    cells: dict[pa.DataType, Any] = {
        pa.int64(): 1 << 60,
        pa.string(): "é",
        pa.float64(): 0.1,
        pa.bool_(): False,
    }
    schema = SCHEMAS[name]
    if name == "workload":
        cells[schema.field("hash_ids").type] = [1, 1 << 60]
        cells[schema.field("components").type] = [{"kind": "a", "id": "b", "tokens": 3}]
    if name == "steps":
        table: Any = IntTable(name, tmp_path)
        table.append([1 << 60] * len(schema))
        table.append([IntTable.NULL] * len(schema))
    else:
        table = Table(name, tmp_path)
        table.append(tuple(cells[column.type] for column in schema))
        table.append((None,) * len(schema))
    assert table.close() is None
    assert Recording({}, tmp_path).table(name).to_pylist() == [
        {column.name: cells[column.type] for column in schema},
        dict.fromkeys(schema.names),
    ]
