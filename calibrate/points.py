"""Raw timings: what was timed, and every repeat of it, one JSON line per sample.

A file begins with a header line (format, machine, model, versions). Samples are appended as they
come, so that an interrupted calibration goes on where it stopped, and a fit can be made again without
the machine. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy.errors import ConfigError, InputError
from traces.strict import quoted, reason, shown_path

FORMAT = "fastswitch-points/1"

#: Kind of point -> the quantities that say what was timed, all integers but the two names.
FEATURES: dict[str, tuple[str, ...]] = {
    "decode": ("batch", "kv_tokens", "longest"),
    "prefill": ("tokens", "past"),
    # several equal prompts in one step, `tokens` and `past` each
    "prompts": ("prompts", "tokens", "past"),
    "mixed": ("batch", "kv_tokens", "tokens", "past"),
    "overhead": ("batch",),
    "copy": ("way", "system", "blocks", "runs", "calls", "bytes", "duplex"),
    # the same jobs, until the last call is in; only where calls return before their bytes have moved
    "submit": ("way", "system", "blocks", "runs", "calls", "bytes", "duplex"),
    # what our Python adds to such a job: its time on the submitting thread less that inside the driver
    "python": ("way", "system", "blocks", "runs", "calls", "bytes", "duplex"),
    "interference": ("way", "batch", "kv_tokens", "with_copy"),
}


@dataclass(frozen=True)
class Point:
    """One thing to time. `features` in the order of FEATURES[kind]."""

    kind: str
    features: tuple[int | str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.features[FEATURES[self.kind].index(name)]

    def as_json(self) -> dict[str, Any]:
        """Kind and features by name."""
        return {"kind": self.kind, **dict(zip(FEATURES[self.kind], self.features, strict=True))}


@dataclass
class Points:
    """Every sample of one machine. `samples`: point -> nanoseconds, one per repeat. `failed`: points
    that could not be timed, and why."""

    header: dict[str, Any]
    samples: dict[Point, list[int]] = field(default_factory=dict)
    failed: dict[Point, str] = field(default_factory=dict)
    #: What was wrong with lines that were left out, in words.
    problems: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Point]:
        """Points of one kind, in a fixed order."""
        found = [point for point in self.samples if point.kind == kind]
        return sorted(found, key=lambda point: tuple(map(str, point.features)))


class Journal:
    """Appends samples to a file, each flushed. A new file gets the header first."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        try:
            is_new = not path.exists() or path.stat().st_size == 0
            is_torn = not is_new and not path.read_bytes().endswith(b"\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None
        if is_new:
            self._write({"format": FORMAT, **header})
        elif is_torn:  # an interrupted write: what comes next has a line of its own
            self._file.write("\n")

    def sample(self, point: Point, nanoseconds: int) -> None:
        """One repeat of a point."""
        self._write({**point.as_json(), "ns": nanoseconds})

    def failed(self, point: Point, why: str) -> None:
        """A point that cannot be timed, in words."""
        self._write({**point.as_json(), "failed": why})

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, separators=(",", ":")) + "\n")
        self._file.flush()


def read(path: Path) -> Points:
    """Samples of a file. Lines that are no sample are left out and named in `problems`.

    Raises InputError if it cannot be read or has no header of ours.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    header = _parsed(lines[0])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{shown_path(path)}:1: {quoted(lines[0][:80])} is no header of {FORMAT}")
    return collect(header, enumerate(lines[1:], start=2))


def collect(header: dict[str, Any], lines: Iterable[tuple[int, str]]) -> Points:
    """Numbered lines as samples."""
    points = Points(header)
    for number, line in lines:
        if not line.strip():
            continue
        row = _parsed(line)
        sample = _sample(row)
        if sample is None:
            failure = _failure(row)
            if failure is not None:
                points.failed[failure[0]] = failure[1]
                continue
            points.problems.append(f"line {number}: {quoted(line[:60])} is no sample")
            continue
        point, nanoseconds = sample
        points.samples.setdefault(point, []).append(nanoseconds)
    return points


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _sample(row: Any) -> tuple[Point, int] | None:
    """None for anything that is not exactly a sample; a time must be a positive whole number."""
    point = _point(row, "ns")
    if point is None:
        return None
    value = row["ns"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or value <= 0:
        return None
    return point, int(value)


def _failure(row: Any) -> tuple[Point, str] | None:
    """None for anything that does not say of a point why it failed."""
    point = _point(row, "failed")
    return None if point is None else (point, str(row["failed"]))


def _point(row: Any, what: str) -> Point | None:
    """The point of a row that says `what` of it, and nothing else."""
    if not isinstance(row, dict) or row.get("kind") not in FEATURES:
        return None
    names = FEATURES[row["kind"]]
    if set(row) != {"kind", what, *names}:
        return None
    features = tuple(row[name] for name in names)
    for name, feature in zip(names, features, strict=True):
        wanted = str if name in ("way", "system") else int
        if type(feature) is not wanted or (isinstance(feature, int) and feature < 0):
            return None
    return Point(row["kind"], features)
