"""How far off a machine is that was derived from its data sheet: every card and every model left out.

    FASTSWITCH_MEASUREMENTS=FOLDER python benchmarks/derived_machines.py [--write]

Fits the nine constants of `calibrate.machines.roofline` to measured op tables (matrix products and
attention) of six cards and four models, then again without each card, and without each model; what is
left out is foretold. `--write` keeps constants and errors in `calibrate/machines/roofline.json`, from where
every derived profile takes them. A card of the consumer kind, whose rate the data sheet gives for a clock
it does not keep, is printed apart (RTX 4090, LLMServingSim's tables, never fitted).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.step_cost import DATA
from calibrate.machines import aiconfigurator, gpus, llmservingsim, roofline, shapes
from calibrate.machines.gpus import Gpu
from calibrate.machines.roofline import Constants
from calibrate.machines.shapes import Shape
from calibrate.machines.steps import Step, even
from calibrate.machines.tables import OpTables

Floats = npt.NDArray[np.float64]
FOLDERS = {
    "a100-sxm": "a100_sxm-0.14.0",
    "h100-sxm": "h100_sxm-0.24.0",
    "h200-sxm": "h200_sxm-0.24.0",
    "b200-sxm": "b200_sxm-0.24.0",
    "l40s": "l40s-0.24.0",
    "rtx-pro-6000": "rtx_pro_6000_server-0.24.0",
}
MODELS = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-14b", "qwen3-32b")
STEPS: tuple[Step, ...] = (
    *(even(b, c) for b in (1, 8, 32, 64, 128, 256) for c in (512, 2048, 8192) if b * c <= 1 << 19),
    *(Step(chunks=((n, 0),)) for n in (64, 256, 512, 1024, 2048, 4096, 8192)),
    *(even(b, c, ((n, 0),)) for b in (8, 64) for c in (512, 4096) for n in (256, 1024)),
)
START = Constants(0.75, 0.82, 3.0, 2000.0, 0.85, 6000.0, 50.0, 0.55, 8000.0)


class Case(NamedTuple):
    """One card and model: the true times of STEPS, ns, and what the roofline multiplies. Of each product
    and step: seconds of arithmetic and of memory at the data sheet's rates, and how many there are."""

    gpu: Gpu
    shape: Shape
    times: Floats
    compute: Floats
    memory: Floats
    many: Floats
    attention: Floats

    @classmethod
    def of(cls, gpu: Gpu, shape: Shape, times: Floats) -> Case:
        """With what STEPS hold of work. Attention is linear in what its constants stand for: its columns
        are what `roofline.Attention` says of constants that are one alone."""
        gemms = (*shape.gemms(), shape.head())
        rows = np.array([[s.tokens] * (len(gemms) - 1) + [s.outputs] for s in STEPS], float)
        n, k, many = (
            np.array([getattr(g, one) for g in gemms], float) for one in ("n", "k", "times")
        )
        none = dict.fromkeys(ATTENTION, 0.0) | {"kv": math.inf, "pairs": math.inf}
        columns = []
        for name in ATTENTION:
            alone = START._replace(**{**none, name: 1.0})
            of = roofline.Attention(gpu, shape, alone)
            columns.append([shape.layers * of(step) for step in STEPS])
        return cls(
            gpu,
            shape,
            times,
            2 * rows * n * k / gpu.flops,
            (n * k + rows * (n + k)) * shape.dtype_bytes / gpu.memory_rate,
            np.broadcast_to(many, rows.shape),
            np.array(columns).T,
        )


#: The constants of attention; times are in proportion to them, but to one over these two.
ATTENTION = ("decode_launch", "request", "prompt_launch", "kv", "pairs")


def foretold(case: Case, constants: Constants) -> Floats:
    """Times of STEPS by the roofline, ns."""
    knee = constants.knee
    compute, memory = case.compute / constants.compute, case.memory / constants.memory
    both = (compute**knee + memory**knee) ** (1 / knee)
    own = [getattr(constants, name) for name in ATTENTION]
    weights = np.array([*own[:3], 1 / own[3], 1 / own[4]])
    found: Floats = ((both * 1e9 + constants.launch) * case.many).sum(
        axis=1
    ) + case.attention @ weights
    return found


def truth(tables: OpTables) -> Floats:
    return np.array([tables.step_ns(step) - tables.reduce(step.tokens) for step in STEPS])


