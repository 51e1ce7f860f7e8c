"""The folder of a sweep: whatever breaks, the message is clear and no result is lost."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from explore.studies import store
from explore.studies.merge import merge, status
from explore.studies.store import Store, claimed
from policy.errors import ConfigError, FaultError, InputError, InvariantError
from tests.helpers.sweeps import (
    SMALL,
    damage,
    full_after,
    keys,
    made_result,
    pretend,
    tree,
    well,
)

# ---------------------------------------------------------------------- same bytes


def test_the_same_sweep_gives_the_same_bytes_in_whatever_order_it_ran(tmp_path: Path) -> None:
    one = pretend(SMALL, tmp_path / "one")
    two = pretend(SMALL, tmp_path / "two", backwards=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert (one.trials, one.done, one.failed, one.missing) == (8, 8, 0, 0)
    assert one.digest == two.digest


def test_a_resumed_sweep_runs_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = pretend(SMALL, out)
    before = tree(out)
    for key in keys(out)[:3]:
        damage(out, "DELETE FROM result WHERE key=?", key)
    asked: list[str] = []

    def reply(key: str) -> dict[str, Any]:
        asked.append(key)
        return well(key)

    assert pretend(SMALL, out, reply).digest == whole.digest
    assert len(asked) == 3
    assert tree(out) == before


def test_sessions_are_only_advisory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    assert damage(out, "DELETE FROM session") == 1
    pretend(SMALL, out, lambda key: pytest.fail(f"{key} ran again"))
    assert tree(out) == before


# ---------------------------------------------------------------------- failures


def test_a_failed_trial_is_a_row_with_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    key = Store(pretend(SMALL, tmp_path / "x").folder).plan().trials[2].key
    found = pretend(SMALL, out, lambda k: {"failed": "time limit"} if k == key else well(k))
    assert (found.done, found.failed) == (7, 1)
    row = found.results.iloc[2]
    assert (row["status"], row["reason"]) == ("failed", "time limit")
    assert found.results["ttft_p95_s"].isna().sum() == 1
    again = pretend(SMALL, out)
    assert (again.done, again.failed) == (8, 0)
    assert tree(out) == tree(tmp_path / "x")


def test_a_mean_or_ratio_is_told_only_of_a_point_whose_runs_are_all_there(tmp_path: Path) -> None:
    key = Store(pretend(SMALL, tmp_path / "x").folder).plan().trials[0].key
    found = pretend(SMALL, tmp_path / "y", lambda k: {"failed": "x"} if k == key else well(k))
    means = found.estimates.query("metric == 'ttft_p95_s'").set_index(["point", "system"])
    assert means["mean"].isna().to_dict() == {
        (0, "vllm-0.3.3-keep"): True,
        (0, "fastswitch"): False,
        (1, "vllm-0.3.3-keep"): False,
        (1, "fastswitch"): False,
    }
    ratios = found.ratios.query("metric == 'ttft_p95_s'").set_index("point")["ratio"]
    assert ratios.isna().to_dict() == {0: True, 1: False}


def test_estimates_and_ratios_are_those_of_compare(tmp_path: Path) -> None:
    values = {"vllm-0.3.3-keep": [4.0, 6.0], "fastswitch": [2.0, 2.0]}
    plan = Store(pretend(SMALL, tmp_path / "x").folder).plan()
    of_key = {trial.key: values[trial.system][trial.run] for trial in plan.trials}
    found = pretend(
        SMALL, tmp_path / "y", lambda k: {"result": made_result(k, ttft_p95_s=of_key[k])}
    )
    means = found.estimates.query("metric == 'ttft_p95_s' and point == 0").set_index("system")
    assert means["mean"].to_dict() == {"vllm-0.3.3-keep": 5.0, "fastswitch": 2.0}
    assert means["half"]["vllm-0.3.3-keep"] == pytest.approx(12.706)
    (ratio,) = found.ratios.query("metric == 'ttft_p95_s' and point == 0")["ratio"]
    assert ratio == pytest.approx(6.0**0.5)


# ---------------------------------------------------------------------- broken folders


def test_a_corrupt_result_is_set_aside_and_its_trial_runs_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    changes = (
        "UPDATE result SET text=substr(text, 1, 99) WHERE key=?",
        "UPDATE result SET text=replace(text, '\"preemptions\":50', '\"preemptions\":51') WHERE key=?",
        "UPDATE result SET text='' WHERE key=?",
        "UPDATE result SET text=x'00ff' WHERE key=?",
        "UPDATE result SET sha256=NULL WHERE key=?",
    )
    for key, change in zip(keys(out), changes, strict=False):
        assert damage(out, change, key) == 1
    assert status(out)["corrupt"] == 5
    found = pretend(SMALL, out)
    assert len([note for note in found.notes if "was corrupt" in note]) == 5
    assert len(keys(out, "corrupt")) == 5
    assert tree(out) == before


def test_a_result_under_another_trials_name_is_not_taken_for_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    one, two = keys(out)[:2]
    text = "(SELECT text FROM result WHERE key=?)"
    checksum = "(SELECT sha256 FROM result WHERE key=?)"
    damage(out, f"UPDATE result SET text={text}, sha256={checksum} WHERE key=?", one, one, two)
    assert status(out)["corrupt"] == 1


@pytest.mark.parametrize("content", [b"years of work", b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_no_study_or_torn_is_told_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / store.STUDY).write_bytes(content)
    for act in (lambda: status(tmp_path), lambda: pretend(SMALL, tmp_path)):
        with pytest.raises(InputError, match=store.STUDY):
            act()
    assert (tmp_path / store.STUDY).read_bytes() == content


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something that is no study; it was left alone"):
        pretend(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_results_of_this_sweep_are_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = pretend(SMALL, out)
    before = tree(out)
    found = pretend(SMALL, out, lambda key: pytest.fail(f"{key} ran again"))
    assert (found.done, found.digest) == (8, whole.digest)
    assert tree(out) == before


def test_what_is_overwritten_is_gone(tmp_path: Path) -> None:
    pretend(SMALL, tmp_path / "out")
    other = {**SMALL, "runs": 1}
    pretend(other, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == tree(pretend(other, tmp_path / "fresh").folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FaultError], ids=lambda kind: kind.__name__)
def test_a_run_that_finished_nothing_leaves_no_folder(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def reply(_key: str) -> dict[str, Any]:
        raise error

    with pytest.raises(error):
        pretend(SMALL, tmp_path / "a" / "b" / "out", reply)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(error):
        pretend(SMALL, tmp_path / "mine", reply)
    assert (tmp_path / "mine").is_dir()
    assert pretend(SMALL, tmp_path / "mine").done == 8


def test_another_sweeps_folder_is_refused_and_keeps_its_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    with pytest.raises(ConfigError, match="holds another study, 'small', not 'other'"):
        pretend({**SMALL, "name": "other"}, out)
    with pytest.raises(ConfigError, match="holds another version of 'small', of 8 trials"):
        pretend({**SMALL, "runs": 3}, out)
    assert tree(out) == before


def test_an_extended_sweep_keeps_what_both_have_in_common(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    asked = []

    def reply(key: str) -> dict[str, Any]:
        asked.append(key)
        return well(key)

    assert pretend({**SMALL, "runs": 3}, out, reply, extend=True).done == 12
    assert len(asked) == 4
    fresh = pretend({**SMALL, "runs": 3}, tmp_path / "fresh")
    assert tree(out) == tree(fresh.folder)


def test_results_of_another_semantics_version_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    from explore.studies import semantics

    old = semantics.SEMANTICS
    monkeypatch.setattr(semantics, "SEMANTICS", old + 1)
    with pytest.raises(ConfigError, match=f"version {old}, this program's is {old + 1}"):
        pretend(SMALL, out)


def test_two_sweeps_cannot_write_to_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out):
        assert store.is_claimed(out)
        with pytest.raises(ConfigError, match="another study is writing"):
            pretend(SMALL, out)
    assert not store.is_claimed(out)
    assert pretend(SMALL, out).done == 8


def test_a_folder_that_is_written_to_names_who_does(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def reply(key: str) -> dict[str, Any]:
        with pytest.raises(ConfigError, match=rf"another study is writing.*{os.getpid()}"):
            pretend(SMALL, out)
        return well(key)

    assert pretend(SMALL, out, reply).done == 8


def test_a_file_system_without_locks_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / store.LOCK).write_text("of an earlier version, and not empty" * 99)
    with pytest.raises(ConfigError, match="cannot be locked: file is not a database"):
        pretend(SMALL, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(ConfigError, match="cannot be written"):
            pretend(SMALL, out)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        pretend(SMALL, tmp_path / "out")


@pytest.mark.parametrize("pages", range(2, 16))
def test_a_disk_that_is_full_at_any_write_loses_nothing_that_was_finished(
    tmp_path: Path, pages: int
) -> None:
    out = tmp_path / "out"
    kept: list[str] = []

    def reply(key: str) -> dict[str, Any]:
        if out.exists() and (out / store.STUDY).exists():
            kept[:] = keys(out)
        return well(key)

    try:
        with full_after(pages):
            assert pretend(SMALL, out, reply).done == 8
    except FaultError as error:
        assert "disk is full" in str(error) and "the same command goes on" in str(error)
        assert out.exists() == bool(kept)
        assert set(kept) <= set(keys(out) if out.exists() else ())
    pretend(SMALL, out)
    assert tree(out) == tree(pretend(SMALL, tmp_path / "fresh").folder)


def test_a_table_that_cannot_be_written_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out, shard=(1, 2))
    before = (out / "results.csv").read_bytes()

    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(FaultError, match="No space left"):
            pretend(SMALL, out)
    assert (out / "results.csv").read_bytes() == before
    assert pretend(SMALL, out).done == 8


def test_a_run_killed_before_its_plan_was_written_leaves_a_folder_that_can_be_used(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with claimed(out):
        pass
    (out / ".part.results.csv").write_text("torn")
    with pytest.raises(InputError, match="has no plan"):
        status(out)
    assert pretend(SMALL, out).done == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE plan SET format='fastswitch-study/0'", "format: .* is not fastswitch-study/1"),
        ("UPDATE plan SET text='{'", "not a plan"),
        ("UPDATE plan SET text='[]'", "not a plan"),
        (f"UPDATE plan SET text='{'[' * 5000}'", "not a plan"),
        ("UPDATE plan SET text=replace(text, '\"run\": 1', '\"run\": 0')", "its digest differs"),
        ("DELETE FROM plan", "has no plan"),
        ("DROP TABLE plan", "no such table: plan"),
    ],
    ids=lambda value: value[:40],
)
def test_a_plan_that_cannot_be_read_or_was_changed_is_told(
    tmp_path: Path, change: str, words: str
) -> None:
    pretend(SMALL, tmp_path)
    damage(tmp_path, change)
    with pytest.raises(InputError, match=words):
        status(tmp_path)


def test_a_plan_has_keys_alone(tmp_path: Path) -> None:
    """Even one whose digest agrees."""
    whole = pretend(SMALL, tmp_path / "out")
    plan = Store(whole.folder).plan()
    evil = replace(plan, trials=(replace(plan.trials[0], key="../../../evil"),))
    with claimed(whole.folder) as held:
        held.write_plan(evil)
    with pytest.raises(InputError, match="is not a trial's key"):
        merge([whole.folder], tmp_path / "merged")


# ---------------------------------------------------------------------- merge and status


def test_merged_shards_are_the_bytes_of_the_whole(tmp_path: Path) -> None:
    shards = [tmp_path / f"part{index}" for index in (1, 2, 3)]
    for index, shard in enumerate(shards, 1):
        pretend(SMALL, shard, shard=(index, 3))
    found = merge([*shards, shards[0]], tmp_path / "merged")
    assert (found.done, found.missing) == (8, 0)
    assert tree(tmp_path / "merged") == tree(pretend(SMALL, tmp_path / "whole").folder)


def test_a_merge_without_all_shards_says_what_is_missing(tmp_path: Path) -> None:
    part = pretend(SMALL, tmp_path / "part", shard=(1, 2))
    assert 0 < part.missing < 8
    found = merge([part.folder], tmp_path / "merged")
    assert (found.done, found.missing) == (part.done, part.missing)


def test_failures_are_merged_unless_another_folder_has_the_result(tmp_path: Path) -> None:
    failing = pretend(SMALL, tmp_path / "bad", lambda _key: {"failed": "no memory"})
    whole = pretend(SMALL, tmp_path / "good")
    assert merge([failing.folder], tmp_path / "one").failed == 8
    assert merge([failing.folder, whole.folder], tmp_path / "two").failed == 0
    assert merge([whole.folder, failing.folder], tmp_path / "three").failed == 0
    assert tree(tmp_path / "two") == tree(tmp_path / "three") == tree(whole.folder)


def test_different_results_of_one_trial_are_not_merged(tmp_path: Path) -> None:
    pretend(SMALL, tmp_path / "one")
    pretend(SMALL, tmp_path / "two", lambda key: {"result": made_result(key, preemptions=1)})
    before = tree(tmp_path / "one"), tree(tmp_path / "two")
    with pytest.raises(InvariantError, match="the same trial must give the same numbers"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert (tree(tmp_path / "one"), tree(tmp_path / "two")) == before


def test_folders_of_two_sweeps_are_not_merged(tmp_path: Path) -> None:
    pretend(SMALL, tmp_path / "one")
    pretend({**SMALL, "runs": 1}, tmp_path / "two")
    with pytest.raises(ConfigError, match=r"two: holds another sweep \('small', 4 trials\)"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corrupt_result_is_not_merged_and_its_folder_not_touched(tmp_path: Path) -> None:
    pretend(SMALL, tmp_path / "one")
    damage(tmp_path / "one", "UPDATE result SET text='{' WHERE key=?", keys(tmp_path / "one")[0])
    before = tree(tmp_path / "one")
    found = merge([tmp_path / "one"], tmp_path / "out")
    assert (found.done, found.missing) == (7, 1)
    assert "is corrupt" in found.notes[0]
    assert tree(tmp_path / "one") == before


def test_a_folder_that_is_no_sweep_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this the folder of a study"):
        status(tmp_path)
    with pytest.raises(InputError):
        merge([tmp_path], tmp_path / "out")


def test_status_tells_how_far_a_sweep_is_and_whether_it_runs(tmp_path: Path) -> None:
    found = pretend(SMALL, tmp_path / "out", shard=(1, 2))
    told = status(tmp_path / "out")
    assert (told["done"], told["missing"]) == (found.done, found.missing)
    assert (told["is_running"], told["sessions"], told["digest"]) == (False, 1, found.digest)
    with claimed(tmp_path / "out"):
        assert status(tmp_path / "out")["is_running"]


def test_a_trial_that_two_points_share_runs_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(key: str) -> dict[str, Any]:
        asked.append(key)
        return well(key)

    spec = {**SMALL, "grid": {"workload.rate": [1.0, 1.0]}}
    found = pretend(spec, tmp_path / "out", reply)
    assert (found.trials, len(asked)) == (8, 4)
    frame = found.results
    assert frame[frame["point"] == 0]["ttft_p95_s"].tolist() == (
        frame[frame["point"] == 1]["ttft_p95_s"].tolist()
    )


def test_a_store_reads_only_what_it_wrote() -> None:
    held = Store()
    assert held.result("ab" * 32) is None
    held.keep("ab" * 32, {"metrics": {"x": 1.5}})
    assert held.result("ab" * 32) == {"metrics": {"x": 1.5}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        held.keep("cd" * 32, {"metrics": {"x": float("nan")}})
    with suppress(ZeroDivisionError), held.transaction():
        held.keep("cd" * 32, {})
        held.note_failure("ef" * 32, "why")
        raise ZeroDivisionError
    assert not held.has("cd" * 32) and held.failure("ef" * 32) is None


def test_a_reader_undoes_what_a_killed_writer_left(tmp_path: Path) -> None:
    """A commit cut off between its journal and its pages, and nobody to write again."""
    pretend(SMALL, tmp_path / "out")
    torn = tmp_path / "torn"
    torn.mkdir()
    with closing(sqlite3.connect(tmp_path / "out" / store.STUDY, isolation_level=None)) as held:
        held.execute("PRAGMA cache_size=1")  # so that pages are written before the commit
        held.execute("BEGIN IMMEDIATE")
        held.execute("UPDATE result SET text=text || 'torn'")
        for path in (tmp_path / "out").iterdir():
            (torn / path.name).write_bytes(path.read_bytes())
        held.execute("ROLLBACK")
    assert (torn / f"{store.STUDY}-journal").stat().st_size > 0
    assert (status(torn)["done"], status(torn)["corrupt"]) == (8, 0)
