"""Raw timings on disk: what is a sample, what is left out and named, what an interruption costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.points import Journal, Point, read
from policy.errors import ConfigError, InputError

HEADER: dict[str, Any] = {"machine": "m", "model": "x"}
DECODE = Point("decode", (4, 64, 16))
COPY = Point("copy", ("h2d", "fastswitch", 8, 2, 64, 4096, 0))
GOOD = {"kind": "decode", "batch": 4, "kv_tokens": 64, "longest": 16, "ns": 5}


def written(path: Path, *samples: tuple[Point, int]) -> Path:
    journal = Journal(path, HEADER)
    for point, nanoseconds in samples:
        journal.sample(point, nanoseconds)
    journal.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "points.jsonl"


def test_samples_come_back_by_point_in_the_order_taken(path: Path) -> None:
    found = read(written(path, (DECODE, 5), (COPY, 9), (DECODE, 3)))
    assert found.samples == {DECODE: [5, 3], COPY: [9]}
    assert (found.header["machine"], found.problems) == ("m", [])


def test_a_second_journal_goes_on_where_the_first_stopped(path: Path) -> None:
    written(path, (DECODE, 5))
    assert read(written(path, (DECODE, 6))).samples == {DECODE: [5, 6]}


def test_a_torn_last_line_costs_one_sample_and_what_follows_has_its_own_line(path: Path) -> None:
    written(path, (DECODE, 5), (DECODE, 6))
    path.write_bytes(path.read_bytes()[:-9])
    torn = read(path)
    assert torn.samples == {DECODE: [5]}
    assert [text.startswith("line 3: ") for text in torn.problems] == [True]
    again = read(written(path, (DECODE, 7), (DECODE, 8)))
    assert again.samples == {DECODE: [5, 7, 8]}
    assert len(again.problems) == 1


WRONG = {
    "not a number": {"ns": float("nan")},
    "infinite": {"ns": float("inf")},
    "an end before its begin": {"ns": -5},
    "no time at all": {"ns": 0},
    "text": {"ns": "5"},
    "a truth": {"ns": True},
    "a kind nobody times": {"kind": "encode"},
    "a quantity too many": {"colour": 1},
    "a fraction of a sequence": {"batch": 1.5},
    "fewer than no tokens": {"kv_tokens": -1},
    "a name for a count": {"longest": "long"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_sample_is_left_out_and_its_line_named(
    wrong: dict[str, Any], path: Path
) -> None:
    written(path, (DECODE, 5))
    with path.open("a") as file:
        file.write(json.dumps({**GOOD, **wrong}) + "\n" + json.dumps(GOOD) + "\n")
    found = read(path)
    assert found.samples == {DECODE: [5, 5]}
    assert len(found.problems) == 1
    assert found.problems[0].startswith("line 3: ")
    assert found.problems[0].endswith("is no sample")


@pytest.mark.parametrize("first", ["", "{}", '{"format":"other/1"}', "[" * 10_000])
def test_a_file_without_our_header_is_refused_by_name(first: str, path: Path) -> None:
    path.write_text(first + "\n" + json.dumps(GOOD))
    with pytest.raises(
        InputError, match=r"points\.jsonl:1: .* is no header of fastswitch-points/1"
    ):
        read(path)


def test_a_file_that_cannot_be_read_or_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal(tmp_path, HEADER)


def test_samples_of_a_point_are_kept_in_the_order_they_came(path: Path) -> None:
    found = read(written(path, *[(DECODE, n) for n in (9, 1, 5)], (COPY, 4), (COPY, 2)))
    assert found.samples == {DECODE: [9, 1, 5], COPY: [4, 2]}
    assert found.of_kind("copy") == [COPY]
