"""The profile that comes out: what its numbers are, what it says of itself, who is warned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibrate.build import build, refit, save, summary
from calibrate.figure import fit_figure
from calibrate.inference import centre
from calibrate.models import _pieces
from calibrate.points import Journal, Point, Points
from calibrate.profile import Profile, load, names
from policy.errors import ConfigError
from policy.systems import named_system
from sim.costs import CopyCosts, step_costs
from sim.simulate import simulate
from tests.helpers.bench import scenario_of
from tests.helpers.calibration import OVERHEAD, synthetic, truth
from traces import figure_style
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

TRUTH = truth(**{"step.per_prefill_square": 8.0})
DRAWS = 60


def built(points: Points) -> Profile:
    return build(points, name="mine", draws=DRAWS)


@pytest.fixture(scope="module")
def points() -> Points:
    return synthetic(TRUTH, noise=0.01, spread=0.01)


@pytest.fixture(scope="module")
def profile(points: Points) -> Profile:
    return built(points)


def with_errors(profile: Profile, *, steps: float, copies: float) -> Profile:
    """The same profile, but worse at predicting its own held-out points."""
    assert profile.fit is not None
    parts = {
        name: getattr(profile.fit, name).model_copy(update={"p95": p95, "max": p95})
        for name, p95 in (("steps", steps), ("copies", copies))
    }
    return profile.model_copy(update={"fit": profile.fit.model_copy(update=parts)})


# ---------------------------------------------------------------------- its numbers


def test_what_was_fitted_is_measured_and_what_nobody_timed_is_an_assumption(
    profile: Profile,
) -> None:
    assert profile.kind == "measured"
    assert set(profile.assumptions()) == {
        "transfer.lock_growth",
        "transfer.queue_depth",
        "transfer.gather_launch",
        "transfer.gather_bandwidth",
    }
    fitted = [q for part in (profile.step, profile.transfer) for _, q in part if q is not None]
    assert sum(quantity.kind == "measured" for quantity in fitted) == len(fitted) - 4


def test_every_measured_number_has_its_interval_and_nearly_all_hold_the_truth(
    profile: Profile,
) -> None:
    missed = []
    for section in ("step", "transfer"):
        for name, quantity in getattr(profile, section):
            if quantity is None or quantity.kind != "measured":
                continue
            assert quantity.low is not None and quantity.high is not None
            truth = getattr(getattr(TRUTH, section), name)
            true = 0.0 if truth is None else truth.value
            true += {"base": OVERHEAD[0], "per_sequence": OVERHEAD[1]}.get(name, 0)
            if not quantity.low <= true <= quantity.high:
                missed.append(name)
    assert len(missed) <= 3, missed


def test_what_our_python_adds_to_a_copy_is_kept_beside_what_the_driver_takes(
    tmp_path: Path,
) -> None:
    """As a GPU's calibration has it: each job that the engine's own thread submits, until its last call is
    in, and what of that was ours."""
    per_job, per_piece = 20_000.0, 150.0
    extra = {"python_per_job": per_job, "python_per_piece": per_piece}
    quantities = {
        name: TRUTH.transfer.per_job.model_copy(update={"value": value, "low": None, "high": None})
        for name, value in extra.items()
    }
    ours = TRUTH.model_copy(update={"transfer": TRUTH.transfer.model_copy(update=quantities)})
    total = ours.with_python()
    points = synthetic(total, noise=0.01, spread=0.01)
    spread = [1 + 0.01 * (index % 5 - 2) for index in range(20)]
    for point in points.of_kind("copy"):
        system = named_system(point["system"])
        if point["duplex"] or system.transport.dispatch != "main_thread":
            continue
        pieces = _pieces(point, system, TRUTH.model.layers)
        batched = system.transport.submission == "batched"
        calls, descriptors = (1, pieces) if batched else (pieces, 0)
        costs = total.transfer
        whole = costs.per_job.value + calls * costs.per_call.value
        whole += descriptors * costs.per_descriptor.value
        added = per_job + per_piece * pieces
        points.samples[Point("submit", point.features)] = [int(whole * each) for each in spread]
        points.samples[Point("python", point.features)] = [int(added * each) for each in spread]
    made = build(points, name="python", draws=20)
    driver, both = made.transfer, made.with_python().transfer
    assert driver.python_per_job is not None and driver.python_per_piece is not None
    assert driver.python_per_job.value == pytest.approx(per_job, rel=0.02)
    assert driver.python_per_piece.value == pytest.approx(per_piece, rel=0.02)
    for name, added in (
        ("per_job", per_job),
        ("per_call", per_piece),
        ("per_descriptor", per_piece),
    ):
        found = getattr(both, name)
        assert found.value - getattr(driver, name).value == pytest.approx(added, rel=0.02)
        assert found.value == pytest.approx(getattr(total.transfer, name).value, rel=0.1)
        assert "our Python" in found.source and found.low <= found.value <= found.high
    assert both.python_per_job is None  # charged once
    assert made.with_python().with_python() == made.with_python()
    path = tmp_path / "python.json"
    save(made, path)
    assert load(str(path)) == made


def test_a_profile_that_was_not_told_them_apart_is_as_it_always_was(profile: Profile) -> None:
    assert profile.with_python() is profile
    assert "python_per_job" not in profile.as_json()["transfer"]


def test_the_engines_overhead_is_part_of_a_step(points: Points, profile: Profile) -> None:
    bare = Points(points.header, {p: v for p, v in points.samples.items() if p.kind != "overhead"})
    without = built(bare)
    added = profile.step.base.value - without.step.base.value
    assert added == pytest.approx(OVERHEAD[0], rel=0.05)
    assert "overhead" in profile.step.base.source
    assert "overhead" not in without.step.base.source


def test_it_has_the_blocks_that_the_real_run_had_to_the_block(profile: Profile) -> None:
    assert (profile.device_blocks(16), profile.host_blocks(16)) == (1234, 4321)


@pytest.mark.parametrize("blocks", [1, 77, 12_345, 9_999_991])
def test_no_number_of_blocks_is_off_by_rounding(blocks: int, points: Points) -> None:
    pools = {"block_size": 16, "device_blocks": blocks, "host_blocks": blocks + 1}
    other = build(Points({**points.header, "pools": pools}, points.samples), name="x", draws=2)
    assert (other.device_blocks(16), other.host_blocks(16)) == (blocks, blocks + 1)


def test_it_is_valid_as_far_as_its_points_reach(profile: Profile) -> None:
    assert profile.valid.model_dump() == {
        "max_batch": 128,
        "max_kv_tokens": 65536,
        "max_prefill_tokens": 2048,
    }


def test_unmeasured_directions_of_traffic_are_assumed_as_fast_as_alone(points: Points) -> None:
    alone = {
        point: values
        for point, values in points.samples.items()
        if point.kind != "interference" and not (point.kind == "copy" and point["duplex"])
    }
    found = built(Points(points.header, alone)).transfer
    assert found.to_device_duplex.kind == found.interference_to_host.kind == "assumed"
    assert found.to_device_duplex.value == found.to_device.value
    assert found.interference_to_host.value == 0.0


def test_the_cost_of_a_call_is_open_where_every_job_waits_for_its_bytes() -> None:
    slow = truth(**{"transfer.per_call": 300.0, "transfer.piece_setup": 4000.0})
    found = built(synthetic(slow, noise=0.01)).transfer
    assert found.per_call.low == 0.0
    assert found.per_call.high == pytest.approx(4000, rel=0.1)
    assert found.per_call.source == "no job waited for its calls: at most piece_setup"


def test_the_simulator_takes_it_as_any_other(profile: Profile) -> None:
    from policy.systems import named_system

    ours, theirs = step_costs(profile), step_costs(TRUTH)
    overhead = OVERHEAD[0] + 32 * OVERHEAD[1]
    true = theirs.decode_ns(32, 32_000) + overhead
    assert ours.decode_ns(32, 32_000) == pytest.approx(true, rel=0.02)
    assert CopyCosts(profile, named_system("fastswitch"), 16).block_bytes == 2 * 1024 * 1024


# ---------------------------------------------------------------------- its file


def test_a_saved_profile_is_loaded_as_it_was(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save(profile, path)
    loaded = load(str(path))
    assert loaded == profile
    assert loaded.hash == profile.hash
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_profile_that_cannot_be_written_is_said_in_one_line(
    profile: Profile, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"none/p\.json: cannot be written"):
        save(profile, tmp_path / "none" / "p.json")


def test_a_file_of_points_gives_the_identical_profile_each_time(
    points: Points, profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "points.jsonl"
    header = {key: value for key, value in points.header.items() if key != "format"}
    journal = Journal(path, header)
    for repeat in range(20):  # in rounds, as they are taken
        for point, values in points.samples.items():
            journal.sample(point, values[repeat])
    journal.close()
    again = refit(path, name="mine", draws=DRAWS)
    assert json.dumps(again.as_json()) == json.dumps(profile.as_json())

    path.write_bytes(path.read_bytes()[:-7])  # interrupted in the last line
    torn = refit(path, name="mine", draws=DRAWS)
    assert torn.fit is not None
    assert [text.split(":")[0] for text in torn.fit.problems] == [
        f"line {20 * len(points.samples) + 1}"
    ]
    assert torn.step.base.value == profile.step.base.value


def test_it_holds_its_points_with_spread_prediction_and_interval(
    points: Points, profile: Profile
) -> None:
    assert profile.points is not None and profile.fit is not None
    assert len(profile.points) == profile.fit.points
    held = [point for point in profile.points if point.held_out]
    assert len(held) == profile.fit.steps.points + profile.fit.copies.points
    timed = {
        json.dumps(
            {
                **point.as_json(),
                "ns": round(centre(np.array(sorted(points.samples[point]), dtype=np.float64)), 1),
            },
            sort_keys=True,
        )
        for point in points.samples
    }
    for point in profile.points:
        row = {"kind": point.kind, **point.features, "ns": point.centre_ns}
        assert json.dumps(row, sort_keys=True) in timed
        assert point.quartiles_ns[0] <= point.centre_ns <= point.quartiles_ns[1]
        assert point.interval_ns is not None and point.predicted_ns is not None
        assert point.interval_ns[0] < point.predicted_ns < point.interval_ns[1]
        assert point.samples == 20


def test_it_says_where_it_comes_from(profile: Profile) -> None:
    assert profile.provenance == {"driver": "1.2.3", "device": "cuda", "dtype": "bfloat16"}
    assert (profile.machine, profile.date) == ("a machine that is known", "2026-01-02")


HASHES = {
    "a10-llama-3-8b": "c49a96f70a11166d",
    "a100-80gb-qwen-32b": "a0374c175f943861",
    "h100-llama-3-8b": "b69229fdb40ee866",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_profile_without_the_parts_of_a_measured_one_keeps_its_hash(name: str) -> None:
    profile = load(name)
    assert profile.hash == HASHES[name]
    assert profile.warnings() == []
    assert set(HASHES) <= set(names())
    assert not {"fit", "points", "provenance"} & set(profile.as_json())


def test_a_number_that_a_profile_lacks_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match="per_uneven_token: no such number"):
        load("a10-llama-3-8b").with_values({"step.per_uneven_token": 1.0})


# ---------------------------------------------------------------------- its warnings


def test_a_profile_that_predicts_its_own_points_badly_says_so(profile: Profile) -> None:
    assert with_errors(profile, steps=0.10, copies=0.10).warnings() == []
    assert with_errors(profile, steps=0.142, copies=0.5).warnings() == [
        "profile mine: steps of its own calibration are predicted with an error of 14.2 % at P95,"
        " more than 10 %",
        "profile mine: copies of its own calibration are predicted with an error of 50 % at P95,"
        " more than 10 %",
    ]


def test_whoever_simulates_with_a_bad_profile_is_warned(profile: Profile, tmp_path: Path) -> None:
    workload = tmp_path / "w.jsonl"
    write(
        Workload.of([Turn("a", "a", 1, 100, 3, arrival_ns=0)], Header(source="by hand")), workload
    )
    for errors, expected in ((0.05, 0), (0.2, 1)):
        path = tmp_path / f"{expected}.json"
        save(with_errors(profile, steps=errors, copies=0.0), path)
        scenario = scenario_of(workload=str(workload)).model_copy(
            update={"profile": str(path), "profile_values": {"step.base": 7e6}}
        )
        warnings = simulate(scenario).summary["warnings"]
        assert [text.split(" of its")[0] for text in warnings] == ["profile mine: steps"] * expected


def test_the_summary_names_numbers_errors_what_was_left_out_and_warnings(
    points: Points,
) -> None:
    samples = {point: list(values) for point, values in points.samples.items()}
    few = points.of_kind("decode")[0]
    samples[few] = samples[few][:2]
    text = "\n".join(
        summary(with_errors(built(Points(points.header, samples)), steps=0.2, copies=0))
    )
    assert "per_kv_token " in text
    assert "steps: error on" in text and "copies: error on" in text
    assert "left out: decode batch 1, kv_tokens 16, longest 16: 2 samples, fewer than 5" in text
    assert "WARNING: profile mine: steps" in text


# ---------------------------------------------------------------------- its figure


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_figure_has_the_same_bytes_each_time(
    suffix: str, profile: Profile, tmp_path: Path
) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    figure_style.save(fit_figure(profile), first)
    figure_style.save(fit_figure(profile), second)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 10_000


def test_the_figure_shows_every_point_twice(profile: Profile) -> None:
    """Predicted against measured, and what is left over."""
    assert profile.points is not None
    shown = [
        sum(len(dots.get_offsets()) for dots in axes.collections if dots.get_label()[0] != "_")
        for axes in fit_figure(profile).axes
    ]
    steps = sum(point.kind in ("decode", "prefill", "prompts") for point in profile.points)
    assert shown == [steps, len(profile.points) - steps] * 2


def test_a_figure_needs_points_and_a_place(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no points to show"):
        fit_figure(TRUTH)
    with pytest.raises(ConfigError, match="cannot be written"):
        figure_style.save(fit_figure(profile), tmp_path / "none" / "f.svg")
    with pytest.raises(ConfigError, match=r"f\.txt: a figure's name ends in"):
        figure_style.save(fit_figure(profile), tmp_path / "f.txt")
