"""A few measured steps correct a derived machine: at most three factors, or the whole form if there are
enough of them. How far it is then off is told by leaving each step out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calibrate.machines.build import errors_of
from calibrate.machines.fit import TERMS, Form, features, fit
from calibrate.machines.steps import Step, Timed
from calibrate.nnls import Floats, nnls
from calibrate.profile import KindError, Quantity, TokenCost
from policy.errors import InputError

#: With so many steps, of so many of each kind, the form is fitted anew.
ENOUGH, OF_EACH = 60, 12
LEAST = 3
#: A factor of its own needs two steps in which its part is so much of the time.
_PART = 0.15
KV = tuple(name for name in TERMS if name.split("_")[0] in ("kv", "uneven", "longest"))
PROMPTS = ("square", "past")
GROUPS = ("matrix products", "KV", "prompt attention")


class Scaled(NamedTuple):
    """The corrected cost, what each group was multiplied by, and the error with each step left out."""

    cost: TokenCost
    factors: tuple[float, ...]
    errors: tuple[KindError, ...]
    judged: str


def correct(cost: TokenCost, points: Sequence[Timed], source: str) -> Scaled:
    """Raises InputError if there are fewer than three steps."""
    if len(points) < LEAST:
        raise InputError(f"{source}: {len(points)} different steps; {LEAST} are the least")
    kinds = [point.kind for point in points]
    if len(points) >= ENOUGH and min(map(kinds.count, ("decode", "prefill", "mixed"))) >= OF_EACH:
        return _anew(cost, points, source)
    factors = _factors(cost, points)
    off = []
    for index, point in enumerate(points):
        rest = [*points[:index], *points[index + 1 :]]
        told = _parts(cost, [point.step])[0] @ np.append(_factors(cost, rest), 1.0)
        off.append(float(told) / point.ns - 1)
    text = ", ".join(f"{g} x {f:.3g}" for g, f in zip(GROUPS, factors, strict=True))
    return Scaled(
        scaled(cost, factors, f"{source}: {len(points)} measured steps; {text}"),
        tuple(map(float, factors)),
        errors_of(kinds, off),
        f"{len(points)} measured steps, each left out in turn",
    )


def _factors(cost: TokenCost, points: Sequence[Timed]) -> Floats:
    """Non-negative least squares of relative errors; a group that few steps tell goes with the first."""
    parts = _parts(cost, [point.step for point in points])
    times = np.array([point.ns for point in points])
    shares = parts[:, :3] / times[:, None]
    own = [0, *(g for g in (1, 2) if (shares[:, g] > _PART).sum() >= 2)]
    columns = np.stack(
        [
            shares[:, [g for g in range(3) if (g if g in own else 0) == one]].sum(axis=1)
            for one in own
        ],
        axis=1,
    )
    found = nnls(columns, 1 - parts[:, 3] / times)
    by_group = dict(zip(own, found, strict=True))
    return np.array([max(1e-3, by_group.get(g, by_group[0])) for g in range(3)])


def _parts(cost: TokenCost, steps: Sequence[Step]) -> Floats:
    """Time of each group and of the host, ns, a row a step."""
    form = form_of(cost)
    rows = features(steps)
    weights = np.array([form.terms[name] for name in TERMS])
    group = np.array([1 if n in KV else 2 if n in PROMPTS else 0 for n in TERMS])
    tokens = np.array([step.tokens for step in steps], float)
    parts = [rows[:, group == g] @ weights[group == g] for g in range(3)]
    parts[0] = parts[0] + form.table(tokens)
    host = cost.host_base.value + cost.host_per_token.value * tokens
    return np.stack([*parts, host], axis=1)


def form_of(cost: TokenCost) -> Form:
    """Its numbers without the host's."""
    terms = {name: getattr(cost, name) for name in TERMS}
    return Form(
        cost.tokens,
        tuple(ns * cost.scale.value for ns in cost.ns),
        {name: 0.0 if value is None else value.value for name, value in terms.items()},
    )


def scaled(cost: TokenCost, factors: Sequence[float] | Floats, source: str) -> TokenCost:
    """Each group multiplied, its numbers now derived from what `source` says."""

    def times(quantity: Quantity | None, factor: float) -> Quantity | None:
        if quantity is None:
            return None
        ends = {
            end: None if getattr(quantity, end) is None else getattr(quantity, end) * factor
            for end in ("low", "high")
        }
        return Quantity(
            value=quantity.value * factor, unit=quantity.unit, kind="derived", source=source, **ends
        )

    update = {
        name: times(
            getattr(cost, name), float(factors[1 if name in KV else 2 if name in PROMPTS else 0])
        )
        for name in TERMS
    }
    ns = tuple(max(1, round(one * float(factors[0]))) for one in cost.ns)
    return cost.model_copy(update={**update, "ns": ns})


def _anew(cost: TokenCost, points: Sequence[Timed], source: str) -> Scaled:
    """The form fitted to the steps alone; its error by leaving out a tenth of them at a time."""
    folds = np.random.default_rng(0).permutation(len(points)) % 10
    off = np.zeros(len(points))
    host = np.array(
        [cost.host_base.value + cost.host_per_token.value * p.step.tokens for p in points]
    )
    bare = [
        Timed(point.step, max(1.0, point.ns - ns)) for point, ns in zip(points, host, strict=True)
    ]
    for fold in range(10):
        out = np.flatnonzero(folds == fold).tolist()
        form = fit([point for i, point in enumerate(bare) if folds[i] != fold])
        told = form.predict([points[i].step for i in out]) + host[out]
        off[out] = told / np.array([points[i].ns for i in out]) - 1
    form = fit(bare)
    text = f"{source}: {len(points)} measured steps"
    terms = {
        name: Quantity(value=value, unit="ns", kind="measured", source=text) if value else None
        for name, value in form.terms.items()
    }
    none = Quantity(value=0.0, unit="ns", kind="measured", source=text)
    needed = {name: terms[name] or none for name in ("kv_decode", "kv_mixed", "square")}
    new = cost.model_copy(
        update={
            "tokens": form.tokens,
            "ns": tuple(max(1, round(ns)) for ns in form.ns),
            "scale": cost.scale.model_copy(update={"source": text, "kind": "measured"}),
            **terms,
            **needed,
        }
    )
    return Scaled(
        new,
        (),
        errors_of([p.kind for p in points], off.tolist()),
        f"{text}, a tenth left out at a time",
    )
