"""Verdicts in words, by one rule for all claims, from intervals of paired runs.

A cell is a pair of systems, a metric and a set-up. It *holds* where a difference is shown (the 95 %
interval leaves out 1), its size is known within a factor of two, and the interval meets the claimed
range. A claim is reproduced if all its cells hold (of an "up to": the largest), partly if some do or
all are better by another amount, and not otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from explore.reproduce import trends
from explore.reproduce.data import Claim
from explore.reproduce.overhead import Overhead
from explore.reproduce.study import Found, Place, Result
from explore.studies.estimates import Estimate, Ratio, estimate_of, speedup_of

State = Literal["holds", "less", "more", "wide", "none", "worse", "few"]
Word = Literal["reproduced", "partly", "not", "no value claimed", "not run"]

#: An interval that reaches further than by this factor does not say how large a difference is.
WIDE = 2.0
#: What states are called in a sentence.
STATES: dict[State, str] = {
    "holds": "in the claimed range",
    "less": "better by less",
    "more": "better by more",
    "wide": "better, size open",
    "none": "no difference shown",
    "worse": "worse",
    "few": "n too small",
}


@dataclass(frozen=True)
class Cell:
    """One comparison. `ratio` of a pair, or `estimate` of a system alone."""

    place: Place
    metric: str
    system: str
    against: str | None
    state: State
    ratio: Ratio | None = None
    estimate: Estimate | None = None

    @property
    def value(self) -> float | None:
        """The number in the middle."""
        if self.ratio is not None:
            return self.ratio.value
        return None if self.estimate is None else self.estimate.value


@dataclass(frozen=True)
class Elsewhere:
    """A setting in which `held` of so many cells hold. `is_whole`: the claim would be reproduced."""

    group: str
    variant: str
    held: int
    cells: int
    is_whole: bool

    @property
    def words(self) -> str:
        """`10 us`, or `10 us (2 of 4)`."""
        name = self.variant or self.group
        return name if self.is_whole else f"{name} ({self.held} of {self.cells})"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim. `where`: other settings in which it, or some of its cells, would hold."""

    claim: Claim
    word: Word
    why: str
    cells: tuple[Cell, ...] = ()
    trend: tuple[trends.Point, ...] = ()
    where: tuple[Elsewhere, ...] = ()


def judge_all(
    claims: Iterable[Claim], found: Found, overhead: Overhead | None = None
) -> Iterable[Verdict]:
    """Every claim at its operating point, and where else it would hold."""
    for claim in claims:
        if claim.kind == "overhead":
            yield _overhead(claim, overhead)
        elif claim.kind in ("flat", "grows"):
            yield _trend(claim, found)
        elif claim.kind == "steps":
            yield _steps(claim, found)
        else:
            cells = cells_of(claim, found, claim.group)
            word, why = _verdict(claim, cells)
            yield Verdict(claim, word, why, tuple(cells), (), tuple(_where(claim, found)))


def cells_of(claim: Claim, found: Found, group: str, variant: str = "") -> list[Cell]:
    """Cells of which both systems were run."""
    cells = []
    for setup in claim.setups:
        place = Place(group, setup, variant)
        for pair in claim.pairs:
            runs = [found.of(place, name) for name in pair]
            if any(run is None for run in runs):
                continue
            held = [run for run in runs if run is not None]
            cells += [_cell(claim, place, pair, metric, held) for metric in claim.metrics]
    return cells


def _cell(
    claim: Claim, place: Place, pair: Sequence[str], metric: str, runs: Sequence[list[Result]]
) -> Cell:
    if claim.kind == "value":
        found = estimate_of(runs[0], metric)
        return Cell(place, metric, pair[0], None, _state_of_value(claim, found), estimate=found)
    ratio = speedup_of(runs[0], runs[1], metric)
    return Cell(place, metric, pair[0], pair[1], state_of(ratio, claim.low, claim.high), ratio)


def state_of(ratio: Ratio, low: float, high: float) -> State:
    """Where a ratio stands to the claimed range."""
    if ratio.value is None or ratio.factor is None:
        return "few"
    if not ratio.is_better:
        return "worse" if ratio.is_worse else "none"
    if ratio.value * ratio.factor < low:
        return "less"
    if ratio.value / ratio.factor > high:
        return "more"
    return "wide" if ratio.factor > WIDE else "holds"


def _state_of_value(claim: Claim, found: Estimate) -> State:
    if found.interval is None:
        return "few"
    low, high = found.interval
    if high < claim.low:
        return "less"
    return "more" if low > claim.high else "holds"


