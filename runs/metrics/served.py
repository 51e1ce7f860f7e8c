"""What to say first of a run in which nothing, or little, was served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from runs.recording import Recording

_WORDS = (
    ("rejected", "rejected"),
    ("cancelled", "left by their clients"),
    ("unfinished", "unfinished"),
)


def rejected_because(recording: Recording) -> str | None:
    """The reason that most rejections gave; the first of them where several did as often."""
    table = recording.table("requests", ["status", "reason"]).to_pydict()
    reasons = Counter(
        reason
        for status, reason in zip(table["status"], table["reason"], strict=True)
        if status == "rejected"
    )
    return reasons.most_common(1)[0][0] if reasons else None


def little_served(metrics: Mapping[str, Any], because: str | None = None) -> str | None:
    """In words, where less than half of the turns finished; else None. `because`: why most of the
    rejected ones were."""
    rows, finished = metrics.get("rows") or 0, metrics.get("finished") or 0
    if not rows or 2 * finished >= rows:
        return None
    told = ", ".join(f"{metrics[name]} {word}" for name, word in _WORDS if metrics.get(name))
    served = (
        f"Nothing of {rows} turns was" if not finished else f"Only {finished} of {rows} turns were"
    )
    why = f"; rejected mostly because: {because}" if because else ""
    return f"{served} served: {told}{why}."


def is_nothing_but_rejected(metrics: Mapping[str, Any]) -> bool:
    """Whether every turn was rejected."""
    return bool(metrics["rows"]) and metrics["rejected"] == metrics["rows"]
