"""Blocks copied to the host while their request decodes, on the real machine: same text, same replay."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from tests.helpers.real import (
    ROOM,
    failing_copy,
    same_text,
    scenario,
    unswapped,
    write_workload,
)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workload(tmp_path_factory.mktemp("w") / "w.jsonl", seed=6)


@pytest.fixture(scope="module")
def expected(workload: Path) -> dict[str, list[int]]:
    return unswapped(workload)


@pytest.mark.parametrize(
    "system",
    [
        "+write-through",
        "fastswitch-write-through",
        {"base": "fastswitch-write-through", "shape": "chunked", "layout": "block_major"},
        {"base": "+write-through", "between_turns": "keep_device", "allocator": "paged"},
        "+incremental",
    ],
    ids=str,
)
def test_backups_change_no_token_and_replay(
    workload: Path, expected: dict[str, list[int]], system: object
) -> None:
    pool = {**ROOM, "device_blocks": 18, "block_size": 3}
    loaded = scenario(workload, system=system, pool=pool, movement={"every": 4, "depth": 1.0})
    found = same_text(loaded, expected)
    assert found.metrics["preemptions"] > 3
    copies = found.recording.table("copies").to_pylist()
    out = [copy for copy in copies if copy["direction"] == "d2h"]
    assert len(out) > found.metrics["preemptions"]  # more than the victims' own


@pytest.mark.parametrize("system", ["+proactive", "fastswitch-proactive"])
def test_parking_ahead_changes_no_token_and_replays(
    workload: Path, expected: dict[str, list[int]], system: str
) -> None:
    pool = {**ROOM, "device_blocks": 24, "block_size": 3}
    loaded = scenario(workload, system=system, pool=pool, movement={"low": 0.2, "high": 0.4})
    found = same_text(loaded, expected)
    assert found.metrics["preemptions"] > 3


def test_a_backup_that_fails_costs_no_text(workload: Path, expected: dict[str, list[int]]) -> None:
    loaded = scenario(workload, system="fastswitch-write-through")
    for which in range(0, 20, 2):
        same_text(loaded, expected, on_engine=failing_copy(which))
