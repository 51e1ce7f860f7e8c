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
# # How many users does a GPU carry, and what does one more GPU buy?
#
# A service level: 95 % of the turns get their first token within 2 s, and 99 % of the gaps between tokens are at
# most 200 ms. A GPU carries as many users as it can serve through a peak without breaking either. Two profiles of
# Llama-3-8B, both put together from published figures: `a10-llama-3-8b` and `h100-llama-3-8b`.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from fastswitch import in_words, mean_of_runs, ratio_of_runs, style_of, sweep

RUNS = int(os.environ.get("NOTEBOOK_REPEATS", "4"))
SCALE = float(os.environ.get("NOTEBOOK_SCALE", "1"))  # of the peak's length
SLO = {"ttft_p95_s": 2.0, "tbt_p99_s": 0.2}
#: What a user does at the peak: change it to what yours do.
CONVERSATIONS_PER_HOUR = 4
RATE = "workload.rate"
KEEP, FAST, MAJOR = "paged-keep", "fastswitch", "fastswitch-block-major"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The sweeps
#
# A peak of ten minutes on the A10, of a minute and a half on the H100, which serves some thirty times as many in
# that time; both begin empty, with `paper-8b-a10`'s workload and priorities and users who think for three
# seconds between turns. So this is what a peak of that length allows: a load that lasts for hours must be lower,
# and least is known of the H100, whose peak is no longer than a few conversations. Every rate has its own number of
# conversations, so that the peak is as long at every rate. FastSwitch is tried at one rate of the H100 only, well
# beyond what the baseline carries there: a larger one takes longer than a notebook should.


# %%
def peaks(profile, systems, rates, seconds, runs, name):
    """Every system at every rate, for a peak of that length."""
    return sweep(
        {
            "name": name,
            "scenario": "paper-8b-a10",
            "set": {
                "profile": profile,
                "workload.think": "exponential",
                "workload.think_mean_s": 3.0,
            },
            "zip": {
                RATE: rates,
                "workload.conversations": [round(rate * seconds * SCALE) for rate in rates],
            },
            "systems": systems,
            "runs": runs,
        },
        folder / name,
    )


A10 = [0.12, 0.18, 0.24, 0.32]
found = {
    "A10": [peaks("a10-llama-3-8b", [KEEP, FAST, MAJOR], A10, 600, RUNS, "a10")],
    "H100": [
        peaks("h100-llama-3-8b", [KEEP], [7.5, 9.5], 90, min(RUNS, 3), "h100-keep"),
        peaks("h100-llama-3-8b", [FAST, MAJOR], [11.0], 90, min(RUNS, 3), "h100-fast"),
    ],
}
print(sum(one.done for sweeps in found.values() for one in sweeps), "simulations")

# %% [markdown]
# ## How many users
#
# The highest rate of conversations that keeps both limits, run by run, crossed on a straight line between the rates
# tried; then its mean over runs, with its 95 % interval. `>` or `<`: in some run the answer lies
# beyond the rates tried, and the number is the bound alone.


# %%
def carried(gpu):
    """Highest rate within the SLO, a row per system and run."""
    rows = [one.highest(RATE, SLO, along=["workload.conversations"]) for one in found[gpu]]
    return pd.concat(rows).sort_values(["system", "run"])


highest = {gpu: carried(gpu) for gpu in found}


def rates(gpu, system):
    """Highest rates of one system, in the order of its runs."""
    return highest[gpu][highest[gpu]["system"] == system]


def users(gpu, system):
    """Users carried, in words; a bound alone where some run is beyond what was tried."""
    rows = rates(gpu, system)
    bounds = "".join(sorted(set(rows["bound"])))
    each = rows["highest"] * 3600 / CONVERSATIONS_PER_HOUR
    if bounds == ">":
        return f"more than {each.min():.0f}"
    if bounds == "<":
        return f"fewer than {each.max():.0f}"
    return in_words(mean_of_runs(each)) + (f" (bounded {bounds})" if bounds else "")


SYSTEMS = (KEEP, FAST, MAJOR)
print(
    pd.DataFrame({gpu: {name: users(gpu, name) for name in SYSTEMS} for gpu in found}).to_string()
)
print("\nTimes as many as paged-keep, paired by run:")
times = {
    (gpu, name): ratio_of_runs(rates(gpu, name)["highest"], rates(gpu, KEEP)["highest"])
    for gpu in found
    for name in (FAST, MAJOR)
}
for (gpu, name), ratio in times.items():
    bounded = set(rates(gpu, name)["bound"]) | set(rates(gpu, KEEP)["bound"])
    print(f"{gpu:5} {name:24}{'bounds ' if bounded != {''} else ''}{in_words(ratio)}")

