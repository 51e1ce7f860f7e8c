"""An order written in a notebook's cell."""

from __future__ import annotations

import linecache
from typing import Any

from policy.orders.base import Order


def from_a_cell(source: str) -> type[Order]:
    """Its class `Mine`: its text is known to linecache alone, and no module beside it can be imported."""
    source = source.replace("from neighbour import WEIGHT", "WEIGHT = 2")
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(keepends=True), "<cell 1>")
    names: dict[str, Any] = {"__name__": "__cell__"}
    exec(compile(source, "<cell 1>", "exec"), names)
    found: type[Order] = names["Mine"]
    return found
