"""What can be said about coefficients from noisy points: which points are wild, which terms earn
their place, how far predictions are off on points they never saw, and how sure all of it is.

Everything is drawn from one seed, in the order of points and samples that the caller fixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from calibrate.models import Model
from calibrate.nnls import Floats, Mask
from calibrate.profile import Curve
from calibrate.residual import Left, curves_of
from runs.metrics.stats import t95

HELD_OUT = 0.3
#: Share of a point's repeats that is left out at either end, one at least.
TRIM = 0.1
FOLDS = 10
#: A point is wild if it is off by more than half as much again, and by so many robust standard
#: deviations of the others.
WILD_FACTOR = 1.5
WILD_DEVIATIONS = 8.0
#: Beyond this share of wild points it is the model that does not fit, not they.
WILD_SHARE = 0.05


class Result(NamedTuple):
    """A fit on all points, after its terms were chosen and its error was found by one that did not see
    the points held out. `curves`: by what predictions are multiplied. `predicted`, `low` and `high` of a
    point held out are by the fit that did not see it. `draws` are of that one too, and with all terms: the interval of a term
    that was left out says what it may yet be, and predictions are no surer than the choice of terms."""

    coefficients: Floats
    terms: frozenset[str]
    curves: dict[str, Curve]
    draws: Floats  # (draws, coefficients)
    held_out: Mask
    predicted: Floats
    low: Floats  # of the prediction of a new measurement at each point
    high: Floats


def infer(
    model: Model,
    samples: Sequence[Floats],
    corners: Sequence[int],
    *,
    seed: int,
    draws: int,
) -> Result:
    """Hold out, choose terms, fit, resample; then fit to all. `samples`: repeats of each point, sorted;
    `corners`: points that are held out whatever chance says."""
    rng = np.random.default_rng(seed)
    times = np.array([centre(values) for values in samples])
    held_out = split(len(times), corners, rng)
    trained = (~held_out).astype(np.float64)
    terms = choose_terms(model, times, trained, rng)
    coefficients = model.solve(times, trained, terms)
    drawn = bootstrap(model, samples, trained, frozenset(model.names), coefficients, rng, draws)
    predicted = model.predict(coefficients)
    errors = (times / np.maximum(predicted, 1e-9) - 1)[~held_out]
    curves, left_out = choose_curves(model, times, trained, terms, rng)
    if curves:
        errors = left_out[~held_out]
    factors = model.left.factors(curves)
    fitted = 0 if curves else len(model.names)  # errors of folds left out are wide enough
    low, high = prediction_interval(model, drawn, errors, fitted, rng)
    final, final_curves = _fit_to_all(model, times, terms, curves)
    seen = model.predict(final) * model.left.factors(final_curves)
    return Result(
        final,
        terms,
        final_curves,
        drawn,
        held_out,
        np.where(held_out, predicted * factors, seen),
        low * factors,
        high * factors,
    )


def _fit_to_all(
    model: Model, times: Floats, terms: frozenset[str], sorts: Collection[str]
) -> tuple[Floats, dict[str, Curve]]:
    """Terms and curves were chosen without the points held out; once the error is known, no point is
    left unused."""
    everyone = np.ones(len(times))
    coefficients = model.solve(times, everyone, terms)
    ratios = times / np.maximum(model.predict(coefficients), 1e-9)
    curves = curves_of(model.left, ratios, everyone)
    return coefficients, {sort: curve for sort, curve in curves.items() if sort in sorts}


def split(count: int, corners: Sequence[int], rng: np.random.Generator) -> Mask:
    """Who is held out: HELD_OUT of all points at random, and the corners."""
    held_out = np.zeros(count, dtype=bool)
    held_out[rng.permutation(count)[: round(HELD_OUT * count)]] = True
    held_out[list(corners)] = True
    return held_out


def choose_terms(
    model: Model, times: Floats, weights: Floats, rng: np.random.Generator
) -> frozenset[str]:
    """All terms but those without which the error of left-out folds rises by no more than one
    standard error of its rise; the least useful goes first. Going the other way, from few terms to
    many, drowns the use of each in what the others still leave over."""
    folds = rng.permutation(len(times)) % FOLDS
    used = weights > 0

    def errors(terms: frozenset[str]) -> Floats:
        found = np.zeros(len(times))
        for fold in range(FOLDS):
            out = folds == fold
            left = model.solve(times, np.where(out, 0.0, weights), terms)
            found[out] = np.abs(model.predict(left) / times - 1)[out]
        return found[used]

    terms = frozenset(model.names)
    current = errors(terms)
    while candidates := [name for name in model.optional if name in terms]:
        trials = [(errors(terms - {name}), name) for name in candidates]
        worse, name = min(trials, key=lambda trial: float(trial[0].mean()))
        rises = worse - current
        if rises.mean() > rises.std(ddof=1) / math.sqrt(len(rises)):
            break
        terms, current = terms - {name}, worse
    return terms


def choose_curves(
    model: Model,
    times: Floats,
    weights: Floats,
    terms: frozenset[str],
    rng: np.random.Generator,
) -> tuple[dict[str, Curve], Floats]:
    """Curves of what the formulas leave over, for each sort of point whose error on left-out folds
    they lower by more than a standard error; and how far every point is then off when left out."""
    folds = rng.permutation(len(times)) % FOLDS
    left = model.left
    by_formula, by_curve = np.zeros(len(times)), np.zeros(len(times))
    for fold in range(FOLDS):
        out = folds == fold
        kept = np.where(out, 0.0, weights)
        predicted = np.maximum(model.predict(model.solve(times, kept, terms)), 1e-9)
        curves = curves_of(left, times / predicted, kept)
        by_formula[out] = (times / predicted - 1)[out]
        by_curve[out] = (times / (predicted * left.factors(curves)) - 1)[out]
    gain = np.abs(by_formula) - np.abs(by_curve)
    predicted = np.maximum(model.predict(model.solve(times, weights, terms)), 1e-9)
    found = {
        sort: curve
        for sort, curve in curves_of(left, times / predicted, weights).items()
        if _is_sure(gain[_of_sort(left, sort) & (weights > 0)])
    }
    corrected = np.isin([sort or "" for sort in left.sorts], list(found))
    return found, np.where(corrected, by_curve, by_formula)


def _of_sort(left: Left, sort: str) -> Mask:
    return np.array([one == sort for one in left.sorts])


def _is_sure(gain: Floats) -> bool:
    """On average above zero by more than a standard error. A curve that noise alone brought in lies
    close to one and moves little."""
    return bool(gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)))


def find_wild(model: Model, times: Floats) -> tuple[list[int], list[int]]:
    """(points to leave out, points far off that are too many to leave out).

    Each point is judged by a fit without it, so that it cannot pull the line to itself. One that is far
    from the line but where the others of its quantity are too is a curve's business, not wild.
    """
    left_out: list[int] = []
    limit = max(1, int(WILD_SHARE * len(times)))
    while True:
        wild = _wildest(model, times, left_out)
        if wild is None:
            return left_out, []
        left_out.append(wild)
        if len(left_out) > limit:
            return [], left_out


def _wildest(model: Model, times: Floats, left_out: Sequence[int]) -> int | None:
    terms = frozenset(model.names)
    weights = np.ones(len(times))
    weights[list(left_out)] = 0.0
    start = model.solve(times, weights, terms)
    worst, found = 0.0, None
    for index in np.flatnonzero(weights):
        weights[index] = 0.0
        predicted = model.predict(model.solve(times, weights, terms, start))
        logs = np.log(times / np.maximum(predicted, 1e-9))
        others = logs[weights > 0]
        spread = 1.4826 * float(np.median(np.abs(others - np.median(others))))
        alike = logs[_alike(model.left, int(index)) & (weights > 0)]
        off = abs(float(logs[index]))
        if len(alike):
            off = min(off, abs(float(logs[index] - np.median(alike))))
        weights[index] = 1.0
        if off > max(math.log(WILD_FACTOR), WILD_DEVIATIONS * spread) and off > worst:
            worst, found = off, int(index)
    return found


def _alike(left: Left, index: int) -> Mask:
    """Other points with the same quantity, or if there are none with nearly the same."""
    found = np.zeros(len(left.at), dtype=np.bool_)
    if left.sorts[index] is None:
        return found
    sort, ratio = _of_sort(left, left.sorts[index] or ""), left.at / left.at[index]
    for near in (1.0, WILD_FACTOR):
        found = sort & (ratio <= near) & (ratio >= 1 / near)
        found[index] = False
        if found.any():
            break
    return found


def bootstrap(
    model: Model,
    samples: Sequence[Floats],
    weights: Floats,
    terms: frozenset[str],
    start: Floats,
    rng: np.random.Generator,
    draws: int,
) -> Floats:
    """Coefficients of `draws` fits on resampled points, each with resampled repeats."""
    centres = np.stack([resampled_centres(values, draws, rng) for values in samples], axis=1)
    used = np.flatnonzero(weights)
    chances = np.full(len(used), 1 / len(used))
    found = np.empty((draws, len(start)))
    for draw in range(draws):
        counts = np.zeros(len(weights))
        counts[used] = rng.multinomial(len(used), chances)
        found[draw] = model.solve(centres[draw], counts, terms, start)
    return found


def centre(values: Floats) -> float:
    """What a point takes: the mean of its repeats without the TRIM smallest and largest. A machine whose
    clock has two states gives either of them as a median, by chance and differently for each point."""
    return float(_trimmed(np.sort(values)[None, :])[0])


def resampled_centres(values: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Centres of `draws` resamples of one point's repeats."""
    return _trimmed(np.sort(rng.choice(values, (draws, len(values))), axis=1))


