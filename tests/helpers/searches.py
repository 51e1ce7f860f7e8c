"""Searches whose simulations are made up from what a point asks for, and small real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from explore.search.run import Found, search
from explore.studies import engine as module
from explore.studies.semantics import canonical
from tests.helpers.sweeps import SCENARIO, made_result

Landscape = Callable[[dict[str, Any], int], dict[str, Any]]

#: What every made-up run has, unless the landscape says otherwise.
SERVED = {"rows": 100, "finished": 100, "cancelled": 0}

RATES = [0.5, 1.0, 2.0, 4.0]
SPACE: dict[str, Any] = {"workload.rate": RATES, "pool.device_blocks": [40, 60, 80]}


def spec(recipe: str, **more: Any) -> dict[str, Any]:
    """A search over SPACE."""
    return {
        "name": "made",
        "scenario": SCENARIO,
        "recipe": recipe,
        "space": SPACE,
        "runs": 2,
        **more,
    }


class Landscaped:
    """An engine whose replies are a function of the scenario; the last asked is answered first."""

    def __init__(self, landscape: Landscape, stop_after: int | None = None) -> None:
        self.landscape = landscape
        self.left = stop_after
        self.asked = 0

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        for text in reversed(list(asks)):
            if self.left is not None:
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
            self.asked += 1
            ask = json.loads(text)
            metrics = {**SERVED, **self.landscape(ask["scenario"], ask["scenario"]["run"])}
            if "failed" in metrics:
                yield canonical({"key": ask["key"], "failed": metrics["failed"]})
            else:
                yield canonical({"key": ask["key"], "result": made_result(ask["key"], **metrics)})

    def close(self) -> None:
        pass


def searched(
    given: Any, out: Path, landscape: Landscape, *, stop_after: int | None = None, **options: Any
) -> tuple[Found, Landscaped]:
    """What a search finds in a landscape."""
    engine = Landscaped(landscape, stop_after)
    with patch.object(module, "make_workers", lambda *_: engine):
        return search(given, out, **options), engine
