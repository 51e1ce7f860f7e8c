"""A reproduction as Markdown, text and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from explore.reproduce.judge import Cell, Verdict
from explore.reproduce.run import Reproduction, Session
from explore.reproduce.study import Found
from explore.reproduce.tables import Table, all_tables
from explore.studies.estimates import Estimate, Ratio
from explore.studies.tables import text_table
from explore.words import HEADINGS, TOO_SMALL, ratio, scaled

#: Start of a metric's name, where its number of samples is, and what these are.
SAMPLES = (
    ("ttft", "ttft_samples", "turns"),
    ("tbt", "tbt_samples", "gaps"),
    ("stall_share_p99_gaps", "tbt_samples", "gaps"),
    ("token_efficiency", "steps", "steps"),
)
#: So many other settings are named.
MAX_WHERE = 5
#: So many cells are told one by one; of more, the smallest and the largest.
MAX_TOLD = 4


def as_text(found: Reproduction) -> str:
    """For a terminal: a line for every claim."""
    rows = [
        [one.claim.row, one.claim.said, ours(one).replace("<br>", "; "), one.word]
        for one in found.verdicts
    ]
    return "\n".join([text_table(["claim", "theirs", "ours", "verdict"], rows), *notes(found)])


def as_markdown(found: Reproduction) -> str:
    """claims.md: the claims, then everything they rest on."""
    claims = Table(
        "Claims",
        "Ours: times better (or the share), paired by run, with 95 % interval. The last columns: at which"
        " costs of a copy call, and at which other settings, the claim would be reproduced, or hold in"
        " some of its cells (2 of 4).",
        (
            "claim",
            "theirs",
            "source",
            "ours",
            "samples",
            "verdict",
            "why",
            "copy call",
            "other settings",
        ),
        tuple(_claim_row(one, found.found) for one in found.verdicts),
    )
    parts = [markdown(claims)]
    parts += [markdown(table) for table in all_tables(found.found, full=found.full)]
    parts.append(markdown(_cells(found.verdicts)))
    parts.append("\n".join(f"- {note}" for note in notes(found)))
    return "\n\n".join(parts) + "\n"


def markdown(table: Table) -> str:
    """A table under its heading."""
    lines = [f"## {table.title}", "", table.note, ""]
    lines.append(f"| {' | '.join(table.header)} |")
    lines.append("|" + " --- |" * len(table.header))
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join(lines)


def _claim_row(one: Verdict, found: Found) -> tuple[str, ...]:
    claim = one.claim
    row = f"{claim.row} ({claim.note})" if claim.note else claim.row
    calls = ", ".join(place.words for place in one.where if place.group == "dispatch")
    return (
        row,
        claim.said,
        claim.source,
        ours(one),
        _samples(one, found),
        f"**{one.word}**",
        one.why,
        calls,
        _elsewhere(one),
    )


def _samples(one: Verdict, found: Found) -> str:
    """How many turns, gaps or steps stand behind the percentiles of the thinnest run, and how many runs."""
    kinds = {
        words: name
        for metric in one.claim.metrics
        for start, name, words in SAMPLES
        if metric.startswith(start)
    }
    places = {cell.place for cell in one.cells}
    places |= {
        p for p in found.places(one.claim.group) if one.trend and p.setup in one.claim.setups
    }
    runs = [held for place in places for held in found.results[place].values()]
    if not runs:
        return ""
    told = []
    for words, name in kinds.items():
        least = min(run["metrics"][name] for held in runs for run in held)
        told.append(f"{least:,} {words}")
    return ", ".join([*told, f"{min(map(len, runs))} runs"])


def _elsewhere(one: Verdict) -> str:
    """The settings in which most of it would hold, and how many more there are."""
    others = [place for place in one.where if place.group != "dispatch"]
    others.sort(key=lambda place: (not place.is_whole, -place.held / place.cells))
    told = [
        place.words
        if place.group == place.variant or not place.variant
        else f"{place.group} {place.words}"
        for place in others[:MAX_WHERE]
    ]
    if len(others) > MAX_WHERE:
        told.append(f"and {len(others) - MAX_WHERE} more")
    return ", ".join(told)


def ours(one: Verdict) -> str:
    """Our numbers for a claim, in a cell."""
    if one.trend:
        return "<br>".join(_trend(one))
    if one.claim.kind == "overhead":
        return one.why.partition(":")[2].strip()
    cells = list(one.cells)
    if len(cells) <= MAX_TOLD:
        return "<br>".join(f"{_name(cell, one)}: {value(cell, one.claim.show)}" for cell in cells)
    known = sorted((cell for cell in cells if cell.value is not None), key=lambda c: c.value or 0.0)
    if not known:
        return TOO_SMALL
    ends = [known[-1], known[0]] if one.claim.best else [known[0], known[-1]]
    told = [f"{_name(cell, one)}: {value(cell, one.claim.show)}" for cell in ends]
    return f"{told[0]}<br>to {told[1]}<br>({len(cells)} cells)"


def _name(cell: Cell, one: Verdict) -> str:
    parts = [cell.place.setup]
    if len(one.claim.metrics) > 1:
        parts.append(HEADINGS[cell.metric][0])
    if len(one.claim.pairs) > 1:
        parts.append(f"{cell.system} / {cell.against}" if cell.against else cell.system)
    return " ".join(parts)


def _trend(one: Verdict) -> Iterator[str]:
    for metric in one.claim.metrics:
        held = [f"{p.x}: {ratio(p.ratio)}" for p in one.trend if p.metric == metric]
        yield f"{HEADINGS[metric][0]} at {', '.join(held)}"


def value(cell: Cell, show: str) -> str:
    """A cell's number: times better, a change in percent, or a share."""
    if cell.ratio is not None:
        return ratio(cell.ratio) if show == "times" else _percent(cell.ratio, show)
    found = cell.estimate or Estimate(None)
    return TOO_SMALL if found.value is None else f"{scaled(found, 100)} %"


