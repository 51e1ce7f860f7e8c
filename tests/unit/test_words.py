"""How numbers and loads read: significant digits, intervals, and no number where there is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explore import words
from explore.studies.comparison import Load
from explore.studies.estimates import Estimate, Ratio
from tests.helpers.made import compared

KEEP, OURS = "vllm-0.3.3-keep", "fastswitch"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (1.0, 3, "1.00"),
        (37.44, 3, "37.4"),
        (123.4, 3, "123"),
        (123456.0, 3, "123456"),
        (0.5, 3, "0.500"),
        (0.01234, 3, "0.0123"),
        (0.000001234, 3, "0.000001"),
        (8.14, 2, "8.1"),
        (81.4, 2, "81"),
        (-2.5, 3, "-2.50"),
    ],
)
def test_a_number_has_its_significant_digits_and_no_exponent(
    value: float, digits: int, text: str
) -> None:
    assert words.significant(value, digits) == text


@given(st.floats(1e-4, 1e9))
def test_what_is_shown_is_within_half_a_percent_of_what_is_meant(value: float) -> None:
    assert float(words.significant(value)) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("found", "metric", "text"),
    [
        (Estimate(37.44, 8.14), "ttft_p95_s", "37.4 (30.1-46.5)"),
        (Estimate(51.5, 110.0), "ttft_p95_s", "52 (6-436)"),  # never a negative latency
        (Estimate(2.47, 20.0), "starvation_age_s", "2.5 (0.0008-8114)"),
        (Estimate(None, above=1.4142), "ttft_p95_s", "> 1.41"),
        (Estimate(0.0, 0.0), "rejected", "0"),
        (Estimate(1234567.8, 30.0), "service_gap_max", "1234568 (1234538-1234598)"),
        (Estimate(37.44, None), "ttft_p95_s", "37.4"),
        (Estimate(37.44, 0.0), "ttft_p95_s", "37.4"),
        (Estimate(None), "ttft_p95_s", "n too small"),
        (Estimate(0.123, 0.01), "stall_share", "12.3 (11.3-13.3)"),
        (Estimate(5.4e9, None), "copy_bytes", "5.40"),
    ],
)
def test_an_estimate_is_in_its_unit_with_its_interval(
    found: Estimate, metric: str, text: str
) -> None:
    assert words.estimate(found, metric) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Ratio(3.1, 1.3), "3.10x (2.38-4.03)"),
        (Ratio(1.27, 1.01), "1.270x (1.257-1.283)"),  # once 1.27x (1.3-1.3)
        (Ratio(None, above=1.2), "> 1.20x"),
        (Ratio(None, below=0.8), "< 0.800x"),
        (Ratio(3.1, None), "3.10x"),
        (Ratio(None), "n too small"),
        (Ratio(0.5, 1.0), "0.500x"),
    ],
)
def test_a_ratio_is_shown_with_the_ends_of_its_interval(found: Ratio, text: str) -> None:
    assert words.ratio(found) == text


@given(st.floats(1e-4, 1e7), st.floats(1e-3, 20.0))
def test_an_interval_as_printed_holds_its_own_number_and_nothing_below_zero(
    value: float, relative: float
) -> None:
    text = words.estimate(Estimate(value, value * relative), "ttft_p95_s")
    middle, _, rest = text.partition(" (")
    low, _, high = rest.rstrip(")").partition("-")
    assert 0 <= float(low) <= float(middle) <= float(high)
    assert float(low) > 0 or value / math.exp(relative) < 1e-6
    factor = math.exp(relative)
    if factor < 100:
        assert float(high) / float(middle) == pytest.approx(factor, rel=0.2)


def test_every_metric_in_a_table_has_a_heading_with_its_unit() -> None:
    for _, metrics in words.TABLES:
        for metric in metrics:
            assert words.heading(metric).startswith(words.HEADINGS[metric][0])
    assert words.heading("ttft_p95_s") == "TTFT P95 s"
    assert words.heading("jain") == "Jain"


def test_the_load_is_one_sentence_with_its_share() -> None:
    text = words.load(compared(KEEP, OURS, change=lambda _s, _r: {"capacity_tok_s": 800.0}))
    assert text == (
        "Offered load: 1000 output tokens/s, 125% of the 800 that vllm-0.3.3-keep makes of a"
        " backlog: near saturation, where memory management decides the tail."
    )


def test_a_low_load_and_an_overload_read_differently() -> None:
    low = words.load(compared(KEEP, OURS, change=lambda _s, _r: {"capacity_tok_s": 5000.0}))
    over = words.load(compared(KEEP, OURS, change=lambda _s, _r: {"capacity_tok_s": 400.0}))
    assert "20% of the 5000" in low and "light load" in low
    assert "250% of the 400" in over and "overload" in over


def test_a_load_without_a_share_claims_none() -> None:
    text = words.load(compared(KEEP, OURS, change=lambda _s, _r: {"offered_tok_s": None}))
    assert text == "all turns arrive at once: no load can be stated"
    unknown = compared(KEEP, OURS)
    unknown.load = Load(1000.0, None, KEEP, "its words")
    assert words.load(unknown) == "Offered load: 1000 output tokens/s; its words."


def test_one_line_says_what_made_the_numbers() -> None:
    text = words.provenance(compared(KEEP, OURS, runs=4, seed=3))
    assert text.startswith(
        "made: 70 turns a run, 4 runs, seed 3, order markov, published profile a10-llama-3-8b,"
        " 60 device and 400 host blocks, commit "
    )


@pytest.mark.parametrize(
    ("parts", "text"), [(["one: a", "two: b"], "one: a; two: b"), ([], "the file")]
)
def test_a_workload_is_named_by_its_parts_or_its_source(parts: list[str], text: str) -> None:
    workload = {"rows": 1, "source": "the file", "composed_from": parts}
    assert words.composition(compared(KEEP, facts=lambda _s, _r: {"workload": workload})) == text


def test_a_number_is_told_with_interval_and_unit() -> None:
    assert words.in_words(Estimate(1.9, 0.321), "ttft_p95_s") == "1.90 (1.60-2.25) s"
    assert words.in_words(Estimate(0.0123), "stall_share") == "1.23 %"
    assert words.in_words(Estimate(1200.0, 30.0)) == "1200 (1170-1230)"
    assert words.in_words(Estimate(7.0)) == "7.00"
    assert words.in_words(Estimate(None), "ttft_p99_s") == "n too small"
    assert words.in_words(Estimate(None)) == "n too small"
    assert words.in_words(Ratio(2.0, 1.25)) == "2.00x (1.60-2.50)"