def _trimmed(rows: Floats) -> Floats:
    """Means of sorted rows without their ends."""
    count = rows.shape[1]
    cut = min(max(1, round(TRIM * count)), (count - 1) // 2)
    middle: Floats = rows[:, cut : count - cut].mean(axis=1)
    return middle


def prediction_interval(
    model: Model, drawn: Floats, errors: Floats, fitted: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Where 95 % of new measurements of each point lie: every draw's prediction, off by one of the
    fit's own relative errors, which are widened for the coefficients they were fitted with.

    Between the ends of n errors lie (n - 1) / (n + 1) of new ones, not all: percentiles allow for it.
    """
    count = len(errors)
    left = max(1, count - fitted)
    widened = errors * math.sqrt(count / left) * t95(left) / t95(1_000_000)
    predicted = np.stack([model.predict(row) for row in drawn])
    off = rng.choice(np.sort(widened), predicted.shape)
    tail = max(0.0, 1 - 0.95 * (count + 1) / (count - 1)) / 2
    low, high = np.quantile(predicted * (1 + off), (tail, 1 - tail), axis=0)
    return np.maximum(low, 0.0), high


def interval(
    draws: Floats, value: float, of: Callable[[float], float] = float
) -> tuple[float, float]:
    """95 % interval of one coefficient's draws, widened where needed to hold the value itself."""
    ends = [of(float(end)) for end in np.percentile(draws, (2.5, 97.5))] + [value]
    return min(ends), max(ends)
