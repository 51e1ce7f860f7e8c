"""From raw timings to the coefficients of a profile, with their intervals and their error on points
that they never saw. Formulas: `calibrate.models`; statistics: `calibrate.inference`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from calibrate.header import header_of
from calibrate.inference import (
    Result,
    bootstrap,
    centre,
    find_wild,
    infer,
    interval,
    resampled_centres,
)
from calibrate.models import (
    DIRECTIONS,
    CopyModel,
    LineModel,
    Model,
    PythonModel,
    StepModel,
    describe,
)
from calibrate.nnls import Floats
from calibrate.points import Point, Points
from calibrate.profile import Dropped, HeldOut
from policy.errors import InputError
from policy.systems import SYSTEMS

DRAWS = 1000
#: The centre of fewer repeats than this is not trusted.
MIN_SAMPLES = 5
#: No part of the model is fitted to fewer points than this.
MIN_POINTS = 12
#: So many unreadable lines are named; the others are counted.
_NAMED = 10


class Part(NamedTuple):
    """Points of one sort with what was found in them. `samples`: sorted repeats, ns."""

    points: list[Point]
    samples: list[Floats]
    model: Model
    result: Result

    def coefficient(self, name: str) -> float:
        """Its value."""
        return float(self.result.coefficients[self.model.names.index(name)])

    def draws(self, name: str) -> Floats:
        """Its value in every bootstrap draw."""
        found: Floats = self.result.draws[:, self.model.names.index(name)]
        return found

    def errors(self) -> HeldOut:
        """Of the points held out: |predicted / measured - 1|."""
        result = self.result
        times = np.array([centre(values) for values in self.samples])
        off = np.abs(result.predicted / times - 1)[result.held_out]
        inside = (result.low <= times) & (times <= result.high)
        return HeldOut(
            points=len(off),
            mean=float(off.mean()),
            p95=float(np.percentile(off, 95)),
            max=float(off.max()),
            covered=float(inside[result.held_out].mean()),
        )


class Estimate(NamedTuple):
    """A number with its 95 % interval, and the points it rests on."""

    value: float
    low: float
    high: float
    points: int


@dataclass(frozen=True)
class Fitted:
    """Everything that a profile is made from. `overhead`: of the engine around the model's step, as
    (base, per_sequence) with draws. `python`: of ours around the driver's calls for a copy job, (per_job,
    per_piece) with draws; it is in `copies` too. `interference`: share by which a copy slows a step."""

    steps: Part
    copies: Part
    overhead: tuple[Floats, Floats] | None
    python: tuple[Floats, Floats] | None
    interference: dict[str, Estimate]
    dropped: tuple[Dropped, ...]
    problems: tuple[str, ...]
    seed: int
    draws: int


def fit(points: Points, *, seed: int = 0, draws: int = DRAWS) -> Fitted:
    """Fit everything. The same points in any order give the same numbers.

    Raises InputError if the header lacks something or there are too few points of a sort.
    """
    header = header_of(points)
    cleaner = _Cleaner(points)
    steps = _part(
        cleaner,
        cleaner.of("decode", "prefill", "prompts", "mixed"),
        StepModel,
        _step_corners,
        seed=seed,
        draws=draws,
    )
    copies = _part(
        cleaner,
        cleaner.of("copy", "submit"),
        lambda found: CopyModel(found, header.model.layers),
        _copy_corners,
        seed=seed,
        draws=draws,
    )
    rng = np.random.default_rng([seed, 1])
    overhead = _overhead(cleaner, rng, draws)
    python = _python(cleaner, header.model.layers, seed, draws)
    beside = cleaner.of("interference")
    interference = {way: _interference(cleaner, beside, way, rng, draws) for way in DIRECTIONS}
    return Fitted(
        steps,
        copies,
        overhead,
        python,
        {way: found for way, found in interference.items() if found is not None},
        tuple(cleaner.dropped),
        tuple(cleaner.problems),
        seed,
        draws,
    )


# ---------------------------------------------------------------------- what is used


class _Cleaner:
    """Hands out usable points and keeps account of the others."""

    def __init__(self, points: Points) -> None:
        self.dropped: list[Dropped] = []
        self.problems = points.problems[:_NAMED]
        if len(points.problems) > _NAMED:
            self.problems.append(f"and {len(points.problems) - _NAMED} more lines like these")
        self._points = points
        counts = [len(values) for values in points.samples.values()]
        self._usual = float(np.median(counts)) if counts else 0.0

    def of(self, *kinds: str) -> dict[Point, Floats]:
        """Points of some kinds in a fixed order, each with its sorted repeats."""
        found = {}
        for kind in kinds:
            for point in self._points.of_kind(kind):
                nonsense = _nonsense(point)
                if nonsense:
                    self.drop(point, nonsense)
                    continue
                values = self._once(point, sorted(self._points.samples[point]))
                if len(values) < MIN_SAMPLES:
                    self.drop(point, f"{len(values)} samples, fewer than {MIN_SAMPLES}")
                else:
                    found[point] = np.array(values, dtype=np.float64)
        return found

    def drop(self, point: Point, reason: str) -> None:
        """This one is not used."""
        self.dropped.append(Dropped(point=describe(point), reason=reason))

    def _once(self, point: Point, values: list[int]) -> list[int]:
        """Without samples that are in the file twice. Equal times do happen, so only where every
        sample has as many twins as any other, or where a point has more samples than is usual."""
        counts = Counter(values)
        times = min(counts.values())
        if len(counts) >= MIN_SAMPLES and times > 1 and times == max(counts.values()):
            kept = sorted(counts)
        else:
            kept = list(values)
            for value, count in counts.items():
                for _ in range(count - 1):
                    if len(kept) > self._usual:
                        kept.remove(value)
        if len(kept) < len(values):
            again = len(values) - len(kept)
            self.problems.append(f"{describe(point)}: {again} samples are there twice, used once")
        return kept


def _nonsense(point: Point) -> str:
    """Why there is no such step or job, or none that is fitted; empty if there is."""
    if point.kind == "decode":
        batch, kv_tokens, longest = point.features
        if not 0 < int(batch) <= int(kv_tokens) or not int(longest) <= int(kv_tokens):
            return "no batch has such contexts"
    elif point.kind in ("copy", "submit"):
        if point["way"] not in DIRECTIONS:
            return f"a way that is neither {' nor '.join(DIRECTIONS)}"
        if not 0 < point["runs"] <= point["blocks"] or not point["bytes"]:
            return "no job has such runs"
        if point["system"] not in SYSTEMS:
            return "no system of that name"
        if SYSTEMS[point["system"]].transport.submission == "gather":
            return "copies by gather are not fitted"
    return ""


def _part(
    cleaner: _Cleaner,
    found: dict[Point, Floats],
    model_of: Callable[[Sequence[Point]], Model],
    corners_of: Callable[[Sequence[Point]], Iterable[int]],
    *,
    seed: int,
    draws: int,
) -> Part:
    _check_enough(found)
    times = np.array([centre(values) for values in found.values()])
    points = list(found)
    wild, far = find_wild(model_of(points), times)
    for index in wild:
        cleaner.drop(points[index], f"{times[index]:.0f} ns: far from what all others say")
    if far:
        cleaner.problems.append(
            f"{len(far)} or more of {len(points)} points are far from any fit and were used, such as"
            f" {describe(points[far[0]])}: the model does not describe this machine there"
        )
    points = [point for index, point in enumerate(points) if index not in wild]
    samples = [found[point] for point in points]
    _check_enough(points)
    model = model_of(points)
    corners = sorted(set(corners_of(points)))
    return Part(points, samples, model, infer(model, samples, corners, seed=seed, draws=draws))


def _check_enough(points: Iterable[Point]) -> None:
    sorts = Counter(
        f"{point.kind} {point['way']}" if point.kind == "copy" else point.kind for point in points
    )
    copies = any(sort.startswith(("copy", "submit")) for sort in sorts)
    wanted = [f"copy {way}" for way in DIRECTIONS] if copies else ["decode", "prefill"]
    lacking = [sort for sort in wanted if not sorts[sort]]
    if lacking or sum(sorts.values()) < MIN_POINTS:
        have = ", ".join(f"{count} of {sort}" for sort, count in sorted(sorts.items())) or "none"
        raise InputError(
            f"points: too few to fit with at least {MIN_SAMPLES} samples each: {have};"
            f" {' and '.join(wanted)} and {MIN_POINTS} in all are needed"
        )


def _step_corners(points: Sequence[Point]) -> Iterable[int]:
    """The largest batch, the most KV tokens, the longest prefill."""
    decodes = [i for i, point in enumerate(points) if point.kind == "decode"]
    prefills = [i for i, point in enumerate(points) if point.kind == "prefill"]
    yield max(decodes, key=lambda i: (points[i]["batch"], points[i]["kv_tokens"]))
    yield max(decodes, key=lambda i: (points[i]["kv_tokens"], points[i]["batch"]))
    yield max(prefills, key=lambda i: (points[i]["tokens"], points[i]["past"]))


def _copy_corners(points: Sequence[Point]) -> Iterable[int]:
    """The largest job in each direction, alone and not."""
    for way in DIRECTIONS:
        for duplex in (0, 1):
            jobs = [
                i
                for i, point in enumerate(points)
                if (point.kind, point["way"], point["duplex"]) == ("copy", way, duplex)
            ]
            if jobs:
                yield max(jobs, key=lambda i: (points[i]["bytes"], points[i]["calls"]))


# ---------------------------------------------------------------------- what is added


def _overhead(
    cleaner: _Cleaner, rng: np.random.Generator, draws: int
) -> tuple[Floats, Floats] | None:
    """Engine time around a decode step: (base, per_sequence), and their draws."""
    found = cleaner.of("overhead")
    if not found:
        cleaner.problems.append("no overhead points: steps are the model's time alone")
        return None
    model = LineModel(list(found))
    samples = list(found.values())
    times = np.array([centre(values) for values in samples])
    terms = frozenset(model.names if len(found) > 2 else model.names[:1])
    used = np.ones(len(times))
    value = model.solve(times, used, terms)
    return value, bootstrap(model, samples, used, terms, value, rng, draws)


def _python(cleaner: _Cleaner, layers: int, seed: int, draws: int) -> tuple[Floats, Floats] | None:
    """What our Python adds to a copy job: (per_job, per_piece), and their draws; None where it was not told
    apart."""
    found = cleaner.of("python")
    if len(found) < MIN_POINTS:
        return None
    model, samples = PythonModel(list(found), layers), list(found.values())
    times = np.array([centre(values) for values in samples])
    used, terms = np.ones(len(times)), frozenset(model.names)
    value = model.solve(times, used, terms)
    rng = np.random.default_rng([seed, 2])
    return value, bootstrap(model, samples, used, terms, value, rng, draws)


def _interference(
    cleaner: _Cleaner,
    found: dict[Point, Floats],
    way: str,
    rng: np.random.Generator,
    draws: int,
) -> Estimate | None:
    """By what share a step is longer while copies go on in one direction: the median over shapes."""
    pairs = []
    for point, values in found.items():
        batch, kv_tokens = point["batch"], point["kv_tokens"]
        alone = found.get(Point("interference", (way, batch, kv_tokens, 0)))
        if (point["way"], point["with_copy"]) == (way, 1) and alone is not None:
            pairs.append((values, alone))
    if not pairs:
        cleaner.problems.append(f"no pair of interference points {way}: taken as none")
        return None
    value = float(np.median([centre(with_copy) / centre(alone) for with_copy, alone in pairs]))
    ratios = [
        resampled_centres(with_copy, draws, rng) / resampled_centres(alone, draws, rng)
        for with_copy, alone in pairs
    ]
    slower = np.maximum(np.median(ratios, axis=0) - 1, 0.0)
    value = max(0.0, value - 1)
    low, high = interval(slower, value)
    return Estimate(value, low, high, 2 * len(pairs))
