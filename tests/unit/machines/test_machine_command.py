"""`fastswitch machine`: what the page says a new user does, done; and the words that refuse the rest."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibrate.machines import make, roofline, scale
from calibrate.machines.points import read
from calibrate.machines.steps import Step, Timed, even
from calibrate.profile import TokenCost, load, names
from cli.main import main
from policy.errors import InputError

PAGE = Path(__file__).parents[3] / "docs/machines.md"
QWEN = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def run(*words: str) -> str:
    result = CliRunner().invoke(main, ["machine", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_pages_three_commands_make_a_machine_of_a_config_and_ten_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8").split("## Your GPU in an hour")[1]
    steps = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)[0]
    commands = re.findall(r"\n\n```\n(.*?)```", page, re.DOTALL)[0].splitlines()
    Path("steps.csv").write_text(steps)
    Path("config.json").write_text(json.dumps(QWEN))
    assert len(commands) == 3
    assert len(steps.splitlines()) == 11
    said = []
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["fastswitch", "machine"]
        said.append(run(*words[2:]))
    assert "WARNING: profile sheet: derived, nobody measured this machine" in said[0]
    assert "10 measured steps, each left out in turn" in said[1]
    assert "ratio" in said[2]
    mine = load("mine.json")
    assert mine.origin is not None
    assert {error.kind for error in mine.origin.errors} == {"decode", "prefill", "mixed"}
    assert mine.hash != load("sheet.json").hash


def derived_cost() -> TokenCost:
    cost = make.profile(make.Asked("l4", "qwen3-8b", "2026-12-01"), "l4").step
    assert isinstance(cost, TokenCost)
    return cost


def test_few_steps_are_met_by_three_factors_and_no_more() -> None:
    cost = derived_cost()
    steps = [even(b, c) for b in (1, 16, 64) for c in (1000, 8000)]
    steps += [Step(chunks=((n, p),)) for n in (256, 2048) for p in (0, 16_000)]
    true = scale.scaled(cost, (1.3, 0.8, 2.0), "made up")
    times = scale.form_of(true).predict(steps)
    host = [cost.host_base.value + cost.host_per_token.value * step.tokens for step in steps]
    points = [Timed(s, float(ns) + h) for s, ns, h in zip(steps, times, host, strict=True)]
    found = scale.correct(cost, points, "steps.csv")
    assert found.factors == pytest.approx((1.3, 0.8, 2.0), rel=1e-3)
    # what tells a part alone is missed when it is left out, and not by more than the factors
    assert {error.kind for error in found.errors} == {"decode", "prefill"}
    assert all(error.p95 < 0.6 for error in found.errors)


def test_steps_that_say_nothing_of_a_part_scale_it_with_the_rest() -> None:
    cost = derived_cost()
    steps = [even(1, 16), even(2, 32), even(4, 64)]
    times = scale.form_of(scale.scaled(cost, (2.0, 2.0, 2.0), "made up")).predict(steps)
    host = cost.host_base.value
    points = [Timed(s, float(ns) + host) for s, ns in zip(steps, times, strict=True)]
    assert scale.correct(cost, points, "steps.csv").factors == pytest.approx((2.0,) * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch,kv_tokens,ms\n1,100,x\n", ":2: ms: 'x' is not a number"),
        ("batch,kv_tokens,ms\n1,-5,2\n", ":2: kv_tokens: '-5' is not a whole number"),
        ("batch,kv_tokens,ms\n5,3,2\n", ":2: kv_tokens: 3 of 5 requests"),
        ("batch,ms\n0,2\n", ":2: a step of neither batch nor new_tokens"),
        ("batch,seconds\n1,2\n", ":1: ms: column missing"),
        ("batch,kv_tokens,ms,hours\n1,100,2,3\n", ":1: hours: unknown column"),
        ("batch,kv_tokens,ms\n1,100\n", ":2: 2 fields, the header has 3"),
        ("batch,kv_tokens,ms\n1,100,0\n", ":2: ms: a step takes time"),
        ("kv_tokens,new_tokens,ms\n90,5,2\n", ":2: kv_tokens: 90 of 0 requests"),
        ("batch,kv_tokens,longest,ms\n2,90,30,2\n", ":2: longest: 30 of 2 requests with 90"),
        ("batch,kv_tokens,longest,ms\n2,90,91,2\n", ":2: longest: 91 of 2 requests with 90"),
        ("new_tokens,prompts,ms\n9,2,2\n", ":2: new_tokens: 9 in 2 equal prompts"),
        ("batch,kv_tokens,past_tokens,ms\n1,9,5,2\n", ":2: new_tokens: 0 in 1 equal prompts"),
        ("batch,kv_tokens,ms\n", "has no steps"),
    ],
)
def test_a_csv_that_is_none_is_refused_by_line_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read(path)


def test_a_derived_profile_says_how_far_cards_left_out_were_off() -> None:
    _, errors = roofline.fitted()
    profile = load("a10-llama-3.1-8b")
    assert profile.kind == "derived"
    assert profile.origin is not None
    told = {error.kind: error.p95 for error in profile.origin.errors}
    assert told == {kind: pair[1] for kind, pair in errors["gpu"].items()}
    assert "nobody measured this machine" in profile.warnings()[0]


def test_what_ships_is_small_sourced_and_shares_what_fits() -> None:
    seen = 0
    for name in names():
        profile = load(name)
        if profile.origin is None:
            continue
        seen += 1
        path = Path(make.__file__).parents[1] / "profiles" / f"{name}.json"
        assert path.stat().st_size <= 20_000
        assert profile.origin.licence
        assert "fastswitch machine build" in profile.origin.rebuild
        assert profile.device_blocks(16) > 500
        for gpus_count in profile.shares or {}:
            share = load(f"{name}@tp{gpus_count}")
            assert share.device_blocks(16) > profile.device_blocks(16)
    assert seen >= 30


def test_a_share_that_is_not_there_is_refused_with_those_that_are() -> None:
    result = CliRunner().invoke(main, ["machine", "show", "h100-sxm-qwen3-14b@tp16"])
    assert result.exit_code == 2
    assert "no @tp16; it has @tp2, @tp4" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpu", "h1000", "--model", "qwen3-8b"), "gpu: 'h1000' is not one of a100-sxm"),
        (("--gpu", "a10", "--model", "qwen9"), "neither a config.json nor one of"),
        (("--gpu", "a10", "--model", "qwen3-32b"), "does not fit NVIDIA A10 on 1 GPU"),
        (("--gpu", "a10", "--model", "qwen3-8b", "--tables", "nowhere"), "neither gemm_perf"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "x.json"
    result = CliRunner().invoke(main, ["machine", "build", *words, "--out", str(out)])
    assert result.exit_code in (2, 3)
    assert message in result.output
    assert not out.exists()


def test_the_list_names_profiles_gpus_and_models() -> None:
    said = run("list")
    assert "rtx-4090-llama-3.1-8b" in said
    assert "h200-sxm" in said
    assert "qwen3-32b" in said
