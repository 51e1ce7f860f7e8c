"""Single steps and copies of a recording through the cost model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.profile import Curve, load
from explore.validation.blame import responsible, unbiased
from explore.validation.step_replay import CostErrors, _alone_ns, compare, errors, merged
from policy.systems import named_system
from runs.scenario import build
from sim.costs import CopyCosts
from sim.simulate import simulate
from tests.helpers.calibration import BLOCK, grid, job_ns, truth

NO_INTERFERENCE = {"transfer.interference_to_device": 0.0, "transfer.interference_to_host": 0.0}


def scenario(system: str) -> Any:
    return build(
        {
            "name": "x",
            "workload": {
                "generator": "chat",
                "conversations": 30,
                "rate": 2.0,
                "context_cap": 600,
                "think": "none",
            },
            "profile": "a10-llama-3-8b",
            "system": system,
            "pool": {"device_blocks": 120, "host_blocks": 400, "aging": "none"},
            "limits": {"max_model_len": 600},
            "priority": {"pattern": "markov", "frequency": 0.2},
        },
        "test",
    )


@pytest.mark.parametrize("system", ["vllm-0.3.3", "vllm-0.3.3-recompute", "fastswitch", "+batched"])
def test_every_simulated_step_costs_what_its_own_model_says(system: str) -> None:
    """Contexts come from spans alone: across preemptions, recomputation and turns that grow."""
    profile = load("a10-llama-3-8b").with_values(NO_INTERFERENCE)
    uneven = profile.step.base.model_copy(update={"value": 900.0})
    further = profile.step.base.model_copy(update={"value": 7e6})
    step = profile.step.model_copy(
        update={"per_uneven_token": uneven, "per_further_prompt": further}
    )
    profile = profile.model_copy(update={"step": step})
    recorded = simulate(scenario(system), profile=profile)
    compared = {one.kind: one for one in compare(recorded, profile, named_system(system))}
    for kind in ("decode", "prefill"):
        one = compared[kind]
        assert len(one.measured_ns) > 30
        assert np.abs(one.predicted_ns - one.measured_ns).max() <= 1
    assert recorded.summary["metrics"]["preemptions"] > 5


def test_copies_beside_a_step_slow_it_by_their_share_of_its_time() -> None:
    """Against the same steps replayed as if nothing slowed them."""
    values = {"transfer.interference_to_device": 0.3, "transfer.interference_to_host": 0.5}
    slowed = load("a10-llama-3-8b").with_values(values)
    free = load("a10-llama-3-8b").with_values(NO_INTERFERENCE)
    system = named_system("fastswitch")
    recorded = simulate(scenario("fastswitch"), profile=slowed)
    true, blind = (
        {one.kind: one for one in compare(recorded, profile, system)} for profile in (slowed, free)
    )
    for kind in ("decode", "prefill"):
        off = np.abs(true[kind].predicted_ns - true[kind].measured_ns) / true[kind].measured_ns
        assert np.median(off) < 1e-6
        assert off.mean() < 0.01  # a copy's submission slows nothing on the simulated machine
    worse = np.abs(blind["decode"].predicted_ns / blind["decode"].measured_ns - 1)
    assert worse.max() > 0.1


def test_a_copy_alone_is_foretold_as_the_simulated_link_plays_it() -> None:
    profile = truth()
    points = [p for p in grid(profile) if p.kind == "copy" and not p["duplex"]]
    for point in random.Random(0).sample(points, 60):
        row = {"runs": point["runs"], "blocks": point["blocks"], "direction": point["way"]}
        costs = CopyCosts(profile, named_system(point["system"]), BLOCK)
        assert _alone_ns(row, costs) == pytest.approx(job_ns(profile, point), rel=2e-3)


def test_copies_that_share_the_link_are_not_taken_for_lone_ones() -> None:
    profile = load("a10-llama-3-8b")
    recorded = simulate(scenario("fastswitch"))
    rows = recorded.table("copies").num_rows
    found = {one.kind: one for one in compare(recorded, profile, named_system("fastswitch"))}
    assert 0 < len(found["copy"].measured_ns) < rows


def test_errors_tell_bias_and_spread_apart() -> None:
    profile = load("a10-llama-3-8b").with_values(NO_INTERFERENCE)
    recorded = simulate(scenario("fastswitch"), profile=profile)
    slower = profile.with_values({"step.base": 2 * profile.step.base.value})
    compared = compare(recorded, slower, named_system("fastswitch"))
    twice = merged([compared, compared])
    by_kind = {one.kind: one for one in errors(twice, 10**12)}
    assert by_kind["decode"].bias == pytest.approx(by_kind["decode"].mean, rel=0.05)
    assert 0.5 < by_kind["decode"].bias < 1.0
    assert by_kind["decode"].count == 2 * len(compared[0].load)


def test_taking_the_bias_out_makes_the_mean_right_and_keeps_curves() -> None:
    profile = load("a10-llama-3-8b")
    wrong = [CostErrors(kind, 9, 0.25, 0.2, 0.2, 0.3, 0.5) for kind in ("decode", "copy")]
    steps, copies = (unbiased(profile, wrong, part) for part in ("steps", "copies"))
    assert steps.corrections is not None and copies.corrections is not None
    assert steps.corrections.decode == Curve(knots=(1,), factors=(819,))
    assert steps.corrections.prefill == Curve(knots=(1,), factors=(1024,))
    assert steps.corrections.copy_piece is None
    assert copies.corrections.copy_piece == Curve(knots=(1,), factors=(819,))
    again = unbiased(copies, wrong, "copies")
    assert again.corrections is not None
    assert again.corrections.copy_piece == Curve(knots=(1,), factors=(655,))


@pytest.mark.parametrize(
    ("error", "steps", "copies", "exact", "who"),
    [
        (0.5, 0.05, 0.5, True, "steps"),
        (0.5, 0.2, 0.5, None, "steps"),
        (-0.5, -0.5, 0.02, True, "copies"),
        (0.5, 0.4, 0.45, True, "queueing"),
        (0.5, None, None, True, "queueing"),
        (0.5, 0.01, 0.01, False, "replay"),
        (0.12, 0.3, -0.2, True, "queueing"),
    ],
)
def test_the_part_whose_bias_explains_an_error_is_responsible(
    error: float, steps: float | None, copies: float | None, exact: bool | None, who: str
) -> None:
    without = {"steps": steps, "copies": copies}
    assert responsible(error, 0.1, without, replay_is_exact=exact) == who


def test_a_recording_without_steps_has_nothing_to_compare(tmp_path: Path) -> None:
    data = scenario("fastswitch").model_dump(mode="json")
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"format": "fastswitch-workload/1", "timing": "open"}\n'
        '{"request_id": "r", "session_id": "r", "turn": 1, "input_tokens": 0,'
        ' "output_tokens": 1, "arrival_s": 0.0}\n'
    )
    recorded = simulate(build({**data, "workload": str(path)}, "test"))
    profile = load("a10-llama-3-8b")
    assert compare(recorded, profile, named_system("fastswitch")) == []
    assert merged([[]]) == []
