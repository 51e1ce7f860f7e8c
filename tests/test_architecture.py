"""docs/architecture.md says what is so: the worked swap, where things are decided, what a variant takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from policy.choices.host_eviction import HOST_EVICTIONS
from policy.engines.catalog import ENGINES
from runs.recording import Recording
from runs.scenario import build
from sim.simulate import simulate
from tests.helpers import worked_swap
from tests.helpers.toys.engine import OneAtATime
from tests.helpers.toys.eviction import Largest
from tests.helpers.toys.reader import ToyReader
from tests.test_layout import imports_of
from traces.readers import catalog as readers

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """What stands under a heading."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_worked_swap_is_what_the_policy_decides() -> None:
    lines, _ = worked_swap.run()
    shown = re.findall(r"^( ?\d+  .+)$", section("One swap, worked"), re.MULTILINE)
    assert shown == lines


def test_the_plan_that_swaps_goes_through_the_files_that_are_listed() -> None:
    _, files = worked_swap.run()
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", section("One swap, worked"), re.MULTILINE)
    assert listed == files


QUESTIONS = re.findall(
    r"^\| ([^|]+\?) \| `([\w/]+\.py)` \| `([\w/]+\.py)` \|$",
    section("Where is X decided?"),
    re.MULTILINE,
)


def test_ten_questions_are_answered() -> None:
    assert len(QUESTIONS) == 10


@pytest.mark.parametrize(("question", "first", "then"), QUESTIONS)
def test_the_first_file_leads_to_the_one_that_decides(question: str, first: str, then: str) -> None:
    assert question
    imported = set(imports_of(ROOT / first))
    module = then.removesuffix(".py").replace("/", ".")
    assert any(name == module or name.startswith(f"{module}.") for name in imported)
    assert ast.get_docstring(ast.parse((ROOT / then).read_text(encoding="utf-8")))


# ---------------------------------------------------------------------- a variant: a file and a line


def served(workload: Path, system: Any) -> Recording:
    """A run in little memory, every law checked."""
    data = {
        "workload": {"file": str(workload)},
        "system": system,
        "profile": "a10-llama-3-8b",
        "pool": {"device_blocks": 40, "host_blocks": 30, "block_size": 4, "aging": "none"},
        "limits": {"max_model_len": 128},
        "priority": {"pattern": "random", "frequency": 0.5},
    }
    return simulate(build(data, "toy"), decisions=True, check="full")


def statuses(recording: Recording) -> list[str]:
    return recording.table("requests")["status"].to_pylist()


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """Twenty turns of ten sessions: each one's second comes when its first has ended."""
    path = tmp_path / "turns.jsonl"
    rows = ['{"format": "fastswitch-workload/2", "timing": "closed"}']
    for session in range(10):
        name, first = f'"session_id": "s{session}"', 20 + 3 * session
        rows += [
            f'{{"request_id": "s{session}/1", {name}, "turn": 1, "input_tokens": {first},'
            f' "output_tokens": 25, "arrival_s": {session / 10}}}',
            f'{{"request_id": "s{session}/2", {name}, "turn": 2, "input_tokens": {first + 30},'
            f' "output_tokens": 9, "think_s": 0.3}}',
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_an_engine_is_a_file_and_a_line(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "one-at-a-time", OneAtATime)
    recording = served(workload, {"engine": "one-at-a-time"})
    assert statuses(recording) == ["finished"] * 20
    assert recording.summary["planner"] == "one-at-a-time"
    assert max(recording.table("steps")["batch"].to_pylist()) == 1
    assert not recording.table("copies").num_rows


def test_an_eviction_is_a_file_and_a_line(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOST_EVICTIONS, "largest", Largest)
    recording = served(workload, {"base": "fastswitch", "host_eviction": "largest"})
    assert statuses(recording) == ["finished"] * 20
    assert recording.summary["contaminated_blocks"]
    assert recording.decisions != served(workload, "fastswitch").decisions


def test_a_reader_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READERS", (ToyReader(), *readers.READERS))
    path = tmp_path / "toy.csv"
    path.write_text("seconds,prompt,reply\n0.5,9,3\n1.5,8,2\n")
    assert statuses(served(path, "fastswitch")) == ["finished"] * 2
    assert readers.read_workload(path).header.source == "toy"
