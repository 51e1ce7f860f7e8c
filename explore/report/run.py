"""The report of one run, simulated or real: what its requests lived through, and why some were slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from explore import words
from explore.report import document, lanes, levels, origin, tails, viewer
from explore.report.anatomy import Gaps, Parts, means_of
from explore.report.clients import Clients
from explore.report.document import Cell
from explore.report.lanes import STATES
from explore.report.lives import Lives
from policy.errors import ConfigError
from runs.metrics import fairness
from runs.metrics.columns import columns_of
from runs.metrics.gaps import pooled, token_gaps
from runs.metrics.served import little_served
from runs.metrics.stats import percentile
from runs.recording import Recording
from traces.strict import shown_path

#: Metrics of the first sentence.
_TOLD = ("ttft_p50_s", "ttft_p99_s", "tbt_p99_s", "tbt_p999_s", "throughput_tok_s")

#: What each number is counted over, where that is not the run as a whole.
_SAMPLES = {"ttft": "ttft_samples", "tbt": "tbt_samples", "tbt_preempted": "tbt_preempted_samples"}


def page(recording: Recording, progress: Callable[[], None] | None = None) -> str:
    """The page. Every string that comes from outside is escaped, or travels as packed data.

    Raises ConfigError for a run that was killed, InputError for a recording that cannot be read.
    """
    where = "" if recording.folder is None else f"{shown_path(recording.folder)}: "
    if not recording.summary.get("is_complete", True):
        raise ConfigError(f"{where}the run was killed; what it recorded of its steps is not whole")
    if "metrics" not in recording.summary:
        raise ConfigError(f"{where}run.json has no metrics; it is not a recording of this program")
    return _Run(recording).page(progress)


class _Run:
    """Everything the page needs, gathered in one pass over the lives."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.facts = recording.summary
        self.metrics: dict[str, Any] = recording.summary["metrics"]
        self.requests = columns_of(recording, "requests")
        self.steps = columns_of(recording, "steps")
        self.spans = columns_of(recording, "spans")
        self.lives = Lives(recording)
        self.shown = lanes.chosen(self.requests)
        self.lanes = lanes.Lanes()
        end = max((int(self.requests[name].max(initial=0)) for name in _ENDS), default=0)
        edges = levels.edges_of(max(self.lives.end_ns, end), self.steps["step"].size)
        self.levels = levels.Levels(edges)
        self.first, self.whole = Parts("first_token_ns"), Parts("finish_ns")
        self.gaps = Gaps(self._long_gap())
        self.clients = Clients(self.requests["client_id"])

    def page(self, progress: Callable[[], None] | None) -> str:
        self._gather(progress)
        data, lane_section = self._lanes()
        sections = [
            ("Requests over time", lane_section),
            ("The slowest 1 %", tails.anatomy(self.first, self.whole, self.gaps, self.shown)),
            (
                "Latency, client by client" if self.clients.is_named else "Latency",
                tails.latency(self.clients),
            ),
            ("All numbers", self._numbers()),
            ("Where this comes from", origin.origin(self.recording)),
        ]
        script = viewer.SCRIPT if data else ()
        return document.document(
            self._title(), sections, opening=self._finding(), script=script, data=data
        )

    def _gather(self, progress: Callable[[], None] | None) -> None:
        both = zip(self.lives, self.lives.with_token_times(), strict=True)
        for number, (life, (row, times)) in enumerate(both):
            if self.shown[number]:
                self.lanes.add(number, life)
            self.levels.add(life)
            self.first.add(number, life)
            self.whole.add(number, life)
            self.gaps.add(number, life, times)
            self.clients.add(row, times)
            if progress is not None:
                progress()

    def _long_gap(self) -> float:
        """The gap that 99 % of all gaps do not exceed; endless with too few of them."""
        preemptions = columns_of(self.recording, "preemptions")
        values, weights = pooled(token_gaps(self.steps, self.spans, preemptions))
        found = percentile(values, 99.0, weights)
        return float("inf") if found is None else found

    # ------------------------------------------------------------------ words

    def _title(self) -> str:
        facts = self.facts
        return (
            f"FastSwitch: {facts.get('scenario')}, {facts.get('system')} under {facts.get('order')}"
        )

    def _finding(self) -> str:
        facts, metrics = self.facts, self.metrics
        parts = [
            f"{words.HEADINGS[name][0]} {words.value(metrics, name)}"
            for name in _TOLD
            if words.is_told(metrics, name)
        ]
        lead = (
            f"{facts.get('system')} served {metrics.get('finished')} of {metrics.get('rows')} turns under"
            f" {facts.get('order')}: {', '.join(parts) or 'too few to say more'}."
        )
        little = little_served(metrics, facts.get("rejected_because"))
        if little is not None:
            lead = f"{little} {lead}"
        return (
            document.paragraph(lead, "lead")
            + document.paragraph(self._why())
            + tails.shares(self.first, self.whole, self.gaps)
            + "".join(document.paragraph(text, "note") for text in self._notes())
        )

    def _why(self) -> str:
        """What the slowest waited for most."""
        slowest = self.first.slowest()
        if not slowest:
            return "No turn finished."
        means = means_of(slowest)
        ranked = sorted(
            ((mean / max(1.0, sum(means)), i) for i, mean in enumerate(means)), reverse=True
        )
        shares = [f"{STATES[i]} {share:.0%}" for share, i in ranked[:3] if share >= 0.005]
        return (
            f"The slowest 1 % ({_turns(len(slowest))}) waited {tails.plain(sum(means))} s for their first token"
            f" on average: {', '.join(shares)} of that time."
        )

    def _notes(self) -> Iterator[str]:
        yield "One run: no interval. Which system is better is a question for fastswitch compare."
        if self.facts.get("verdict"):
            yield f"Did not finish: {self.facts['verdict']}."
        if self.facts.get("was_stopped"):
            yield "The run was interrupted; requests that had not ended are left out of all latencies."
        yield from (f"Warning: {text}." for text in self.facts.get("warnings", ()))

    def _numbers(self) -> str:
        found = []
        for title, names in words.TABLES:
            rows = []
            for name in words.shown(names, [self.metrics]):
                kind = "" if words.is_told(self.metrics, name) else "small"
                value = Cell(words.value(self.metrics, name), kind)
                rows.append((words.HEADINGS[name][0], value, self._samples(name)))
            table = document.table(title, ["metric", "value", "n"], rows)
            found.append(document.details(title, table + document.items(words.explained(names))))
        return "".join(found)

    def _samples(self, name: str) -> str:
        if name == "jain" or name.startswith("service_gap"):
            return f"{self.metrics.get('fairness_windows', 0)} windows"
        key = next((key for key in sorted(_SAMPLES, reverse=True) if name.startswith(key)), None)
        if key is None:
            return ""
        if name.startswith("tbt_in_batch"):
            return str(self.metrics["tbt_samples"] - self.metrics["tbt_preempted_samples"])
        return str(self.metrics.get(_SAMPLES[key], ""))

    # ------------------------------------------------------------------ lanes

    def _lanes(self) -> tuple[dict[str, bytes], str]:
        if not self.steps["step"].size:
            return {}, document.paragraph("No step was made.")
        copies = self.lives.copies
        series = levels.series_of(self.recording, self.levels, self.steps, copies)
        shares, scale = levels.packed(series, self.levels.edges)
        workload = columns_of(self.recording, "workload")
        windows = fairness.windows(workload, self.requests, self.steps, self.spans)
        facts = {
            "states": STATES,
            "series": scale,
            "window": fairness.WINDOW_NS // 1000,
            "jain": [
                [one.begin_ns // 1000, None if one.jain is None else round(one.jain, 4), one.gap]
                for one in windows
            ],
        }
        data, limit = self.lanes.packed(facts)
        return {**data, "series": shares}, viewer.viewer(self._lane_notes(limit))

    def _lane_notes(self, limit: int) -> list[str]:
        notes = []
        drawn, total = int(self.shown.sum()), self.shown.size
        if drawn < total:
            notes.append(
                f"{drawn} of {total} requests are drawn: the slowest, and others spread evenly over the"
                " rest. Everything below the lanes, and every number on this page, is of all of them."
            )
        if limit:
            notes.append(
                f"States shorter than {limit / 1000:g} ms are drawn as part of the one before; all"
                " numbers outside the lanes count them."
            )
        return notes


_ENDS = ("finish_ns", "cancel_ns", "arrival_ns")


def _turns(count: int) -> str:
    return "1 turn" if count == 1 else f"{count} turns"
