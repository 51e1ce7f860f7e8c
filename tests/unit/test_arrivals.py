"""When sessions begin: every law has the rate, the burstiness and the shares it was asked for."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError
from runs.metrics.stats import Ints
from traces.generators.arrivals import (
    Arrivals,
    Clients,
    Modulated,
    Poisson,
    Renewal,
    Spaced,
    Start,
)
from traces.generators.laws import Values, draw_gamma, weibull_shape
from traces.randomness import Streams

MANY = 20_000


def starts_of(law: Arrivals, count: int = MANY, seed: int = 1) -> list[Start]:
    return list(islice(law.starts(Streams(seed)), count))


def times_of(law: Arrivals, count: int = MANY, seed: int = 1) -> np.ndarray:
    return np.array([start.at_s for start in starts_of(law, count, seed)])


def counts_of(times: np.ndarray, window_s: float) -> Ints:
    return np.bincount((times // window_s).astype(int))[:-1]


LAWS: dict[str, Arrivals] = {
    "poisson": Poisson(2.0),
    "gamma even": Renewal(2.0, 0.3),
    "gamma bursty": Renewal(2.0, 4.0),
    "weibull": Renewal(2.0, 2.0, "weibull"),
    "modulated": Modulated(2.0, 0.24, 60.0),
    "clients": Clients(2.0, clients=20),
    "fitted": Spaced(2.0, 7.0, Values(((1.0, math.log(1 / 7) - 0.5, 1.0),))),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_sessions_begin_in_order_at_the_rate_that_was_asked_for(law: Arrivals) -> None:
    times = times_of(law)
    assert (np.diff(times) >= 0).all() and times[0] >= 0
    assert MANY / times[-1] == pytest.approx(law.rate, rel=0.12)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_law_begins_the_same_way_however_much_is_taken_of_it(law: Arrivals) -> None:
    assert starts_of(law, 50) == starts_of(law, 500)[:50]
    assert starts_of(law, 50) != starts_of(law, 50, seed=2)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("name", ["gamma", "weibull"])
def test_a_renewal_law_has_the_cv_it_was_asked_for(name: str, cv: float) -> None:
    law = Renewal(1.0, cv, "gamma" if name == "gamma" else "weibull")
    gaps = np.diff(times_of(law, 60_000))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15)


@given(st.floats(0.02, 50))
def test_the_shape_of_a_weibull_law_gives_its_cv_back(cv: float) -> None:
    k = weibull_shape(cv)
    squared = math.exp(math.lgamma(1 + 2 / k) - 2 * math.lgamma(1 + 1 / k)) - 1
    assert math.sqrt(squared) == pytest.approx(cv, rel=1e-4)


@pytest.mark.parametrize("shape", [0.1, 0.7, 1.0, 3.0, 40.0])
def test_gamma_variates_have_their_mean_and_their_variance(shape: float) -> None:
    drawn = [draw_gamma(shape, Streams(3), "gamma", "", k) for k in range(MANY)]
    assert np.mean(drawn) == pytest.approx(shape, rel=0.08)
    assert np.var(drawn) == pytest.approx(shape, rel=0.15)


@pytest.mark.parametrize("name", ["gamma", "weibull"])
def test_a_bursty_process_does_not_begin_with_a_burst(name: str) -> None:
    """Over many seeds the first ten seconds hold as many sessions as the rate says."""
    law = Renewal(1.0, 3.0, "gamma" if name == "gamma" else "weibull")
    early = []
    for seed in range(1500):
        count = 0
        for start in law.starts(Streams(seed)):
            if start.at_s >= 10:
                break
            count += 1
        early.append(count)
    error = np.std(early) / math.sqrt(len(early))
    assert abs(np.mean(early) - 10) < 4 * error


def test_a_moving_rate_is_poisson_within_a_minute_and_overdispersed_beyond() -> None:
    """As Azure's conversation trace: dispersion near 1 at 1 s and far above 1 at 60 s."""
    times = times_of(Modulated(5.53, 0.24, 600.0), 60_000)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.05, abs=0.06)
    short, long = counts_of(times, 1.0), counts_of(times, 60.0)
    assert 1.0 < short.var() / short.mean() < 1.8
    assert 10 < long.var() / long.mean() < 35


def test_the_top_clients_share_is_zipfs() -> None:
    """Within 10 % (research: 20,000 from a fixed seed)."""
    law = Clients(2.0, clients=50, skew=1.1)
    found = Counter(start.client_id for start in starts_of(law))
    assert found["client-0001"] / MANY == pytest.approx(law.shares()[0], rel=0.1)
    assert math.fsum(law.shares()) == pytest.approx(1)


def test_one_clients_own_gaps_are_as_bursty_as_it_was_drawn() -> None:
    law = Clients(1.0, clients=2, skew=0.0, cv_log_mean=math.log(3), cv_log_deviation=0.0)
    mine = np.array([s.at_s for s in starts_of(law, 60_000) if s.client_id == "client-0002"])
    gaps = np.diff(mine)
    assert gaps.std() / gaps.mean() == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Poisson(0), "workload.rate: 0"),
        (lambda: Renewal(1.0, 0), "workload.arrivals.cv: 0"),
        (lambda: Renewal(math.nan, 1), "workload.rate: nan"),
        (lambda: Modulated(1.0, swing=math.nan), "workload.arrivals.swing: nan"),
        (lambda: Clients(1.0, clients=0), "workload.arrivals.clients: 0"),
        (lambda: Spaced(1.0, 0.0, Values(zero=1.0)), "workload.rate: 0.0"),
    ],
)
def test_a_number_that_makes_no_process_is_refused_by_name(make: object, names: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make()  # type: ignore[operator]
    assert str(refused.value).startswith(names)
