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
# # How much head start? Fairness against thrash
#
# A virtual token counter (VTC) serves the client that has received least. Taken to the token, it would swap
# conversations on every difference of one token, so a request that is on the device counts as `head_start` weighted
# tokens less served (a prompt token weighs 1, an output token 2). No head start is fairest on paper; a large one
# hardly preempts. Somewhere between is a knee, which this notebook looks for.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from fastswitch import in_words, sweep

RUNS = int(os.environ.get("NOTEBOOK_REPEATS", "6"))
CONVERSATIONS = int(os.environ.get("NOTEBOOK_CONVERSATIONS", "150"))

# %% [markdown]
# ## The sweep
#
# Thirty clients with Zipf shares i^-0.5 of 150 conversations, on `paper-8b-a10`'s machine with `fastswitch`. They
# begin at twice the rate the machine can serve, and users think for two seconds: fairness matters only where
# there is not enough for all. First come, first served and the replayed priority traces `random` and `markov` know
# of no clients and stand beside it. All see the same conversations, run by run.

# %%
HEAD_STARTS = [0, 60, 250, 1000, 4000, 16000]
VTC = [{"order": "vtc", "vtc.head_start": start} for start in HEAD_STARTS]
OTHERS = [{"order": order} for order in ("fcfs", "random", "markov")]


def label(setting):
    """A setting's name in the tables."""
    return f"vtc {setting['vtc.head_start']}" if setting in VTC else setting["order"]


found = sweep(
    {
        "name": "fairness",
        "scenario": "paper-8b-a10",
        "set": {
            "workload.conversations": CONVERSATIONS,
            "workload.rate": 0.4,
            "workload.arrivals": {
                "law": "clients",
                "clients": 30,
                "skew": 0.5,
                "cv_log_mean": 0.0,
                "cv_log_deviation": 0.0,
            },
            "workload.think": "exponential",
            "workload.think_mean_s": 2.0,
            "system": "fastswitch",
        },
        "scenarios": [{"name": label(setting), "set": setting} for setting in VTC + OTHERS],
        "runs": RUNS,
    },
    Path(tempfile.mkdtemp()) / "fairness",
)
print(f"{found.done} simulations, {found.failed} failed")

# %% [markdown]
# ## What each setting gives
#
# Means over the runs, with their 95 % interval. Jain's index and the service gap are taken over windows of a minute,
# among clients of which a turn would be due in it if every reply were there at once: the same windows and clients for
# every setting. The gap is in weighted tokens, the mean over windows.

# %%
COLUMNS = {
    "jain": "Jain",
    "service_gap_mean": "service gap",
    "preemptions": "preemptions",
    "copy_bytes": "moved",
    "stall_share": "stalls",
    "ttft_p50_s": "TTFT P50",
    "ttft_p95_s": "TTFT P95",
    "tbt_p99_s": "TBT P99",
}
SETTINGS = [label(setting) for setting in VTC + OTHERS]


def estimate(setting, metric):
    """One number of one setting."""
    return found.estimate("fastswitch", metric, {"scenario": setting})


def said(setting, metric):
    """The same, to read."""
    return in_words(estimate(setting, metric), metric)


table = pd.DataFrame(
    {title: [said(name, metric) for name in SETTINGS] for metric, title in COLUMNS.items()},
    index=SETTINGS,
)
print(table.to_string())

# %% [markdown]
# ## The same, paired
#
# Every run against the same run without a head start: times better (for preemptions and bytes: times fewer).
# Differences between conversations of one run and another fall out, so these intervals are narrower.

# %%
PAIRED = ("service_gap_mean", "preemptions", "copy_bytes", "stall_share", "ttft_p95_s", "tbt_p99_s")


def gain(setting, metric):
    """How many times better than no head start."""
    one, other = {"scenario": setting}, {"scenario": "vtc 0"}
    return found.speedup("fastswitch", "fastswitch", metric, one, other)


