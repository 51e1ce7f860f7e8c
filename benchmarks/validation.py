"""Calibrate this machine, serve workloads on it for real, predict them, print every error.

    python -m benchmarks.validation --out DIR                  one workload, once with each system
    python -m benchmarks.validation --full --out DIR           three workloads, three repeats
    python -m benchmarks.validation --full --device cuda --model random:llama-3-8b --out DIR

Calibration and runs take turns, a share of the samples before each round of runs, so that both see the
same hours of the machine; the fit never sees a workload. Everything finished is kept in DIR: the same
command goes on where it was stopped. `--budget S` starts nothing new after so many seconds.

DIR/machine.json is the profile, DIR/runs/SCENARIO/SYSTEM-N the recordings, DIR/validation.html and .txt
the result. The last line printed is JSON. Exits with 0 when all is there, 3 when time ran out before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A core stays free for the swap manager's threads, as a GPU leaves the CPU to them. Before torch is there.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))

if TYPE_CHECKING:
    from calibrate.grid import Limits
    from calibrate.machine import Target
    from calibrate.points import Points

#: Repeats of each point in all.
SAMPLES = 20
SCENARIOS = {
    "cpu": ("validate-chat", "validate-agent", "validate-bursty"),
    "cuda": ("validate-gpu-chat", "validate-gpu-agent", "validate-gpu-bursty"),
}
SYSTEMS = {
    "cpu": ("paged", "fastswitch"),
    "cuda": ("paged", "fastswitch", "+block-major", "+batched"),
}
MODELS = {"cpu": "smollm2", "cuda": "random:llama-3-8b"}


@dataclass(frozen=True)
class Plan:
    """What is to be done. `parts`: `calibrate`, `validate` or both."""

    out: Path
    device: str
    model: str
    scenarios: tuple[str, ...]
    systems: tuple[str, ...]
    repeats: int
    parts: tuple[str, ...]
    deadline: float

    @property
    def points(self) -> Path:
        """Samples of the calibration."""
        return self.out / "machine.points.jsonl"

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def runs(self) -> Iterator[tuple[int, str, str, Path]]:
        """(round, scenario, system, folder), in the order they are made."""
        for number in range(1, self.repeats + 1):
            for scenario in self.scenarios:
                for system in self.systems:
                    folder = self.out / "runs" / scenario.replace("/", "_") / f"{system}-{number}"
                    yield number, scenario, system, folder


def main(arguments: Sequence[str] | None = None) -> int:
    plan = _plan(arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    left = carry_out(plan)
    if left:
        print(f"time ran out; left: {left}; run it again to go on")
        return 3
    profile = fit(plan)
    if "validate" in plan.parts:
        print(json.dumps(report(plan, profile)))
    return 0


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="validation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="three scenarios, three repeats")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model")
    parser.add_argument("--scenarios", help="names or paths, comma-separated")
    parser.add_argument("--systems", help="comma-separated; the first is the baseline")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--part", choices=("calibrate", "validate", "all"), default="all")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    chosen = parser.parse_args(arguments)
    device = chosen.device
    scenarios = SCENARIOS[device] if chosen.full else SCENARIOS[device][:1]
    return Plan(
        chosen.out,
        device,
        chosen.model or MODELS[device],
        _names(chosen.scenarios) or scenarios,
        _names(chosen.systems) or SYSTEMS[device],
        chosen.repeats or (3 if chosen.full else 1),
        ("calibrate", "validate") if chosen.part == "all" else (chosen.part,),
        time.monotonic() + chosen.budget,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


# ---------------------------------------------------------------------- measuring


def carry_out(plan: Plan) -> str:
    """Calibrate and serve what is not there yet; what is left when time ran out, in words."""
    with ExitStack() as open_until_the_end:
        return _carry_out(plan, _Lazy(plan, open_until_the_end))


def _carry_out(plan: Plan, lazy: _Lazy) -> str:
    due = [run for run in plan.runs() if not _is_whole(run[3])] if "validate" in plan.parts else []
    for number in range(1, plan.repeats + 1):
        wanted = -(-SAMPLES * number // plan.repeats)
        if "calibrate" in plan.parts and _fewest(plan.points) < wanted:
            if plan.is_late:
                return "calibration"
            _calibrate(plan, lazy.bench, wanted, is_first=number == 1)
            if _fewest(plan.points) < wanted:
                return "calibration"
        for run in [run for run in due if run[0] == number]:
            if plan.is_late:
                return f"{len([run for run in due if not _is_whole(run[3])])} runs"
            _serve(plan, lazy.bench.target, *run[1:])
    return ""


def _fewest(path: Path) -> int:
    """Samples that every point has."""
    from calibrate.points import read

    if not path.exists() or not path.stat().st_size:
        return 0
    return min((len(values) for values in read(path).samples.values()), default=0)


class Bench:
    """The model, loaded once, and timers that stay warm from round to round."""

    def __init__(self, plan: Plan) -> None:
        from calibrate import machine, timers

        limits = limits_of(plan.scenarios) if plan.device == "cpu" else None
        self.target: Target = machine.prepare(plan.model, plan.device, limits=limits)
        self.timers = timers.Timers(self.target.bench)


def limits_of(scenarios: Sequence[str]) -> Limits:
    """What a calibration for these scenarios alone has to reach. A GPU's profile is kept for others, a
    CPU's answers this one question: minutes spent on contexts that nobody sends are lost."""
    from calibrate.machine import CPU_LIMITS
    from runs import scenario

    loaded = [scenario.load(name) for name in scenarios]

    def least(usual: int, asked: Sequence[int | None]) -> int:
        return max(min(usual, number or usual) for number in asked)

    room = least(
        CPU_LIMITS.max_tokens,
        [(one.pool.device_blocks or 0) * one.pool.block_size for one in loaded],
    )
    context = least(CPU_LIMITS.max_context, [one.limits.max_model_len for one in loaded])
    prompts = [one.limits.max_num_batched_tokens for one in loaded]
    return CPU_LIMITS._replace(
        max_batch=least(CPU_LIMITS.max_batch, [one.limits.max_num_seqs for one in loaded]),
        max_context=min(context, room),
        max_prefill=least(CPU_LIMITS.max_prefill, prompts),
        max_tokens=room,
    )


