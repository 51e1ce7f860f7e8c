"""What share of a real step is our Python: everything but the model's forward pass.

    python benchmarks/realrun_step.py [--model smollm2] [--batch 1 4 16] [--steps 60] [--threads N]

A batch of requests decodes on the CPU with nothing else to do: no arrival, no preemption, no copy. For
each step the time inside the model (tokens in, logits out, the likeliest of them) is taken from the
time of the whole step; the rest is ours: scheduler, plan, block tables, tensors of indices, lists of
tokens, recorder. Medians.
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
from realrun.serve import Machine


def the_model(machine: Machine, _engine: Any) -> list[tuple[Any, str]]:
    """What counts as the model."""
    decoder = machine.model.decoder
    return [(decoder, "forward"), (decoder, "logits"), (runner, "greedy")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, torch.float32, "cpu")
    print(f"{options.model}, fp32, {options.threads} threads, {PROMPT} tokens of prompt")
    print(f"{'batch':>5} {'steps':>6} {'step ms':>9} {'ours us':>9} {'share %':>8}")
    found: dict[str, float] = {}
    for batch in options.batch:
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
