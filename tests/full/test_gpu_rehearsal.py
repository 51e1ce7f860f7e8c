"""The GPU check from start to end on a CPU, with tiny sizes, and on devices on which something fails."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf", "jinja2"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from benchmarks import gpu_check, gpu_systems
from benchmarks.gpu_bench import Bench
from benchmarks.gpu_ledger import Ledger
from calibrate.points import read
from policy.errors import ConfigError
from realrun.kvstore import KVStore
from realrun.runtime import CpuLane, CpuRuntime
from runs.recording import load
from tests.helpers.swapping import one_thread

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = [part.name for part in gpu_check.parts(lambda: 0.0)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


COMMAND = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--budget", "3000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def begin_and_kill(out: Path) -> None:
    """A check that dies in the middle, a few points in."""
    path = out / "gpu-check.jsonl"
    child = subprocess.Popen(
        [*COMMAND, "--out", str(out)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    try:
        while child.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 6):
            threading.Event().wait(0.05)
    finally:
        child.kill()
        child.wait()


def rehearse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


def test_the_whole_check_runs_from_start_to_end_goes_on_and_leaves_a_few_plain_files(
    tmp_path: Path,
) -> None:
    first = tmp_path / "first"
    begin_and_kill(first)
    begun = (first / "gpu-check.jsonl").read_text().splitlines()
    assert 6 <= len(begun) < 40
    out = tmp_path / "out"
    done = rehearse("--out", str(out), "--resume", str(first))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (out / "gpu-check.jsonl").read_text().splitlines()
    assert lines[:6] == begun[:6]  # nothing was measured twice; a line may be torn
    rows = [json.loads(line) for line in lines]
    assert len({(row["part"], row["name"]) for row in rows}) == len(rows)
    assert {row["part"] for row in rows} == {"machine", *PARTS}
    files = sorted(path.name for path in out.iterdir())
    assert len(files) <= 8 and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in files)
    assert (out / "gpu-check.txt").read_text() in done.stdout
    points = read(out / gpu_systems.POINTS)
    assert points.samples and not points.problems and not points.failed
    with tarfile.open(out / gpu_systems.RUNS) as file:
        file.extractall(tmp_path / "runs", filter="data")
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == gpu_systems.REPEATS * len(gpu_systems.systems())
    recorded = [load(tmp_path / "runs" / name).summary["metrics"] for name in runs]
    assert sum(metrics["preemptions"] for metrics in recorded) >= 1  # however slow the machine
    served = [row for row in rows if row["part"] == "systems"]
    assert all(row["values"]["verdict"] is None for row in served)


# ---------------------------------------------------------------------- devices that fail


class FailingCopies(CpuRuntime):
    """Every copy raises."""

    def lane(self) -> CpuLane:
        class Lane(CpuLane):
            def copy(self, *_: Any) -> None:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

            copy_each = copy
            copy_batch = copy  # type: ignore[assignment]

        return Lane()


class WithoutBatches(CpuRuntime):
    """The driver is too old for the batched call."""

    def why_not(self, submission: str) -> str | None:
        return "cuMemcpyBatchAsync: not in this driver" if submission == "batched" else None


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB")


def no_block_major(*args: Any, layout: str, **rest: Any) -> KVStore:
    if layout == "block_major":
        out_of_memory()
    return KVStore(*args, layout=layout, **rest)


def not_pinned(*_: Any, **__: Any) -> KVStore:
    raise ConfigError("pool.host_blocks: 4096 MiB of host memory could not be page-locked")


#: What fails -> (how the bench is made, part -> words of its failures, parts that are whole all the same).
#: A part that is in neither fails in some of its points.
FAILURES: dict[str, tuple[dict[str, Any], dict[str, str], set[str]]] = {
    "copies": (
        {"runtime": FailingCopies()},
        {"swap": "the copy failed: CUDA error", "right": "illegal memory access"},
        {"facts", "decode", "prefill", "python", "calibration"},
    ),
    "memory of one layout": (
        {"make_store": no_block_major},
        {
            "swap": "out of memory",
            "decode": "out of memory",
            "calibration": "out of memory",
            "systems": "no decode step was calibrated",
        },
        {"facts", "rates", "prefill", "python"},
    ),
    "memory for the model": (
        {"load": out_of_memory},
        dict.fromkeys(("swap", "decode", "prefill", "calibration"), "out of memory"),
        {"facts", "right", "rates", "python"},
    ),
    "page-locking": (
        {"make_store": not_pinned},
        dict.fromkeys(("swap", "decode", "prefill", "calibration"), "could not be page-locked"),
        {"facts", "rates", "python"},
    ),
    "the batched call": (
        {"runtime": WithoutBatches()},
        {"swap": "not in this driver", "right": "not in this driver"},
        {"facts", "rates", "decode", "prefill", "python", "calibration", "systems"},
    ),
}


def small(tmp_path: Path, **changes: Any) -> Bench:
    made = Bench.of("cpu", tmp_path / "out", tmp_path / "work")
    sizes = made.sizes._replace(serve_s=0.3, min_preemptions=0, samples=1)
    return replace(made, sizes=sizes, **changes)


def run(bench: Bench, clock: Callable[[], float] = lambda: 0.0, deadline: float = 1e9) -> Any:
    """(rows by part, the table, exit code)."""
    for folder in (bench.out, bench.work):
        folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(bench.out)
    left = gpu_check.carry_out(bench, ledger, clock, deadline)
    bench.close()
    text = (bench.out / gpu_check.TABLE).read_text()
    return {part: ledger.of(part) for part in PARTS}, text, gpu_check.verdict(ledger, left)


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_said_and_stops_nothing_else(failure: str, tmp_path: Path) -> None:
    changes, words, whole = FAILURES[failure]
    rows, text, code = run(small(tmp_path, **changes))
    assert code == 1
    assert all(rows[part] for part in PARTS)  # every part was begun
    for part, said in words.items():
        failed = [row["error"] for row in rows[part] if not row["ok"]]
        assert failed and any(said in error for error in failed), part
        assert any(f"FAILED: {error}" in text for error in failed)
    for part in whole:
        assert all(row["ok"] for row in rows[part]), part


def test_steps_that_fail_leave_the_copies_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = small(tmp_path)

    def broken(*_: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")

    monkeypatch.setattr(bench.model().decoder, "forward", broken)
    rows, text, code = run(bench)
    assert code == 1
    for part in ("decode", "prefill"):
        assert all("kernel image is invalid" in row["error"] for row in rows[part]), part
    assert all("no decode step was calibrated" in row["error"] for row in rows["systems"])
    for part in ("facts", "rates", "swap", "python"):
        assert all(row["ok"] for row in rows[part]), part
    [points] = rows["calibration"]  # copies are timed, steps are said to have failed
    assert points["values"]["failed"] and "kernel image" in points["values"]["first failure"]
    assert text.count("FAILED") == sum(not row["ok"] for part in PARTS for row in rows[part])


@pytest.mark.parametrize("part", range(1, len(PARTS)))
def test_a_device_that_is_late_leaves_out_the_end_and_says_so(tmp_path: Path, part: int) -> None:
    """Every part in turn is the one in which the time runs out."""
    bench = small(tmp_path)
    now = [0.0]
    real = gpu_check.parts

    def parts(budget_s: Callable[[], float]) -> list[gpu_check.Part]:
        def instant(one: gpu_check.Part, at: int) -> gpu_check.Part:
            def points(bench: Bench) -> list[Any]:
                def point() -> dict[str, Any]:
                    now[0] += 1e6 if at == part else 0.0  # it hangs, then ends
                    return {}

                return [(name, seconds, point) for name, seconds, _ in one.points(bench)]

            return one._replace(points=points)

        return [instant(one, at) for at, one in enumerate(real(budget_s))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check, "parts", parts)
        rows, text, code = run(bench, lambda: now[0], 540.0)
    assert code == 3
    assert [bool(rows[name]) for name in PARTS] == [at <= part for at in range(len(PARTS))]
    for name in PARTS[part + 1 :]:
        assert re.search(rf"^{name}: 0 s, not measured$", text, re.MULTILINE)
    assert "not measured, no time was left" in text
