"""How large a run's report is, how long it takes to make, and when a browser has painted it.

    python -m benchmarks.report_size [--conversations 200 2000] [--repeats 5]

Runs of paper-8b-a10 of so many conversations; paint times from headless Chromium with its network off, if there
is one: milliseconds from the start of the navigation to the first paint and to the lanes, and for a drawing
after each of twenty zooms. The table's times are medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from explore.report.folder import report
from runs.scenario import load
from sim.simulate import simulate
from tests.helpers.chromium import Page, browser, found

_DRAWN = (
    "['first-contentful-paint', 'lanes drawn']"
    ".every((name) => performance.getEntriesByName(name).length)"
)
_TIMES = (
    "['first-contentful-paint', 'lanes drawn']"
    ".map((name) => performance.getEntriesByName(name)[0].startTime)"
)
_ZOOMS = """(async () => {
  const stage = document.getElementById('stage'), found = [];
  for (let i = 0; i < 20; i += 1) {
    const begin = performance.now();
    stage.dispatchEvent(new KeyboardEvent('keydown', { key: i % 2 ? '-' : '+' }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    found.push(performance.now() - begin);
  }
  return found;
})()"""


def _made(conversations: int, folder: Path) -> dict[str, Any]:
    run = folder / str(conversations)
    simulate(load("paper-8b-a10", {"workload.conversations": conversations}), out=run)
    begin = time.perf_counter()
    made = report(run)
    seconds = time.perf_counter() - begin
    page = folder / f"{conversations}.html"
    page.write_text(made.text, encoding="utf-8")
    rows = json.loads((run / "run.json").read_text())["metrics"]["rows"]
    size = page.stat().st_size
    facts = {"conversations": conversations, "requests": rows, "bytes": size}
    return {**facts, "bytes_per_request": round(size / rows), "made_s": round(seconds, 2)}


def _painted(tab: Page, page: Path, repeats: int) -> dict[str, Any]:
    times, zooms = [], []
    for _ in range(repeats):
        tab.show(page, 1280)
        tab.wait_for(_DRAWN, 60)
        times.append(tab.value(_TIMES))
        zooms += tab.value(_ZOOMS)
    first, lanes = (statistics.median(column) for column in zip(*times, strict=True))
    assert not tab.complaints, tab.complaints
    facts = {"first_paint_ms": first, "lanes_ms": lanes, "zoom_ms": statistics.median(zooms)}
    return {name: round(value) for name, value in facts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, nargs="+", default=[200, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [_made(count, folder) for count in arguments.conversations]
        if found() is not None:
            with browser() as tab:
                for row in rows:
                    page = folder / f"{row['conversations']}.html"
                    row.update(_painted(tab, page, arguments.repeats))
        else:
            print("no browser: paint times were not measured")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps({"benchmark": "report_size", "rows": rows}))


if __name__ == "__main__":
    main()