def _percent(found: Ratio, show: str) -> str:
    if found.value is None:
        return TOO_SMALL
    factor = found.factor or 1.0

    def change(times: float) -> float:
        return 100 * (times - 1) if show == "more" else 100 * (1 / times - 1)

    ends = sorted(change(times) for times in (found.value / factor, found.value * factor))
    return f"{change(found.value):+.1f} % ({ends[0]:+.1f} to {ends[1]:+.1f})"


def _cells(verdicts: Iterable[Verdict]) -> Table:
    """Every cell of claims that have more than are told in their line."""
    rows = [
        (
            one.claim.row,
            cell.place.setup,
            HEADINGS[cell.metric][0],
            cell.system,
            cell.against or "",
            value(cell, one.claim.show),
            cell.state,
        )
        for one in verdicts
        if len(one.cells) > MAX_TOLD
        for cell in one.cells
    ]
    return Table(
        "Every cell of the claims with many",
        "holds: in the claimed range; less, more: better by another amount; wide: better, size known"
        " within no factor of two; none: no difference shown.",
        ("claim", "set-up", "metric", "system", "against", "ours", "state"),
        tuple(rows),
    )


def notes(found: Reproduction) -> list[str]:
    """What else a reader must know."""
    facts = found.provenance
    told = [
        f"{facts['trials']} runs, results version {facts['semantics']}, commit {facts['commit']}"
    ]
    told += [_session(one) for one in found.sessions]
    if found.found.missing:
        told.append(f"{found.found.missing} runs are missing")
    if found.found.left_out:
        told.append(f"not in this version, left out: {', '.join(found.found.left_out)}")
    return told


def _session(one: Session) -> str:
    cpu = "" if one.cpu_seconds is None else f", {one.cpu_seconds:.0f} CPU seconds"
    workers = f"{one.workers} workers" if one.workers else "a worker for each core"
    return f"{one.trials} of the runs took {one.seconds / 60:.1f} minutes with {workers}{cpu}"


def as_json(found: Reproduction) -> dict[str, Any]:
    """claims.json."""
    return {
        "format": "fastswitch-claims/1",
        "full": found.full,
        "claims": [_verdict(one) for one in found.verdicts],
        "overhead": None if found.overhead is None else asdict(found.overhead),
        "sessions": [asdict(session) for session in found.sessions],
        "left_out": list(found.found.left_out),
        "missing": found.found.missing,
        "provenance": found.provenance,
    }


def _verdict(one: Verdict) -> dict[str, Any]:
    return {
        **one.claim.model_dump(mode="json"),
        "verdict": one.word,
        "why": one.why,
        "where": [asdict(place) for place in one.where],
        "cells": [_cell(cell) for cell in one.cells],
        "trend": [asdict(point) for point in one.trend],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        **cell.place._asdict(),
        "metric": cell.metric,
        "system": cell.system,
        "against": cell.against,
        "state": cell.state,
        "ratio": None if cell.ratio is None else asdict(cell.ratio),
        "estimate": None if cell.estimate is None else asdict(cell.estimate),
    }
