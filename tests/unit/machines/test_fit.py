"""The fit of `tokens/1` finds the coefficients that made the times, and knows where it has no knots."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.machines.fit import TERMS, Form, fit
from calibrate.machines.steps import Step, Timed, even

TRUE = Form(
    (1, 8, 64, 512),
    (1e6, 1.2e6, 2e6, 9e6),
    dict.fromkeys(TERMS, 0.0)
    | {
        "decode": 5e4,
        "kv_decode": 40.0,
        "uneven_decode": 3.0,
        "kv_mixed": 90.0,
        "longest_mixed": 200.0,
        "square": 2.0,
        "past": 8.0,
        "chunk": 3e4,
    },
)


def points() -> list[Timed]:
    steps = [even(b, c) for b in (1, 8, 64) for c in (16, 500, 4000)]
    steps += [Step(8, 8 * 900, longest) for longest in (1000, 3000)]
    steps += [Step(chunks=((n, p),)) for n in (8, 64, 512) for p in (0, 300, 4000)]
    steps += [Step(chunks=((n // 4, 0),) * 4) for n in (64, 512)]
    steps += [
        even(b, c, ((t - b, p),))
        for t in (64, 512)
        for b in (4, 32)
        for c in (16, 800, 4000)
        for p in (0, 2000)
    ]
    return [Timed(step, float(ns)) for step, ns in zip(steps, TRUE.predict(steps), strict=True)]


def test_times_without_noise_are_met_and_their_coefficients_found() -> None:
    known = points()
    found = fit(known)
    off = found.predict([p.step for p in known]) / np.array([p.ns for p in known]) - 1
    assert np.abs(off).max() < 1e-3
    for name in ("kv_decode", "kv_mixed", "longest_mixed", "square", "past"):
        assert found.terms[name] == pytest.approx(TRUE.terms[name], rel=0.05)


def test_the_table_never_falls_and_goes_on_beyond_its_last_knot() -> None:
    rng = np.random.default_rng(3)
    noisy = [Timed(p.step, p.ns * float(rng.uniform(0.9, 1.1))) for p in points()]
    found = fit(noisy)
    assert all(a <= b for a, b in zip(found.ns, found.ns[1:], strict=False))
    grid = np.arange(1, 4000, dtype=float)
    assert (np.diff(found.table(grid)) >= 0).all()


def test_few_prompts_on_one_axis_are_smoothed() -> None:
    """A staircase between few points would miss what lies between them."""
    rng = np.random.default_rng(1)
    lengths = [2**k for k in range(4, 12)]
    seen = [
        Timed(Step(chunks=((n, 0),)), (1e6 + 2e4 * n) * float(rng.normal(1, 0.02))) for n in lengths
    ]
    found = fit(seen, terms=("square",))
    between = [Step(chunks=((n * 3 // 2, 0),)) for n in lengths[:-1]]
    true = np.array([1e6 + 2e4 * step.tokens for step in between])
    assert np.abs(found.predict(between) / true - 1).max() < 0.06
