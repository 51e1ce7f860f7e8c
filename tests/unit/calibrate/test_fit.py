"""A fit of points whose truth is known: what it finds again, how sure it says it is, what it drops.

Noise is a share of a point's time, normal, the same for all its repeats: a machine that is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from calibrate.build import build
from calibrate.fit import Fitted, fit
from calibrate.models import CopyModel, StepModel, further_name
from calibrate.points import Point, Points
from calibrate.profile import ONE, Corrections, Curve, Profile
from policy.errors import InputError
from sim.costs import step_costs
from tests.helpers.calibration import OVERHEAD, grid, header, synthetic, true_ns, truth

TRUTH = truth(**{"step.per_prefill_square": 8.0})
DRAWS = 200
COPIES = {
    "per_job": TRUTH.transfer.per_job.value,
    "per_call": TRUTH.transfer.per_call.value,
    "per_descriptor": TRUTH.transfer.per_descriptor.value,
    "piece_setup": TRUTH.transfer.piece_setup.value,
    "per_byte_h2d": 1e9 / TRUTH.transfer.to_device.value,
    "per_byte_d2h": 1e9 / TRUTH.transfer.to_host.value,
    "stretch_h2d": TRUTH.transfer.to_device.value / TRUTH.transfer.to_device_duplex.value,
    "stretch_d2h": TRUTH.transfer.to_host.value / TRUTH.transfer.to_host_duplex.value,
}
STEPS = {name: 0.0 if quantity is None else float(quantity.value) for name, quantity in TRUTH.step}
#: How far a coefficient may be off, in units of the noise. Those that few points tell are far off
#: at the same error of prediction.
OFF = {
    "base": 2,
    "per_prefill_token": 5,
    "per_kv_token": 10,
    "per_prefill_square": 15,
    "per_job": 4,
    "per_call": 2,
    "per_descriptor": 15,
    "piece_setup": 8,
    "per_byte_h2d": 3,
    "per_byte_d2h": 3,
    "stretch_h2d": 4,
    "stretch_d2h": 4,
}
#: What it adds to the points not held out is less than their noise: it may be left out.
#: Descriptors are taken while bytes move: on this machine no batch waits for them.
DROWNED = {(0.05, "per_prefill_square"), (0.01, "per_descriptor"), (0.05, "per_descriptor")}


def fitted(points: Points, seed: int = 0) -> Fitted:
    return fit(points, seed=seed, draws=DRAWS)


def copy_of(points: Points) -> Points:
    """Points that may be spoiled."""
    samples = {point: list(values) for point, values in points.samples.items()}
    return Points(dict(points.header), samples, problems=list(points.problems))


@pytest.fixture(scope="module")
def clean() -> Points:
    return synthetic(TRUTH, noise=0.01, spread=0.01)


@pytest.fixture(scope="module")
def good(clean: Points) -> Fitted:
    return fitted(clean)


def same(left: Fitted, right: Fitted) -> bool:
    """The same numbers, to the bit."""
    return all(
        a.points == b.points
        and (a.result.coefficients == b.result.coefficients).all()
        and (a.result.draws == b.result.draws).all()
        and (a.result.high == b.result.high).all()
        for a, b in ((left.steps, right.steps), (left.copies, right.copies))
    )


# ---------------------------------------------------------------------- the model is the simulator's


def test_the_fit_has_the_simulators_own_formulas_for_every_point() -> None:
    """With the true coefficients it predicts what the simulated machine takes, to its rounding."""
    uneven = TRUTH.step.base.model_copy(update={"value": 30.0})
    step = TRUTH.step.model_copy(update={"per_uneven_token": uneven})
    profile = TRUTH.model_copy(update={"step": step})
    points = grid(profile)
    steps = [point for point in points if point.kind in ("decode", "prefill")]
    copies = [point for point in points if point.kind == "copy"]
    step_model, copy_model = StepModel(steps), CopyModel(copies, profile.model.layers)
    values = {**STEPS, "per_uneven_token": 30.0}
    predicted = step_model.predict(np.array([values[name] for name in step_model.names]))
    assert predicted == pytest.approx([true_ns(profile, point) for point in steps], rel=1e-5)
    predicted = copy_model.predict(np.array([COPIES[name] for name in copy_model.names]))
    assert predicted == pytest.approx([true_ns(profile, point) for point in copies], rel=2e-3)


def test_both_bounds_of_a_copy_occur_among_the_points() -> None:
    """Otherwise the test above would say little."""
    copies = [point for point in grid(TRUTH) if point.kind == "copy"]
    model = CopyModel(copies, TRUTH.model.layers)
    bound = model.bound_by_calls(np.array([COPIES[name] for name in model.names]))
    assert 10 < bound.sum() < len(copies) - 10


# ---------------------------------------------------------------------- truth is found again


@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in (2, 3))]
)
def test_what_the_points_were_made_from_is_found_again(noise: float, seed: int) -> None:
    found = fitted(synthetic(TRUTH, noise=noise, spread=0.01, seed=seed), seed)
    for part, true in ((found.steps, STEPS), (found.copies, COPIES)):
        for name, allowed in OFF.items():
            if name not in true:
                continue
            value = part.coefficient(name)
            if value or (noise, name) not in DROWNED:
                assert value == pytest.approx(true[name], rel=allowed * noise), name
        exact = np.array([true_ns(TRUTH, point) for point in part.points])
        off = np.abs(part.result.predicted / exact - 1)
        assert off.mean() < noise
        assert off.max() < 5 * noise
    assert found.dropped == found.problems == ()


def test_the_error_on_points_it_never_saw_is_the_noise(good: Fitted) -> None:
    """Mean |N(0, s)| is 0.8 s, its 95th percentile 1.96 s."""
    for part in (good.steps, good.copies):
        errors = part.errors()
        assert 0.004 < errors.mean < 0.014
        assert 0.012 < errors.p95 < 0.035
        assert errors.p95 <= errors.max < 0.06


@pytest.mark.full
def test_intervals_hold_the_points_held_out_and_the_true_coefficients() -> None:
    """Of some 1,600 held-out points of twelve machines 95 % within three standard errors; those of
    one machine share a fit, so that they tell about half of what as many alone would. Of 156
    coefficients, whose intervals know nothing of the points' own errors but by resampling, most."""
    inside = {"steps": 0.0, "copies": 0.0}
    count = {"steps": 0, "copies": 0}
    held = []
    for seed in range(12):
        found = fitted(synthetic(TRUTH, noise=(0.01, 0.05)[seed % 2], spread=0.01, seed=seed), seed)
        for name, part in (("steps", found.steps), ("copies", found.copies)):
            errors = part.errors()
            inside[name] += errors.covered * errors.points
            count[name] += errors.points
            for coefficient in OFF:
                if coefficient in part.model.names:
                    true = (STEPS | COPIES)[coefficient]
                    low, high = np.percentile(part.draws(coefficient), (2.5, 97.5))
                    held.append(low <= true <= high)
    assert len(held) == 12 * len(OFF)
    assert 0.85 < np.mean(held) < 0.99
    for name, points in count.items():
        allowed = 3 * math.sqrt(0.95 * 0.05 / (points / 2))
        assert inside[name] / points == pytest.approx(0.95, abs=allowed), name


