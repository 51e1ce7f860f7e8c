"""The page stands by itself: nothing is loaded, everything from outside is escaped."""

from __future__ import annotations

import re
from typing import Any

import pytest

from explore import meanings, words
from explore.report.comparison import page, verdict
from explore.studies.estimates import SPEEDUPS
from runs import glossary
from tests.helpers.made import compared
from tests.helpers.pages import EVIL, Reader, problems

BOTH, KEEP, OURS = "vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch"


def change(system: str, run: int) -> dict[str, Any]:
    return {
        "ttft_p95_s": 2.0 if system == OURS else 4.0,
        "tbt_p99_s": 3.0 if system == OURS else 1.0,
    }


@pytest.fixture(scope="module")
def made() -> str:
    return page(
        compared(BOTH, KEEP, OURS, change=change, description="why"), "fastswitch compare x"
    )


def test_a_page_is_whole_and_may_load_nothing(made: str) -> None:
    assert problems(made) == []
    assert "script-src 'none'" in made and "script" not in Reader(made).tags


def test_the_checker_sees_what_a_page_must_not_have(made: str) -> None:
    for planted in (
        '<p style="color:red">',
        '<p onclick="x()">',
        "<script>x()</script>",
        '<img src="http://evil/x.png">',
        "<table></table>",
        "<svg></svg>",
    ):
        closed = planted + ("</p>" if planted.startswith("<p ") else "")
        assert len(problems(made.replace("</main>", f"{closed}</main>"))) == 1, planted
    assert len(problems(made.replace("default-src 'none'", "default-src *"))) == 1


def test_a_page_has_no_date_and_is_the_same_every_time(made: str) -> None:
    again = compared(BOTH, KEEP, OURS, change=change, description="why")
    assert page(again, "fastswitch compare x") == made


def test_everything_from_outside_is_escaped() -> None:
    facts = {
        "warnings": [EVIL],
        "workload": {"rows": 1, "source": EVIL, "composed_from": []},
        "order": EVIL,
    }
    text = page(compared(KEEP, OURS, description=EVIL, facts=lambda _s, _r: facts), EVIL)
    read = Reader(text)
    assert "script" not in read.tags
    assert (
        "".join(read.text).count(EVIL) == 6
    )  # description, order twice, workload, warning, command


def test_the_page_says_what_the_tables_say(made: str) -> None:
    found = compared(BOTH, KEEP, OURS, change=change)
    read = Reader(made)
    texts = [text for _, text in read.cells]
    for metric in ("ttft_p95_s", "throughput_tok_s", "stall_share"):
        assert words.estimate(found.estimate(OURS, metric), metric) in texts
    assert ("better", words.marked(found.speedup(OURS, KEEP, "ttft_p95_s"))) in read.cells
    assert ("worse", words.marked(found.speedup(OURS, KEEP, "tbt_p99_s"))) in read.cells
    assert words.load(found) in "".join(read.text) and words.provenance(found) in read.text
    assert "fastswitch compare x" in read.text and "why" in read.text


def test_every_assumption_is_listed_with_its_range(made: str) -> None:
    found = compared(KEEP)
    assert found.profile_assumptions
    for name, quantity in found.profile_assumptions.items():
        assert f"<code>{name}</code> = {quantity['value']:g}" in made
        assert f"may be {quantity['low']:g} to {quantity['high']:g}" in made


def test_the_finding_is_the_first_sentence_and_its_picture_follows() -> None:
    found = compared(BOTH, KEEP, OURS, change=change)
    sentence = verdict(found)
    assert sentence == (
        "fastswitch is surely better than vllm-0.3.3-keep in TTFT P95 (2.00x); in TTFT P99, TBT P99.9 and"
        " throughput no difference is sure."
    )
    text = page(found, "c")
    assert f'<section class="opening"><p class="lead">{sentence}</p><figure' in text
    assert text.index("<svg") < text.index("<nav") < text.index("<table")


def test_the_finding_says_what_is_worse() -> None:
    slower = {"ttft_p95_s": 4.0, "tbt_p999_s": 0.5}
    found = compared(KEEP, OURS, change=lambda s, _r: slower if s == OURS else {})
    assert verdict(found) == (
        "fastswitch is surely better than vllm-0.3.3-keep in TBT P99.9 (2.00x), and surely worse in TTFT P95"
        " (0.250x); in TTFT P99 and throughput no difference is sure."
    )


def test_without_fastswitch_the_last_system_is_the_finding() -> None:
    assert verdict(compared(BOTH, "+groups")) == (
        "No difference between +groups and vllm-0.3.3 is sure in TTFT P95, TTFT P99, TBT P99.9 and throughput."
    )


def test_the_finding_tells_no_difference_that_its_table_does_not_call_sure() -> None:
    """Twice as good on the mean, and by chance: one run is a hundred times better."""
    noisy = compared(
        KEEP, OURS, change=lambda s, r: {"ttft_p95_s": 0.01 if (s, r) == (OURS, 2) else 1.0 + r / 9}
    )
    found = noisy.speedup(OURS, KEEP, "ttft_p95_s")
    assert found.value is not None and found.value > 2 and not found.is_sure
    assert verdict(noisy).startswith("No difference between")
    alone = compared(KEEP, OURS, runs=1, change=change)
    assert verdict(alone) == (
        "One run of fastswitch and vllm-0.3.3-keep: without an interval no difference in TTFT P95, TTFT P99,"
        " TBT P99.9 and throughput is sure."
    )


def test_without_a_baseline_there_is_no_finding() -> None:
    assert verdict(compared("+groups", OURS)) == (
        "2 systems, no baseline among them to compare with."
    )
    assert "Times better" not in page(compared("+groups", OURS), "c")


def test_notes_stand_out() -> None:
    nothing = {"preemptions": 0, "blocks_in": 0, "blocks_out": 0}
    text = page(compared(KEEP, OURS, change=lambda _s, _r: nothing), "c")
    assert f'<p class="note">ATTENTION: {KEEP} never preempts here.' in text
    assert "swapping cannot matter here" in text


def test_a_system_that_finished_nothing_has_a_page_too() -> None:
    empty = {"ttft_s": [], "tbt_s": [], "timeline": {}}
    latencies = {name: None for name in words.HEADINGS if name.endswith("_s")}
    found = compared(
        KEEP, OURS, change=lambda _s, _r: latencies, facts=lambda _s, _r: {"series": empty}
    )
    cells = [text for _, text in Reader(page(found, "c")).cells]
    shown = [name for _, metrics in words.TABLES for name in metrics if name in latencies]
    ratios = [name for name in SPEEDUPS if name in latencies]
    assert cells.count(words.TOO_SMALL) == 2 * len(shown) + len(ratios)


def test_every_table_is_folded_and_its_headings_say_what_they_mean(made: str) -> None:
    outside = re.sub(r"<details>.*?</details>", "", made, flags=re.DOTALL)
    assert "<table" in made and "<table" not in outside
    assert '<th scope="col" title="a turn&#x27;s start (its arrival) to its first token;' in made


def test_what_a_heading_means_is_what_the_glossary_says() -> None:
    assert meanings.of("ttft_p95_s").startswith("a turn's start (its arrival) to its first token")
    for name, word in meanings.WORDS.items():
        (entry, *_) = glossary.lookup(word)
        assert word.lower() in (entry.word.lower(), *entry.words), word
        assert any(metric.startswith(name) for metric in words.HEADINGS), name
    assert meanings.of("finished") == ""
