"""Laws drawn by inversion: the numbers that come out follow the law that was written down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.generators import chat
from traces.generators.laws import (
    Mixture,
    draw_mixture,
    draw_turns,
    mixture_at,
    seconds_to_ns,
)
from traces.randomness import Streams

NORMAL = NormalDist()
MANY = 20_000

MIXTURES = {
    "first user": chat.FIRST_USER,
    "later user": chat.LATER_USER,
    "assistant": chat.ASSISTANT,
    "human gap": chat.HUMAN_GAP,
    "far apart": ((0.5, 0.0, 0.1), (0.3, 5.0, 0.1), (0.2, 9.0, 2.0)),
}


def cdf(mixture: Mixture, value: float) -> float:
    return math.fsum(w * NORMAL.cdf((math.log(value) - m) / d) for w, m, d in mixture)


def distance(mixture: Mixture, values: Sequence[float]) -> float:
    """Kolmogorov's distance times the square root of the number: above 2.3 once in 20,000."""
    n = len(values)
    shares = [cdf(mixture, value) for value in sorted(values)]
    return n**0.5 * max(max(s - i / n, (i + 1) / n - s) for i, s in enumerate(shares))


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("score", [-4.9, -3.0, -1.28155, -0.3, 0.0, 0.001, 0.7, 2.32635, 4.9])
def test_the_quantile_at_a_score_inverts_the_mixture(mixture: Mixture, score: float) -> None:
    assert cdf(mixture, mixture_at(mixture, score)) == pytest.approx(NORMAL.cdf(score), rel=1e-3)


@given(
    st.sampled_from(list(MIXTURES.values())),
    st.floats(min_value=-6, max_value=6),
    st.floats(min_value=-6, max_value=6),
)
def test_a_higher_score_is_never_a_lower_value(mixture: Mixture, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 < mixture_at(mixture, low) <= mixture_at(mixture, high)


@pytest.mark.parametrize(("score", "end"), [(-5.01, -5.0), (-40.0, -5.0), (5.01, 5.0), (40.0, 5.0)])
def test_a_score_beyond_five_counts_as_five(score: float, end: float) -> None:
    assert mixture_at(chat.ASSISTANT, score) == mixture_at(chat.ASSISTANT, end)


@pytest.mark.parametrize("score", [-4.0, -1.0, 0.0, 0.5, 3.0])
def test_a_mixture_of_one_part_is_log_normal(score: float) -> None:
    assert mixture_at(((1.0, 2.0, 0.7),), score) == pytest.approx(math.exp(2 + 0.7 * score))


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_drawing_from_a_mixture_follows_it(mixture: Mixture) -> None:
    streams = Streams(1)
    values = [draw_mixture(mixture, streams, "v", f"n{k % 100}", k) for k in range(MANY)]
    assert distance(mixture, values) < 2.3


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_alike_scores_keep_the_marginal(mixture: Mixture) -> None:
    """Scores correlated within groups of two, each standard normal: the law of all is kept."""
    streams = Streams(2)
    values = []
    for k in range(MANY):
        shared = math.sqrt(0.41) * streams.normal("shared", "", k // 2)
        own = math.sqrt(0.59) * streams.normal("own", "", k)
        values.append(mixture_at(mixture, shared + own))
    assert distance(mixture, values[::2]) < 2.3
    assert distance(mixture, values[1::2]) < 2.3


@pytest.mark.parametrize(
    ("hazards", "cap"),
    [((0.5, 0.9, 0.2, 0.7), 100), ((0.8,), 100), (chat.HAZARDS, chat.MAX_TURNS)],
    ids=["four", "geometric", "chat"],
)
def test_another_turn_follows_as_often_as_the_hazards_say(
    hazards: tuple[float, ...], cap: int
) -> None:
    streams = Streams(4)
    turns = Counter(draw_turns(hazards, cap, streams, f"c{i}") for i in range(MANY))
    reached = MANY
    for k in range(1, 30):
        if reached < 500:
            break
        chance = hazards[min(k, len(hazards)) - 1]
        gone_on = reached - turns[k]
        spread = math.sqrt(reached * chance * (1 - chance))
        assert abs(gone_on - reached * chance) < 5 * spread, f"after {k} turns"
        reached = gone_on


@pytest.mark.parametrize(
    ("hazards", "cap", "turns"),
    [((0.0,), 10, 1), ((1.0,), 7, 7), ((1.0, 1.0, 0.0), 10, 3), ((1.0, 0.0, 1.0), 10, 2)],
)
def test_sure_hazards_leave_no_choice(hazards: tuple[float, ...], cap: int, turns: int) -> None:
    streams = Streams(5)
    assert {draw_turns(hazards, cap, streams, f"c{i}") for i in range(50)} == {turns}


@pytest.mark.parametrize(
    ("seconds", "nanoseconds"),
    [(0.0, 0), (1.5, 1_500_000_000), (0.1, 100_000_000), (1e-9, 1), (3e-10, 0), (7e-10, 1)],
)
def test_seconds_become_the_nearest_nanosecond(seconds: float, nanoseconds: int) -> None:
    assert seconds_to_ns(seconds) == nanoseconds
