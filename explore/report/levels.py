"""Pools, link and queues of a run over time, as means over equal bins: what stands below the lanes."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from explore.report.lives import Life
from runs.metrics.stats import Ints
from runs.recording import Recording

Floats = npt.NDArray[np.float64]

#: Most bins: a run of five hours has one a second.
MAX_BINS = 16_384
_CHUNK = 1 << 16
_SHARES = ("device", "host", "h2d", "d2h")
GROUPS = ("waiting", "running", "swapped")
_GROUP_OF = dict.fromkeys(("prefill", "decode", "stalled", "paused"), "running") | dict.fromkeys(
    ("parked", "swap-out", "swap-in"), "swapped"
)


class Levels:
    """How many requests wait, run, are swapped; lives are added one by one. `edges`: of the bins."""

    def __init__(self, edges: Ints) -> None:
        self.edges = edges
        self._means = {name: np.zeros(edges.size - 1) for name in GROUPS}
        self._times = {name: array("q") for name in GROUPS}

    def add(self, life: Life) -> None:
        """Until its first work a request waits; after it, it is swapped when it is not on the device."""
        has_begun = False
        for one in life.slices:
            has_begun |= one.name in ("prefill", "decode")
            group = _GROUP_OF.get(one.name, "waiting")
            if group == "swapped" and not has_begun:
                group = "waiting"
            self._times[group].extend((one.begin, one.end))
            if len(self._times[group]) >= _CHUNK:
                self._flush(group)

    def means(self) -> dict[str, Floats]:
        """Mean number of requests in every bin."""
        for name in GROUPS:
            self._flush(name)
        return self._means

    def _flush(self, name: str) -> None:
        times = np.array(self._times[name], dtype=np.int64).reshape(-1, 2)
        self._means[name] += covered(times[:, 0], times[:, 1], self.edges)
        del self._times[name][:]


def edges_of(end_ns: int, num_steps: int) -> Ints:
    """Bins from zero to the end: two a step, but no more than MAX_BINS."""
    bins = min(MAX_BINS, max(16, 2 * num_steps))
    return np.linspace(0, max(end_ns, 1), bins + 1).astype(np.int64)


def machine(
    steps: dict[str, Any], copies: dict[str, Any], facts: dict[str, Any], edges: Ints
) -> dict[str, Floats]:
    """Share of both pools in use, and share of time in which each direction of the link moves bytes."""
    found = {}
    for name, column, total in (
        ("device", "free_blocks", facts.get("device_blocks")),
        ("host", "free_host_blocks", facts.get("host_blocks")),
    ):
        used = 1 - steps[column] / max(1, total or 1)
        found[name] = _held(steps["start_ns"], used, int(steps["end_ns"][-1]), edges)
    ways = np.array(copies["direction"], dtype=object)
    for way in ("h2d", "d2h"):
        mine = ways == way
        begins, ends = copies["start_ns"][mine], copies["end_ns"][mine]
        found[way] = covered(begins, ends, edges, once=True)
    return found


def covered(begins: Ints, ends: Ints, edges: Ints, *, once: bool = False) -> Floats:
    """How many intervals cover each bin on average; `once`: overlapping ones count as one."""
    if not begins.size:
        return np.zeros(edges.size - 1)
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")
    levels = np.cumsum(np.repeat([1, -1], begins.size)[order])
    if once:
        levels = np.minimum(levels, 1)
    return _bins(times[order], levels, edges)


def _held(times: Ints, values: Floats, end: int, edges: Ints) -> Floats:
    """Mean of a value that stays as it is until the next time."""
    return _bins(np.append(times, end), np.append(values, 0.0), edges)


def _bins(times: Ints, levels: Any, edges: Ints) -> Floats:
    area = np.concatenate([[0], np.cumsum(levels[:-1] * np.diff(times))])
    within: Floats = np.diff(np.interp(edges, times, area)) / np.maximum(np.diff(edges), 1)
    return within


def packed(series: dict[str, Floats], edges: Ints) -> tuple[bytes, dict[str, Any]]:
    """Little-endian 16-bit shares of each series' largest value, one series after the other; and
    what they are called, how large that is, and where the bins are."""
    parts, tops = [], {}
    for name, values in series.items():
        top = 1.0 if name in _SHARES else max(float(values.max(initial=0)), 1.0)
        tops[name] = round(top, 6)
        parts.append(np.round(np.clip(values / top, 0, 1) * 65535).astype("<u2").tobytes())
    return b"".join(parts), {"bins": edges.size - 1, "end": int(edges[-1]) / 1000, "tops": tops}


def series_of(
    recording: Recording, levels: Levels, steps: dict[str, Any], copies: dict[str, Any]
) -> dict[str, Floats]:
    """Everything that is drawn below the lanes but fairness."""
    return {**machine(steps, copies, recording.summary, levels.edges), **levels.means()}
