"""The same bytes from another Python, in another process, with another hash seed, without torch.

`make test-full` sets the other one up in .cache/py312, with the libraries of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[2]
OTHER = ROOT / ".cache" / "py312" / "bin" / "python"

#: Scenario and what is put over it; few conversations on pools too small for them.
CASES = {
    "paged": (
        "paper-8b-a10",
        "system=vllm-0.3.3-keep",
        "workload.conversations=60",
        "pool.device_blocks=800",
        "pool.host_blocks=4000",
    ),
    "groups": (
        "paper-8b-a10-random",
        "system=fastswitch",
        "workload.conversations=60",
        "pool.device_blocks=800",
        "pool.host_blocks=4000",
    ),
    "release": (
        "paper-8b-a10",
        "system=vllm-0.3.3",
        "order=fcfs",
        "workload.conversations=60",
        "workload.rate=1.0",
        "workload.think=none",
        "pool.device_blocks=800",
    ),
    "a-file": ("cpu-smoke", "system=+reuse", "order=vtc"),
}


@pytest.fixture(scope="module")
def other() -> Path:
    if not OTHER.exists():
        pytest.skip(
            "no Python 3.12 in .cache/py312; `make test-full` makes it where python3.12 or"
            " PYTHON312 runs"
        )
    return OTHER


def output(python: Path, *words: str, hash_seed: str = "0") -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [str(python), *words], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    ).stdout


def record(python: Path, case: str, out: Path, hash_seed: str) -> tuple[dict[str, bytes], Any]:
    """Every file of the recording but run.json, and run.json."""
    scenario, *values = CASES[case]
    words = [word for value in values for word in ("--set", value)]
    command = ["-c", "import fastswitch; fastswitch.main()", "simulate", scenario, *words]
    output(python, *command, "--decisions", "--out", str(out), hash_seed=hash_seed)
    files = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    return files, json.loads(files.pop("run.json"))


def test_the_other_python_is_another_one_and_lacks_torch(other: Path) -> None:
    probe = "import importlib.util, sys; print(importlib.util.find_spec('torch'), sys.version)"
    torch, version = output(other, "-c", probe).split(maxsplit=1)
    assert torch == "None"
    assert version.startswith("3.12.")
    assert version.strip() != sys.version.strip()


@pytest.mark.parametrize("case", CASES)
def test_both_pythons_record_the_same_bytes(other: Path, case: str, tmp_path: Path) -> None:
    ours, facts = record(Path(sys.executable), case, tmp_path / "ours", "1")
    theirs, found = record(other, case, tmp_path / "theirs", "2")
    assert facts.pop("provenance")["libraries"] == found.pop("provenance")["libraries"]
    assert found == facts
    assert list(theirs) == list(ours)
    assert [name for name in ours if theirs[name] != ours[name]] == []
    assert len(ours["decisions.jsonl"].splitlines()) > 100
    assert facts["metrics"]["preemptions"] > 0
