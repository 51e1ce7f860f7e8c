"""The folder of a sweep: whatever breaks, the message is clear and no result is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from explore.studies import journal, store
from explore.studies.merge import merge, status
from explore.studies.store import Store, claimed
from policy.errors import ConfigError, FaultError, InputError, InvariantError
from tests.helpers.sweeps import SMALL, Pretend, made_result, pretend, tree, well


def objects(folder: Path) -> list[Path]:
    return sorted((folder / "objects").rglob("*.json"))


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
    for path in objects(out)[:3]:
        path.unlink()
    asked: list[str] = []

    def reply(key: str) -> dict[str, Any]:
        asked.append(key)
        return well(key)

    assert pretend(SMALL, out, reply, resume=True).digest == whole.digest
    assert len(asked) == 3
    assert tree(out) == before


def test_the_journal_is_only_advisory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    (out / journal.NAME).unlink()
    pretend(SMALL, out, lambda key: pytest.fail(f"{key} ran again"), resume=True)
    assert tree(out) == before


# ---------------------------------------------------------------------- failures


def test_a_failed_trial_is_a_row_with_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    doomed = json.loads((pretend(SMALL, tmp_path / "x").folder / "plan.json").read_text())
    key = doomed["trials"][2]["key"]
    found = pretend(SMALL, out, lambda k: {"failed": "time limit"} if k == key else well(k))
    assert (found.done, found.failed) == (7, 1)
    row = found.results.iloc[2]
    assert (row["status"], row["reason"]) == ("failed", "time limit")
    assert found.results["ttft_p95_s"].isna().sum() == 1
    again = pretend(SMALL, out, resume=True)
    assert (again.done, again.failed) == (8, 0)
    assert tree(out) == tree(tmp_path / "x")


def test_a_mean_or_ratio_is_told_only_of_a_point_whose_runs_are_all_there(tmp_path: Path) -> None:
    plan = json.loads((pretend(SMALL, tmp_path / "x").folder / "plan.json").read_text())
    key = plan["trials"][0]["key"]
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
    plan = json.loads((pretend(SMALL, tmp_path / "x").folder / "plan.json").read_text())
    of_key = {t["key"]: values[t["system"]][t["run"]] for t in plan["trials"]}
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
    for path, damage in zip(
        objects(out),
        (
            lambda text: text[: len(text) // 2],
            lambda text: text.replace('"preemptions":50', '"preemptions":51'),
            lambda _text: "",
            lambda _text: "[1]",
            lambda _text: "\0" * 500,
        ),
        strict=False,
    ):
        path.write_text(damage(path.read_text()))
    assert status(out)["corrupt"] == 5
    found = pretend(SMALL, out, resume=True)
    assert len([note for note in found.notes if "was corrupt" in note]) == 5
    assert len(list((out / "corrupt").iterdir())) == 5
    shutil.rmtree(out / "corrupt")
    assert tree(out) == before


def test_a_result_under_another_trials_name_is_not_taken_for_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    one, two = objects(out)[:2]
    two.write_text(one.read_text())
    assert status(out)["corrupt"] == 1


def test_a_torn_journal_line_is_told_and_left_and_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    path = out / journal.NAME
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    found = pretend(SMALL, out, resume=True)
    assert any("its last line was torn by a crash" in note for note in found.notes)
    assert path.read_bytes().startswith(torn + b"\n")
    assert tree(out) == before
    assert status(out)["torn_journal_lines"] == 1
    assert not pretend(SMALL, out, resume=True).notes


def test_a_journal_line_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    with claimed(tmp_path / "out") as held:
        book = journal.Journal(held.folder)
        book.note("done", key="a")
        book.note("done", key="b")
        book.close()
    path = tmp_path / "out" / journal.NAME
    path.write_text(path.read_text().replace('"a"', '"c"'))
    first, second = journal.read(tmp_path / "out")
    assert first is None
    assert second is not None and second["key"] == "b"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something that is no sweep; it was left alone"):
        pretend(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_results_of_this_sweep_are_gone_on_with_only_when_told_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    with pytest.raises(ConfigError, match="holds results of this sweep: go on with --resume"):
        pretend(SMALL, out)
    assert tree(out) == before


def test_another_sweeps_folder_is_refused_and_keeps_its_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    with pytest.raises(ConfigError, match="holds another sweep, 'small', not 'other'"):
        pretend({**SMALL, "name": "other"}, out, resume=True)
    with pytest.raises(ConfigError, match="holds another version of sweep 'small', of 8 trials"):
        pretend({**SMALL, "runs": 3}, out, resume=True)
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
        pretend(SMALL, out, resume=True)


def test_two_sweeps_cannot_write_to_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out):
        assert store.is_claimed(out)
        with pytest.raises(ConfigError, match=rf"another sweep is writing.*{os.getpid()}"):
            pretend(SMALL, out)
    assert not store.is_claimed(out)
    assert pretend(SMALL, out).done == 8


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="no locks here: No locks available"):
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


@pytest.mark.parametrize("full_at", range(1, 26))
def test_a_disk_that_is_full_at_any_write_loses_nothing_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """Each of twelve files (the plan, eight results, three tables) is synced, and then its folder;
    every one of these 24 fails in turn, and at 25 none does."""
    out = tmp_path / "out"
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if full_at <= 24:
        with pytest.raises(FaultError, match=r"No space left on device\n.*--resume goes on"):
            pretend(SMALL, out)
        renamed = full_at // 2
        assert len(objects(out)) == min(max(renamed - 1, 0), 8)
    else:
        assert pretend(SMALL, out).done == 8
    monkeypatch.undo()
    assert not list(out.rglob("*.tmp"))
    pretend(SMALL, out, resume=True)
    assert tree(out) == tree(pretend(SMALL, tmp_path / "fresh").folder)


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    before = tree(out)
    (out / ".plan.json.77.tmp").write_text("{")
    (objects(out)[0].parent / ".x.json.77.tmp").write_text("{")
    pretend(SMALL, out, resume=True)
    assert tree(out) == before


def test_a_run_killed_before_its_plan_was_written_leaves_a_folder_that_can_be_used(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").write_text("77")
    (out / ".plan.json.77.tmp").write_text("{")
    assert pretend(SMALL, out).done == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "format: not fastswitch-sweep/1"),
        ('{"format":"fastswitch-sweep/1"}', "not a plan"),
    ],
)
def test_a_plan_that_cannot_be_read_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=words):
        status(tmp_path)
    with pytest.raises(InputError, match=words):
        pretend(SMALL, tmp_path, resume=True)
    assert (tmp_path / "plan.json").read_text() == text


def test_a_plan_that_was_changed_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    path = out / "plan.json"
    path.write_text(path.read_text().replace('"run": 1', '"run": 0', 1))
    with pytest.raises(InputError, match="its digest differs"):
        status(out)


def test_a_plan_can_name_no_file_outside_its_folder(tmp_path: Path) -> None:
    """Even one whose digest agrees."""
    whole = pretend(SMALL, tmp_path / "out")
    plan = Store(whole.folder).plan()
    evil = replace(plan, trials=(replace(plan.trials[0], key="../../../evil"),))
    Store(whole.folder).write_plan(evil)
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
    objects(tmp_path / "one")[0].write_text("{")
    before = tree(tmp_path / "one")
    found = merge([tmp_path / "one"], tmp_path / "out")
    assert (found.done, found.missing) == (7, 1)
    assert "is corrupt" in found.notes[0]
    assert tree(tmp_path / "one") == before


def test_a_folder_that_is_no_sweep_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this the folder of a sweep"):
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
    engine = Pretend(well)
    spec = {**SMALL, "grid": {"workload.rate": [1.0, 1.0]}}
    from unittest.mock import patch

    from explore.studies import sweep as module

    with patch.object(module, "make_engine", lambda _settings: engine):
        found = module.sweep(spec, tmp_path / "out")
    assert (found.trials, len(engine.asked)) == (8, 4)
    frame = found.results
    assert frame[frame["point"] == 0]["ttft_p95_s"].tolist() == (
        frame[frame["point"] == 1]["ttft_p95_s"].tolist()
    )


def test_a_store_reads_only_what_it_wrote(tmp_path: Path) -> None:
    held = Store(tmp_path)
    assert held.result("ab" * 32) is None
    held.keep("ab" * 32, {"metrics": {"x": 1.5}})
    assert held.result("ab" * 32) == {"metrics": {"x": 1.5}}
