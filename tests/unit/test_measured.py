"""Measured clients: each comes at its own rate, as bursty and as long as its windows say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from policy.errors import ConfigError
from traces.describing.columns import collect
from traces.describing.describe import clients as shares_of
from traces.generators.measured import MeasuredClients
from traces.randomness import Streams
from traces.workload import Turn

NS = 1_000_000_000


@dataclass(frozen=True)
class Span:
    start_s: float
    rate: float
    cv: float = 1.0
    law: str | None = "Gamma"


@dataclass(frozen=True)
class Bars:
    histogram: tuple[tuple[float, float], ...] = ()
    quantiles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Sizes:
    start_s: float
    inputs: Bars | None
    outputs: Bars | None = Bars(((7, 1.0),))


@dataclass(frozen=True)
class One:
    client_id: str
    rates: tuple[Span, ...]
    lengths: tuple[Sizes, ...] = (Sizes(0.0, Bars(((10, 0.25), (20, 0.75)))),)


def rows(*clients: One, end_s: float = 6000.0, seed: int = 1, **values: float) -> list[Turn]:
    return list(MeasuredClients(clients, end_s, **values).workload(Streams(seed)))


def test_a_client_comes_at_the_rate_of_each_window() -> None:
    made = rows(One("a", (Span(0, 2.0), Span(1000, 0.0), Span(2000, 6.0), Span(4000, 1.0))))
    times = np.array([turn.arrival_ns or 0 for turn in made]) / NS
    counts = np.histogram(times, [0, 1000, 2000, 4000, 6000])[0]
    assert counts[1] == 0
    assert counts[[0, 2, 3]] / [1000, 2000, 2000] == pytest.approx([2, 6, 1], rel=0.1)
    assert (np.diff(times) >= 0).all() and times[-1] < 6000


@pytest.mark.parametrize("law", ["Gamma", "Weibull"])
def test_a_clients_gaps_are_as_bursty_as_its_windows_say(law: str) -> None:
    made = rows(One("a", (Span(0, 5.0, 3.0, law),)))
    gaps = np.diff([turn.arrival_ns or 0 for turn in made])
    assert gaps.std() / gaps.mean() == pytest.approx(3, rel=0.15)


def test_a_gap_goes_on_through_the_windows_that_follow() -> None:
    """Even gaps of 100 s through windows of 10 s."""
    windows = tuple(Span(10.0 * k, 0.01, 0.05) for k in range(600))
    gaps = np.diff([turn.arrival_ns or 0 for turn in rows(One("a", windows))]) / NS
    assert gaps.mean() == pytest.approx(100, rel=0.05)
    assert gaps.std() < 10


def test_an_absurd_cv_and_an_unknown_law_end_too() -> None:
    made = rows(One("a", (Span(0, 1.0, 1038.0),)), One("b", (Span(0, 1.0, 0.0, None),)))
    assert {turn.client_id for turn in made} >= {"b"}


def test_lengths_are_those_of_the_window_in_force() -> None:
    bars = Bars(((10, 1.0), (20, 3.0)))
    sizes = (Sizes(0.0, None), Sizes(3000.0, bars), Sizes(4000.0, Bars(((99, 0.1),))))
    made = rows(One("a", (Span(0, 5.0),), sizes))
    before = [t.input_tokens for t in made if (t.arrival_ns or 0) < 4000 * NS]
    assert set(before) == {10, 20}
    assert np.mean([tokens == 20 for tokens in before]) == pytest.approx(0.75, abs=0.02)
    assert {t.input_tokens for t in made if (t.arrival_ns or 0) >= 4000 * NS} == {99}
    assert {t.output_tokens for t in made} == {7}


def test_without_a_histogram_lengths_are_drawn_along_the_quantiles() -> None:
    bars = Bars(quantiles=((0.05, 10.0), (0.5, 100.0), (0.95, 200.0), (1.0, 1000.0)))
    made = rows(One("a", (Span(0, 5.0),), (Sizes(0.0, bars),)))
    found = np.percentile([turn.input_tokens for turn in made], [4, 50, 72.5, 90])
    assert found == pytest.approx([10, 100, 150, 189], rel=0.05)


def test_clients_share_the_traffic_by_their_rates_and_keep_their_draws() -> None:
    one, other = One("a", (Span(0, 3.0),)), One("b", (Span(0, 1.0),))
    both = MeasuredClients((one, other), 6000.0).workload(Streams(1))
    found = shares_of(collect(both).arrays["client"])
    assert found is not None and found["top_1_share"] == pytest.approx(0.75, abs=0.02)
    alone = [(t.arrival_ns, t.input_tokens) for t in rows(other)]
    assert alone == [(t.arrival_ns, t.input_tokens) for t in both if t.client_id == "b"]


def test_a_span_begins_at_zero_and_a_scale_multiplies() -> None:
    client = One("a", (Span(0, 1.0), Span(3000, 4.0)))
    cut = rows(client, begin_s=3000.0)
    assert 0 <= (cut[0].arrival_ns or 0) < 60 * NS
    assert len(cut) / 3000 == pytest.approx(4, rel=0.1)
    assert len(rows(client, begin_s=3000.0, scale=2.0)) / 3000 == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(
    ("clients", "values", "word"),
    [
        ((), {}, "there are none"),
        ((One("a", (Span(0, 1.0),)),) * 2, {}, "given twice"),
        ((One("a", (Span(0, 1.0),)),), {"begin_s": 9000.0}, "no span"),
        ((One("a", (Span(0, 1.0),)),), {"scale": 0.0}, "scale"),
        ((One("a", (Span(0, 1.0),), ()),), {}, "no lengths"),
    ],
)
def test_clients_that_cannot_be_are_refused(
    clients: tuple[One, ...], values: dict[str, float], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        rows(*clients, **values)
