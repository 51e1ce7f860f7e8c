"""Machines within a profile's ranges, the same ones for every system."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from calibrate.profile import load
from cli.main import main
from explore import uncertain
from policy.errors import ConfigError
from runs import scenario
from sim.simulate import prepare

PROFILE = "rtx-4090-llama-3.1-8b"


def asked() -> scenario.Scenario:
    return scenario.build(
        {
            "name": "doubt",
            "workload": {"generator": "chat", "conversations": 4, "rate": 2.0, "think": "agent"},
            "profile": PROFILE,
            "system": "+chunked",
            "pool": {"device_blocks": 400, "host_blocks": 400, "aging": "none"},
            "limits": {"max_model_len": 2048},
        },
        "test",
    )


def test_a_draw_lies_within_the_ranges_and_is_the_same_every_time() -> None:
    profile = load(PROFILE)
    assert profile.drawn(0) is profile
    ranged = profile.ranged()
    assert {"step.scale", "step.kv_mixed", "transfer.piece_setup"} <= set(ranged)
    assert not any(name.startswith("memory") for name in ranged)
    one, again, other = profile.drawn(1), profile.drawn(1), profile.drawn(2)
    assert one == again
    assert one.hash != other.hash
    for name, quantity in one.ranged().items():
        low, high = ranged[name].low, ranged[name].high
        assert low is not None
        assert high is not None
        assert low <= quantity.value <= high
    assert set(one.ranged()) == set(ranged)


def test_a_draw_moves_two_machines_alike() -> None:
    first, second = load("h100-sxm-qwen3-14b"), load("h200-sxm-qwen3-14b")
    name = "transfer.per_job"  # the same range on both
    assert first.drawn(3).ranged()[name].value == second.drawn(3).ranged()[name].value


def test_a_scenario_draws_its_machine() -> None:
    drawn = asked().with_values({"profile_draw": 2})
    assert prepare(drawn).profile == load(PROFILE).drawn(2)
    assert prepare(asked()).profile == load(PROFILE)


def test_a_verdict_says_how_often_it_holds_and_what_it_hangs_on() -> None:
    seen = []
    found = uncertain.judge(
        asked(), ("+chunked", "+groups"), "makespan_s", 8, lambda: seen.append(1)
    )
    assert len(seen) == 18
    assert len(found.values) == 9
    assert len(found.numbers) == uncertain.NAMED
    assert abs(found.numbers[0][1]) >= abs(found.numbers[1][1]) > 0
    assert 0 <= found.agreeing <= 1
    text = uncertain.as_text(found)
    assert "over 8 machines within the profile's ranges" in text
    assert f"it hangs most on {found.numbers[0][0]}" in text


def test_what_two_systems_do_alike_hangs_on_nothing() -> None:
    found = uncertain.judge(asked(), ("+chunked", "+chunked"), "makespan_s", 8)
    assert set(found.ratios) == {1.0}
    assert [rho for _, rho in found.numbers] == [0.0, 0.0]


def test_unknown_systems_and_metrics_and_too_few_draws_are_refused() -> None:
    seen: list[int] = []
    with pytest.raises(ConfigError, match="'nonsense' is not one of"):
        uncertain.judge(asked(), ("+chunked", "nonsense"), "makespan_s", 8, lambda: seen.append(1))
    assert not seen
    with pytest.raises(ConfigError, match="8 are the least"):
        uncertain.judge(asked(), ("+chunked", "+groups"), "makespan_s", 3)
    with pytest.raises(ConfigError, match="--metric: nonsense: not a number above 0"):
        uncertain.judge(asked(), ("+chunked", "+groups"), "nonsense", 8)


def test_a_comparisons_page_says_whether_its_finding_survives_other_machines(
    tmp_path: Path,
) -> None:
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    more = asked().with_values({"workload.conversations": 24, "limits.max_model_len": 512})
    file.write_text(more.as_yaml())
    asks = [
        "compare",
        str(file),
        "--systems",
        "paged-keep,+groups",
        "--seeds",
        "2",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(main, [*asks, "--draws", "8", "--out", str(out)])
    assert result.exit_code == 0, result.output
    for text in (result.output, (out / "compare.html").read_text()):
        assert "over 8 machines within the profile" in text
        assert "it hangs most on" in text
    result = CliRunner().invoke(main, [*asks, "--draws", "8", "--order", "priority"])
    assert result.exit_code == 2
    assert "--draws" in result.stderr
