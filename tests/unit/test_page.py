"""The page stands by itself: nothing is loaded, everything from outside is escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from explore import words
from explore.compare import SPEEDUPS
from explore.page import page, verdict
from tests.helpers.made import compared

BOTH, KEEP, OURS = "vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch"
EVIL = "<script src='http://evil'>&\"</script>"
LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Tags, their attributes, their texts, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.styles: list[str] = []
        self.cells: list[tuple[str, str]] = []  # (class, text)
        self.text: list[str] = []
        self._open: list[str] = []
        self._class = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.loads += [value for name, value in values.items() if name in LOADING]
        self.styles += [value for value in values.values() if "url(" in value]
        self._class = values.get("class", "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        within = self._open[-1] if self._open else ""
        if within == "style":
            self.styles.append(data)
        elif within == "td":
            self.cells.append((self._class, data))
        self.text.append(data)


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


def test_a_page_is_whole_and_loads_nothing(made: str) -> None:
    read = Reader(made)
    assert all(target.startswith("#") for target in read.loads)
    assert all(
        re.fullmatch(r"#\w+", t) for s in read.styles for t in re.findall(r"url\((.*?)\)", s)
    )
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.tags)
    assert "@import" not in "".join(read.styles)
    assert "default-src 'none'" in made
    assert read.tags.count("svg") == 2


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
    assert "".join(read.text).count(EVIL) == 5  # description, order, workload, warning, command


def test_the_page_says_what_the_tables_say(made: str) -> None:
    found = compared(BOTH, KEEP, OURS, change=change)
    read = Reader(made)
    texts = [text for _, text in read.cells]
    for metric in ("ttft_p95_s", "throughput_tok_s", "stall_share"):
        assert words.estimate(found.estimate(OURS, metric), metric) in texts
    assert ("better", words.ratio(found.speedup(OURS, KEEP, "ttft_p95_s"))) in read.cells
    assert ("worse", words.ratio(found.speedup(OURS, KEEP, "tbt_p99_s"))) in read.cells
    assert words.load(found) in read.text and words.provenance(found) in read.text
    assert "fastswitch compare x" in read.text and "why" in read.text


def test_every_assumption_is_listed_with_its_range(made: str) -> None:
    found = compared(KEEP)
    assert found.profile_assumptions
    for name, quantity in found.profile_assumptions.items():
        assert f"<code>{name}</code> = {quantity['value']:g}" in made
        assert f"may be {quantity['low']:g} to {quantity['high']:g}" in made


def test_the_finding_is_the_first_sentence() -> None:
    found = compared(BOTH, KEEP, OURS, change=change)
    sentence = verdict(found)
    assert sentence.startswith(
        "fastswitch against vllm-0.3.3-keep, times better: TTFT P95 2.00x (2.0-2.0), TTFT P99 1.00x"
    )
    assert f'<p class="lead">{sentence}</p>' in page(found, "c")


def test_without_fastswitch_the_last_system_is_the_finding() -> None:
    assert verdict(compared(BOTH, "+groups")).startswith("+groups against vllm-0.3.3, times better")


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
