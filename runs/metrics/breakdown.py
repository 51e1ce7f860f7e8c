"""Where the time of a run went, as papers on swapping break it down.

stall_share_p99_gaps   of the gaps between tokens around the 99th percentile of TBT (from the 98.5th to the
                       99.5th): time in which their steps waited for copies / their length
stall_share_p99_steps  the same of steps around the 99th percentile of their length
stall_ns_per_block     context-switch overhead: time waited for copies / blocks moved, both ways
io_utilisation         both directions together: bytes / what they could move at their peak rates while
                       their queues were not empty
runs_out               runs of blocks swapped out: what one merged copy moves, over all layers
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runs.metrics.columns import NS, Columns, is_one
from runs.metrics.stats import MIN_SAMPLES, Ints, percentile

#: The band around a percentile whose members stand for it, in percentiles on both sides.
BAND = 0.5


def stall_share(values: Ints, stalls: Ints, weights: Ints, q: float = 99.0) -> float | None:
    """Stalls / lengths of what lies within BAND of the q-th percentile of `values`, each repeated
    `weights` times. None where that percentile has too few samples, or a length of nothing."""
    low, high = (percentile(values, q + far, weights) for far in (-BAND, BAND))
    if low is None or high is None or int(weights.sum()) < MIN_SAMPLES[q]:
        return None
    band = (values >= low) & (values <= high)
    length = int((values[band] * weights[band]).sum())
    return round(int((stalls[band] * weights[band]).sum()) / length, 6) if length else None


def of_steps(lengths: Ints, stalls: Ints) -> float | None:
    return stall_share(lengths, stalls, np.ones_like(lengths))


def of_copies(
    stalled: int, copies: Columns, busy_ns: dict[str, int], rates: dict[str, float]
) -> dict[str, Any]:
    """What copies cost, moved and could have moved. `stalled`: nanoseconds waited for them;
    `busy_ns`: by direction, how long its queue was not empty; `rates`: bytes per second."""
    blocks = int(copies["blocks"].sum())
    possible = sum(rates[way] * busy_ns[way] / NS for way in busy_ns)
    moved = int(copies["bytes"].sum())
    return {
        "stall_ns_per_block": round(stalled / blocks, 3) if blocks else None,
        "io_utilisation": round(moved / possible, 6) if possible else None,
        "runs_out": int(copies["runs"][is_one(copies["direction"], "d2h")].sum()),
    }
