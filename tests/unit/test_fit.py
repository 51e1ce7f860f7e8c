"""Fitting: a law that is known comes back, and the distance says so where it does not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import fastswitch
from policy.errors import InputError
from tests.helpers.chats import chat_of
from traces.describing.columns import Columns, Floats, collect
from traces.generators import agent, chat
from traces.generators.arrivals import Arrivals, Clients, Modulated, Poisson, Renewal
from traces.generators.fit import fit, fit_arrivals, generated, halves, hazards, held_out_distances
from traces.generators.fit_laws import MAX_PARTS, NEAR, fit_values, mixture_cdf, two_sample_ks
from traces.generators.laws import Mixture, Values
from traces.generators.sessions import Generator
from traces.randomness import Streams
from traces.readers.native import write

MANY = 6000


def drawn(law: Values, count: int = MANY) -> Floats:
    return np.array([law.draw(Streams(2), "x", "", k) for k in range(count)])


# ---------------------------------------------------------------------- laws


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
)
def test_the_distance_is_the_largest_between_the_shares(
    one: list[float], other: list[float]
) -> None:
    left, right = np.array(one), np.array(other)
    by_hand = max(abs(np.mean(left <= x) - np.mean(right <= x)) for x in one + other)
    assert two_sample_ks(left, right) == pytest.approx(by_hand)
    assert two_sample_ks(left, left) == 0


def test_a_single_log_normal_comes_back_with_its_numbers() -> None:
    law = fit_values(drawn(Values(((1.0, 3.0, 1.2),))))
    assert len(law.parts) == 1
    assert law.parts[0] == (1.0, pytest.approx(3, abs=0.05), pytest.approx(1.2, abs=0.05))


@pytest.mark.parametrize(
    "mixture",
    [chat.FIRST_USER, chat.ASSISTANT, chat.HUMAN_GAP, ((0.5, 0.0, 0.1), (0.5, 6.0, 0.3))],
    ids=["first user", "assistant", "human gap", "far apart"],
)
def test_a_mixture_is_fitted_with_few_parts_and_small_distance(mixture: Mixture) -> None:
    values = drawn(Values(mixture))
    law = fit_values(values)
    assert len(law.parts) <= 3
    shares = mixture_cdf(law.parts, np.sort(values))
    assert np.abs(shares - (np.arange(MANY) + 0.5) / MANY).max() < NEAR + 1e-3


def test_zeros_a_grid_and_a_limit_come_back() -> None:
    source = Values(((1.0, 2.0, 0.8),), zero=0.3, high=20.0, grid=1.0)
    law = fit_values(drawn(source))
    assert law.zero == pytest.approx(0.3, abs=0.02)
    assert (law.grid, law.high) == (1.0, 20.0)
    assert two_sample_ks(drawn(law), drawn(source)) < 0.03


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 1 << 24), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_any_numbers_have_a_law_within_their_bounds(values: list[int], often: int) -> None:
    law = fit_values(np.array(values * often, dtype=float), grid=1)
    assert len(law.parts) <= MAX_PARTS
    made = drawn(law, 50)
    assert made.min() >= min(values) and made.max() <= max(values)


# ---------------------------------------------------------------------- turns and arrivals


def test_hazards_are_the_shares_that_went_on() -> None:
    assert hazards(np.array([1, 1, 2, 4])) == (0.5, 0.5, 1.0)
    assert hazards(np.array([1, 1])) == (0.0,)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=50))
def test_hazards_keep_the_mean_of_ever_longer_sessions(turns: list[int]) -> None:
    found = hazards(np.array(turns))
    assert len(found) == max(1, max(turns) - 1)
    assert all(0 <= chance <= 1 for chance in found)


def begun_by(law: Arrivals, count: int = 8000) -> Columns:
    model = replace(chat.MODEL, hazards=(0.0,), max_turns=1)
    return collect(Generator(model, count, law).workload(Streams(3)))


@pytest.mark.parametrize(
    ("law", "names"),
    [
        (Poisson(3.0), "poisson"),
        (Renewal(3.0, 4.0), "gamma"),
        (Renewal(3.0, 3.0, "weibull"), "weibull"),
        (Modulated(3.0, 0.4, 60.0), "modulated"),
        (Clients(3.0, clients=12), "clients"),
    ],
    ids=str,
)
def test_a_law_of_arrivals_is_recognised(law: Arrivals, names: str) -> None:
    rate, found, _ = fit_arrivals(begun_by(law))
    assert rate == pytest.approx(law.rate, rel=0.12)
    assert found.law == names


def test_the_numbers_of_arrivals_come_back() -> None:
    _, gamma, _ = fit_arrivals(begun_by(Renewal(3.0, 4.0)))
    assert gamma.cv == pytest.approx(4, rel=0.25)
    _, moving, _ = fit_arrivals(begun_by(Modulated(3.0, 0.4, 300.0), 40_000))
    assert moving.swing == pytest.approx(0.4, rel=0.3)
    _, shared, _ = fit_arrivals(begun_by(Clients(3.0, clients=12, skew=1.2), 20_000))
    assert (shared.clients, shared.skew) == (12, pytest.approx(1.2, abs=0.15))
    assert shared.cv_log_mean == pytest.approx(0.36, abs=0.5)


def test_a_gap_that_no_simple_law_has_gets_a_mixture() -> None:
    """Bursts of a hundred, ten seconds apart: gamma's CV fits, its gaps do not."""
    times = [10 * burst + 0.01 * k for burst in range(80) for k in range(100)]
    columns = begun_by(Poisson(1.0))
    columns.arrays["arrival"][:] = (np.array(times) * 1e9).astype(np.int64)
    rate, found, _ = fit_arrivals(columns)
    assert found.law == "fitted"
    assert rate == pytest.approx(10, rel=0.02)


