"""What only a GPU can say, in parts of at most nine minutes each on one machine.

    make gpu-check PART=tests OUT=DIR      every gpu test, and the Triton kernels' tests on the device
    make gpu-check PART=bench OUT=DIR      decode, swapping, FastSwitch against vLLM 0.3.3
    make gpu-check PART=calibrate OUT=DIR  a cost profile of the card, with Llama-3-8B's shapes
    make gpu-check PART=validate OUT=DIR   four systems served for real and predicted with it

The last two are `benchmarks.validation` in DIR/validation; with DEVICE=cpu they run on a CPU with SmolLM2.

Every finished test and point is a line of DIR/points.jsonl and is not run again, so a part that was cut
off goes on where it was: run it again until nothing is left. Failed ones are tried again. DIR/gpu-check.json
and DIR/gpu-check.html hold everything so far. Goals, each against what this machine itself can do: a decode
step moves its bytes at 80 % of the rate of a copy within the device (bytes read plus bytes written); a swap
at 90 % of the best page-locked copy.

Exits with 0 when the part is complete, 1 when something failed, 2 without a CUDA device or for a DIR of
another machine, 3 when time ran out and something is left.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_ledger import Ledger, claim, run_points
from benchmarks.gpu_measure import bench_points
from benchmarks.gpu_page import PARTS, write

ROOT = Path(__file__).resolve().parent.parent
#: Parts that another script carries out, on a CPU too.
EXPERIMENT = ("calibrate", "validate")
#: A part stops starting things after this, so that it ends within nine minutes.
BUDGET_S = 500.0
#: Tests that plain torch and Triton share.
SHARED = ("tests/realrun/test_attention.py", "tests/realrun/test_ops.py")


class Resumed:
    """A pytest plugin: of the tests that need a GPU, those that have not passed yet, as far as the time
    goes; each is a line of the ledger when it has ended."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float], deadline: float) -> None:
        self.left: list[str] = []
        self._ledger = ledger
        self._clock = clock
        self._deadline = deadline
        self._problems: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep what is still to be done."""
        todo = [
            item
            for item in items
            if wants_a_gpu(item) and not self._ledger.is_done("tests", item.nodeid)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in todo])
        items[:] = todo

    def pytest_collectreport(self, report: Any) -> None:
        """A file that was skipped or broke as a whole has not passed."""
        if report.outcome != "passed":
            name, why = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:300]
            self._ledger.add("tests", name, ok=False, seconds=0.0, error=f"{report.outcome}: {why}")

    def pytest_runtest_setup(self, item: Any) -> None:
        """Leave out what the time does not allow."""
        if self._clock() > self._deadline:
            import pytest

            self.left.append(item.nodeid)
            pytest.skip("no time left")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Setup, the test itself and teardown report one after another."""
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        if report.outcome != "passed":
            lines = str(report.longrepr).strip().splitlines() or [""]
            self._problems.setdefault(name, f"{report.outcome}: {lines[-1][:300]}")
        if report.when == "teardown" and name not in self.left:
            problem = self._problems.get(name)
            rest: dict[str, Any] = {"values": {}} if problem is None else {"error": problem}
            seconds = self._seconds[name]
            self._ledger.add("tests", name, ok=problem is None, seconds=seconds, **rest)


def wants_a_gpu(item: Any) -> bool:
    """Marked so, or of the tests that plain torch and Triton share, but not plain torch's."""
    if item.get_closest_marker("gpu") is not None:
        return True
    return item.nodeid.split("::")[0] in SHARED and "[torch" not in item.name


def run_tests(ledger: Ledger, deadline: float) -> list[str]:
    """Names of what was left out for want of time."""
    import pytest

    plugin = Resumed(ledger, time.monotonic, deadline)
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib"]
    options += [
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "--confcutdir",
        str(ROOT),
    ]
    pytest.main([*options, *(str(ROOT / path) for path in ("tests/gpu", *SHARED))], [plugin])
    return plugin.left


# ---------------------------------------------------------------------- the command


def this_machine() -> dict[str, Any]:
    """What the numbers belong to."""
    import importlib.metadata

    import torch

    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    found["cuda"] = str(torch.version.cuda)
    found["python"] = platform.python_version()
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = "none"
    found["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    return found


def why_not() -> str | None:
    """What keeps this machine from being checked."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=(*PARTS, *EXPERIMENT), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    why = None if options.device == "cpu" and options.part in EXPERIMENT else why_not()
    if why is not None:
        print(f"gpu-check: nothing was measured: {why}", file=sys.stderr)
        return 2
    if options.part in EXPERIMENT:
        return experiment(options.part, options.out, options.device)
    ledger = Ledger(options.out)
    why = claim(ledger, this_machine())
    if why is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    deadline = begin + BUDGET_S
    if options.part == "tests":
        left = run_tests(ledger, deadline)
    else:
        points = bench_points(ledger, options.out)
        left = run_points(
            "bench", points, ledger, clock=time.monotonic, deadline=deadline, say=print
        )
    write(ledger, options.out)
    return verdict(options.part, ledger, left)


def experiment(part: str, out: Path, device: str) -> int:
    """Calibrate, or serve and predict; exit codes as above."""
    from benchmarks import validation

    return validation.main(
        ["--full", "--device", device, "--part", part, "--budget", str(BUDGET_S)]
        + ["--out", str(out / "validation")]
    )


def verdict(part: str, ledger: Ledger, left: Sequence[str]) -> int:
    """Say how it went in one line; returns the exit code."""
    rows = ledger.of(part)
    failed = [row["name"] for row in rows if not row["ok"]]
    print(
        f"gpu-check {part}: {len(rows) - len(failed)} done, {len(failed)} failed, {len(left)} left"
        + ("; run it again to go on" if left else "")
    )
    if failed or not rows:
        return 1
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
