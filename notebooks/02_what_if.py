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
# # What if a copy call were cheaper, or the KV layout another? When block groups still pay
#
# FastSwitch's block groups merge the copies of neighbouring blocks, so that fewer calls are made. What that is
# worth hangs on what one call costs, and on how many pieces a block has. Nobody has published the cost of a
# call on an A10, so this notebook sweeps it over the figures that were published elsewhere:
#
# | microseconds per call | whose |
# | --- | --- |
# | 0.5 | `cuMemcpyBatchAsync` on an H100, per descriptor (vLLM PR 48434) |
# | 2.3 | `cudaMemcpyAsync` on an H20 (FlexKV PR 193) |
# | 5.5 | the same on an MI300X (vLLM PR 40549) |
# | 10 | a simulator that models FastSwitch |
#
# Each cost is tried on vLLM 0.3.3's layout, where a block of Llama-3-8B is 64 pieces, and on a block-major one,
# where it is one piece; with synchronous swapping, and with all of FastSwitch.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from fastswitch import in_words, sweep

RUNS = int(os.environ.get("NOTEBOOK_REPEATS", "5"))
CONVERSATIONS = int(os.environ.get("NOTEBOOK_CONVERSATIONS", "120"))
COST = "profile_values.transfer.per_call"  # nanoseconds

# %% [markdown]
# ## The sweep
#
# `paper-8b-a10` at its own rate and Markov priorities, made small: 120 conversations that begin within ten
# minutes, and users who think for five seconds on average, since with people's think times (minutes, up to an
# hour) so few conversations would never meet. Pools are aged as in the scenario. It is a terminating study: from
# an empty machine until all are served. All systems and costs see the same conversations and priorities, run by run, so
# ratios are paired.

# %%
COSTS = [500, 2300, 5500, 10000]
ON_BLOCK_MAJOR = {"name": "+block-major+groups", "base": "+groups", "layout": "block_major"}
SYSTEMS = [
    "paged-keep",
    "+groups",
    "+block-major",
    "+batched",
    ON_BLOCK_MAJOR,
    "fastswitch-no-groups",
    "fastswitch",
    "fastswitch-block-major",
]
found = sweep(
    {
        "name": "what-if",
        "scenario": "paper-8b-a10",
        "set": {
            "workload.conversations": CONVERSATIONS,
            "workload.think": "exponential",
            "workload.think_mean_s": 5.0,
        },
        "grid": {COST: COSTS, "system": SYSTEMS},
        "runs": RUNS,
    },
    Path(tempfile.mkdtemp()) / "what-if",
)
print(f"{found.done} simulations, {found.failed} failed")

# %% [markdown]
# ## What each system makes of each cost
#
# Means over the runs, with their 95 % interval. Stall share: of all turns' lives, the time in which they wait for a
# copy.

# %%
METRICS = {"ttft_p95_s": "TTFT P95", "ttft_p99_s": "TTFT P99", "stall_share": "stall share"}
names = list(found.results["system"].unique())


def table(metric, rows, cell):
    """Rows by costs."""
    columns = {f"{cost / 1000:g} us": [cell(row, metric, cost) for row in rows] for cost in COSTS}
    return pd.DataFrame(columns, index=rows.keys() if isinstance(rows, dict) else rows)


for metric, title in METRICS.items():
    cells = table(
        metric, names, lambda name, m, cost: in_words(found.estimate(name, m, {COST: cost}), m)
    )
    print(f"{title}\n{cells.to_string()}\n")

# %% [markdown]
# ## What groups add, times better
#
# The first three pairs differ in block groups alone. The others set groups against what else could be done
# about the calls; the last changes the layout of a FastSwitch that has groups. Paired by run, with the 95 %
# interval; an interval that holds 1 shows no difference. Each interval stands for itself: of forty, two would
# miss by chance. Below 2.3 us the cost of a call no longer matters on vLLM's layout: its pieces of 32 KiB take
# the link that long in this profile.

# %%
PAIRS = {
    "vLLM's layout, synchronous": ("+groups", "paged-keep"),
    "vLLM's layout, FastSwitch": ("fastswitch", "fastswitch-no-groups"),
    "block-major, synchronous": ("+block-major+groups", "+block-major"),
    "groups, not block-major": ("+groups", "+block-major"),
    "groups, not batched calls": ("+groups", "+batched"),
    "FastSwitch on block-major": ("fastswitch-block-major", "fastswitch"),
}


def worth(pair, metric, cost):
    """What groups are worth at one cost of a call."""
    return found.speedup(*PAIRS[pair], metric, {COST: cost})


for metric, title in METRICS.items():
    cells = table(metric, PAIRS, lambda *place: in_words(worth(*place)))
    print(f"{title}\n{cells.to_string()}\n")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
microseconds = [cost / 1000 for cost in COSTS]
for index, pair in enumerate(list(PAIRS)[:4]):
    for panel, metric in zip(panels, ("ttft_p95_s", "stall_share"), strict=True):
        ratios = [worth(pair, metric, cost) for cost in COSTS]
        middle = [ratio.value or float("nan") for ratio in ratios]
        factors = [ratio.factor or 1 for ratio in ratios]
        spans = [
            [m - m / f for m, f in zip(middle, factors, strict=True)],
            [m * f - m for m, f in zip(middle, factors, strict=True)],
        ]
        places = [at * (1 + 0.05 * (index - 1.5)) for at in microseconds]
        panel.errorbar(
            places, middle, spans, fmt=("o-", "^--", "s-.", "D:")[index], capsize=3, label=pair
        )
for panel, title in zip(panels, ("TTFT P95", "stall share"), strict=True):
    panel.axhline(1, color="black", lw=0.8)
    panel.set(xscale="log", yscale="log", xlabel="microseconds per call", title=title)
    panel.set_xticks(microseconds, [f"{at:g}" for at in microseconds])
    ticks = [t for t in (0.5, 1, 2, 3, 5, 10) if panel.get_ylim()[0] <= t <= panel.get_ylim()[1]]
    panel.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("times better")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# ## The answer, to quote

# %%


def verdict(pair, metric):
    """At which costs an interval says that the first of a pair pays, or that it costs."""
    told = []
    for says, word in (("is_better", "better"), ("is_worse", "worse")):
        at = [
            f"{cost / 1000:g} us, {in_words(worth(pair, metric, cost))}"
            for cost in COSTS
            if getattr(worth(pair, metric, cost), says)
        ]
        told += [f"{word} at {'; at '.join(at)}"] if at else []
    return f"{METRICS[metric]}: " + ("; ".join(told) or "no difference shown at any cost")


lines = [
    f"By the cost of one copy call, times better with 95 % interval over {RUNS} paired runs:",
    "",
]
for pair, (ours, theirs) in PAIRS.items():
    lines.append(
        f"- **{pair}** (`{ours}` against `{theirs}`). "
        + ". ".join(verdict(pair, m) for m in METRICS)
        + "."
    )
lines += [
    "",
    f"Stalls take {in_words(found.estimate('paged-keep', 'stall_share', {COST: COSTS[0]}), 'stall_share')}"
    f" of turns' lives in `paged-keep` at {COSTS[0] / 1000:g} us per call, and"
    f" {in_words(found.estimate('paged-keep', 'stall_share', {COST: COSTS[-1]}), 'stall_share')} at"
    f" {COSTS[-1] / 1000:g} us; in `+block-major`"
    f" {in_words(found.estimate('+block-major', 'stall_share', {COST: COSTS[-1]}), 'stall_share')} at the latter.",
]
display(Markdown("\n".join(lines)))