# %%
figure, panels = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex="col")
for column, (gpu, sweeps) in enumerate(found.items()):
    for row, (metric, most) in enumerate(SLO.items()):
        panel = panels[row][column]
        for one in sweeps:
            for name in one.results["system"].unique():
                at = sorted(one.results[RATE].unique())
                points = [one.estimate(name, metric, {RATE: rate}) for rate in at]
                values = [
                    point.value if point.value is not None else float("nan") for point in points
                ]
                ends = [p.interval or (at, at) for p, at in zip(points, values, strict=True)]
                spans = [
                    [value - low for value, (low, _) in zip(values, ends, strict=True)],
                    [high - value for value, (_, high) in zip(values, ends, strict=True)],
                ]
                panel.errorbar(at, values, spans, capsize=3, label=name, **style_of(name))
        panel.axhline(most, color="black", lw=0.8)
        panel.set_ylim(bottom=0, top=3.5 * most if row == 0 else 2 * most)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][column].set_title(gpu)
    panels[1][column].set_xlabel("conversations begun per second")
panels[0][0].set_ylabel("TTFT P95, s")
panels[1][0].set_ylabel("TBT P99, s")
figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## One more GPU, or the mechanism?
#
# A second A10 at the same demand, with conversations that stay where they began: each GPU then sees half of them at
# half the rate, and the two know nothing of each other. So they are simulated as two runs with half the
# conversations at half the rate, and the worse of the two counts. Twice the GPUs carry twice the
# users by construction; what is not known before is how far latency falls.

# %%
DEMAND = A10[-2]
halves = peaks("a10-llama-3-8b", [KEEP], [DEMAND / 2], 600, 2 * RUNS, "two-gpus").results
one, other = (halves[halves["run"] % 2 == which].sort_values("run") for which in (0, 1))
METRICS = ("ttft_p50_s", "ttft_p95_s", "tbt_p99_s")
worse = {m: np.maximum(one[m].to_numpy(float), other[m].to_numpy(float)) for m in METRICS}
at = {RATE: DEMAND}
rows = {
    "one GPU, paged-keep": [found["A10"][0].estimate(KEEP, m, at) for m in METRICS],
    "two GPUs, paged-keep": [mean_of_runs(worse[m]) for m in METRICS],
    "one GPU, fastswitch": [found["A10"][0].estimate(FAST, m, at) for m in METRICS],
    "one GPU, fastswitch-block-major": [found["A10"][0].estimate(MAJOR, m, at) for m in METRICS],
}
print(
    pd.DataFrame(
        {
            name: [in_words(e, m) for e, m in zip(row, METRICS, strict=True)]
            for name, row in rows.items()
        },
        index=["TTFT P50", "TTFT P95", "TBT P99"],
    ).T.to_string()
)

# %% [markdown]
# ## The answer, to quote


# %%
def gained(gpu, name):
    """What a mechanism buys, in words."""
    rows = (rates(gpu, name), rates(gpu, KEEP))
    sides = {one: set(row["bound"]) for one, row in zip(("ours", "theirs"), rows, strict=True)}
    ratio = times[gpu, name]
    if sides["ours"] == {">"} and sides["theirs"] == {""}:
        return f"at least {in_words(ratio)} times as many"
    if sides["ours"] | sides["theirs"] == {""}:
        return f"{in_words(ratio)} times as many"
    return "how many times as many is not known"


words = [
    f"TTFT P95 of at most {SLO['ttft_p95_s']:g} s and TBT P99 of at most {SLO['tbt_p99_s'] * 1000:.0f} ms; a user begins"
    f" {CONVERSATIONS_PER_HOUR} conversations an hour; 95 % intervals over {RUNS} runs on the A10,"
    f" {min(RUNS, 3)} on the H100:",
    "",
]
for gpu in found:
    words.append(
        f"- **One {gpu}** carries {users(gpu, KEEP)} users with `{KEEP}`, {users(gpu, FAST)} with `{FAST}`"
        f" ({gained(gpu, FAST)}) and {users(gpu, MAJOR)} with `{MAJOR}` ({gained(gpu, MAJOR)})."
    )
one, two, fast, major = (
    [in_words(e, m) for e, m in zip(row, METRICS, strict=True)] for row in rows.values()
)
words += [
    f"- **A second A10** doubles the users, by construction. At {DEMAND:g} conversations per second, TTFT P95 falls"
    f" from {one[1]} to {two[1]} and TBT P99 from {one[2]} to {two[2]}.",
    f"- **The mechanism instead**, on the one GPU: TTFT P95 {fast[1]} and TBT P99 {fast[2]} with `{FAST}`,"
    f" {major[1]} and {major[2]} with `{MAJOR}`.",
]
display(Markdown("\n".join(words)))
