"""Charts say where things are, whatever the numbers; the frontier is what its definition says."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explore.report import chart, document, pareto
from explore.report.chart import Axis, Curve, Picture, Point
from explore.report.pareto import METRICS, Candidate, frontier
from explore.studies.estimates import Estimate
from tests.helpers.pages import EVIL, Reader, problems

RATE, LATENCY = "throughput_tok_s", "ttft_p99_s"
SIZES = st.floats(1e-9, 1e12)


@given(st.lists(SIZES, max_size=5), st.booleans())
def test_an_axis_has_round_ticks_inside_and_every_value_on_it(
    values: list[float], is_log: bool
) -> None:
    axis = chart.log("x", values) if is_log else chart.linear("x", values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(axis.low * 0.999 <= tick <= axis.high * 1.001 for tick in ticks)
    places = [axis.place(tick) for tick in ticks]
    assert all(a < b for a, b in pairwise(places))
    assert all(0 <= axis.place(value) <= 1 for value in values)
    digits = {axis.text(tick).rstrip("0").replace(".", "").lstrip("0") for tick in ticks}
    assert len({axis.text(tick) for tick in ticks}) == len(ticks) and digits


def test_a_place_on_a_logarithmic_axis_is_by_the_exponent() -> None:
    axis = Axis("x", 1.0, 100.0, True)
    assert axis.place(10) == pytest.approx(0.5)
    assert (axis.place(-1), axis.place(0.5), axis.place(1000)) == (0, 0, 1)


def points_of(text: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in re.findall(r'class="dot" transform="translate\(([\d.]+) ([\d.]+)\)"', text)
    ]


def test_points_stand_where_their_numbers_say_and_names_are_escaped() -> None:
    x, y = Axis("x", 0, 10), Axis("y", 0, 10)
    drawn = [
        Point(EVIL, EVIL, (0, 0, 0), (0, 0, 0)),
        Point("b", "b", (10, 8, 12), (10, 9, 11), True),
    ]
    text = chart.svg(Picture(EVIL, x, y, points=drawn, systems=[EVIL, "b"], equal_within=0.1))
    first, second = points_of(text.split("<ul")[0])
    assert first[0] < second[0] and first[1] > second[1]
    assert problems(document.document("t", [("", text)])) == []
    assert text.count("faded") == 1 and "".join(Reader(text).text).count(EVIL) == 2


def test_a_curve_breaks_where_there_is_nothing_and_stays_in_the_picture() -> None:
    points = [(0.0, 0.0), None, (5.0, 5.0), (1e9, -1e9)]
    text = chart.svg(Picture("l", Axis("x", 0, 10), Axis("y", 0, 10), [Curve("c", points)]))
    (path,) = re.findall(r'class="line c0 d0" d="(M[^"]*)"', text.split("<ul")[0])
    assert path.count("M") == 2
    numbers = [float(n) for n in re.findall(r"[\d.]+", path)]
    assert all(0 <= n <= 480 for n in numbers)


def candidate(rate: float | None, latency: float | None) -> Candidate:
    values = {RATE: rate, LATENCY: latency}
    return Candidate("c", "c", {name: Estimate(values.get(name, 1.0)) for name in METRICS})


COARSE = st.one_of(st.none(), st.integers(1, 6).map(float))


@given(st.lists(st.tuples(COARSE, COARSE), max_size=12))
def test_the_frontier_is_who_is_not_beaten(pairs: list[tuple[float | None, float | None]]) -> None:
    candidates = [candidate(*pair) for pair in pairs]
    rate = pareto.common(candidates, pareto.THROUGHPUTS)
    found = frontier(candidates, LATENCY)
    known = [
        (one.estimates[rate].value, one.estimates[LATENCY].value)
        for one in candidates
        if None not in (one.estimates[rate].value, one.estimates[LATENCY].value)
    ]
    for one, is_on_it in zip(candidates, found, strict=True):
        x, y = one.estimates[rate].value, one.estimates[LATENCY].value
        if x is None or y is None:
            assert not is_on_it
            continue
        beaten = any(a >= x and b <= y and (a, b) != (x, y) for a, b in known)
        assert is_on_it == (not beaten)


def test_a_nearer_tail_is_taken_where_the_far_one_has_too_few_samples() -> None:
    both = [candidate(1, 1), candidate(1, None)]
    assert pareto.common(both, pareto.LATENCIES[0]) == "ttft_p95_s"
    assert pareto.common(both[:1], pareto.LATENCIES[0]) == LATENCY
    text = pareto.figures(both, ["a", "b"])
    assert "TTFT P95 s" in text and "TTFT P99 s" not in text


def test_a_picture_has_no_more_points_than_its_limit_and_the_best_are_among_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pareto, "MAX_POINTS", 3)
    many = [candidate(i, 10 + i) for i in range(1, 6)] + [candidate(3, 20), candidate(2, 30)]
    text = pareto.figures(many, ["a"])
    assert "4 not drawn" in text
    drawn = re.sub(r"<ul.*?</ul>", "", text)
    assert len(points_of(drawn)) == 2 * 3
