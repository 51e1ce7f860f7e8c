"""A run in which nothing, or little, was served says so first, and ends with 3 if all was rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fastswitch
from explore.report.run import page
from runs.metrics.served import little_served
from runs.recording import load
from traces.readers.native import write
from traces.workload import Header, Turn, Workload


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, [str(a) for a in arguments])


def scenario(folder: Path, too_long: int, fine: int) -> Path:
    """So many turns beyond the model's length, and so many within it."""
    turns = [
        Turn(f"r{i}", f"r{i}", 1, 900 if i < too_long else 40, 5, arrival_ns=i * 10**8)
        for i in range(too_long + fine)
    ]
    write(Workload.of(turns, Header(source="by hand", timing="open")), folder / "w.jsonl")
    path = folder / "s.yaml"
    path.write_text(
        "name: short\nworkload: w.jsonl\nprofile: a10-llama-3-8b\nsystem: fastswitch\norder: priority\n"
        "limits: {max_model_len: 500}\npool: {device_blocks: 60, host_blocks: 60, aging: none}\n"
    )
    return path


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_run_of_rejected_turns_says_so_first_and_ends_with_3(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--seeds", 1, "--workers", 1, "--systems", "paged,fastswitch"]
    more = more if command == "compare" else []
    result = run(command, scenario(tmp_path, 4, 0), "--out", tmp_path / "out", *more)
    assert result.exit_code == 3, result.output
    why = "prompt of 900 tokens, limit 500"
    assert f"error: all 4 turns were rejected: {why}" in result.output
    told = f"Nothing of 4 turns was served: 4 rejected; rejected mostly because: {why}."
    lines = [line for line in result.output.splitlines() if "served" in line]
    assert lines[0].endswith(told)
    if command == "simulate":
        assert result.output.startswith(told)
        assert told in page(load(tmp_path / "out"))
    else:
        assert told in (tmp_path / "out" / "compare.html").read_text()


def test_a_run_that_served_little_says_so_first_and_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("simulate", scenario(tmp_path, 3, 2), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Only 2 of 5 turns were served: 3 rejected; rejected mostly")


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"rows": 10, "finished": 5}, None),
        ({"rows": 0, "finished": 0}, None),
        (
            {"rows": 10, "finished": 4, "cancelled": 5, "unfinished": 1},
            "Only 4 of 10 turns were served: 5 left by their clients, 1 unfinished.",
        ),
    ],
)
def test_little_is_less_than_half(metrics: dict[str, Any], told: str | None) -> None:
    assert little_served(metrics) == told
