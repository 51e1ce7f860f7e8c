"""The table of a GPU check: everything so far, how far from the goals, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu_ledger import Ledger, shown

DECODE_GOAL, SWAP_GOAL = 0.80, 0.90
NOT_MEASURED = "not measured"


def table(ledger: Ledger, parts: Sequence[str], left: Sequence[str], sizes: Any) -> str:
    """All of it as text."""
    return "\n".join(_lines(ledger, parts, left, sizes)) + "\n"


def _lines(ledger: Ledger, parts: Sequence[str], left: Sequence[str], sizes: Any) -> Iterator[str]:
    machine = ledger.values("machine", "machine")
    yield f"GPU check: {shown(machine)}; {sizes.model}, {sizes.dtype}"
    copy = ledger.values("rates", "a copy within the device").get("bytes_per_s")
    pinned = ledger.values("rates", "page-locked copies")
    for part in parts:
        rows = ledger.of(part)
        yield ""
        yield f"{part}: {sum(row['seconds'] for row in rows):.0f} s" + (
            "" if rows else f", {NOT_MEASURED}"
        )
        for row in rows:
            yield f"  {row['name']}: {_row(part, row, copy, pinned)}"
        for name in left:
            if name.startswith(f"{part}: "):
                yield f"  {name.removeprefix(f'{part}: ')}: {NOT_MEASURED}, no time was left"
    yield ""
    yield from _goals(ledger, copy, pinned)


def _row(part: str, row: dict[str, Any], copy: float | None, pinned: dict[str, Any]) -> str:
    if not row["ok"]:
        return f"FAILED: {row['error']}"
    values = row["values"]
    if part == "swap":
        return ", ".join(
            f"{name} {rate / 1e9:.1f} GB/s{_share(rate, pinned.get(name.split()[1]))}"
            for name, rate in values.items()
        )
    if part == "rates":
        return ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in values.items())
    if part == "decode" and "bytes_per_s" in values:
        values = {**values, "share of a copy": _share(values["bytes_per_s"], copy) or NOT_MEASURED}
    return shown(values)


def _share(rate: float, best: float | None) -> str:
    return "" if not best else f" ({rate / best:.0%})"


def _goals(ledger: Ledger, copy: float | None, pinned: dict[str, Any]) -> Iterator[str]:
    """Each goal, reached or missed, by the best way of doing it."""
    decodes: dict[int, float] = {}
    for row in ledger.of("decode"):
        values = row.get("values") or {}
        if row["ok"] and "bytes_per_s" in values:
            batch = values["batch"]
            decodes[batch] = max(decodes.get(batch, 0.0), values["bytes_per_s"])
    for batch in sorted(decodes):
        yield _goal(f"decode, batch {batch}, of a copy's rate", decodes[batch], copy, DECODE_GOAL)
    if not decodes:
        yield f"goal {DECODE_GOAL:.0%}: decode, of a copy's rate: {NOT_MEASURED}"
    for way in ("d2h", "h2d", "both"):
        rates = [
            rate
            for row in ledger.of("swap")
            if row["ok"]
            for name, rate in row["values"].items()
            if name.split()[1] == way
        ]
        what = f"swap {way}, of page-locked copies"
        yield _goal(what, max(rates, default=None), pinned.get(way), SWAP_GOAL)


def _goal(what: str, rate: float | None, best: float | None, goal: float) -> str:
    if rate is None or not best:
        return f"goal {goal:.0%}: {what}: {NOT_MEASURED}"
    return f"goal {goal:.0%}: {what}: {rate / best:.0%}, {'reached' if rate >= goal * best else 'missed'}"
