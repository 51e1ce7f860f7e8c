"""The report of a sweep: which points are on the frontier, and where which system is better."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from explore import words
from explore.report import chart, document, pareto, response
from explore.report.comparison import estimate_cell, ratio_cell
from explore.report.document import Cell, Head
from explore.report.pareto import Candidate
from explore.report.response import Answer
from explore.studies import sweep_tables
from explore.studies.estimates import SPEEDUPS, Estimate, Ratio
from explore.studies.plan import Plan
from explore.studies.store import Store

_SHOWN = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p99_s",
    "tbt_p999_s",
    *pareto.THROUGHPUTS,
    "preemptions",
)
_RATIOS = tuple(
    metric for metric in SPEEDUPS if metric not in ("ttft_p50_s", "tbt_in_batch_p999_s")
)

#: Most rows of a table, and most values of a knob that has a filter.
MAX_ROWS = 400
MAX_CHOICES = 40


class _Group(NamedTuple):
    """One system at one point of the sweep."""

    point: int
    values: dict[str, Any]
    label: str
    system: str
    estimates: dict[str, Estimate]
    runs: int


def page(store: Store, plan: Plan, answer: str = "") -> str:
    """The page, made of the results alone; that of a search opens with its `answer`. Raises InputError,
    FaultError."""
    return _Page(store, plan).text(answer)


class _Page:
    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan = store, plan
        self.made = sweep_tables.make(store, plan)
        self.results = _rows(self.made.texts[sweep_tables.RESULTS])
        self.places = {trial.point: trial for trial in plan.trials}
        self.systems = list(dict.fromkeys(trial.system for trial in plan.trials))
        self.knobs = self._knobs()
        self.groups = list(self._groups())
        self.ratios = list(self._ratios())

    def text(self, answer: str) -> str:
        sections = [
            ("Latency against throughput", self._frontiers()),
            ("All numbers", self._tables()),
            ("What failed", self._failures()),
            ("Where this comes from", self._provenance()),
        ]
        return document.document(
            f"FastSwitch {'search' if answer else 'sweep'}: {self.plan.name}",
            sections,
            opening=f"{answer}{self._state()}" if answer else self._finding(),
            script=("filter.js",) if self.knobs else (),
        )

    # ------------------------------------------------------------------ numbers

    def _groups(self) -> Iterator[_Group]:
        found: dict[tuple[int, str], dict[str, Estimate]] = {}
        runs: dict[tuple[int, str], int] = {}
        for row in _rows(self.made.texts[sweep_tables.ESTIMATES]):
            key = int(row["point"]), row["system"]
            found.setdefault(key, {})[row["metric"]] = Estimate(
                _number(row["mean"]), _number(row["half"]), _number(row["above"])
            )
            runs[key] = int(row["runs"])
        for (point, system), estimates in found.items():
            trial = self.places[point]
            whole = {
                name: estimates.get(name, Estimate(None)) for name in {*_SHOWN, *pareto.METRICS}
            }
            yield _Group(point, trial.values, trial.label, system, whole, runs[point, system])

    def _ratios(self) -> Iterator[tuple[int, str, str, dict[str, Ratio]]]:
        found: dict[tuple[int, str, str], dict[str, Ratio]] = {}
        for row in _rows(self.made.texts[sweep_tables.RATIOS]):
            key = int(row["point"]), row["system"], row["against"]
            found.setdefault(key, {})[row["metric"]] = Ratio(
                *(_number(row[name]) for name in ("ratio", "factor", "p", "above", "below"))
            )
        yield from ((*key, ratios) for key, ratios in found.items())

    # ------------------------------------------------------------------ words

    def _finding(self) -> str:
        told = [
            text
            for metric in ("ttft_p99_s", "ttft_p95_s", "tbt_p999_s")
            if (text := self._where_better(metric))
        ]
        lead = told[:1] or ["Nothing can be said yet of which system is better."]
        return (
            document.paragraph(lead[0], "lead")
            + self._response()
            + "".join(map(document.paragraph, told[1:]))
            + self._state()
        )

    def _response(self) -> str:
        """The tail of TTFT over the first number that was swept."""
        knob = response.knob_of([trial.values for trial in self.places.values()])
        if knob is None:
            return ""
        candidates = [Candidate("", one.system, one.estimates) for one in self.groups]
        metrics = dict.fromkeys(pareto.common(candidates, names) for names in pareto.LATENCIES)
        made, held = [], ""
        for metric in metrics:
            answers = [
                Answer({"scenario": one.label, **one.values}, one.system, one.estimates[metric])
                for one in self.groups
            ]
            mine, held = response.along(answers, knob)
            picture = response.picture(mine, knob, metric)
            made += [] if picture is None else [chart.svg(picture)]
        caption = "Means over runs; bands and crosses: 95 % intervals."
        caption += f" Where all else is {held}." if held else ""
        return document.side_by_side(made, caption)

    def _state(self) -> str:
        """How much of it there is, and what that means."""
        total = len(self.plan.trials)
        missing = total - self.made.done - self.made.failed
        told = (
            f"{len(self.places)} points, {len(self.systems)} systems: {self.made.done} of {total} trials"
            f" done, {self.made.failed} failed, {missing} missing."
        )
        notes = []
        if missing or self.made.failed:
            notes.append("A point with a trial that failed or is missing has no mean and no ratio.")
        if max((group.runs for group in self.groups), default=0) < 2:
            notes.append(
                "One run a point: no intervals, so nothing can be said of which is better."
            )
        return document.paragraph(told) + "".join(
            document.paragraph(text, "note") for text in notes
        )

    def _where_better(self, metric: str) -> str:
        """At how many points a system is surely better (Holm over the point's systems), and where most."""
        parts = []
        for system in self.systems[1:]:
            mine = [
                (ratios[metric], point, against)
                for point, name, against, ratios in self.ratios
                if name == system
            ]
            known = [one for one in mine if one[0].value is not None and one[0].factor is not None]
            if not known:
                continue
            better = sum(one[0].is_better for one in known)
            worse = sum(one[0].is_worse for one in known)
            against = known[0][2]
            if not better and not worse:
                parts.append(f"no difference between {system} and {against} is sure at any point")
                continue
            told = f"{system} is surely better than {against} at {better or 'none'} of {len(known)} points"
            told += f" and surely worse at {worse or 'none'}"
            if better:
                most = max(
                    (one for one in known if one[0].is_better), key=lambda one: one[0].value or 0.0
                )
                told += f", most at {self._told(most[1])} ({words.ratio(most[0])})"
            parts.append(told)
        return f"In {words.HEADINGS[metric][0]}, {'; '.join(parts)}." if parts else ""

    def _told(self, point: int) -> str:
        trial = self.places[point]
        told = [trial.label] if trial.label else []
        told += [f"{path}={_shown(value)}" for path, value in trial.values.items()]
        return ", ".join(told) or "its only point"

    # ------------------------------------------------------------------ pictures and tables

    def _frontiers(self) -> str:
        candidates = [
            Candidate(
                f"{one.system}, {self._told(one.point)}",
                one.system,
                one.estimates,
                self._attributes(one.point, one.system),
            )
            for one in self.groups
        ]
        return self._filters() + pareto.figures(candidates, self.systems)

    def _filters(self) -> str:
        """One choice for every knob that has few values; the script shows what fits."""
        parts: list[str] = []
        for name, values in self.knobs:
            options = "".join(
                f'<option value="{i}">{escape(text)}</option>' for i, text in enumerate(values)
            )
            parts.append(
                f'<label>{escape(name)} <select data-knob="{len(parts)}"><option value="">all</option>'
                f"{options}</select></label>"
            )
        if not parts:
            return ""
        return (
            f'<div class="tools" id="filters" role="group" aria-label="Show only" hidden>{"".join(parts)}'
            '<span id="count" role="status"></span></div>'
        )

    def _knobs(self) -> list[tuple[str, list[str]]]:
        found = []
        columns: list[tuple[str, list[str]]] = [("system", self.systems)]
        if self.plan.has_labels:
            columns.append(("scenario", [trial.label for trial in self.places.values()]))
        for path in self.plan.paths:
            columns.append(
                (path, [_shown(trial.values.get(path)) for trial in self.places.values()])
            )
        for name, values in columns:
            distinct = list(dict.fromkeys(values))
            if 1 < len(distinct) <= MAX_CHOICES:
                found.append((name, distinct))
        return found

    def _attributes(self, point: int, system: str) -> str:
        """Numbers alone: which choice of every knob this is."""
        trial = self.places[point]
        mine = {"system": system, "scenario": trial.label} | {
            path: _shown(value) for path, value in trial.values.items()
        }
        chosen = [
            values.index(mine[name]) if mine.get(name) in values else -1
            for name, values in self.knobs
        ]
        return f' data-knobs="{",".join(map(str, chosen))}"'

    def _tables(self) -> str:
        tables = {
            "Points": self._points(),
            "Times better than the first system of a point": self._speedups(),
        }
        return "".join(document.details(title, text) for title, text in tables.items() if text)

    def _points(self) -> str:
        on_it = self._on_frontier()
        order = sorted(range(len(self.groups)), key=lambda i: not on_it[i])[:MAX_ROWS]
        rows, attributes = [], []
        for i in sorted(order):
            one = self.groups[i]
            rows.append(
                [
                    Cell(self._told(one.point)),
                    Cell(one.system),
                    Cell("yes" if on_it[i] else "", "better"),
                    *(estimate_cell(one.estimates[name], name) for name in _SHOWN),
                    Cell(str(one.runs)),
                ]
            )
            attributes.append(self._attributes(one.point, one.system))
        header: list[Head | str] = [
            "point",
            "system",
            "on a frontier",
            *map(document.metric, _SHOWN),
            "runs",
        ]
        return _cut(len(self.groups), "results.csv and estimates.csv have all") + document.table(
            "Means over runs, with half of the 95 % interval", header, rows, attributes
        )

    def _on_frontier(self) -> list[bool]:
        candidates = [Candidate("", one.system, one.estimates) for one in self.groups]
        both = [
            pareto.frontier(candidates, pareto.common(candidates, names))
            for names in pareto.LATENCIES
        ]
        return [any(pair) for pair in zip(*both, strict=True)]

    def _speedups(self) -> str:
        rows, attributes = [], []
        ranked = sorted(self.ratios, key=lambda one: -(one[3]["ttft_p99_s"].value or 0.0))
        for point, system, against, ratios in ranked[:MAX_ROWS]:
            cells = [Cell(self._told(point)), Cell(system), Cell(against)]
            cells += [ratio_cell(ratios[metric]) for metric in _RATIOS]
            rows.append(cells)
            attributes.append(self._attributes(point, system))
        if not rows:
            return ""
        header: list[Head | str] = [
            "point",
            "system",
            "against",
            *(document.metric(m, unit=False) for m in _RATIOS),
        ]
        return _cut(len(self.ratios), "ratios.csv has all") + document.table(
            "Paired by run, with 95 % intervals; coloured where the whole interval says so",
            header,
            rows,
            attributes,
        )

    def _failures(self) -> str:
        counted = Counter(row["reason"] for row in self.results if row["status"] == "failed")
        return document.items(f"{count} trials: {why}" for why, count in counted.most_common(20))

    def _provenance(self) -> str:
        sessions = self.store.sessions()
        last = sessions[-1] if sessions else {}
        command = last.get("command")
        pairs = [
            ("plan", self.plan.digest[:16]),
            ("results", self.made.digest[:16]),
            ("semantics", self.plan.semantics),
            ("sessions", len(sessions)),
            ("last session (UTC)", last.get("began")),
            ("commit", last.get("commit")),
        ]
        folder = str(self.store.folder)
        is_ours = isinstance(command, str) and command.startswith("fastswitch")
        lines = [str(command)] if is_ours else []
        lines += [f"fastswitch sweep status {folder}", f"fastswitch report {folder}"]
        return (
            document.facts(pairs)
            + document.paragraph(
                "study.sqlite has every trial and result, each under a key of what it depends on."
            )
            + document.commands(lines)
        )


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _number(text: str) -> float | None:
    value = float(text) if text else None
    return value if value is None or math.isfinite(value) else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _cut(count: int, where: str) -> str:
    if count <= MAX_ROWS:
        return ""
    return document.paragraph(f"{MAX_ROWS} of {count} rows, the best first; {where}.", "note")
