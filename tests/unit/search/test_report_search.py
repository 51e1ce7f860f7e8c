"""The report of a search opens with the winner, draws the limit, and names who missed it by chance alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from explore.report import search
from explore.report.response import Answer, along, knob_of, picture
from explore.studies.estimates import Estimate
from tests.helpers.pages import Reader, problems
from tests.helpers.searches import searched, spec
from tests.unit.test_cli import run

RATES = [1.0, 2.0, 4.0, 8.0]


def served(scenario: dict[str, Any], run_number: int) -> dict[str, Any]:
    """TTFT P99 is half of the rate, give or take a tenth; under +groups a tenth more."""
    rate, system = scenario["workload"]["rate"], scenario.get("system")
    slower = 1.1 if system == "+groups" else 1.0
    return {"ttft_p99_s": slower * rate / 2 * (0.9, 1.1, 1.0)[run_number % 3]}


def found_best(out: Path) -> None:
    """A search whose winner is at a rate of 4."""
    space = {"workload.rate": RATES, "system": ["fastswitch", "+groups"]}
    limits = {"ttft_p99_s": {"at_most": 2.0}}
    searched(spec("max-rate-under-sla", space=space, limits=limits, runs=3), out, served)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    found_best(out)
    return out


def test_the_page_opens_with_the_winner_and_the_limit_as_a_line(folder: Path) -> None:
    assert run("report", folder).exit_code == 0
    text = (folder / "report.html").read_text()
    assert problems(text) == []
    lead = "fastswitch at workload.rate=4.0 has the highest workload.rate of the 5 points that keep all limits."
    assert f'<section class="opening"><p class="lead">{lead}</p><figure' in text
    assert text.index('class="limit"') < text.index("<nav")
    assert "TTFT P99 at most 2 s" in "".join(Reader(text).text)


def test_a_point_whose_interval_reaches_the_limit_is_a_near_miss_and_one_far_off_is_not(
    folder: Path,
) -> None:
    data = json.loads((folder / "search.json").read_text())
    (miss,) = search.near_misses(data)
    assert miss.point["system"] == "+groups" and miss.point["values"]["workload.rate"] == 4.0
    assert miss.beyond == pytest.approx(0.1)
    assert "+groups at workload.rate=4.0 missed TTFT P99 at most 2 s by 10.0 % ±" in search.opening(
        data
    )


def test_when_no_point_keeps_the_limits_the_page_says_so(tmp_path: Path) -> None:
    asked = spec(
        "max-rate-under-sla",
        space={"workload.rate": RATES},
        limits={"ttft_p99_s": {"at_most": 0.01}},
    )
    searched(asked, tmp_path / "out", served)
    assert run("report", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert '<p class="lead">None of 4 points keeps all limits.</p>' in text


def answer(system: str, value: float | None, half: float | None = 0.1, **values: Any) -> Answer:
    return Answer(values, system, Estimate(value, half))


def test_a_response_is_along_the_first_number_where_all_else_is_as_in_the_first_point() -> None:
    points = [{"order": "markov", "rate": rate, "blocks": b} for b in (1, 2) for rate in (1, 2)]
    assert knob_of(points) == "rate"
    assert knob_of(points[:1]) is None and knob_of([]) is None
    mine, held = along([answer("x", 1.0, **point) for point in points], "rate")
    assert [one.values["rate"] for one in mine] == [1, 2]
    assert held == "order=markov, blocks=1"


def test_a_curve_without_all_intervals_has_no_band_and_a_lone_place_no_picture() -> None:
    both = [answer("x", 2.0, None, rate=1), answer("x", 3.0, rate=2), answer("y", 1.0, rate=1)]
    made = picture([*both, answer("y", 2.0, rate=2)], "rate", "ttft_p99_s", 4.0)
    assert made is not None and made.limit == 4.0
    assert [curve.band is None for curve in made.curves] == [True, False]
    assert made.y.low < 1.0 and made.y.high > 4.0
    assert picture(both[:1], "rate", "ttft_p99_s") is None
    assert picture([answer("x", None, rate=1), *both[:1]], "rate", "ttft_p99_s") is None
