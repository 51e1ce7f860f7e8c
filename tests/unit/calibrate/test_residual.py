"""Curves of what formulas leave over: found where a machine has them, absent where it has none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibrate.build import build, refit
from calibrate.fit import fit
from calibrate.inference import find_wild
from calibrate.models import StepModel
from calibrate.points import Point, Points
from calibrate.profile import ONE, Corrections, Curve, Profile
from calibrate.residual import Left, curves_of
from policy.plan import Copy, Direction
from policy.systems import named_system
from sim.costs import CopyCosts, step_costs
from tests.helpers.calibration import grid, synthetic, true_ns, truth

#: A machine that takes another way for three than for four, and small pieces slowly.
DECODE = Curve(knots=(1, 2, 3, 4, 8, 128), factors=(600, 1000, 1400, 950, 1000, 1100))
PREFILL = Curve(knots=(1, 64, 128, 2048), factors=(1600, 1024, 1024, 900))
PIECE = Curve(knots=(32768, 65536, 1 << 20), factors=(1500, 1024, 900))
STRAIGHT = truth(**{"transfer.piece_setup": 1000.0})
BENT = STRAIGHT.model_copy(
    update={"corrections": Corrections(decode=DECODE, prefill=PREFILL, copy_piece=PIECE)}
)


@pytest.fixture(scope="module")
def points() -> Points:
    return synthetic(BENT, noise=0.01, spread=0.005)


@pytest.fixture(scope="module")
def profile(points: Points) -> Profile:
    return build(points, name="bent", draws=100)


def test_a_machine_that_is_no_straight_line_is_predicted_where_the_fit_never_looked(
    profile: Profile, points: Points
) -> None:
    assert profile.fit is not None and profile.corrections is not None
    assert profile.fit.steps.mean < 0.04 and profile.fit.steps.p95 < 0.12
    assert profile.fit.copies.mean < 0.06 and profile.fit.copies.p95 < 0.12
    costs = step_costs(profile)
    for batch in (1, 3, 4, 8):
        found = costs.decode_ns(batch, 16 * batch)
        true = true_ns(BENT, Point("decode", (batch, 16 * batch, 16)))
        assert found - 300_000 == pytest.approx(true, rel=0.06)


def test_without_curves_the_same_points_are_predicted_badly(points: Points) -> None:
    """Otherwise the test above would say nothing."""
    steps = fit(points, draws=20).steps
    straight = steps.model.predict(steps.result.coefficients)
    medians = np.array([np.median(values) for values in steps.samples])
    assert np.percentile(np.abs(straight / medians - 1)[steps.result.held_out], 95) > 0.15


def test_intervals_hold_points_held_out_on_a_bent_machine_too(profile: Profile) -> None:
    assert profile.fit is not None
    assert profile.fit.steps.covered >= 0.85
    assert profile.fit.copies.covered >= 0.85


def test_a_profile_with_curves_comes_back_from_its_file(profile: Profile) -> None:
    data = profile.as_json()
    again = Profile.model_validate_json(json.dumps(data))
    assert again == profile
    del data["corrections"]
    straight = Profile.model_validate_json(json.dumps(data))
    assert again.hash == profile.hash != straight.hash


def test_one_lonely_point_far_off_is_wild_and_a_bend_is_not() -> None:
    chosen = [point for point in grid(BENT) if point.kind in ("decode", "prefill")]
    times = np.array([float(true_ns(BENT, point)) for point in chosen])
    model = StepModel(chosen)
    assert find_wild(model, times) == ([], [])
    times[5] *= 5
    assert find_wild(model, times) == ([5], [])


def test_a_curve_follows_its_points_and_fades_away_from_them() -> None:
    at = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 1000.0, 1000.0])
    ratios = np.array([0.6, 0.6, 1.3, 1.3, 1.0, 1.0, 1.2, 1.2])
    curves = curves_of(Left(["decode"] * 8, at), ratios, np.ones(8))
    found = [curves["decode"].at(value) / ONE for value in (1, 2, 4, 1000)]
    assert found == pytest.approx([0.6, 1.3, 1.0, 1.2], abs=0.05)
    assert set(curves_of(Left([None] * 8, at), ratios, np.ones(8))) == set()
    assert set(curves_of(Left(["decode"] * 8, at), ratios, (at < 3) * 1.0)) == set()


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=8, unique=True).map(sorted),
    st.data(),
)
def test_a_curve_lies_between_the_knots_around_it_and_is_flat_beyond_them(
    knots: list[int], data: st.DataObject
) -> None:
    size = len(knots)
    factors = data.draw(st.lists(st.integers(1, 5000), min_size=size, max_size=size))
    curve = Curve(knots=tuple(knots), factors=tuple(factors))
    assert [curve.at(knot) for knot in knots] == factors
    assert curve.at(max(1, knots[0] - 1)) in (factors[0], curve.at(knots[0] - 1))
    assert curve.at(knots[-1] + 1) == factors[-1]
    value = data.draw(st.integers(knots[0], knots[-1]))
    around = [f for k, f in zip(knots, factors, strict=True) if k <= value][-1:]
    around += [f for k, f in zip(knots, factors, strict=True) if k >= value][:1]
    assert min(around) <= curve.at(value) <= max(around)


@pytest.mark.parametrize(
    ("knots", "factors", "why"),
    [((1, 2), (5,), "2 knots and 1 factors"), ((2, 2), (5, 5), "knots do not rise")],
)
def test_a_broken_curve_is_refused(
    knots: tuple[int, ...], factors: tuple[int, ...], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        Curve(knots=knots, factors=factors)


def test_a_factor_multiplies_a_whole_step_and_a_whole_job() -> None:
    plain, bent = step_costs(STRAIGHT), step_costs(BENT)
    assert bent.decode_ns(3, 100) == pytest.approx(plain.decode_ns(3, 100) * 1400 / ONE, abs=1)
    assert bent.prefill_ns([(64, 0)]) == plain.prefill_ns([(64, 0)])
    assert bent.prefill_ns([(1, 9)]) == pytest.approx(
        plain.prefill_ns([(1, 9)]) * 1600 / ONE, abs=1
    )
    copy = Copy(0, Direction.TO_HOST, "r", ((0, 0, 1), (5, 9, 1)), 2)
    for name in ("vllm-0.3.3-keep", "fastswitch", "+batched"):
        system = named_system(name)
        one = CopyCosts(STRAIGHT, system, 16).cost(copy)
        other = CopyCosts(BENT, system, 16).cost(copy)
        piece = one.bytes // CopyCosts(BENT, system, 16).pieces(copy)
        for a, b in zip(one[:4], other[:4], strict=True):
            assert b == a * PIECE.at(piece) >> 10
        assert one[4:] == other[4:]


def test_a_refit_has_the_same_curves(points: Points, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "p.jsonl"
    lines = [json.dumps(points.header)]
    lines += [
        json.dumps({**point.as_json(), "ns": value})
        for point, values in points.samples.items()
        for value in values
    ]
    path.write_text("\n".join(lines) + "\n")
    first, second = (refit(path, name="x", draws=10) for _ in range(2))
    assert first == second
    assert first.corrections is not None
