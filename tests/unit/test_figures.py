"""Figures by name: one look per system wherever it is drawn, text that stays text, and the numbers behind."""

from __future__ import annotations

import csv
import io
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from explore import words
from explore.report import figures, looks, rows
from explore.report.figures import FIGURES, HEADLINE
from explore.studies.compare import _DEFAULT
from explore.studies.estimates import Ratio
from policy.errors import ConfigError
from policy.systems import SYSTEMS
from tests.helpers.made import compared
from tests.helpers.pages import EVIL, Reader
from traces import figure_style

PAGED, KEEP, OURS = "paged", "paged-keep", "fastswitch"
CHAIN = (PAGED, KEEP, "+groups", "+reuse", OURS)
FASTER = {PAGED: 0.5, KEEP: 1.0, "+groups": 2.0, "+reuse": 3.0, OURS: 2.7}


def change(system: str, run: int) -> dict[str, Any]:
    return dict.fromkeys(("ttft_p95_s", "ttft_p99_s"), (1 + run / 50) / FASTER[system])


def test_every_named_system_has_a_look_of_its_own() -> None:
    assert set(looks.SYSTEMS) <= set(SYSTEMS)
    for one, other in combinations(looks.SYSTEMS, 2):
        assert looks.of(one) != looks.of(other), (one, other)
    usual = {looks.of(name).colour for name in _DEFAULT}
    assert len(usual) == len(_DEFAULT)  # those that are compared unasked differ by colour alone
    assert looks.of("mine") == looks.of("mine")
    assert looks.style_of(OURS) == {"color": "#c44f00", "linestyle": "-", "marker": "o"}


def light(colour: str) -> float:
    """Relative luminance (WCAG)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_has_the_colours_of_the_files_and_all_stand_against_paper() -> None:
    style = (Path(looks.__file__).parent / "style.css").read_text()
    for i, colour in enumerate(looks.COLOURS):
        assert re.search(rf"--c{i}: {colour};", style), i
        assert 1.05 / (light(colour) + 0.05) >= 3, colour


def test_systems_are_sorted_and_a_dot_is_full_where_it_is_sure() -> None:
    noisy = {(PAGED, run): {"ttft_p99_s": (5.0, 0.2, 1.0)[run]} for run in range(3)}
    found = compared(*CHAIN, runs=3, change=lambda s, r: noisy.get((s, r)) or change(s, r))
    made = figures.speedups(found)
    assert [one.title for one in made] == ["TTFT P95", "TTFT P99", "TBT P99.9", "throughput"]
    names = [row.label for row in made[1].rows]
    assert names[:3] == ["+reuse", OURS, "+groups"] and KEEP not in names
    for metric, one in zip(HEADLINE, made, strict=True):
        for row in one.rows:
            ratio = found.speedup(row.label, KEEP, metric)
            assert (row.value, row.is_sure) == (ratio.value, ratio.is_sure)
    text = rows.svg(made[1])
    sure = sum(row.is_sure for row in made[1].rows)
    assert 0 < sure < len(names)
    assert text.count('class="dot"') == sure
    assert text.count('class="dot hollow"') == len(names) - sure


def test_the_steps_of_mechanisms_begin_where_the_one_before_ends_and_come_to_the_whole() -> None:
    (made,) = figures.mechanisms(compared(*CHAIN, change=change))
    first, second, third, whole = made.rows[:4]
    assert (first.start, first.value) == (1.0, pytest.approx(2.0))
    assert (second.start, second.value) == (first.value, pytest.approx(3.0))
    assert (third.start, third.value) == (second.value, pytest.approx(2.7))
    assert (whole.label, whole.value) == (f"= {OURS}", pytest.approx(2.7))


def test_a_ratio_that_is_not_known_is_a_word_and_names_are_escaped() -> None:
    row = rows.of_ratio(EVIL, looks.of("x"), Ratio(None), EVIL)
    text = rows.svg(rows.Rows(EVIL, rows.axis("x", [row]), [row]))
    read = Reader(text)
    assert "script" not in read.tags and "".join(read.text).count(EVIL) == 4


@pytest.mark.parametrize(("width", "inches"), [("single", 3.35), ("double", 7.0)])
def test_a_figure_is_as_wide_as_asked_and_its_text_stays_text(
    tmp_path: Path, width: str, inches: float
) -> None:
    figure = compared(*CHAIN, change=change).figure("speedups", width)
    assert figure.get_figwidth() == inches
    figure_style.save(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "fastswitch</text>" in text and "times better than paged-keep</text>" in text
    assert looks.COLOURS[looks.of(OURS).colour] in text


def test_the_numbers_behind_a_figure_are_those_that_it_shows() -> None:
    found = compared(*CHAIN, change=change)
    lines = list(csv.DictReader(io.StringIO(found.figure_csv("speedups"))))
    (line,) = [one for one in lines if (one["picture"], one["series"]) == ("TTFT P99", "+reuse")]
    assert float(line["x"]) == pytest.approx(3.0) and line["sure"] == "yes"
    for name in FIGURES:
        if name in dict(figures.drawn(found)):
            assert len(found.figure_csv(name).splitlines()) > 1


def test_a_figure_that_there_is_not_is_told() -> None:
    found = compared(KEEP, OURS)
    with pytest.raises(ConfigError, match=r"speedup.* is not one of speedups, mechanisms"):
        found.figure("speedup")
    with pytest.raises(ConfigError, match="single, double"):
        found.figure("tails", "triple")
    with pytest.raises(ConfigError, match="nothing to show"):
        compared("+groups", OURS).figure("speedups")


def test_the_table_for_papers_has_every_system_and_marks_what_is_sure() -> None:
    found = compared(*CHAIN, change=change, name="a_b")
    text = found.latex()
    sure, unsure = (
        words.ratio(found.speedup("+reuse", KEEP, m)) for m in ("ttft_p99_s", "tbt_p999_s")
    )
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert body.count(r"\\") == len(CHAIN)
    assert rf"\textbf{{{sure}}}" in body and f"& {unsure} &" in body
    assert len({line.count(" & ") for line in body.splitlines()[1:]}) == 1


def test_the_pace_of_a_user_is_one_over_the_time_of_a_token_with_the_same_interval() -> None:
    slower = {"tpot_p50_s": 0.05, "throughput_tok_s": 900.0}
    faster = {"tpot_p50_s": 0.02, "throughput_tok_s": 1000.0}
    found = compared(
        KEEP,
        OURS,
        change=lambda s, r: {
            name: v * (1 + r / 20) for name, v in (faster if s == OURS else slower).items()
        },
    )
    made = found.figure_csv("frontier")
    (line,) = [
        one
        for one in csv.DictReader(io.StringIO(made))
        if one["picture"].startswith("Pace") and one["series"] == OURS
    ]
    tpot = found.estimate(OURS, "tpot_p50_s")
    assert tpot.value is not None and tpot.interval is not None
    assert float(line["x"]) == pytest.approx(1 / tpot.value)
    assert float(line["x_low"]) == pytest.approx(1 / tpot.interval[1])
    (pace,) = [p for p in figures.frontier(found) if p.title.startswith("Pace")]
    assert [point.is_faded for point in pace.points] == [True, False]
