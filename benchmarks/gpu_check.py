"""Everything that only a GPU can say, in one program of nine minutes, the most valuable first.

    make gpu-check OUT=DIR [GPU_PYTHON=python3] [RESUME=DIR] [DEVICE=cpu]

Every finished point is a flushed line of DIR/gpu-check.jsonl and is not run again, so a check that was cut
off goes on where it was: run it again, with RESUME where DIR was carried away. What fails is said in the
table, DIR/gpu-check.txt, and stops nothing else. DIR/calibration.points.jsonl holds the calibration, of
which a profile is made anywhere (`fastswitch calibrate --from`), DIR/runs.tar.gz the recordings.

With DEVICE=cpu the same program runs with tiny sizes: a rehearsal, whose figures mean nothing.

Exits with 0 when everything is there, 1 when something failed, 2 for a machine that lacks something or a
DIR of another machine, 3 when time ran out and something is left.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.gpu_ledger import Ledger, Point, claim, run_points, said

if TYPE_CHECKING:
    from benchmarks.gpu_bench import Bench

#: Nothing is begun that would end later, in seconds from the start.
BUDGET_S = 540.0
TABLE = "gpu-check.txt"
#: Imported by this program: what a GPU machine has, and what `make gpu-wheels` brings along.
NEEDED = (
    "torch", "numpy", "pandas", "pyarrow", "matplotlib", "click", "tqdm", "yaml", "jinja2", "safetensors",
    "tokenizers", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "gguf",
)  # fmt: skip


class Part(NamedTuple):
    """A part of the check. `why`: why it is worth its place; `points`: of a bench, (name, seconds that it is
    planned to take, what runs it)."""

    name: str
    why: str
    points: Callable[[Bench], list[tuple[str, float, Callable[[], dict[str, Any]]]]]


def missing(device: str) -> list[str]:
    """Packages that this machine lacks. Nothing is imported to find out."""
    needed = (*NEEDED, "triton") if device == "cuda" else NEEDED
    return [name for name in needed if importlib.util.find_spec(name) is None]


def why_not(device: str) -> str | None:
    """What keeps this machine from being checked."""
    lacking = missing(device)
    if lacking:
        return f"not installed here: {', '.join(lacking)}; make gpu-wheels brings what is small"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device"
    return None


def this_machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    import torch

    on_gpu = device == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else f"no GPU, {platform.machine()}",
        "torch": torch.__version__,
    }


# ---------------------------------------------------------------------- the parts


def facts(bench: Bench) -> dict[str, Any]:
    """Versions, the card, and whether everything of ours can be imported."""
    import torch

    import cli.realrun  # noqa: F401
    from benchmarks import gpu_correct, gpu_speed, gpu_systems  # noqa: F401
    from calibrate.facts import cpu_facts, gpu_facts
    from realrun.eachcopy import is_native

    found: dict[str, Any] = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("triton", "numpy", "pydantic", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    found |= gpu_facts(bench.device.index or 0) if bench.on_gpu else {}
    found |= cpu_facts()
    found["compiled copy loop"] = is_native()
    found["batched copies"] = bench.runtime.why_not("batched") or "work"
    if bench.on_gpu:
        found["compute capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["free bytes"] = torch.cuda.mem_get_info()[0]
    return found


def parts(budget_s: Callable[[], float]) -> list[Part]:
    """In the order of their value. `budget_s`: seconds that are left for everything."""
    from benchmarks import gpu_correct, gpu_speed, gpu_systems
    from realrun.kvstore import LAYOUTS

    def correct(bench: Bench) -> list[Any]:
        checks = gpu_correct.points(bench)
        return [(name, 1.2, partial(run, bench)) for name, run in checks]

    def rates(bench: Bench) -> list[Any]:
        return [
            ("a copy within the device", 4, partial(gpu_speed.copy_rate, bench)),
            ("page-locked copies", 4, partial(gpu_speed.pinned_rates, bench)),
        ]

    def swaps(bench: Bench) -> list[Any]:
        return [(name, 3, partial(run, bench)) for name, run in gpu_speed.swap_points()]

    def decode(bench: Bench) -> list[Any]:
        found: list[Any] = [
            (f"{layout}, batch {batch}", 4, partial(gpu_speed.decode_rate, bench, layout, batch))
            for batch in bench.sizes.batches
            for layout in LAYOUTS
        ]
        largest = bench.sizes.batches[-1]
        times = partial(gpu_speed.kernel_times, bench, largest)
        return [*found, (f"kernels, batch {largest}", 6, times)]

    def prefill(bench: Bench) -> list[Any]:
        return [
            (f"{tokens} tokens", 2, partial(gpu_speed.prefill_times, bench, tokens))
            for tokens in bench.sizes.prompts
        ]

    def python(bench: Bench) -> list[Any]:
        return [
            (f"batch {batch}", 2, partial(gpu_speed.python_times, bench, batch))
            for batch in bench.sizes.batches
        ]

    def calibration(bench: Bench) -> list[Any]:
        def run() -> dict[str, Any]:
            return gpu_systems.calibrate(bench, min(75.0, budget_s()))

        return [("points", 80, run)]

    def systems(bench: Bench) -> list[Any]:
        return [
            (f"{system} {number}", 1.1 * bench.sizes.serve_s, partial(gpu_systems.served, bench, system, number))
            for number in range(1, gpu_systems.REPEATS + 1)
            for system in gpu_systems.systems()
        ]  # fmt: skip

    return [
        Part("facts", "says what the rest belongs to, and fails first where a library is missing",
             lambda bench: [("facts and imports", 12, partial(facts, bench))]),
        Part("right", "a fast wrong kernel is worth nothing: against double precision, poisoned", correct),
        Part("rates", "what this machine can do at best, of which the others are shares", rates),
        Part("swap", "what the copies of each system are made of", swaps),
        Part("decode", "the goal is 80 % of a copy's rate", decode),
        Part("prefill", "a first prompt must not cost more than a steady one", prefill),
        Part("python", "what our own Python adds to a step", python),
        Part("calibration", "from which a profile and every prediction follow", calibration),
        Part("systems", "the comparison itself, twice", systems),
    ]  # fmt: skip


def carry_out(
    bench: Bench, ledger: Ledger, clock: Callable[[], float], deadline: float
) -> list[str]:
    """Run every part as far as the time goes; returns the names of what was left out. What breaks a whole
    part is a failed line of its own."""
    left = []
    for part in parts(lambda: deadline - clock()):
        try:
            made = part.points(bench)
        except Exception as error:  # noqa: BLE001  # the other parts can still be measured
            ledger.add(part.name, "all of it", ok=False, seconds=0.0, error=said(error))
            continue
        points = (Point(name, run, seconds) for name, seconds, run in made)
        left += [
            f"{part.name}: {name}"
            for name in run_points(
                part.name, points, ledger, clock=clock, deadline=deadline, say=print
            )
        ]
        write_table(bench, ledger, left)
    return left


def planned(bench: Bench) -> Iterator[tuple[str, float, str]]:
    """(part, seconds, why) of every part."""
    for part in parts(lambda: BUDGET_S):
        yield part.name, sum(seconds for _, seconds, _ in part.points(bench)), part.why


# ---------------------------------------------------------------------- the command


def write_table(bench: Bench, ledger: Ledger, left: Sequence[str]) -> str:
    """The table, as far as it goes."""
    from benchmarks.gpu_page import table

    text = table(ledger, [part.name for part in parts(lambda: 0.0)], left, bench.sizes)
    (bench.out / TABLE).write_text(text, encoding="utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds")
    parser.add_argument("--resume", type=Path, help="the DIR of an earlier, stopped check")
    parser.add_argument("--work", type=Path, help="for what need not come back")
    chosen = parser.parse_args(arguments)
    why = why_not(chosen.device)
    if why is not None:
        print(f"gpu-check: nothing was measured: {why}", file=sys.stderr)
        return 2
    from benchmarks.gpu_bench import Bench

    work = chosen.work or chosen.out.with_name(f"{chosen.out.name}-work")
    for folder in (chosen.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench.of(chosen.device, chosen.out, work)
    if chosen.resume is not None:
        take_over(chosen.resume, bench)
    ledger = Ledger(chosen.out)
    why = claim(ledger, this_machine(chosen.device))
    if why is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 2
    try:
        left = carry_out(bench, ledger, time.monotonic, begin + chosen.budget)
    finally:
        bench.close()
    print(write_table(bench, ledger, left))
    return verdict(ledger, left)


def take_over(earlier: Path, bench: Bench) -> None:
    """Results of an earlier check of this machine, unless there are some here."""
    from benchmarks import gpu_systems

    for name in ("gpu-check.jsonl", gpu_systems.POINTS, gpu_systems.RUNS):
        if (earlier / name).exists() and not (bench.out / name).exists():
            shutil.copyfile(earlier / name, bench.out / name)
    gpu_systems.restore(earlier, bench)


def verdict(ledger: Ledger, left: Sequence[str]) -> int:
    """Say how it went in one line; returns the exit code."""
    rows = list(ledger.rows.values())
    failed = [row["name"] for row in rows if not row["ok"]]
    done = len(rows) - len(failed)
    again = "; run it again to go on" if left else ""
    print(f"gpu-check: {done} done, {len(failed)} failed, {len(left)} left{again}")
    if failed:
        return 1
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