def test_the_engines_overhead_and_the_slow_down_by_copies_are_found_again(good: Fitted) -> None:
    assert good.overhead is not None
    value, draws = good.overhead
    assert value == pytest.approx(OVERHEAD, rel=0.1)
    assert draws.shape == (DRAWS, 2)
    for way, true in (("h2d", 0.10), ("d2h", 0.04)):
        found = good.interference[way]
        assert found.value == pytest.approx(true, abs=0.03)
        assert found.low <= found.value <= found.high


@pytest.mark.full
def test_terms_the_machine_does_not_have_are_mostly_left_out_and_never_large() -> None:
    """Noise may look like one now and then; it then moves no step by more than the noise does."""
    kept = 0
    for seed in range(4):
        found = fitted(synthetic(TRUTH, noise=0.01, seed=seed)).steps
        assert {"base", "per_kv_token", "per_prefill_token"} < found.result.terms
        for curve in found.result.curves.values():
            assert all(abs(factor / ONE - 1) < 0.05 for factor in curve.factors)
        kept += "per_uneven_token" in found.result.terms
        uneven = found.coefficient("per_uneven_token")
        assert uneven * 2048 * 16 < 0.05 * found.coefficient("base")
        for prompts in (2, 3, 4, 8):
            step = true_ns(TRUTH, Point("prompts", (prompts, 64, 0)))
            assert found.coefficient(further_name(prompts)) * (prompts - 1) < 0.05 * step
    assert kept <= 2


