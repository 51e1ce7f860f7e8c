# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Calibrate a machine, predict a workload, check the prediction
#
# A simulator is worth what its error is known to be. This notebook goes through the whole loop on the CPU
# it runs on, with a model of random weights so small that it takes a minute; `make validate-full` does
# the same with SmolLM2 and three workloads, and `docs/results/` has what came out.
#
# 1. Time the executor's own steps and copies.
# 2. Fit a cost profile to 70 % of the points, look at the error on the rest.
# 3. Serve a small workload for real, with two systems.
# 4. Simulate the same workload with that profile, and lay both side by side.

# %%
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # leave a core to the threads that swap

import torch
import yaml
from IPython.display import Image, Markdown, display

from calibrate import build, figure, machine
from calibrate.grid import Limits
from explore.validation import predict_figure
from explore.validation.predict import predict
from explore.validation.predict_text import number, percent, stories
from realrun.serve import Options, serve
from runs import scenario
from traces import figure_style

REPEATS = int(os.environ.get("NOTEBOOK_REPEATS", "20"))
folder = Path(tempfile.mkdtemp())
torch.set_num_threads(1)

# %% [markdown]
# ## 1. Time steps and copies
#
# Every point is a step or a copy of the real machine: its runner, its swap manager, its engine. The
# roofline says first what physics allows.

# %%
limits = Limits(max_batch=8, max_context=128, max_tokens=1024, max_prefill=64, copy_blocks=8)
target = machine.prepare("random:small", "cpu", limits=limits)
print("\n".join(machine.roofline(target)))
points = machine.run(target, folder / "machine.points.jsonl", repeats=REPEATS)
print(f"{len(points.samples)} points, {REPEATS} samples each")

# %% [markdown]
# ## 2. Fit a profile
#
# Non-negative least squares on relative error, terms kept where they lower the error on left-out folds, and
# curves for what formulas cannot say. Filled marks are points the fit never saw.

# %%
profile = build.refit(folder / "machine.points.jsonl", name="this-machine")
build.save(profile, folder / "machine.json")
figure_style.save(figure.fit_figure(profile), folder / "fit.png")
display(Image(folder / "fit.png"))
for warning in profile.warnings():
    print("warning:", warning)

# %% [markdown]
# ## 3. Serve for real
#
# Forty short requests, memory for about six of them, priorities drawn anew every fourth step: everybody
# is preempted now and then. Both systems run the policies that the simulator runs.

# %%
rows = [{"format": "fastswitch-workload/1", "timing": "open", "source": "made in this notebook"}]
rows += [
    {
        "request_id": f"r{index}",
        "session_id": f"r{index}",
        "turn": 1,
        "input_tokens": 8 + 5 * index % 17,
        "output_tokens": 12 + 7 * index % 11,
        "arrival_s": round(0.004 * index, 4),
    }
    for index in range(40)
]
(folder / "workload.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
described = {
    "name": "notebook",
    "workload": str(folder / "workload.jsonl"),
    "profile": "a10-llama-3-8b",
    "priority": {"pattern": "random", "frequency": 0.25},
    "pool": {"block_size": 4, "device_blocks": 60, "host_blocks": 600, "aging": "none"},
    "limits": {"max_model_len": 64, "max_num_seqs": 8},
}
(folder / "scenario.yaml").write_text(yaml.safe_dump(described))
runs = []
for system in ("paged", "fastswitch"):
    for repeat in range(3):
        chosen = scenario.load(str(folder / "scenario.yaml"), {"system": system})
        runs.append(folder / f"{system}-{repeat}")
        options = Options(device="cpu", model="random:small")
        found = serve(chosen, options, out=runs[-1], decisions=True, model=target.bench.model)
        metrics = found.summary["metrics"]
    print(f"{system}: {metrics['finished']} turns, {metrics['preemptions']} preemptions")

# %% [markdown]
# ## 4. Predict and compare
#
# The fit has seen steps and copies, never this workload. The bar is 10 %, or one and a half times the spread of
# the three real runs where the machine is noisier than that.

# %%
validation = predict(runs, str(folder / "machine.json"))
[prediction] = validation.predictions
lines = [
    "| system | metric | measured | predicted | error | bar | |",
    "|---|---|---|---|---|---|---|",
]
for line in (*prediction.lines, *prediction.ratios):
    if line.error is not None:
        verdict = "outside" if line.is_within is False else ""
        cells = (
            number(line.measured),
            number(line.predicted),
            percent(line.error),
            percent(line.bar, 0),
        )
        lines.append(f"| {line.system} | {line.metric} | {' | '.join(cells)} | {verdict} |")
display(Markdown("\n".join(lines)))

# %%
for name, picture in (
    ("scatter.png", predict_figure.scatter(prediction)),
    ("residuals.png", predict_figure.residuals(prediction)),
):
    figure_style.save(picture, folder / name)
    display(Image(folder / name))

# %% [markdown]
# Below: whether every decision can be made again from the recorded times, where the simulated decisions part
# from the real ones and which event fell on the other side of a step, and which part of the model each
# error comes from.

# %%
for story in stories(prediction):
    print("-", story)