# ---------------------------------------------------------------------- whole generators


@pytest.fixture(scope="module")
def chats() -> Columns:
    return collect(chat_of(3000, 0.5, None).workload(Streams(1)))


@pytest.fixture(scope="module")
def agents() -> Columns:
    return collect(Generator(agent.MODEL, 400, Poisson(0.1)).workload(Streams(1)))


def test_a_fit_is_near_to_sessions_it_has_not_seen(chats: Columns) -> None:
    found = held_out_distances(chats, "mine")
    assert set(found) == {
        "turns",
        "first prompt tokens",
        "later new tokens",
        "reply tokens",
        "gaps s",
        "inter-arrivals s",
    }
    assert [name for name, row in found.items() if not row["close"]] == []
    assert [name for name, row in found.items() if not row["promised"]] == ["inter-arrivals s"]


def test_a_generator_of_something_else_is_not_near(chats: Columns) -> None:
    """The check can fail: agents' numbers under chat's laws."""
    other = generated(fit(chats, "mine"), 2000, 5).quantities()
    agents = collect(Generator(agent.MODEL, 60, Poisson(0.1)).workload(Streams(1))).quantities()
    for name in ("turns", "first prompt tokens", "later new tokens", "gaps s"):
        assert two_sample_ks(agents[name], other[name]) > 0.3, name


def test_the_copula_of_replies_comes_back(chats: Columns) -> None:
    assert fit(chats, "mine").model.alike == pytest.approx(chat.ASSISTANT_ALIKE, abs=0.04)


def test_an_agents_waits_resets_and_form_come_back(agents: Columns) -> None:
    model = fit(agents, "mine").model
    assert [wait.stop for wait in model.waits] == ["tool_use", None, "end_turn"]
    assert model.waits[0].share == pytest.approx(0.861, abs=0.01)
    assert (model.repeats_reply, model.waits_from) == (False, "reply")
    assert model.reset is not None
    assert model.reset.share == pytest.approx(0.028 * 0.85, abs=0.01)  # some keep more than half
    assert model.reset.kept_tokens == agent.SYSTEM_TOKENS


def test_halves_are_all_of_the_sessions_each_once(chats: Columns) -> None:
    one, other = halves(chats, Streams(4))
    assert len(one) + len(other) == len(chats)
    assert abs(int(one.turns.size) - int(other.turns.size)) <= 1
    assert not set(one.arrays["session"].tolist()) & set(other.arrays["session"].tolist())


def test_too_few_sessions_are_refused() -> None:
    with pytest.raises(InputError, match="chat generator: 7 sessions; a fit needs 20 or more"):
        fit(collect(chat_of(7, 1.0).workload(Streams(1))), "mine")


def test_the_command_writes_a_generator_that_generates(tmp_path: Path) -> None:
    data, made = tmp_path / "chat.jsonl", tmp_path / "made.jsonl"
    write(chat_of(300, 1.0).workload(Streams(1)), data)
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    runner = CliRunner()
    for file in files:
        done = runner.invoke(
            fastswitch.main, ["trace", "fit", str(data), "-o", str(file), "--json"]
        )
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes().replace(b"name: two", b"name: one")
    found = json.loads(done.stdout)
    assert found["fitted_on"] == "chat generator"
    assert 0 < found["distances"]["reply tokens"]["generator"] < 0.2
    done = runner.invoke(
        fastswitch.main,
        ["trace", "generate", str(files[0]), "--conversations", "20", "--out", str(made)],
    )
    assert "in 20 conversations" in done.output


def test_a_normal_score_is_never_infinite() -> None:
    law = Values(((1.0, 0.0, 1.0),), zero=0.5)
    assert law.at(-9.0) == 0 and math.isfinite(law.at(9.0))
    assert law.at(NormalDist().inv_cdf(0.75)) == pytest.approx(1.0, rel=0.01)
