"""Coefficients of `calibrate.profile.TokenCost` from steps whose time is known.

    decode   D(B) + decode + per_output*B + sequence_decode*B + kv_decode*K + uneven_decode*U
             + longest_decode*L
    others   D(T) + per_output*(B + c) + sequence_mixed*B + kv_mixed*K + uneven_mixed*U
             + longest_mixed*L + square*Q + past*P + chunk*c

B decoding requests with K tokens of KV, L the longest context, U = L*B - K; c chunks of prompts,
T = B + their new tokens, Q = sum of new * (past + new / 2), P the tokens before them. D is a table with
a knot at every T that was measured, straight in between and never falling: a sum of non-negative steps.
Everything minimises squared relative errors without negative coefficients. What D may bend between two
knots is held by a penalty on its second differences, whose strength is chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calibrate.machines.steps import Step, Timed
from calibrate.nnls import Floats, Mask, nnls

#: Coefficients beside D, in the order of `features`.
DECODE = ("decode", "sequence_decode", "kv_decode", "uneven_decode", "longest_decode")
MIXED = ("sequence_mixed", "kv_mixed", "uneven_mixed", "longest_mixed")
PROMPTS = ("square", "past", "chunk")
TERMS = ("per_output", *DECODE, *MIXED, *PROMPTS)
#: Strengths of the penalty that are tried: what a relative bend of one costs against an error of one.
_STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5


class Form(NamedTuple):
    """Fitted: D at its knots, and the coefficients by name; ns."""

    tokens: tuple[int, ...]
    ns: tuple[float, ...]
    terms: dict[str, float]

    def table(self, tokens: Floats) -> Floats:
        """D, with the last slope beyond the last knot."""
        at, ns = np.array(self.tokens, float), np.array(self.ns)
        found: Floats = np.interp(tokens, at, ns)
        if len(at) > 1:
            slope = (ns[-1] - ns[-2]) / (at[-1] - at[-2])
            found = found + np.maximum(0.0, tokens - at[-1]) * slope
        return found

    def predict(self, steps: Sequence[Step]) -> Floats:
        """Time of each, ns."""
        tokens = np.array([step.tokens for step in steps], float)
        weights = np.array([self.terms.get(name, 0.0) for name in TERMS])
        found: Floats = self.table(tokens) + features(steps) @ weights
        return found


def features(steps: Sequence[Step]) -> Floats:
    """What each coefficient of TERMS is multiplied by."""
    rows = np.zeros((len(steps), len(TERMS)))
    for row, step in zip(rows, steps, strict=True):
        row[0] = step.outputs
        own = (step.batch, step.kv_tokens, step.uneven, step.longest)
        if step.kind == "decode":
            row[1], row[2:6] = 1.0, own
        else:
            row[6:10] = own
            row[10:13] = step.squares / 2, step.past, len(step.chunks)
    return rows


def fit(points: Sequence[Timed], terms: Sequence[str] = TERMS) -> Form:
    """From whole steps. `terms`: the coefficients beside D."""
    known = _Known.of(points, terms)
    return _solve(known, _best_strength(known))


class _Known(NamedTuple):
    """What a fit is made from, one row a point."""

    names: tuple[str, ...]
    tokens: Floats
    rows: Floats
    times: Floats

    @classmethod
    def of(cls, points: Sequence[Timed], terms: Sequence[str]) -> _Known:
        steps = [point.step for point in points]
        names = tuple(name for name in TERMS if name in terms)
        return cls(
            names,
            np.array([step.tokens for step in steps], float),
            features(steps)[:, [TERMS.index(name) for name in names]],
            np.array([point.ns for point in points], float),
        )

    def take(self, chosen: Mask) -> _Known:
        return _Known(self.names, *(part[chosen] for part in self[1:]))


def _solve(known: _Known, strength: float) -> Form:
    knots = np.unique(known.tokens)
    count = len(knots)
    steps = (known.tokens[:, None] >= knots[None, :]).astype(np.float64)
    rows = np.hstack([steps, known.rows]) / known.times[:, None]
    target, weights = np.ones(len(rows)), np.ones(len(rows))
    if strength and count > 2:
        least = np.minimum.accumulate(
            [known.times[known.tokens == knot].min() for knot in knots[::-1]]
        )[::-1]
        bends = np.hstack(
            [_bends(knots) / least[1:-1, None], np.zeros((count - 2, rows.shape[1] - count))]
        )
        rows = np.vstack([rows, bends])
        target = np.concatenate([target, np.zeros(count - 2)])
        weights = np.concatenate([weights, np.full(count - 2, strength)])
    found = nnls(rows, target, weights)
    return Form(
        tuple(int(knot) for knot in knots),
        tuple(float(ns) for ns in np.cumsum(found[:count])),
        dict(zip(known.names, map(float, found[count:]), strict=True)),
    )


def _bends(knots: Floats) -> Floats:
    """How far D lies off the line through its neighbours at every inner knot, by its steps."""
    rows = np.zeros((len(knots) - 2, len(knots)))
    for i in range(1, len(knots) - 1):
        share = (knots[i] - knots[i - 1]) / (knots[i + 1] - knots[i - 1])
        rows[i - 1, i] = 1 - share
        rows[i - 1, i + 1] = -share
    return rows


def _best_strength(known: _Known) -> float:
    """That with the least error on folds left out, whose knots are then not there either."""
    rng = np.random.default_rng([0, 7])
    folds = rng.permutation(len(known.times)) % FOLDS
    best, least = 0.0, np.inf
    for strength in _STRENGTHS:
        total = 0.0
        for fold in range(FOLDS):
            out = known.take(folds == fold)
            form = _solve(known.take(folds != fold), strength)
            terms = np.array([form.terms[name] for name in known.names])
            off = (form.table(out.tokens) + out.rows @ terms) / out.times - 1
            total += float(np.abs(off).sum())
        if total < least:
            best, least = strength, total
    return best