print(
    pd.DataFrame(
        {COLUMNS[m]: [in_words(gain(name, m)) for name in SETTINGS[1:]] for m in PAIRED},
        index=SETTINGS[1:],
    ).to_string()
)

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
DRAWN = {
    "service_gap_mean": ("service gap", "weighted tokens"),
    "preemptions": ("preemptions", "a run"),
    "ttft_p95_s": ("TTFT P95", "seconds"),
}
for panel, (metric, (title, unit)) in zip(panels, DRAWN.items(), strict=True):
    points = [estimate(name, metric) for name in SETTINGS[: len(VTC)]]
    middle = [float("nan") if point.value is None else point.value for point in points]
    ends = [point.interval or (at, at) for point, at in zip(points, middle, strict=True)]
    spans = [
        [at - low for at, (low, _) in zip(middle, ends, strict=True)],
        [high - at for at, (_, high) in zip(middle, ends, strict=True)],
    ]
    panel.errorbar(range(len(VTC)), middle, spans, fmt="o-", capsize=3, label="vtc")
    for other, style in zip(SETTINGS[len(VTC) :], (":", "--", "-."), strict=True):
        level = estimate(other, metric).value
        if level is not None:
            panel.axhline(level, color="black", lw=1, ls=style, label=other)
    panel.set(title=title, ylabel=unit, xlabel="head start, weighted tokens")
    panel.set_xticks(range(len(VTC)), [str(start) for start in HEAD_STARTS])
    panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## The answer, to quote

# %%


def step(name, metric):
    """What a head start changes, in words; nothing where no difference is shown."""
    ratio = gain(name, metric)
    if not (ratio.is_better or ratio.is_worse):
        return f"no difference shown, {in_words(ratio)}"
    return f"{'better' if ratio.is_better else 'worse'}, {in_words(ratio)}"


# Up to the knee preemptions fall and no loss of fairness shows.
free = []
for name in SETTINGS[1 : len(VTC)]:
    if gain(name, "service_gap_mean").is_worse or not gain(name, "preemptions").is_better:
        break
    free.append(name)
lines = [f"Against no head start, {RUNS} paired runs, 95 % intervals:", ""]
for name in SETTINGS[1 : len(VTC)]:
    lines.append(
        f"- **{name.replace('vtc', 'head start')}.** Preemptions: {step(name, 'preemptions')}; bytes moved:"
        f" {step(name, 'copy_bytes')}; TBT P99: {step(name, 'tbt_p99_s')}; service gap:"
        f" {step(name, 'service_gap_mean')}; TTFT P95: {step(name, 'ttft_p95_s')}."
    )
knee = "none that was tried"
if free:
    best = free[-1]
    knee = (
        f"{best.removeprefix('vtc ')} weighted tokens, with {said(best, 'preemptions')} preemptions a run, TBT P99"
        f" {said(best, 'tbt_p99_s')} and TTFT P95 {said(best, 'ttft_p95_s')}"
    )
lines += [
    "",
    f"The largest head start that spares preemptions without a loss of fairness that these runs can show: {knee}."
    f" Without a head start `vtc` preempts {said('vtc 0', 'preemptions')} times a run and moves"
    f" {said('vtc 0', 'copy_bytes')}, with {HEAD_STARTS[-1]} {said(SETTINGS[len(VTC) - 1], 'preemptions')} times and"
    f" {said(SETTINGS[len(VTC) - 1], 'copy_bytes')}. `random` priorities preempt {said('random', 'preemptions')} times"
    f" and have a TBT P99 of {said('random', 'tbt_p99_s')}; `markov` ones leave a gap of"
    f" {said('markov', 'service_gap_mean')} between clients, `vtc` without a head start"
    f" {said('vtc 0', 'service_gap_mean')}, `fcfs` {said('fcfs', 'service_gap_mean')}, with TTFT P95"
    f" {said('markov', 'ttft_p95_s')}, {said('vtc 0', 'ttft_p95_s')} and {said('fcfs', 'ttft_p95_s')}.",
]
display(Markdown("\n".join(lines)))
