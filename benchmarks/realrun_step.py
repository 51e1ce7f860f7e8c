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
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from realrun import runner
from realrun.journal import Journal
from realrun.model import Decoder, LoadedModel, load_model
from realrun.serve import Options, make_engine, prepare
from traces.recorder import Recorder
from traces.scenario import Scenario, build

PROMPT = 64


class Timed:
    """Adds up the time inside the decoder and the choice of tokens, until `undo`."""

    def __init__(self, decoder: Decoder) -> None:
        self.spent_ns = 0
        self._places = [(decoder, "forward"), (decoder, "logits"), (runner, "greedy")]
        self._before = [getattr(owner, name) for owner, name in self._places]
        for (owner, name), call in zip(self._places, self._before, strict=True):
            setattr(owner, name, self._wrapped(call))

    def undo(self) -> None:
        """Time nothing any more."""
        for (owner, name), call in zip(self._places, self._before, strict=True):
            setattr(owner, name, call)

    def _wrapped(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter_ns()
            result = call(*arguments)
            self.spent_ns += time.perf_counter_ns() - begin
            return result

        return timed


def scenario(folder: Path, batch: int, steps: int) -> Scenario:
    """`batch` requests at once, each of `steps` tokens."""
    header = {"format": "fastswitch-workload/1", "timing": "open"}
    rows = [
        {
            "request_id": f"r{index}",
            "session_id": f"r{index}",
            "turn": 1,
            "input_tokens": PROMPT,
            "output_tokens": steps,
            "arrival_s": 0.0,
        }
        for index in range(batch)
    ]
    path = folder / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    blocks = batch * (-(-(PROMPT + steps) // 16) + 1)
    return build(
        {
            "name": "realrun-step",
            "workload": str(path),
            "system": "fastswitch",
            "profile": "a10-llama-3-8b",
            "priority": {"pattern": "markov", "frequency": 0.04},
            "pool": {"device_blocks": 2 * blocks, "host_blocks": 2 * blocks, "aging": "none"},
        },
        "realrun_step",
    )


def measure(model: LoadedModel, spec: str, batch: int, steps: int) -> dict[str, Any]:
    """Medians over the decode steps of one run."""
    with tempfile.TemporaryDirectory() as folder:
        machine = prepare(scenario(Path(folder), batch, steps), Options(model=spec), model=model)
        engine = make_engine(machine, Recorder(), Journal(None), check="off")
        timed = Timed(model.decoder)
        rows: list[tuple[int, int]] = []
        before = [time.perf_counter_ns(), 0]

        calls = [0]

        def check(_: object) -> None:
            calls[0] += 1
            if calls[0] % 2:  # after a schedule; what follows is the step and its update
                return
            now = time.perf_counter_ns()
            rows.append((now - before[0], timed.spent_ns - before[1]))
            before[:] = [now, timed.spent_ns]

        engine._check = check
        with torch.inference_mode():
            engine.run()
        engine.swap.close()
        timed.undo()
    decoding = rows[2:-1]  # behind the prompts, before the last request ends
    whole = statistics.median(row[0] for row in decoding)
    ours = statistics.median(row[0] - row[1] for row in decoding)
    return {
        "batch": batch,
        "steps": len(decoding),
        "step_us": whole / 1e3,
        "ours_us": ours / 1e3,
        "ours_share": ours / whole,
    }


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
        row = measure(model, options.model, batch, options.steps)
        print(
            f"{batch:5d} {row['steps']:6d} {row['step_us'] / 1e3:9.2f} {row['ours_us']:9.0f}"
            f" {100 * row['ours_share']:8.2f}",
            flush=True,
        )
        found[f"batch_{batch}_ours_us"] = round(row["ours_us"], 1)
        found[f"batch_{batch}_ours_share"] = round(row["ours_share"], 4)
        found[f"batch_{batch}_step_us"] = round(row["step_us"], 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