class _Lazy:
    """A bench that is made when it is first needed, and whose threads end with `until`."""

    def __init__(self, plan: Plan, until: ExitStack) -> None:
        self._plan = plan
        self._until = until
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        """The same every time."""
        if self._bench is None:
            self._bench = Bench(self._plan)
            self._until.callback(self._bench.timers.close)
        return self._bench


def _calibrate(plan: Plan, bench: Bench, repeats: int, *, is_first: bool) -> None:
    from calibrate import machine

    target, timers = bench.target, bench.timers
    if is_first:
        print("\n".join(machine.roofline(target)))
    begin = time.monotonic()
    left = plan.deadline - begin
    machine.run(target, plan.points, repeats=repeats, budget_s=left, timers=timers)
    print(f"calibrated to {repeats} samples a point: {time.monotonic() - begin:.0f} s", flush=True)


def _is_whole(folder: Path) -> bool:
    """Served to its end."""
    path = folder / "run.json"
    return path.is_file() and not json.loads(path.read_text(encoding="utf-8"))["was_stopped"]


def _serve(plan: Plan, target: Target, name: str, system: str, folder: Path) -> None:
    from realrun.serve import Options, serve
    from runs import scenario

    shutil.rmtree(folder, ignore_errors=True)
    chosen = scenario.load(name, {"system": system})
    options = Options(device=plan.device, model=plan.model)
    recorded = serve(chosen, options, out=folder, decisions=True, model=target.bench.model)
    found = recorded.summary["metrics"]
    print(
        f"{folder.relative_to(plan.out)}: {found['finished']} turns, {found['preemptions']}"
        f" preemptions, {found['makespan_s']:.1f} s",
        flush=True,
    )


# ---------------------------------------------------------------------- the result


def fit(plan: Plan) -> Path:
    """Fit the profile to all samples, write it with its figure, print it."""
    from calibrate import build, figure
    from traces import figure_style

    profile = build.refit(plan.points, name="machine")
    path = plan.out / "machine.json"
    build.save(profile, path)
    figure_style.save(figure.fit_figure(profile), path.with_suffix(".png"))
    print("\n".join(build.summary(profile)))
    return path


def report(plan: Plan, profile: Path) -> dict[str, Any]:
    """Predict, write, print; the line of JSON."""
    from calibrate.points import read
    from explore.studies import output
    from explore.validation import predict_text
    from explore.validation.predict import predict

    levels = drift(read(plan.points), plan.repeats)
    found = predict([folder for _, _, _, folder in plan.runs()], str(profile))
    output.write_validation(
        found, plan.out, " ".join(["python -m benchmarks.validation", *sys.argv[1:]])
    )
    print(predict_text.as_text(found))
    words = ", ".join(f"{level:.2f}" for level in levels)
    print(f"time of the calibration's own points by round, against all rounds: {words}")
    return {
        "benchmark": "validation",
        "device": plan.device,
        "model": plan.model,
        "repeats": plan.repeats,
        "drift": [round(level, 3) for level in levels],
        **predict_text.as_json(found),
    }


def drift(points: Points, rounds: int) -> list[float]:
    """How slow the machine was in each round: the median over points of their time in it, as a multiple
    of their time in all."""
    levels = []
    for number in range(rounds):
        ratios = []
        for values in points.samples.values():
            share = len(values) / rounds
            part = values[round(number * share) : round((number + 1) * share)]
            if part:
                ratios.append(statistics.median(part) / statistics.median(values))
        levels.append(statistics.median(ratios) if ratios else 1.0)
    return levels


if __name__ == "__main__":
    sys.exit(main())