def _verdict(claim: Claim, cells: Sequence[Cell]) -> tuple[Word, str]:
    if not cells:
        return "not run", ""
    if claim.best:
        return _best(claim, cells)
    states = Counter(cell.state for cell in cells)
    told = in_words(states)
    if states["holds"] == len(cells):
        return "reproduced", told
    better = sum(states[state] for state in ("holds", "less", "more", "wide"))
    if states["holds"] or better == len(cells):
        return "partly", told
    return "not", told


def in_words(states: Counter[State]) -> str:
    """`3 of 8 in the claimed range, 5 better by more`."""
    total = states.total()
    parts = [f"{states[state]} {words}" for state, words in STATES.items() if states[state]]
    head, *rest = parts
    number, _, words = head.partition(" ")
    return ", ".join([f"{number} of {total} {words}", *rest])


def _best(claim: Claim, cells: Sequence[Cell]) -> tuple[Word, str]:
    """ "Up to": the largest cell decides. A gain of less than half of the claimed one is no part."""
    known = [cell for cell in cells if cell.value is not None]
    if not known:
        return "not", "n too small"
    best = max(known, key=lambda cell: cell.value or 0.0)
    value = best.value or 0.0
    why = f"largest at {best.place.setup}: {STATES[best.state]}"
    if claim.kind == "value" and best.state != "holds":
        why = f"largest at {best.place.setup}: {'larger' if best.state == 'more' else 'smaller'}"
    if best.state == "holds":
        return "reproduced", why
    floor = 0.0 if claim.kind == "value" else 1.0
    enough = value - floor >= (claim.low - floor) / 2
    shown = best.state in ("more", "wide", "less")
    return ("partly" if shown and enough else "not"), why


def _where(claim: Claim, found: Found) -> Iterable[Elsewhere]:
    """Settings other than the claim's own in which some of its cells hold."""
    for group, variants in found.variants.items():
        for variant in variants:
            cells = cells_of(claim, found, group, variant.name)
            if group == claim.group or _is_own(claim, found, cells):
                continue
            held = sum(cell.state == "holds" for cell in cells)
            whole = bool(cells) and _verdict(claim, cells)[0] == "reproduced"
            if whole or held:
                yield Elsewhere(group, variant.name, held, len(cells), is_whole=whole)


def _is_own(claim: Claim, found: Found, cells: Sequence[Cell]) -> bool:
    """These are the very runs of the claim's own point, under another name."""
    return all(
        found.of(cell.place, name) == found.of(Place(claim.group, cell.place.setup), name)
        for cell in cells
        for name in (cell.system, cell.against)
        if name is not None
    )


def _overhead(claim: Claim, overhead: Overhead | None) -> Verdict:
    if overhead is None:
        return Verdict(claim, "not run", "")
    word: Word = "reproduced" if overhead.share <= claim.high else "not"
    why = (
        f"schedulers of this project: {overhead.ours_s:.2f} s against {overhead.theirs_s:.2f} s of"
        f" {overhead.run_s:.0f} s simulated"
    )
    return Verdict(claim, word, why)


def _trend(claim: Claim, found: Found) -> Verdict:
    points = tuple(trends.points_of(claim, found))
    wanted = len(found.variants.get(claim.group, ())) * len(claim.metrics)
    if not points or len(points) < wanted:
        return Verdict(claim, "not run", "")
    if claim.show == "unknown":
        return Verdict(claim, "no value claimed", "", trend=points)
    word, why = trends.flat(claim, found) if claim.kind == "flat" else trends.grows(claim, found)
    return Verdict(claim, word, why, trend=points)


def _steps(claim: Claim, found: Found) -> Verdict:
    """Every pair adds a mechanism: reproduced if each is shown better, partly if none is worse."""
    cells = cells_of(claim, found, claim.group)
    if not cells:
        return Verdict(claim, "not run", "")
    worse = sum(cell.state == "worse" for cell in cells)
    better = sum(cell.state in ("less", "more", "holds", "wide") for cell in cells)
    steps = []
    for system, against in (pair for pair in claim.pairs if len(pair) == 2):
        own = [cell for cell in cells if (cell.system, cell.against) == (system, against)]
        gains = sum(cell.state in ("less", "more", "holds", "wide") for cell in own)
        losses = sum(cell.state == "worse" for cell in own)
        steps.append(f"{system}: {gains} of {len(own)} better, {losses} worse")
    word: Word = "reproduced" if better == len(cells) else "not"
    if word == "not" and better and not worse:
        word = "partly"
    return Verdict(claim, word, "; ".join(steps), tuple(cells))
