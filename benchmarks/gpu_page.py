"""The page and the file of a GPU check: everything so far, and how far from the goals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.gpu_ledger import Ledger
from benchmarks.gpu_measure import (
    BATCHES,
    CONTEXT,
    COPY,
    JOB_BLOCKS,
    MODEL,
    PATTERNS,
    PINNED,
    SERVE_METRICS,
    SYSTEMS,
)
from traces.atomic import whole

PARTS = ("tests", "bench")
DECODE_GOAL, SWAP_GOAL = 0.80, 0.90

_STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; font-weight: 600; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } section { overflow-x: auto; margin: 2rem 0; }
"""
NOT_MEASURED = "not measured"


def number(value: Any, scale: float = 1.0, digits: int = 1) -> str:
    """A number in a cell."""
    return NOT_MEASURED if value is None else f"{value * scale:,.{digits}f}"


def against(share: Any, goal: float) -> str:
    """A share in per cent and whether it reaches its goal."""
    if share is None:
        return NOT_MEASURED
    return f"{share:.1%} ({'reached' if share >= goal else 'missed'}: {goal:.0%})"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a section."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<section><table><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def page(ledger: Ledger) -> str:
    """Everything so far on one page that needs nothing else. What has no value says so."""
    machine = ledger.values("machine", "machine")
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    body = [f"<h1>GPU check</h1><p>{escape(facts)}</p>"]
    copy, pinned = ledger.values("bench", COPY), ledger.values("bench", PINNED)
    body.append(
        table(
            "What this machine can do, GB/s",
            ("copy", "rate"),
            [
                ("within the device, read plus written", number(copy.get("bytes_per_s"), 1e-9)),
                ("page-locked, to the host", number(pinned.get("d2h"), 1e-9)),
                ("page-locked, to the device", number(pinned.get("h2d"), 1e-9)),
            ],
        )
    )
    rows: list[tuple[str, ...]] = []
    for batch in BATCHES:
        found = ledger.values("bench", f"decode batch {batch}")
        rows.append(
            (
                str(batch),
                number(found.get("step_ms"), digits=2),
                number(found.get("step_ms_tokens_read"), digits=2),
                number(found.get("tokens_per_s"), digits=0),
                number(found.get("bytes_per_s"), 1e-9, 0),
                against(found.get("share_of_copy"), DECODE_GOAL),
            )
        )
    head = ("batch", "ms", "ms, tokens read", "tokens/s", "GB/s", "share of a copy's rate")
    body.append(table(f"A decode step of random {MODEL}, context {CONTEXT}, bf16", head, rows))
    swaps = [swap_row(ledger, *name) for name in swap_names()]
    swap_head = (
        "swap",
        "GB/s to host",
        "share of best copy",
        "GB/s to device",
        "share of best copy",
    )
    body.append(table(f"Jobs of {JOB_BLOCKS} blocks of 2 MiB", swap_head, swaps))
    served = [ledger.values("bench", f"serve {system}") for system in SYSTEMS]
    rows = [
        (name, *(NOT_MEASURED if one.get(name) is None else str(one[name]) for one in served))
        for name in SERVE_METRICS
    ]
    body.append(table("A short scenario served", ("metric", *SYSTEMS), rows))
    tests = ledger.of("tests")
    failed = [row for row in (*tests, *ledger.of("bench")) if not row["ok"]]
    passed = sum(row["ok"] for row in tests)
    body.append(f"<p>Tests: {passed} passed, {len(tests) - passed} not.</p>" if tests else "")
    if not tests:
        body.append(f"<p>Tests: {NOT_MEASURED}.</p>")
    if failed:
        lines = [(row["name"], row["error"]) for row in failed]
        body.append(table("Failed", ("what", "why"), lines))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>GPU check</title>'
        f"<style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def swap_names() -> list[tuple[str, str, str]]:
    """(layout, submission, pattern) of every row of the swap table."""
    from realrun.kvstore import LAYOUTS
    from realrun.transfer import MOVERS

    return [(layout, way, pattern) for layout in LAYOUTS for way in MOVERS for pattern in PATTERNS]


def swap_row(ledger: Ledger, layout: str, submission: str, pattern: str) -> tuple[str, ...]:
    """One line of the swap table."""
    found = ledger.values("bench", f"swap {layout} {submission}").get(pattern, {})
    cells = [f"{layout}, {submission}, {pattern}"]
    for way in ("d2h", "h2d"):
        cells.append(number(found.get(f"{way}_bytes_per_s"), 1e-9))
        cells.append(against(found.get(f"{way}_share"), SWAP_GOAL))
    return tuple(cells)


def write(ledger: Ledger, folder: Path) -> None:
    """The JSON and the page, whole or not at all."""
    document = {
        "format": "fastswitch-gpu-check/1",
        "goals": {"decode_share_of_copy": DECODE_GOAL, "swap_share_of_pinned": SWAP_GOAL},
        "machine": ledger.values("machine", "machine"),
        **{part: ledger.of(part) for part in PARTS},
    }
    texts = {
        "gpu-check.json": json.dumps(document, indent=1) + "\n",
        "gpu-check.html": page(ledger),
    }
    for name, text in texts.items():
        with whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")
