"""Claims about how something changes along an axis: flat, or growing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from explore.reproduce.data import Claim
from explore.reproduce.study import Found, Place, Result
from explore.studies.estimates import Ratio, ratio_of, speedup_of
from explore.words import HEADINGS, ratio

#: Differences within this factor are flat even where they are shown.
FLAT, NEARLY_FLAT = 1.05, 1.25
#: The variant that others are compared with: the default's value.
REFERENCE = "60"
Word = Literal["reproduced", "partly", "not"]


@dataclass(frozen=True)
class Point:
    """A metric at one place of the axis: against the reference (flat), or times better (grows)."""

    x: str
    metric: str
    ratio: Ratio


def points_of(claim: Claim, found: Found) -> Iterator[Point]:
    """Every metric at every variant of the claim's group."""
    for variant in found.variants.get(claim.group, ()):
        runs = _runs(claim, found, variant.name)
        if runs is None:
            continue
        for metric in claim.metrics:
            yield Point(variant.name, metric, speedup_of(*runs, metric))


def _runs(claim: Claim, found: Found, variant: str) -> tuple[list[Result], list[Result]] | None:
    system, *against = claim.pairs[0]
    place = Place(claim.group, claim.setups[0], variant)
    ours = found.of(place, system)
    if against:
        theirs = found.of(place, against[0])
    else:
        theirs = found.of(Place(claim.group, claim.setups[0], REFERENCE), system)
    return None if ours is None or theirs is None else (ours, theirs)


def flat(claim: Claim, found: Found) -> tuple[Word, str]:
    """Flat if no difference to the reference is shown, or none worth naming."""
    others = [point for point in points_of(claim, found) if point.x != REFERENCE]
    known = [point for point in others if point.ratio.value]
    if not known or len(known) < len(others):
        return "not", "n too small"
    distance = {id(point): abs(math.log(point.ratio.value or 1.0)) for point in known}
    worst = max(known, key=lambda point: distance[id(point)])
    told = f"furthest from it: {_told(worst)} at {worst.x}"

    def within(factor: float) -> bool:
        return all(
            not (point.ratio.is_better or point.ratio.is_worse)
            or distance[id(point)] <= math.log(factor)
            for point in known
        )

    if within(FLAT):
        return "reproduced", told
    return ("partly" if within(NEARLY_FLAT) else "not"), told


def grows(claim: Claim, found: Found) -> tuple[Word, str]:
    """The gain at the last place of the axis over that at the first, paired by run."""
    variants = found.variants.get(claim.group, ())
    first = _runs(claim, found, variants[0].name)
    last = _runs(claim, found, variants[-1].name)
    if first is None or last is None:
        return "not", "not run"
    grown, told = [], []
    for metric in claim.metrics:
        ratio = _gain_of_gains(first, last, metric)
        grown.append(ratio.is_better)
        told.append(_told(Point("", metric, ratio)))
    words = f"gain at {variants[-1].name} over that at {variants[0].name}: {', '.join(told)}"
    if all(grown):
        return "reproduced", words
    return ("partly" if any(grown) else "not"), words


def _gain_of_gains(
    first: tuple[list[Result], list[Result]], last: tuple[list[Result], list[Result]], metric: str
) -> Ratio:
    gains, gained = [], []
    for runs in zip(*first, *last, strict=True):
        values = [run["metrics"].get(metric) for run in runs]
        if not all(values):
            return Ratio(None)
        ours, theirs, our_last, their_last = map(float, values)
        gains.append(their_last / our_last)
        gained.append(theirs / ours)
    return replace(ratio_of(gains, gained), p=None)


def _told(point: Point) -> str:
    return f"{HEADINGS[point.metric][0]} {ratio(point.ratio)}"