def test_what_each_number_of_prompts_costs_beyond_their_tokens_is_found_again() -> None:
    """Three may cost more than four: as many rows go through the output head."""
    further = TRUTH.step.base.model_copy(update={"value": 4e6})
    curve = Curve(knots=(2, 3, 4, 8), factors=(ONE, ONE * 3 // 4, ONE // 4, ONE // 8))
    truly = TRUTH.model_copy(
        update={
            "step": TRUTH.step.model_copy(update={"per_further_prompt": further}),
            "corrections": Corrections(further_prompts=curve),
        }
    )
    points = synthetic(truly, noise=0.01, spread=0.005)
    found = build(points, name="prompts", draws=50)
    costs, true_costs = step_costs(found), step_costs(truly)
    for prompts in range(1, 13):
        step = [(128, 0)] * prompts
        engine = OVERHEAD[0]  # which the points of whole steps brought in
        assert costs.prefill_ns(step) - engine == pytest.approx(
            true_costs.prefill_ns(step), rel=0.04
        )
    for machine in (costs, true_costs):
        assert machine.prefill_ns([(20, 0)] * 3) > machine.prefill_ns([(15, 0)] * 4)


def test_what_uneven_lengths_cost_is_found_where_they_do() -> None:
    uneven = TRUTH.step.base.model_copy(update={"value": 40.0})
    step = TRUTH.step.model_copy(update={"per_uneven_token": uneven})
    found = fitted(synthetic(TRUTH.model_copy(update={"step": step}), noise=0.01))
    assert found.steps.coefficient("per_uneven_token") == pytest.approx(40.0, rel=0.1)


def test_times_until_the_last_call_is_in_tell_calls_from_pieces() -> None:
    """On a machine where every job waits for its bytes only they can."""
    slow = truth(**{"transfer.per_call": 700.0, "transfer.piece_setup": 4000.0})
    points = synthetic(slow, noise=0.01)
    assert fitted(points).copies.coefficient("per_call") == 0.0
    for point in points.of_kind("copy"):
        if point["system"] != "+batched" and not point["duplex"]:
            taken = round(slow.transfer.per_job.value + 700 * int(point["calls"]))
            points.samples[Point("submit", point.features)] = [taken] * 20
    found = fitted(points).copies
    assert found.coefficient("per_call") == pytest.approx(700.0, rel=0.02)
    assert found.coefficient("piece_setup") == pytest.approx(4000.0, rel=0.1)


# ---------------------------------------------------------------------- what is held out


def test_three_tenths_and_the_corners_are_held_out(good: Fitted) -> None:
    for part in (good.steps, good.copies):
        out = part.result.held_out
        assert 0.3 <= out.mean() <= 0.3 + 5 / len(out)
    out = {p for p, held in zip(good.steps.points, good.steps.result.held_out, strict=True) if held}
    decodes = [point for point in good.steps.points if point.kind == "decode"]
    prefills = [point for point in good.steps.points if point.kind == "prefill"]
    assert max(decodes, key=lambda p: (p["batch"], p["kv_tokens"])) in out
    assert max(decodes, key=lambda p: (p["kv_tokens"], p["batch"])) in out
    assert max(prefills, key=lambda p: (p["tokens"], p["past"])) in out


def test_what_is_held_out_moves_neither_its_own_prediction_nor_the_choice_of_terms(
    clean: Points, good: Fitted
) -> None:
    points = copy_of(clean)
    for point, held in zip(good.steps.points, good.steps.result.held_out, strict=True):
        if held:
            points.samples[point] = [round(value * 1.2) for value in points.samples[point]]
    worse = fitted(points).steps
    before, after = good.steps.result, worse.result
    out = before.held_out
    assert (after.held_out == out).all()
    assert (after.predicted[out] == before.predicted[out]).all()
    assert after.terms == before.terms
    assert worse.errors().mean > 0.1


def test_the_numbers_are_fitted_to_the_points_held_out_too(clean: Points, good: Fitted) -> None:
    """Once the error is known, no point is left unused."""
    points = copy_of(clean)
    for point, held in zip(good.steps.points, good.steps.result.held_out, strict=True):
        if held:
            points.samples[point] = [round(value * 1.2) for value in points.samples[point]]
    worse = fitted(points).steps
    assert worse.coefficient("base") > 1.01 * good.steps.coefficient("base")


# ---------------------------------------------------------------------- points that are wrong


def test_the_order_of_points_and_samples_does_not_matter(clean: Points, good: Fitted) -> None:
    backwards = Points(
        clean.header, {point: values[::-1] for point, values in reversed(clean.samples.items())}
    )
    assert same(fitted(backwards), good)


def test_another_seed_holds_out_other_points(clean: Points, good: Fitted) -> None:
    assert not same(fitted(clean, seed=1), good)


def test_one_wild_sample_of_a_point_does_not_matter(clean: Points, good: Fitted) -> None:
    points = copy_of(clean)
    for values in points.samples.values():
        values[3] *= 50
    found = fitted(points)
    assert found.dropped == ()
    assert found.steps.coefficient("base") == pytest.approx(
        good.steps.coefficient("base"), rel=0.02
    )


def _largest_kv(points: Points) -> Point:
    return max(points.of_kind("decode"), key=lambda p: (p["kv_tokens"], p["batch"]))


def _smallest_copy(points: Points) -> Point:
    return min(points.of_kind("copy"), key=lambda p: (p["bytes"], p["duplex"], p["system"]))


@pytest.mark.parametrize("pick", [_largest_kv, _smallest_copy])
@pytest.mark.parametrize("factor", [0.2, 3.0, 100.0])
def test_a_wild_point_is_left_out_and_named_even_where_it_pulls_hardest(
    pick: Callable[[Points], Point], factor: float, clean: Points
) -> None:
    points = copy_of(clean)
    wild = pick(points)
    points.samples[wild] = [round(value * factor) for value in points.samples[wild]]
    found = fitted(points)
    (dropped,) = found.dropped
    assert all(
        f"{name} {value}" in dropped.point
        for name, value in wild.as_json().items()
        if name != "kind"
    )
    assert "far from what all others say" in dropped.reason
    assert wild not in found.steps.points + found.copies.points
    assert found.steps.coefficient("base") == pytest.approx(STEPS["base"], rel=0.02)


def test_many_far_points_are_a_wrong_model_and_stay(clean: Points) -> None:
    points = copy_of(clean)
    for point in points.of_kind("prefill")[::3]:
        points.samples[point] = [value * 3 for value in points.samples[point]]
    found = fitted(points)
    assert found.dropped == ()
    assert any("the model does not describe this machine" in text for text in found.problems)
    assert found.steps.errors().max > 0.3


def test_a_point_of_few_samples_is_left_out_and_named(clean: Points) -> None:
    points = copy_of(clean)
    few, enough = points.of_kind("decode")[:2]
    points.samples[few] = points.samples[few][:4]
    points.samples[enough] = points.samples[enough][:5]
    found = fitted(points)
    assert [one.reason for one in found.dropped] == ["4 samples, fewer than 5"]
    assert few not in found.steps.points
    assert enough in found.steps.points


def test_samples_that_are_there_twice_count_once_and_are_named(clean: Points, good: Fitted) -> None:
    points = copy_of(clean)
    once = points.of_kind("decode")[0]
    points.samples[once].append(points.samples[once][7])
    found = fitted(points)
    assert same(found, good)
    assert len(found.problems) == 1
    assert "1 samples are there twice, used once" in found.problems[0]


def test_a_file_that_was_joined_to_itself_is_the_same_file(clean: Points, good: Fitted) -> None:
    points = copy_of(clean)
    for values in points.samples.values():
        values[:] = sorted(set(values)) * 2
    single = copy_of(clean)
    for values in single.samples.values():
        values[:] = sorted(set(values))
    assert same(fitted(points), fitted(single))
    assert len(fitted(points).problems) > 400


def test_equal_times_on_a_coarse_clock_are_no_duplicates(clean: Points) -> None:
    points = copy_of(clean)
    for values in points.samples.values():
        values[:] = [max(1, round(values[0] / 1000)) * 1000] * len(values)
    found = fitted(points)
    assert found.problems == found.dropped == ()
    assert all(len(values) == 20 for values in found.steps.samples)


NONSENSE = {
    "no batch has such contexts": Point("decode", (4, 64, 65)),
    "no job has such runs": Point("copy", ("h2d", "fastswitch", 2, 3, 64, 4096, 0)),
    "no system of that name": Point("copy", ("h2d", "slowswitch", 2, 2, 64, 4096, 0)),
    "a way that is neither h2d nor d2h": Point("copy", ("up", "fastswitch", 2, 2, 64, 4096, 0)),
}


def test_points_that_cannot_be_are_left_out_and_named(clean: Points) -> None:
    points = copy_of(clean)
    points.samples |= {point: [1000] * 20 for point in NONSENSE.values()}
    found = fitted(points)
    assert sorted(one.reason for one in found.dropped) == sorted(NONSENSE)


def test_lines_that_were_no_samples_are_passed_on_and_the_many_counted(clean: Points) -> None:
    points = copy_of(clean)
    points.problems = [f"line {number}: 'x' is no sample" for number in range(25)]
    found = fitted(points)
    assert found.problems[:10] == tuple(points.problems[:10])
    assert found.problems[10] == "and 15 more lines like these"


def test_without_overhead_or_interference_points_it_says_so(clean: Points) -> None:
    points = copy_of(clean)
    for point in points.of_kind("overhead") + points.of_kind("interference"):
        del points.samples[point]
    found = fitted(points)
    assert found.overhead is None
    assert found.interference == {}
    assert found.problems == (
        "no overhead points: steps are the model's time alone",
        "no pair of interference points h2d: taken as none",
        "no pair of interference points d2h: taken as none",
    )


def _without(kind: str, way: str | None = None) -> Callable[[Point], bool]:
    return lambda point: point.kind == kind and (way is None or point["way"] == way)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (_without("prefill"), "decode and prefill and 12 in all are needed"),
        (_without("copy", "d2h"), "copy h2d and copy d2h and 12 in all are needed"),
        (_without("copy"), "too few to fit with at least 5 samples each: none"),
    ],
)
def test_without_points_of_a_sort_nothing_is_fitted(
    gone: Callable[[Point], bool], says: str, clean: Points
) -> None:
    points = copy_of(clean)
    for point in [point for point in points.samples if gone(point)]:
        del points.samples[point]
    with pytest.raises(InputError, match=says):
        fitted(points)


def test_a_header_that_lacks_something_is_refused_with_the_field(clean: Points) -> None:
    profile: Profile = TRUTH
    for field in ("machine", "date", "model", "pools"):
        lacking = {key: value for key, value in header(profile).items() if key != field}
        with pytest.raises(InputError, match=f"header of the points: {field}: Field required"):
            fitted(Points(lacking, clean.samples))
