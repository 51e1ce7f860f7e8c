"""What share of a real step is our Python: everything but the model's forward pass.

    python -m benchmarks.realrun_step [--model smollm2] [--batch 1 4 16] [--steps 60] [--threads N]
    python -m benchmarks.realrun_step --graphs [--batch 1 16 64]

A batch of requests decodes on the CPU with nothing else to do: no arrival, no preemption, no copy. For
each step the time inside the model (tokens in, logits out, the likeliest of them) is taken from the
time of the whole step; the rest is ours: scheduler, plan, block tables, tensors of indices, lists of
tokens, recorder. Medians.

With `--graphs` steps go through graphs, as on a GPU, that compute nothing: all that is left is ours. One step in
sixteen writes new blocks down, so beside the median stands the 95th percentile, which is such a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch

from calibrate.overhead import PROMPT, step_times
from realrun import runner
from realrun.model import load_model
from realrun.runner import Runner
from realrun.serve import Machine


def the_model(machine: Machine, _engine: Any) -> list[tuple[Any, str]]:
    """What counts as the model."""
    decoder = machine.model.decoder
    return [(decoder, "forward"), (decoder, "logits"), (runner, "greedy")]


def by_graphs(batches: list[int], steps: int) -> dict[str, float]:
    """Engine, scheduler and what goes into graphs, in microseconds a step."""
    model = load_model("random:tiny", torch.float32, "cpu")

    def doing_nothing(machine: Machine) -> Runner:
        made = Runner(model.decoder, machine.store.device, capture=lambda _: lambda: None)
        assert made.graphs is not None
        made.graphs.warm_up = lambda batch, context: 0  # type: ignore[method-assign]  # noqa: ARG005
        return made

    print(f"{'batch':>5} {'steps':>6} {'median us':>10} {'P95 us':>8}")
    found: dict[str, float] = {}
    for batch in batches:
        rows = step_times(model, batch, steps, "cpu", lambda *_: [], doing_nothing)
        times = [row.whole_ns / 1e3 for row in rows]
        median, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        print(f"{batch:5d} {len(times):6d} {median:10.0f} {p95:8.0f}", flush=True)
        found[f"batch_{batch}_median_us"] = round(median, 1)
        found[f"batch_{batch}_p95_us"] = round(p95, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--graphs", action="store_true", help="graphs that compute nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.graphs:
        print(json.dumps(by_graphs(options.batch or [1, 16, 64], max(options.steps, 300))))
        return
    model = load_model(options.model, torch.float32, "cpu")
    print(f"{options.model}, fp32, {options.threads} threads, {PROMPT} tokens of prompt")
    print(f"{'batch':>5} {'steps':>6} {'step ms':>9} {'ours us':>9} {'share %':>8}")
    found: dict[str, float] = {}
    for batch in options.batch or [1, 4, 16]:
        times = step_times(model, batch, options.steps, "cpu", the_model)
        whole = statistics.median(row.whole_ns for row in times)
        ours = statistics.median(row.whole_ns - row.inside_ns for row in times)
        print(
            f"{batch:5d} {len(times):6d} {whole / 1e6:9.2f} {ours / 1e3:9.0f}"
            f" {100 * ours / whole:8.2f}",
            flush=True,
        )
        found[f"batch_{batch}_ours_us"] = round(ours / 1e3, 1)
        found[f"batch_{batch}_ours_share"] = round(ours / whole, 4)
        found[f"batch_{batch}_step_us"] = round(whole / 1e3, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
