"""Every metric of a run once more, the slow and obvious way, from its tables alone.

Nothing of the project is used but the reader of tables: pandas frames, one row per token, stretches of
time cut into pieces. What docs/glossary.md says is written down here a second time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runs import recording

NS = 1_000_000_000
NEEDED = {50.0: 6, 95.0: 72, 99.0: 368, 99.9: 3688}
Stretch = tuple[int, int]


def recomputed(folder: Path) -> dict[str, Any]:
    """All metrics of the recording in a folder."""
    return _Run(recording.load(folder)).metrics()


def _union(stretches: list[Stretch]) -> list[Stretch]:
    found: list[Stretch] = []
    for begin, end in sorted(s for s in stretches if s[1] > s[0]):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _length(stretches: list[Stretch]) -> int:
    return sum(end - begin for begin, end in stretches)


def _common(some: list[Stretch], others: list[Stretch]) -> int:
    """How long both last; each list is a union."""
    return sum(max(0, min(b, d) - max(a, c)) for a, b in some for c, d in others if a < d and c < b)


def _quantile(values: Any, q: float) -> float | None:
    if len(values) < NEEDED.get(q, 1):
        return None
    return float(np.percentile(np.asarray(values, dtype=float), q))


def _s(value: float | None) -> float | None:
    return None if value is None else round(value / NS, 9)


def _key(q: float) -> str:
    return f"p{q:g}".replace(".", "")


class _Run:
    def __init__(self, recorded: recording.Recording) -> None:
        frames = {
            name: recorded.table(name).to_pandas()
            for name in (
                "requests",
                "steps",
                "waits",
                "spans",
                "preemptions",
                "copies",
                "workload",
            )
        }
        self.requests, self.steps, self.waits = frames["requests"], frames["steps"], frames["waits"]
        self.spans, self.losses = frames["spans"], frames["preemptions"]
        self.copies, self.workload = frames["copies"], frames["workload"]
        self.rates = recorded.summary["link_bytes_per_s"]
        r = self.requests
        r["left"] = r["cancel_ns"].fillna(r["end_ns"]).clip(lower=r["arrival_ns"])
        self.live = _union(list(zip(r["arrival_ns"], r["end_ns"], strict=True)))
        s = self.steps
        s["before"] = 0
        for wait in self.waits.itertuples():
            s.loc[s["step"] == wait.before_step, "before"] += wait.end_ns - wait.start_ns
        self.stalls = _union(
            list(zip(s["start_ns"], s["start_ns"] + s["stall_ns"], strict=True))
            + list(zip(self.waits["start_ns"], self.waits["end_ns"], strict=True))
        )
        self.tokens = self._every_token()

    def _every_token(self) -> pd.DataFrame:
        """One row per output token: request, step, when."""
        spans = self.spans[self.spans["kind"] == "token"]
        rows = [
            (span.request_id, step)
            for span in spans.itertuples()
            for step in range(span.first_step, span.last_step + 1)
        ]
        tokens = pd.DataFrame(rows, columns=["request_id", "step"])
        return tokens.merge(self.steps[["step", "end_ns"]], on="step", how="left")

    def metrics(self) -> dict[str, Any]:
        return {
            **self._counts(),
            **self._latency(),
            **self._gaps(),
            **self._throughput(),
            **self._utilisation(),
            **self._swapping(),
            **self._fairness(),
        }

    # ------------------------------------------------------------------ turns

    def _counts(self) -> dict[str, Any]:
        status = self.requests["status"]
        found = {
            name: int((status == name).sum())
            for name in ("finished", "rejected", "cancelled", "unfinished")
        }
        return {"rows": len(status), "steps": len(self.steps), **found}

    def _latency(self) -> dict[str, Any]:
        turns = self.requests[self.requests["status"] != "rejected"]
        found: dict[str, Any] = {}

        def tell(name: str, some: pd.DataFrame, begin: str, end: str, q: float) -> None:
            known = (some[end] - some[begin]).dropna().sort_values().to_numpy()
            gone = some[some[end].isna()]
            waits = (gone["left"] - gone[begin]).to_numpy()
            count = len(known) + len(waits)
            place = (count - 1) * q / 100
            value = above = None
            if count >= NEEDED[q] and math.ceil(place) < len(known):
                value = _quantile([*known, *[known[-1]] * len(waits)], q)
            elif count >= NEEDED[q]:
                above = min(waits.min(), known[-1] if math.floor(place) < len(known) else math.inf)
            found[f"{name}_{_key(q)}_s"], found[f"{name}_{_key(q)}_above_s"] = _s(value), _s(above)

        for q in (50.0, 95.0, 99.0, 99.9):
            tell("ttft", turns, "arrival_ns", "first_token_ns", q)
        tell("ttft_first_turn", turns[turns["turn"] == 1], "arrival_ns", "first_token_ns", 95.0)
        tell("ttft_later_turn", turns[turns["turn"] > 1], "arrival_ns", "first_token_ns", 95.0)
        for q in (50.0, 95.0, 99.0):
            tell("ttft_due", turns, "due_ns", "first_token_ns", q)
        for q in (50.0, 99.0):
            tell("e2e", turns, "arrival_ns", "finish_ns", q)
        each = self.tokens.groupby("request_id")["end_ns"].agg(["min", "max", "size"])
        each = each[each.index.isin(turns["request_id"]) & (each["size"] > 1)]
        tpot = ((each["max"] - each["min"]) // (each["size"] - 1)).to_numpy()
        for q in (50.0, 99.0):
            found[f"tpot_{_key(q)}_s"] = _s(_quantile(tpot, q))
        held = (turns["arrival_ns"] - turns["due_ns"])[turns["arrival_ns"] > turns["due_ns"]]
        return {
            **found,
            "ttft_samples": len(turns),
            "ttft_censored": int(turns["first_token_ns"].isna().sum()),
            "e2e_censored": int(turns["finish_ns"].isna().sum()),
            "waited_for_parent": len(held),
            "waited_for_parent_s": _s(int(held.sum())),
            "waited_for_parent_longest_s": _s(int(held.max()) if len(held) else 0),
        }

    def _gaps(self) -> dict[str, Any]:
        turns = self.requests[self.requests["status"] != "rejected"]["request_id"]
        tokens = self.tokens[self.tokens["request_id"].isin(turns)].sort_values(
            ["request_id", "step"]
        )
        lost = {name: sorted(rows["step"]) for name, rows in self.losses.groupby("request_id")}
        stalled = {
            when: _common(self.stalls, [(0, when)]) for when in sorted(set(tokens["end_ns"]))
        }
        rows = []
        for name, mine in tokens.groupby("request_id"):
            steps, ends = mine["step"].tolist(), mine["end_ns"].tolist()
            for i in range(1, len(steps)):
                is_lost = any(steps[i - 1] < step <= steps[i] for step in lost.get(name, []))
                gap = ends[i] - ends[i - 1]
                rows.append((gap, stalled[ends[i]] - stalled[ends[i - 1]], is_lost))
        gaps = pd.DataFrame(rows, columns=["gap", "stall", "lost"])
        found: dict[str, Any] = {}
        for q in (50.0, 95.0, 99.0, 99.9):
            found[f"tbt_{_key(q)}_s"] = _s(_quantile(gaps["gap"], q))
        for q in (99.0, 99.9):
            found[f"tbt_in_batch_{_key(q)}_s"] = _s(_quantile(gaps["gap"][~gaps["lost"]], q))
        for q in (50.0, 99.0):
            found[f"tbt_preempted_{_key(q)}_s"] = _s(_quantile(gaps["gap"][gaps["lost"]], q))
        return {
            **found,
            "stall_share_p99_gaps": self._around_p99(gaps["gap"], gaps["stall"]),
            "tbt_samples": len(gaps),
            "tbt_preempted_samples": int(gaps["lost"].sum()),
        }

    def _around_p99(self, values: Any, stalls: Any) -> float | None:
        if len(values) < NEEDED[99.0]:
            return None
        low, high = np.percentile(values, [98.5, 99.5])
        band = (values >= low) & (values <= high)
        return round(stalls[band].sum() / values[band].sum(), 6) if values[band].sum() else None

    # ------------------------------------------------------------------ throughput

    def _throughput(self) -> dict[str, Any]:
        r, s = self.requests, self.steps
        per_step = self.tokens.groupby("step").size().reindex(s["step"], fill_value=0).to_numpy()
        made = int(per_step.sum())
        first = r[r["turn"] == 1]["arrival_ns"].sort_values().to_numpy()
        begin, end = int(first[len(first) // 10]), int(first[-1])
        inside = (s["end_ns"] > begin) & (s["end_ns"] <= end)
        done = int(((r["finish_ns"] > begin) & (r["finish_ns"] <= end)).sum())
        asked = self._due()
        served = self.workload.merge(r[["request_id", "status"]], on="request_id")
        wanted = served[
            (served["status"] != "rejected").to_numpy() & (asked > begin) & (asked <= end)
        ]
        spent = s["end_ns"] - s["start_ns"] + s["before"]
        is_there = [
            _common(self.live, [(a, b)]) > 0
            for a, b in zip(s["start_ns"], s["end_ns"], strict=True)
        ]
        worked = (per_step > 0) & (spent > 0).to_numpy()
        milli = per_step[worked] * NS * 1000 // spent.to_numpy()[worked]
        worst = {
            q: None if len(milli) < NEEDED[q] else round(_quantile(milli, 100 - q) / 1000, 3)  # type: ignore[operator]
            for q in (99.0, 99.9)
        }
        return {
            "output_tokens": made,
            "makespan_s": _s(int(r["end_ns"].max() - r["arrival_ns"].min())),
            "throughput_live_tok_s": round(made * NS / _length(self.live), 6),
            "throughput_tok_s": (
                round(int(per_step[inside].sum()) * NS / (end - begin), 6)
                if inside.sum() >= 100
                else None
            ),
            "window_s": _s(end - begin),
            "turns_per_s": round(done * NS / (end - begin), 6),
            "offered_tok_s": round(int(wanted["output_tokens"].sum()) * NS / (end - begin), 6),
            **self._backlog(per_step, begin, end),
            "token_efficiency_tok_s": round(made * NS / int(spent[is_there].sum()), 6),
            "token_efficiency_p99_tok_s": worst[99.0],
            "token_efficiency_p999_tok_s": worst[99.9],
        }

    def _due(self) -> Any:
        """When each row of the workload would be due were every reply there at once."""
        at: dict[str, int] = {}
        latest: dict[str, str] = {}
        for row in self.workload.itertuples():
            parent = row.parent_id or (latest[row.session_id] if row.turn > 1 else "")
            if pd.notna(row.think_s):
                at[row.request_id] = at[parent] + round(row.think_s * NS)
            elif pd.notna(row.gap_s):
                at[row.request_id] = at[parent] + round(row.gap_s * NS)
            else:
                at[row.request_id] = round(row.arrival_s * NS)
            latest[row.session_id] = row.request_id
        return np.array([at[name] for name in self.workload["request_id"]], dtype=np.int64)

    def _backlog(self, per_step: Any, begin: int, end: int) -> dict[str, Any]:
        here = self.requests[self.requests["status"] != "rejected"]
        stretches: list[list[int]] = [[]]
        for i, step in enumerate(self.steps.itertuples()):
            live = (here["arrival_ns"] <= step.start_ns).sum() - (
                here["end_ns"] <= step.start_ns
            ).sum()
            behind = live > max(step.batch, per_step[i])
            if behind and step.start_ns > begin and step.end_ns <= end:
                stretches[-1].append(i)
            elif stretches[-1]:
                stretches.append([])
        time = made = 0
        for rows in filter(None, stretches):
            length = int(self.steps["end_ns"][rows[-1]] - self.steps["start_ns"][rows[0]])
            if length >= 5 * NS:
                time, made = time + length, made + int(per_step[rows].sum())
        return {
            "backlog_share": round(time / (end - begin), 6),
            "capacity_tok_s": round(made * NS / time, 6) if time * 10 >= end - begin else None,
        }

    # ------------------------------------------------------------------ stalls, link, device

    def _utilisation(self) -> dict[str, Any]:
        s, c = self.steps, self.copies
        each = [_common(self.live, [stall]) for stall in self.stalls]
        computing = _union(list(zip(s["start_ns"] + s["stall_ns"], s["end_ns"], strict=True)))
        waited, lived = self._waiting()
        there = [
            _common(self.live, [(a, b)]) > 0
            for a, b in zip(s["start_ns"], s["end_ns"], strict=True)
        ]
        lengths = (s["end_ns"] - s["start_ns"])[there]
        found: dict[str, Any] = {
            "stall_share": round(waited / lived, 6),
            "stall_s": _s(sum(each)),
            "longest_stall_s": _s(max(each, default=0)),
            "gpu_utilisation": round(_common(self.live, computing) / _length(self.live), 6),
            "live_s": _s(_length(self.live)),
            "stall_share_p99_steps": self._around_p99(lengths, s["stall_ns"][there]),
        }
        possible = 0.0
        for way in ("h2d", "d2h"):
            mine = c[c["direction"] == way]
            queue = _union(list(zip(mine["submit_ns"], mine["end_ns"], strict=True)))
            could = self.rates[way] * _length(queue) / NS
            possible += could
            found[f"io_utilisation_{way}"] = (
                round(mine["bytes"].sum() / could, 6) if could else None
            )
            found[f"link_busy_{way}"] = round(_common(self.live, queue) / _length(self.live), 6)
            found[f"io_busy_{way}_s"] = _s(_length(queue))
        blocks = int(c["blocks"].sum())
        return {
            **found,
            "io_utilisation": round(c["bytes"].sum() / possible, 6) if possible else None,
            "stall_ns_per_block": round(sum(each) / blocks, 3) if blocks else None,
            "runs_out": int(c["runs"][c["direction"] == "d2h"].sum()),
        }

    def _waiting(self) -> tuple[int, int]:
        """(waited for copies, lived) over turns that were not rejected, piece of time by piece."""
        waited = lived = 0
        for turn in self.requests[self.requests["status"] != "rejected"].itertuples():
            begin, end = int(turn.arrival_ns), int(turn.left)
            lived += end - begin
            one = _Turn(self, turn.request_id)
            for first, last in _union([*self.stalls, *one.loads]):
                low, high = max(first, begin), min(last, end)
                if high > low:
                    inside = one.edges[bisect_right(one.edges, low) : bisect_left(one.edges, high)]
                    cuts = sorted({low, high, *inside})
                    waited += sum(b - a for a, b in pairwise(cuts) if one.waits(a, b))
        return waited, lived

    # ------------------------------------------------------------------ swapping, fairness

    def _swapping(self) -> dict[str, Any]:
        c, lost = self.copies, self.losses
        out = c["direction"] == "d2h"
        running = lost[lost["was"] == "running"]
        swaps = int((running["mode"] == "swap").sum())
        over = self.requests.set_index("request_id")["end_ns"]
        idle = int((c["submit_ns"][out] >= c["request_id"][out].map(over)).sum())
        waiting = int((lost["was"] == "waiting").sum())
        seen: set[str] = set()
        again = 0
        for span in self.spans.itertuples():
            if span.kind == "token":
                seen.add(span.request_id)
            elif span.request_id in seen:
                again += span.tokens
        return {
            "preemptions": len(running),
            "preemptions_swap": swaps,
            "preemptions_recompute": len(running) - swaps,
            "parkings": waiting + idle,
            "parkings_waiting": waiting,
            "parkings_idle": idle,
            "blocks_out": int(c["blocks"][out].sum()),
            "blocks_in": int(c["blocks"][~out].sum()),
            "copy_jobs": len(c),
            "copy_calls": int(c["calls"].sum()),
            "copy_bytes": int(c["bytes"].sum()),
            "mean_run_blocks": round(c["blocks"].sum() / c["runs"].sum(), 4) if len(c) else None,
            "cached_tokens": int(self.requests["cached_tokens"].sum()),
            "recomputed_tokens": again,
        }

    def _fairness(self) -> dict[str, Any]:
        w = self.workload
        w["client"] = w["client_id"].fillna(w["session_id"])
        w["due"] = self._due()
        asks = w[(w["input_tokens"] > 0) & (w["output_tokens"] > 0)]
        origin = int(asks["due"].min())
        client = w.set_index("request_id")["client"]
        service = pd.concat([self._prompts(), self.tokens.assign(weight=2)])
        service["client"] = service["request_id"].map(client)
        service["window"] = (service["end_ns"] - origin) // (60 * NS)
        got = service.groupby(["window", "client"])["weight"].sum()
        jains, gaps = [], []
        for window, rows in asks.groupby((asks["due"] - origin) // (60 * NS)):
            served = np.array([got.get((window, name), 0) for name in rows["client"].unique()])
            if len(served) < 2:
                continue
            gaps.append(int(served.max() - served.min()))
            if served.any():
                jains.append(served.sum() ** 2 / (len(served) * (served**2).sum()))
        return {
            "jain": round(float(np.mean(jains)), 6) if jains else None,
            "service_gap_max": max(gaps, default=None),
            "service_gap_mean": round(sum(gaps) / len(gaps), 3) if gaps else None,
            "fairness_windows": len(gaps),
            "starvation_age_s": _s(self._starved()),
        }

    def _prompts(self) -> pd.DataFrame:
        """Prompt tokens computed for the first time: request, when, how many."""
        r = self.requests
        left = dict(zip(r["request_id"], r["input_tokens"] - r["cached_tokens"], strict=True))
        ends = self.steps.set_index("step")["end_ns"]
        rows = []
        for span in self.spans[self.spans["kind"] == "prefill"].itertuples():
            new = min(left[span.request_id], span.tokens)
            left[span.request_id] -= new
            rows.append((span.request_id, ends[span.last_step], new))
        return pd.DataFrame(rows, columns=["request_id", "end_ns", "weight"])

    def _starved(self) -> int:
        longest = 0
        times = {name: sorted(rows["end_ns"]) for name, rows in self.tokens.groupby("request_id")}
        for turn in self.requests.itertuples():
            moments = [turn.arrival_ns, *times.get(turn.request_id, []), turn.left]
            waits = [b - a for a, b in pairwise(moments)]
            longest = max(longest, *map(int, waits))
        return longest


class _Turn:
    """One turn: when it waits for a copy."""

    def __init__(self, run: _Run, name: str) -> None:
        self._stalls = run.stalls
        steps = run.steps
        self._start = dict(zip(steps["step"], steps["start_ns"], strict=True))
        self._end = dict(zip(steps["step"], steps["end_ns"], strict=True))
        computes = steps[(steps["batch"] > 0) | (steps["prefill_tokens"] > 0)]
        self._computing = list(zip(computes["end_ns"], computes["step"], strict=True))
        mine = run.spans[run.spans["request_id"] == name]
        self._busy: dict[int, str] = {}  # step -> what it does in it
        for span in mine.sort_values(["first_step", "kind"]).itertuples():
            for step in range(span.first_step, span.last_step + 1):
                self._busy.setdefault(step, span.kind)
        self._tokens = {
            step
            for span in mine[mine["kind"] == "token"].itertuples()
            for step in range(span.first_step, span.last_step + 1)
        }
        self._lost = sorted(run.losses[run.losses["request_id"] == name]["step"])
        copies = run.copies[(run.copies["request_id"] == name) & (run.copies["direction"] == "h2d")]
        self.loads = _union(list(zip(copies["submit_ns"], copies["end_ns"], strict=True)))
        self._back = []
        for copy in copies.itertuples():
            step = steps[steps["start_ns"] <= copy.submit_ns]["start_ns"]
            self._back.append((copy.submit_ns, int(step.max()) if copy.waited_for else copy.end_ns))
        self._token_ends = sorted((self._end[step], step) for step in self._tokens)
        edges = {
            *(self._start[step] for step in self._lost),
            *(at for _, at in self._back),
            *(end for end, _ in self._computing),
            *(edge for stretch in (*self._stalls, *self.loads) for edge in stretch),
        }
        self.edges = sorted(edges)

    def waits(self, begin: int, end: int) -> bool:
        """Whether it waits for a copy all through a piece of time that nothing divides."""
        if any(a <= begin and end <= b for a, b in self.loads):
            return True
        at = bisect_right(self._stalls, (begin, math.inf)) - 1
        if at < 0 or self._stalls[at][1] < end:
            return False
        following = bisect_right(self._computing, (begin, math.inf))
        if following < len(self._computing) and self._computing[following][1] in self._busy:
            return True  # it computes in the step that this piece is in or before
        had = bisect_right(self._token_ends, (begin, math.inf))
        if not had:
            return False
        last = self._token_ends[had - 1][1]
        after = [step for step in self._busy if step > last]
        lost = [self._start[step] for step in self._lost if step > last]
        lost = [at for at in lost if at <= begin]
        if not lost:
            return True  # on the device, while a step is of others' prompts alone
        if not after or self._busy[min(after)] == "prefill":
            return False
        return any(lost[-1] <= submit and at <= begin for submit, at in self._back)
