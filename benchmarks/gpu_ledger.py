"""Points of a GPU check and the file that keeps them, so that a part which was cut off goes on."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """Something to measure: `run` gives its values; `estimate_s` is what it may take."""

    name: str
    run: Callable[[], dict[str, Any]]
    estimate_s: float


class Ledger:
    """The lines of DIR/gpu-check.jsonl: `{"part", "name", "ok", "seconds", "values" or "error"}`.

    The last line of a name counts. A line that was cut off by a kill is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gpu-check.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        for line in whole.splitlines():
            row = json.loads(line)
            self.rows[row["part"], row["name"]] = row
        if torn:
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def is_done(self, part: str, name: str) -> bool:
        """It ran to a good end."""
        row = self.rows.get((part, name))
        return row is not None and bool(row["ok"])

    def add(self, part: str, name: str, *, ok: bool, seconds: float, **rest: Any) -> None:
        """One flushed line."""
        row = {"part": part, "name": name, "ok": ok, "seconds": round(seconds, 3), **rest}
        self.rows[part, name] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def of(self, part: str) -> list[dict[str, Any]]:
        """The rows of a part, in the order they first ran."""
        return [row for (one, _), row in self.rows.items() if one == part]

    def values(self, part: str, name: str) -> dict[str, Any]:
        """What was measured; nothing if it was not."""
        row = self.rows.get((part, name))
        return row["values"] if row is not None and row["ok"] else {}


def run_points(
    part: str,
    points: Iterable[Point],
    ledger: Ledger,
    *,
    clock: Callable[[], float],
    deadline: float,
    say: Callable[[str], None],
) -> list[str]:
    """Run what is not done yet, as far as the time goes. Returns the names of what was left out for
    want of time. `clock`: seconds."""
    left = []
    for name, run, estimate_s in points:
        if ledger.is_done(part, name):
            continue
        begin = clock()
        if begin + estimate_s > deadline:
            left.append(name)
            continue
        try:
            values = run()
        except Exception as error:  # noqa: BLE001  # the others can still be measured
            what = said(error)
            ledger.add(part, name, ok=False, seconds=clock() - begin, error=what)
            say(f"{name}: FAILED: {what}")
        else:
            ledger.add(part, name, ok=True, seconds=clock() - begin, values=values)
            say(f"{name}: {shown(values)}")
        gc.collect()  # graphs and their memory hold one another
    return left


def said(error: Exception) -> str:
    """What failed, on a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def shown(values: dict[str, Any]) -> str:
    """Values on a line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def claim(ledger: Ledger, machine: dict[str, Any]) -> str | None:
    """Write down whose points these are. Returns what is wrong if they are another machine's."""
    known = ledger.values("machine", "machine")
    for name in ("gpu", "torch"):
        if known and known[name] != machine[name]:
            return f"{ledger.path}: has points of {known[name]}, and this is {machine[name]}"
    if not known:
        ledger.add("machine", "machine", ok=True, seconds=0.0, values=machine)
    return None
