"""Where a number comes from can be told, and two different inputs can be told apart."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from calibrate.profile import load
from runs import provenance as module
from runs.provenance import commit, provenance, workload_hash
from tests.helpers.made import scenario_of

PROFILE = load("a10-llama-3-8b")
HASH = "0123456789abcdef0123456789abcdef01234567"


def of(**values: Any) -> dict[str, Any]:
    return provenance(scenario_of(**values), PROFILE)


def test_versions_seed_and_hashes_are_all_there() -> None:
    found = of(seed=7, run=2)
    assert (found["seed"], found["run"]) == (7, 2)
    assert found["libraries"]["simpy"] == metadata.version("simpy")
    assert found["profile_hash"] == PROFILE.hash
    for name in ("scenario_hash", "profile_hash", "workload_hash"):
        assert len(found[name]) == 16 and int(found[name], 16) >= 0
    assert found["python"].count(".") == 2


def test_the_same_inputs_have_the_same_provenance() -> None:
    assert of() == of()


@pytest.mark.parametrize(
    "values",
    [{"seed": 1}, {"run": 1}, {"pool": {"block_size": 32}}, {"system": "+groups"}],
)
def test_another_scenario_has_another_hash(values: dict[str, Any]) -> None:
    assert of(**values)["scenario_hash"] != of()["scenario_hash"]


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ({"seed": 1}, False),
        ({"run": 1}, False),
        ({"workload": {"generator": "chat", "conversations": 9, "rate": 2.0}}, False),
        ({"system": "+groups"}, True),
        ({"pool": {"block_size": 32}}, True),
    ],
)
def test_a_generated_workload_is_its_numbers_and_seeds_and_nothing_else(
    values: dict[str, Any], same: bool
) -> None:
    assert (workload_hash(scenario_of(**values)) == workload_hash(scenario_of())) == same


def test_a_file_is_its_bytes_wherever_it_lies_and_whatever_the_seed(tmp_path: Path) -> None:
    hashes = []
    for name, text, seed in (("a", "x" * 3_000_000, 0), ("b", "x" * 3_000_000, 5), ("c", "y", 0)):
        path = tmp_path / name
        path.write_text(text)
        hashes.append(workload_hash(scenario_of(workload={"file": str(path)}, seed=seed)))
    assert hashes[0] == hashes[1] != hashes[2]


# ---------------------------------------------------------------------- the commit


def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch, head: str | None) -> Path:
    """A checkout with this text in its HEAD."""
    git = folder / ".git"
    git.mkdir()
    if head is not None:
        (git / "HEAD").write_text(head)
    monkeypatch.setattr(module, "_ROOT", folder)
    return git


def test_a_branch_is_followed_to_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = checkout(tmp_path, monkeypatch, "ref: refs/heads/main\n")
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text(HASH + "\n")
    assert commit() == HASH[:12]


def test_a_packed_branch_is_found_by_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = checkout(tmp_path, monkeypatch, "ref: refs/heads/main\n")
    other = HASH[::-1]
    packed = f"# pack-refs with: peeled\n{other} refs/heads/main-old\n{HASH} refs/heads/main\n"
    (git / "packed-refs").write_text(packed)
    assert commit() == HASH[:12]


def test_a_detached_head_is_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path, monkeypatch, HASH + "\n")
    assert commit() == HASH[:12]


@pytest.mark.parametrize("head", [None, "ref: refs/heads/unborn\n"])
def test_where_there_is_no_commit_it_is_unknown(
    head: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, monkeypatch, head)
    assert commit() == "unknown"


def test_a_packed_list_without_the_branch_is_unknown_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = checkout(tmp_path, monkeypatch, "ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"{HASH} refs/heads/other\n")
    assert commit() == "unknown"


@pytest.mark.parametrize("packed", [False, True])
def test_a_worktrees_branch_is_one_of_the_repository(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = tmp_path / "repository" / ".git"
    own = git / "worktrees" / "beside"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/beside\n")
    (own / "commondir").write_text("../..\n")
    if packed:
        (git / "packed-refs").write_text(f"{HASH} refs/heads/beside\n")
    else:
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "refs" / "heads" / "beside").write_text(HASH + "\n")
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / ".git").write_text(f"gitdir: {own}\n")
    monkeypatch.setattr(module, "_ROOT", beside)
    assert commit() == HASH[:12]
