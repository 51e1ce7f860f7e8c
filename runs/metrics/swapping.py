"""Who lost the device, and what was copied.

A *preemption* takes a request off the device that had computed there: it decodes, or is in the middle
of its prompt. A *parking* takes KV off the device that nobody computes on: a waiting turn's, which
took its conversation's over and has not begun, or that of an idle conversation.
"""

from __future__ import annotations

from typing import Any

from runs.metrics.columns import Columns, is_one


def summarise(
    requests: Columns, spans: Columns, copies: Columns, preemptions: Columns
) -> dict[str, Any]:
    """Counts of preemptions, parkings, blocks, calls and bytes."""
    out = is_one(copies["direction"], "d2h")
    running = is_one(preemptions["was"], "running")
    swaps = int((running & is_one(preemptions["mode"], "swap")).sum())
    count = int(running.sum())
    waiting = int(running.size) - count
    idle = _idle(requests, copies)
    blocks, runs = int(copies["blocks"].sum()), int(copies["runs"].sum())
    return {
        "preemptions": count,
        "preemptions_swap": swaps,
        "preemptions_recompute": count - swaps,
        "parkings": waiting + idle,
        "parkings_waiting": waiting,
        "parkings_idle": idle,
        "blocks_out": int(copies["blocks"][out].sum()),
        "blocks_in": int(copies["blocks"][~out].sum()),
        "copy_jobs": int(out.size),
        "copy_calls": int(copies["calls"].sum()),
        "copy_bytes": int(copies["bytes"].sum()),
        "mean_run_blocks": round(blocks / runs, 4) if runs else None,
        "cached_tokens": int(requests["cached_tokens"].sum()),
        "recomputed_tokens": _recomputed(spans),
    }


def _idle(requests: Columns, copies: Columns) -> int:
    """Copies to the host of turns that had ended: their conversation's KV was parked."""
    ended = dict(zip(requests["request_id"], requests["end_ns"].tolist(), strict=True))
    return sum(
        way == "d2h" and name in ended and submitted >= ended[name]
        for way, name, submitted in zip(
            copies["direction"], copies["request_id"], copies["submit_ns"].tolist(), strict=True
        )
    )


def _recomputed(spans: Columns) -> int:
    """Prefilled tokens of requests that had already produced one."""
    seen: set[str] = set()
    total = 0
    for name, kind, tokens in zip(spans["request_id"], spans["kind"], spans["tokens"], strict=True):
        if kind == "token":
            seen.add(name)
        elif name in seen:
            total += int(tokens)
    return total
