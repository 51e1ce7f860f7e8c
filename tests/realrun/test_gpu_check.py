"""The check that runs on a GPU machine, as far as it needs none: resuming, arithmetic, the page."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from benchmarks import gpu_check, gpu_ledger, gpu_measure, gpu_page
from benchmarks.gpu_ledger import Ledger, Point, run_points
from realrun.kvstore import LAYOUTS
from realrun.transfer import MOVERS
from realrun.weights import empty
from runs.scenario import build
from sim import simulate
from tests.realrun.test_model import SHAPES

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = {"gpu": "a card", "torch": "9.9"}


class Bench:
    """Points that take the time they say, and say what they did."""

    def __init__(self, folder: Path, budget_s: float = 1e9) -> None:
        self.ledger = Ledger(folder)
        self.now = 0.0
        self.deadline = budget_s
        self.ran: list[str] = []

    def point(self, name: str, seconds: float = 1.0, error: Exception | None = None) -> Point:
        def run() -> dict[str, Any]:
            self.ran.append(name)
            self.now += seconds
            if error is not None:
                raise error
            return {"answer": len(self.ran)}

        return Point(name, run, seconds)

    def run(self, *points: Point) -> list[str]:
        return run_points(
            "bench",
            points,
            self.ledger,
            clock=lambda: self.now,
            deadline=self.deadline,
            say=lambda line: None,
        )


def test_what_is_finished_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    assert first.run(first.point("a"), first.point("b", error=ValueError("no\nway"))) == []
    second = Bench(tmp_path)
    row = second.ledger.rows["bench", "b"]
    assert (row["ok"], row["error"]) == (False, "ValueError: no")
    second.run(second.point("a"), second.point("b"), second.point("c"))
    assert second.ran == ["b", "c"]
    assert second.ledger.values("bench", "a") == {"answer": 1}
    assert [row["ok"] for row in Ledger(tmp_path).of("bench")] == [True, True, True]


def test_one_failure_stops_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.point("a", error=MemoryError()), bench.point("b"))
    assert bench.ran == ["a", "b"]
    assert bench.ledger.values("bench", "a") == {}
    assert gpu_check.verdict("bench", bench.ledger, []) == 1


def test_nothing_is_begun_that_would_end_too_late(tmp_path: Path) -> None:
    bench = Bench(tmp_path, budget_s=10.0)
    points = [("a", 6.0), ("b", 5.0), ("c", 4.0), ("d", 1.0)]
    assert bench.run(*(bench.point(*one) for one in points)) == ["b", "d"]
    assert bench.ran == ["a", "c"]
    assert gpu_check.verdict("bench", bench.ledger, ["b", "d"]) == 3
    later = Bench(tmp_path, budget_s=10.0)
    assert later.run(*(later.point(*one) for one in points)) == []
    assert later.ran == ["b", "d"]
    assert gpu_check.verdict("bench", later.ledger, []) == 0


def test_a_part_of_which_nothing_ran_has_failed(tmp_path: Path) -> None:
    assert gpu_check.verdict("tests", Ledger(tmp_path), []) == 1


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_cut_off_by_a_kill_is_measured_again(tmp_path: Path, cut: int) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.point("a"), bench.point("b"))
    path = bench.ledger.path
    path.write_bytes(path.read_bytes()[:-cut])
    again = Bench(tmp_path)
    again.run(again.point("a"), again.point("b"))
    assert again.ran == ["b"]
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_points_of_another_machine_are_refused(tmp_path: Path) -> None:
    assert gpu_ledger.claim(Ledger(tmp_path), MACHINE) is None
    assert gpu_ledger.claim(Ledger(tmp_path), dict(MACHINE)) is None
    problem = gpu_ledger.claim(Ledger(tmp_path), {**MACHINE, "gpu": "another"})
    assert problem is not None
    assert "has points of a card, and this is another" in problem


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_step_moves_every_weight_once_and_the_kv_of_its_requests(shape: str) -> None:
    config = SHAPES[shape]
    weights = empty(config, torch.bfloat16, "meta")
    read = weights.num_bytes
    if not config.tied_embeddings:
        read -= weights.embedding.nbytes
    rows = 3 * config.hidden * 2
    kv = 3 * (100 + 1) * config.token_elements * 2
    assert gpu_measure.step_bytes(config, 3, 100, 2) == read + rows + kv


def test_a_step_at_the_rate_of_a_copy_has_a_share_of_one() -> None:
    values = gpu_measure.decode_values(0.005, 0.006, 8, 15e9, 3e12)
    assert values["share_of_copy"] == pytest.approx(1.0)
    assert values["tokens_per_s"] == pytest.approx(1600)
    assert (values["step_ms"], values["step_ms_tokens_read"]) == pytest.approx((5.0, 6.0))
    assert gpu_measure.decode_values(0.005, 0.006, 8, 15e9, None)["share_of_copy"] is None


def test_a_swap_is_a_share_of_the_best_copy_its_way() -> None:
    values = gpu_measure.swap_values(
        {"d2h": 0.5, "h2d": 0.25}, 10_000_000_000, {"d2h": 25e9, "h2d": 50e9}
    )
    assert values == {
        "d2h_bytes_per_s": 20e9,
        "d2h_share": pytest.approx(0.8),
        "h2d_bytes_per_s": 40e9,
        "h2d_share": pytest.approx(0.8),
    }


@pytest.mark.parametrize(
    ("pattern", "length"), [("scattered", 1), ("runs", gpu_measure.RUN_BLOCKS)]
)
def test_a_job_has_its_blocks_and_none_twice(pattern: str, length: int) -> None:
    blocks, pool = gpu_measure.JOB_BLOCKS, gpu_measure.POOL_BLOCKS
    runs = gpu_measure.job_runs(pattern, blocks, pool, 3)
    assert {run[2] for run in runs} == {length}
    for side in (0, 1):
        touched = [run[side] + i for run in runs for i in range(length)]
        assert len(set(touched)) == len(touched) == blocks
        assert set(touched) <= set(range(pool))
    assert runs != gpu_measure.job_runs(pattern, blocks, pool, 4)


def test_every_back_end_layout_batch_and_system_is_a_point(tmp_path: Path) -> None:
    names = [point.name for point in gpu_measure.bench_points(Ledger(tmp_path), tmp_path)]
    assert len(set(names)) == len(names)
    assert names[:2] == [gpu_measure.COPY, gpu_measure.PINNED]
    for layout in LAYOUTS:
        assert {f"swap {layout} {way}" for way in MOVERS} <= set(names)
    assert {f"decode batch {batch}" for batch in (1, 8, 64)} <= set(names)
    assert {"serve fastswitch", "serve vllm-0.3.3-keep"} <= set(names)


def test_the_page_says_what_was_not_measured_and_needs_nothing_else(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    gpu_page.write(ledger, tmp_path)
    before = (tmp_path / "gpu-check.html").read_text()
    assert before.count(gpu_page.NOT_MEASURED) > 60
    assert "Tests: not measured" in before
    assert not re.search(r"<script|https?:|src=|@import", before)
    assert "None" not in before
    gpu_ledger.claim(ledger, {**MACHINE, "gpu": "<b>card</b>"})
    fast = gpu_measure.decode_values(0.005, 0.006, 8, 15e9, 3.5e12)
    ledger.add("bench", "decode batch 8", ok=True, seconds=1.0, values=fast)
    slow = gpu_measure.decode_values(0.005, 0.006, 1, 15e9, 4.5e12)
    ledger.add("bench", "decode batch 1", ok=True, seconds=1.0, values=slow)
    ledger.add("bench", "serve fastswitch", ok=False, seconds=1.0, error="OutOfMemory: <big>")
    ledger.add("tests", "tests/x.py::test_y", ok=True, seconds=1.0, values={})
    gpu_page.write(ledger, tmp_path)
    page = (tmp_path / "gpu-check.html").read_text()
    assert "85.7% (reached: 80%)" in page
    assert "66.7% (missed: 80%)" in page
    assert "OutOfMemory: &lt;big&gt;" in page
    assert "&lt;b&gt;card" in page
    assert "Tests: 1 passed, 0 not" in page
    document = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [row["name"] for row in document["bench"]][:1] == ["decode batch 8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gpu-check.html",
        "gpu-check.json",
        "points.jsonl",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("part", [*gpu_page.PARTS, *gpu_check.EXPERIMENT])
def test_without_a_gpu_it_says_so_in_a_line_and_writes_nothing(
    part: str, tmp_path: Path, capsys: Any
) -> None:
    assert gpu_check.main(["--part", part, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "nothing was measured: torch" in printed.err
    assert not (tmp_path / "out").exists()


def test_every_test_for_a_gpu_is_where_the_check_looks() -> None:
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__)
        and re.search(
            r"^pytestmark.*\bgpu\b|^@?\s*pytest\.mark\.gpu", path.read_text(), re.MULTILINE
        )
    }
    assert marked
    assert all(path.startswith("tests/gpu/") for path in marked)
    assert all((ROOT / path).exists() for path in gpu_check.SHARED)


INNER = """
import pathlib, pytest
log = pathlib.Path(__file__).with_name("log")
def note(name):
    log.write_text((log.read_text() if log.exists() else "") + name + " ")