def fit(cases: Sequence[Case]) -> Constants:
    """Least squares of logarithms, by a pattern search over logarithms of the constants."""

    every = cases[0]._replace(
        times=np.concatenate([case.times for case in cases]),
        compute=np.concatenate([case.compute for case in cases]),
        memory=np.concatenate([case.memory for case in cases]),
        many=np.concatenate([case.many for case in cases]),
        attention=np.concatenate([case.attention for case in cases]),
    )

    def loss(logs: Floats) -> float:
        constants = Constants(*np.exp(logs))
        return float((np.log(foretold(every, constants) / every.times) ** 2).mean())

    return Constants(*map(float, np.exp(_descend(loss, np.log(np.array(START))))))


def _descend(loss: Callable[[Floats], float], start: Floats) -> Floats:
    best, value, reach = start.copy(), loss(start), 0.3
    while reach > 0.01:
        improved = False
        for index in range(len(best)):
            for way in (1, -1):
                trial = best.copy()
                trial[index] += way * reach
                found = loss(trial)
                if found < value:
                    best, value, improved = trial, found, True
                    break
        reach *= 1.0 if improved else 0.5
    return best


def errors(cases: Sequence[Case], constants: Constants, most: int = 8192) -> dict[str, Floats]:
    """|predicted / measured - 1| by kind of step, of steps with no more than `most` tokens."""
    kinds = np.array([step.kind if step.tokens <= most else "" for step in STEPS])
    off = [np.abs(foretold(c, constants) / c.times - 1) for c in cases]
    return {
        kind: np.concatenate([one[kinds == kind] for one in off])
        for kind in ("decode", "prefill", "mixed")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if DATA not in os.environ:
        sys.exit(f"{DATA} is not set: the folder of the public measurements (docs/machines.md)")
    data = Path(os.environ[DATA])
    cases = []
    for key, folder in FOLDERS.items():
        for model in MODELS:
            shape = shapes.known()[model]
            tables = aiconfigurator.read(data / "aiconfigurator" / folder, shape, key)
            cases.append(Case.of(gpus.GPUS[key], shape, truth(tables)))
    rows: list[dict[str, Any]] = []
    left_out: dict[str, dict[str, list[Floats]]] = {"gpu": {}, "model": {}}
    everything = fit(cases)
    show(rows, "nothing", "all", errors(cases, everything))
    keys = {"gpu": [c.gpu.key for c in cases], "model": [c.shape.name for c in cases]}
    for out, names in keys.items():
        for name in dict.fromkeys(names):
            mine = [case for case, one in zip(cases, names, strict=True) if one == name]
            rest = [case for case, one in zip(cases, names, strict=True) if one != name]
            found = errors(mine, fit(rest))
            show(rows, out, name, found)
            for kind, off in found.items():
                left_out[out].setdefault(kind, []).append(off)
    summed = {
        out: {
            kind: (float(np.concatenate(off).mean()), float(np.percentile(np.concatenate(off), 95)))
            for kind, off in kinds.items()
        }
        for out, kinds in left_out.items()
    }
    consumer = llmservingsim.read(
        data / "rtx4090-llama-3.1-8b", shapes.known()["llama-3.1-8b"], "rtx-4090"
    )
    case = Case.of(gpus.GPUS["rtx-4090"], consumer.shape, truth(consumer))
    apart = errors([case], everything, consumer.tokens.at[-1])
    show(rows, "consumer card", "rtx-4090", apart)
    summed["consumer"] = {
        kind: (float(off.mean()), float(np.percentile(off, 95))) for kind, off in apart.items()
    }
    if given.write:
        kept = {
            "constants": {k: float(f"{v:.4g}") for k, v in everything._asdict().items()},
            "errors": {
                out: {kind: [round(x, 3) for x in pair] for kind, pair in kinds.items()}
                for out, kinds in summed.items()
            },
        }
        roofline.FITTED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"constants": everything._asdict(), "errors": summed, "rows": rows}))


def show(rows: list[dict[str, Any]], out: str, name: str, found: dict[str, Floats]) -> None:
    """One line: mean and P95 by kind, per cent."""
    row: dict[str, Any] = {"left out": out, "name": name}
    for kind, off in found.items():
        row[kind] = [round(float(off.mean()), 4), round(float(np.percentile(off, 95)), 4)]
    rows.append(row)
    text = ", ".join(
        f"{kind} {100 * row[kind][0]:.1f} / {100 * row[kind][1]:.1f}" for kind in found
    )
    print(f"{out:<14} {name:<14} {text}", flush=True)


if __name__ == "__main__":
    main()
