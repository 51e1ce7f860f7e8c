"""How well step-cost forms foretell measured steps they never saw.

    FASTSWITCH_MEASUREMENTS=FOLDER python benchmarks/step_cost.py [--draws N] [--card NAME]

FOLDER holds the public op tables as docs/machines.md says. Points, split and compositions follow the rule
of `benchmarks/step_points.py`. Beside the form `tokens/1` (`calibrate.machines.fit`) stand the one without
terms in the longest context, and the linear form of earlier profiles, fitted to the same points. Server
steps are foretold by a profile built from the card's whole tables, as those that ship are.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.step_points import CARDS, DRAWS, Card, held_out, op_points, server_steps
from calibrate.machines import build, fit, gpus
from calibrate.machines.steps import Step, Timed
from calibrate.nnls import nnls
from calibrate.profile import TokenCost
from sim.costs import TokenCosts

Floats = npt.NDArray[np.float64]
Foretell = Callable[[Sequence[Step]], Floats]
DATA = "FASTSWITCH_MEASUREMENTS"
#: Bars of the form: mean and P95 of all points, mean of mixed and of decode steps.
BARS = {"mean": 0.035, "p95": 0.10, "mixed": 0.055, "decode": 0.015}
KNEE = 64


def linear(points: Sequence[Timed]) -> Foretell:
    """The form of earlier profiles."""

    def rows(steps: Sequence[Step]) -> Floats:
        return np.array(
            [
                (
                    1,
                    step.kv_tokens,
                    step.batch,
                    max(0, step.batch - KNEE),
                    step.uneven,
                    step.tokens - step.batch,
                    step.squares / 2,
                )
                for step in steps
            ],
            float,
        )

    times = np.array([point.ns for point in points])
    found = nnls(rows([point.step for point in points]) / times[:, None], np.ones(len(times)))
    return lambda steps: rows(steps) @ found


def tokens(points: Sequence[Timed]) -> Foretell:
    """`tokens/1`."""
    return fit.fit(points).predict


def without_longest(points: Sequence[Timed]) -> Foretell:
    """`tokens/1` without what the longest context costs."""
    return fit.fit(points, terms=[t for t in fit.TERMS if not t.startswith("longest")]).predict


FORMS = {"linear": linear, "no longest": without_longest, "tokens/1": tokens}


def summed(off: Floats, kinds: Sequence[str]) -> dict[str, float]:
    """Mean, P95 and maximum of |error|, and mean by kind."""
    of = np.abs(off)
    found = {"mean": of.mean(), "p95": np.percentile(of, 95), "max": of.max()}
    for kind in sorted(set(kinds)):
        found[kind] = of[[one == kind for one in kinds]].mean()
    return {name: round(float(value), 4) for name, value in found.items()}


def card_rows(card: Card, data: Path, draws: int) -> list[dict[str, Any]]:
    """Errors of each form on one card, by draw."""
    tables = card.read(data)
    room = card.room(tables)
    found: list[dict[str, Any]] = []
    for draw in range(draws):
        points = op_points(tables, room, card.most, draw)
        out = held_out(points, draw)
        seen = [point for i, point in enumerate(points) if i not in out]
        unseen = [points[i] for i in sorted(out)]
        times = np.array([point.ns for point in unseen])
        kinds = [point.kind for point in unseen]
        for form, make in FORMS.items():
            begun = time.process_time()
            off = make(seen)([point.step for point in unseen]) / times - 1
            row = {"card": card.name, "model": card.model, "gpus": card.shards, "draw": draw}
            found.append({**row, "form": form, "points": len(points), **summed(off, kinds)})
            found[-1]["cpu_s"] = round(time.process_time() - begun, 2)
    return [*found, server_row(card, data)]


def server_row(card: Card, data: Path) -> dict[str, Any]:
    """Steps that a server runs: time-weighted mean of |error|, and bias."""
    tables = card.read(data)
    room = card.room(tables)
    steps = server_steps(room)
    true = np.array([tables.step_ns(step) for step in steps])
    gpu = gpus.GPUS[GPU_OF[card.name]]
    cost = build.step_cost(tables, room, gpu)
    costs = TokenCosts(without_host(cost))
    foretold = np.array(
        [
            costs.mixed_ns(step.batch, step.kv_tokens, step.uneven, list(step.chunks))
            if step.chunks
            else costs.decode_ns(step.batch, step.kv_tokens, step.uneven)
            for step in steps
        ],
        float,
    )
    off = np.abs(foretold - true).sum() / true.sum()
    bias = foretold.sum() / true.sum() - 1
    before = linear(build.usable(tables, room))(steps)
    return {
        "card": card.name,
        "model": card.model,
        "gpus": card.shards,
        "form": "server steps",
        "points": len(steps),
        "mean": round(float(off), 4),
        "bias": round(float(bias), 4),
        "linear mean": round(float(np.abs(before - true).sum() / true.sum()), 4),
        "linear bias": round(float(before.sum() / true.sum() - 1), 4),
    }


GPU_OF = {
    "RTX 4090": "rtx-4090",
    "RTX PRO 6000": "rtx-pro-6000",
    "A100 SXM": "a100-sxm",
    "H100 SXM": "h100-sxm",
    "H200 SXM": "h200-sxm",
    "B200 SXM": "b200-sxm",
    "L40S": "l40s",
}


def without_host(cost: TokenCost) -> TokenCost:
    """What the GPU takes, as the tables do."""
    none = cost.host_base.model_copy(update={"value": 0.0, "low": 0.0})
    return cost.model_copy(update={"host_base": none, "host_per_token": none})


def splitwise(data: Path) -> list[dict[str, Any]]:
    """Whole steps of Splitwise's tables: prompts of one length and decode steps, few points on one axis;
    medians of five repeats, 30 % held out. Printed, with no bar."""
    groups: dict[tuple[str, str, str], dict[Step, list[float]]] = {}
    with (data / "splitwise" / "perf_model.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["hardware"], row["tensor_parallel"])
            batch, prompt = int(row["batch_size"]), int(row["prompt_size"])
            context = prompt + int(row["token_size"]) // 2
            chunk = Step(chunks=((prompt, 0),) * batch)
            decode = Step(batch, batch * context, context)
            mine = groups.setdefault(key, {})
            mine.setdefault(chunk, []).append(float(row["prompt_time"]) * 1e6)
            mine.setdefault(decode, []).append(float(row["token_time"]) * 1e6)
    found = []
    for key, times in sorted(groups.items()):
        points = sorted(Timed(step, float(np.median(ns))) for step, ns in times.items())
        out = held_out(points, 0)
        seen = [point for i, point in enumerate(points) if i not in out]
        unseen = [points[i] for i in sorted(out)]
        for form, make in FORMS.items():
            off = make(seen)([p.step for p in unseen]) / np.array([p.ns for p in unseen]) - 1
            found.append(
                {
                    "card": f"{key[1]} (Splitwise)",
                    "model": key[0],
                    "gpus": int(key[2]),
                    "form": form,
                    "points": len(points),
                    **summed(off, [p.kind for p in unseen]),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--card", help="only cards whose name holds this")
    given = parser.parse_args()
    if DATA not in os.environ:
        sys.exit(f"{DATA} is not set: the folder of the public measurements (docs/machines.md)")
    data = Path(os.environ[DATA])
    rows: list[dict[str, Any]] = []
    for card in CARDS:
        if given.card is None or given.card in card.name:
            new = card_rows(card, data, given.draws)
            rows += new
            show(new)
    if given.card is None:
        rows += splitwise(data)
        show(rows[-1:] if not rows else [row for row in rows if "Splitwise" in row["card"]])
    print(json.dumps({"bars": BARS, "rows": rows}))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """One line a form and draw, in per cent."""
    for row in rows:
        text = [f"{row['card']:<24} {row['model']:<14} x{row['gpus']} {row['form']:<13}"]
        text += [f"draw {row['draw']}"] if "draw" in row else []
        text += [
            f"{name} {100 * value:.1f}"
            for name, value in row.items()
            if isinstance(value, float) and name != "cpu_s"
        ]
        print(", ".join(text), flush=True)


if __name__ == "__main__":
    main()
