"""`fastswitch sweep`, as a user types it, and `sweep` in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import fastswitch
from policy.errors import ConfigError, InputError
from tests.helpers.made import compared
from tests.helpers.sweeps import (
    SCENARIO,
    SMALL,
    damage,
    keys,
    pretend,
    pretending,
    tree,
    well,
    written,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, ["sweep", *(str(a) for a in arguments)])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return written(tmp_path, SMALL)


def test_a_sweep_runs_and_its_shards_merge_to_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    whole = run("run", sweep, "--out", tmp_path / "whole", "--workers", 2)
    assert whole.exit_code == 0, whole.output
    assert "8 of 8 trials done, 0 failed, 0 missing" in whole.output
    for part in (1, 2):
        made = run("run", sweep, "--out", tmp_path / f"part{part}", "--shard", f"{part}/2")
        assert made.exit_code == 0, made.output
    merged = run("merge", tmp_path / "part1", tmp_path / "part2", "--out", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    assert tree(tmp_path / "merged") == tree(tmp_path / "whole")
    status = json.loads(run("status", tmp_path / "merged", "--json").stdout)
    assert (status["done"], status["trials"], status["is_running"]) == (8, 8, False)
    assert status["digest"] in whole.output
    assert "8 of 8 trials done" in run("status", tmp_path / "merged").output


def test_a_sweep_gives_the_numbers_of_compare(tmp_path: Path) -> None:
    found = fastswitch.sweep({**SMALL, "grid": {}}, tmp_path / "out", workers=1)
    from runs.scenario import build

    theirs = fastswitch.compare(build(SCENARIO, "t"), SMALL["systems"], runs=2, workers=1).frame()
    ours = found.results.sort_values(["system", "run"]).reset_index(drop=True)
    theirs = theirs.sort_values(["system", "run"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs, check_dtype=False)


def test_a_dry_run_writes_nothing(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run("run", sweep, "--out", out, "--dry-run")
    assert told.exit_code == 0, told.output
    assert "2 points, 2 systems (vllm-0.3.3-keep, fastswitch), 2 runs" in told.output
    assert "8 trials to have, 0 of them in" in told.output
    assert not out.exists()
    pretend(SMALL, out)
    told = run("run", sweep, "--out", out, "--dry-run", "--json", "--shard", "1/1")
    assert json.loads(told.stdout)["done"] == 8


def test_a_failed_trial_makes_the_exit_code_5_and_the_next_run_mends_it(
    sweep: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    failing = iter([{"failed": "no memory"}])
    with pretending(lambda key: next(failing, None) or well(key)):
        told = run("run", sweep, "--out", out)
    assert told.exit_code == 5
    assert "1 trials failed; their rows say why" in told.output
    with pretending():
        told = run("run", sweep, "--out", out, "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["failed"] == 0


def test_ctrl_c_keeps_what_was_finished(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    replies = iter(range(3))

    def reply(key: str) -> dict[str, Any]:
        if next(replies, None) is None:
            raise KeyboardInterrupt
        return well(key)

    with pretending(reply):
        told = run("run", sweep, "--out", out)
    assert told.exit_code == 130
    assert "the same command goes on" in told.output
    assert "3 of 8 trials done" in run("status", out).output


def test_values_are_set_over_the_sweep(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pretending():
        assert run("run", sweep, "--out", out, "--set", "pool.host_blocks=50").exit_code == 0
        told = run("run", sweep, "--out", out)
        assert told.exit_code == 2
        assert "another version of" in told.output and "--overwrite" in told.output
        assert run("run", sweep, "--out", out, "--overwrite").exit_code == 0


def test_notes_are_warnings(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(SMALL, out)
    assert damage(out, "UPDATE result SET text='{' WHERE key=?", keys(out)[0]) == 1
    told = run("status", out)
    assert "1 corrupt" in told.output
    with pretending():
        told = run("run", sweep, "--out", out, "--resume")  # what earlier versions asked for
    assert "warning: result" in told.output
    assert told.exit_code == 0


ERRORS = {
    "no such sweep": (("run", "nowhere", "--out", "{t}/o"), 2, "neither a file nor one of load"),
    "bad field": (("run", "{s}", "--out", "{t}/o", "--set", "pool.blocks=1"), 2, "pool.blocks"),
    "bad shard": (("run", "{s}", "--out", "{t}/o", "--shard", "3/2"), 2, "--shard"),
    "no shard": (("run", "{s}", "--out", "{t}/o", "--shard", "x"), 2, "--shard"),
    "foreign": (("run", "{s}", "--out", "{t}"), 2, "left alone"),
    "no cluster": (("run", "{s}", "--out", "{t}/o", "--engine", "ray"), 2, "--start-cluster"),
    "no sweep": (("status", "{t}"), 3, "is this the folder of a study"),
    "nothing to merge": (("merge", "{t}/x", "--out", "{t}/o"), 3, "study.sqlite: is not there"),
    "unwritable": (("run", "{s}", "--out", "{s}/o"), 2, "cannot be written"),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_is_at_most_five_lines_without_a_traceback(
    name: str, sweep: Path, tmp_path: Path
) -> None:
    arguments, code, word = ERRORS[name]
    before = sorted(tmp_path.iterdir())
    told = run(*(a.replace("{s}", str(sweep)).replace("{t}", str(tmp_path)) for a in arguments))
    assert told.exit_code == code
    assert word in told.output
    assert len(told.output.strip().splitlines()) <= 5
    assert "Traceback" not in told.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_shard_in_python_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard: 0/2 is not in 1/N to N/N"):
        pretend(SMALL, tmp_path / "out", shard=(0, 2))


def test_a_comparison_gives_a_frame() -> None:
    found = compared("vllm-0.3.3-keep", "fastswitch", runs=2, change=lambda _s, run: {"x": run})
    frame = found.frame()
    assert frame[["system", "run", "x"]].values.tolist() == [
        ["vllm-0.3.3-keep", 0, 0],
        ["vllm-0.3.3-keep", 1, 1],
        ["fastswitch", 0, 0],
        ["fastswitch", 1, 1],
    ]


def test_a_table_that_is_gone_is_told(tmp_path: Path) -> None:
    found = pretend(SMALL, tmp_path / "out")
    (tmp_path / "out" / "results.csv").unlink()
    with pytest.raises(InputError, match=r"results\.csv: cannot be read"):
        _ = found.results


def test_an_empty_shard_runs_nothing(tmp_path: Path) -> None:
    one = {**SMALL, "systems": ["fastswitch"], "runs": 1, "grid": {}}
    done = [pretend(one, tmp_path / f"{i}", shard=(i, 5)).done for i in range(1, 6)]
    assert sorted(done) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused_in_python_too(workers: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"workers: {workers} is less than 1"):
        pretend(SMALL, tmp_path / "out", workers=workers)