@pytest.mark.gpu
def test_good(): note("good")
@pytest.mark.gpu
def test_bad():
    note("bad")
    assert log.with_name("mended").exists()
@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no card")
def test_skipped(): note("skipped")
def test_of_a_cpu(): note("cpu")
"""
DRIVE = """
import sys, pytest
from benchmarks.gpu_check import Ledger, Resumed
ledger = Ledger(__import__("pathlib").Path("out"))
plugin = Resumed(ledger, lambda: 0.0, float(sys.argv[1]))
pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "test_inner.py"], [plugin])
print("left", plugin.left)
"""


def test_tests_that_passed_are_not_run_again_and_no_other_counts_as_passed(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)

    def drive(deadline: float) -> tuple[dict[str, bool], list[str], str]:
        done = subprocess.run(
            [sys.executable, "-c", DRIVE, str(deadline)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
        )
        rows = Ledger(tmp_path / "out").of("tests")
        log = tmp_path / "log"
        ran = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return {row["name"].split("::")[1]: row["ok"] for row in rows}, ran, done.stdout

    rows, ran, printed = drive(-1.0)
    assert (rows, ran) == ({"test_skipped": False}, [])
    assert "test_inner.py::test_good" in printed.split("left ")[1]
    rows, ran, _ = drive(1.0)
    assert rows == {"test_good": True, "test_bad": False, "test_skipped": False}
    assert ran == ["good", "bad"]
    (tmp_path / "mended").touch()
    rows, ran, _ = drive(1.0)
    assert rows == {"test_good": True, "test_bad": True, "test_skipped": False}
    assert ran == ["bad"]


def test_the_scenario_preempts_in_both_systems() -> None:
    for system in gpu_measure.SYSTEMS:
        scenario = build({**gpu_measure.SCENARIO, "system": system}, "gpu-check")
        metrics = simulate.simulate(scenario).summary["metrics"]
        assert metrics["preemptions"] > 50
        assert metrics["finished"] == metrics["rows"]
        assert set(gpu_measure.SERVE_METRICS) <= set(metrics)
