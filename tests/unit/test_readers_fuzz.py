"""Whatever bytes a file holds, a reader gives every row or ends in one InputError."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policy.errors import InputError
from tests.helpers.formats import VALID, aids_for, num_rows
from traces.readers.catalog import READERS, read_workload
from traces.readers.native import write
from traces.workload import MAX_TOKENS, Turn

NAMES = [reader.name for reader in READERS]
#: What a value, a key or a separator may be replaced by.
HOSTILE = [
    *("", " ", "0", "-0", "-1", "1.5", "7", "1e5", "1e999", "1e-999", "1e999999", "-1e999999"),
    *("NaN", "nan", "sNaN", "Infinity", "-Infinity", "inf", "true", "false", "null", "None"),
    *("9" * 33, "9" * 70, "9" * 5000, str(1 << 62), str(MAX_TOKENS + 1), "1_0", "\u0661", "0x1"),
    *("[]", "{}", "[[1]]", '{"a": 1}', '"x"', '""', '"\\ud800"', '"a\\nb"', "[" * 5000),
    *(",", ",,", ":", '"', "'", "\\", ";", "-", "1-2", "3-1", "\n", "\r", "\r\n", "\n\n"),
    *("\0", "\x1b[2J", "\x85", "\u2028", "\ufeff", "\U0001f600", "x" * 200, "x" * 140_000),
    *("+00:00", "9999-12-31 23:59:59", "0001-01-01 00:00:00", "2023-11-16 18:15:46.6805900"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "input"


def read(path: Path, name: str | None) -> list[Turn] | None:
    """All turns, or None if the file is refused as it should be."""
    try:
        return list(read_workload(path, name, aids_for(name)))
    except InputError as error:
        message = str(error)
        num_lines = len(message.splitlines())
        assert num_lines <= 5 and message.startswith(str(path))
        return None


# ---------------------------------------------------------------------- arbitrary bytes

PIECES = st.sampled_from([*VALID.values(), *HOSTILE]).map(str.encode)
BYTES = st.binary(max_size=200) | st.lists(PIECES | st.binary(max_size=9), max_size=5).map(b"".join)


@given(BYTES, st.sampled_from([None, *NAMES]), st.booleans())
@example(b"\x1f\x8b", None, False)
@example(b"\x1f\x8b\x08\x08" + b"x" * 40, None, False)
def test_any_bytes_under_any_name_are_read_or_refused(
    path: Path, data: bytes, name: str | None, is_packed: bool
) -> None:
    path.write_bytes(gzip.compress(data) if is_packed else data)
    read(path, name)


# ---------------------------------------------------------------------- mutated files


def places(text: str) -> list[tuple[int, int]]:
    """Spans worth replacing: numbers, words and single marks."""
    return [match.span() for match in re.finditer(r"[\w.:+-]+|[^\w\s]|\n", text)]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A valid file with one to three spans replaced, or lines doubled, dropped or swapped."""
    for _ in range(draw(st.integers(1, 3))):
        spans = places(text)
        if not spans or draw(st.integers(0, 3)) == 0:
            lines = text.split("\n")
            chosen = draw(st.lists(st.sampled_from(lines), max_size=len(lines) + 1))
            text = "\n".join(chosen)
        else:
            begin, end = draw(st.sampled_from(spans))
            text = text[:begin] + draw(st.sampled_from(HOSTILE)) + text[end:]
    return text


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_a_mutated_file_gives_every_row_or_is_refused(
    path: Path, name: str, data: st.DataObject
) -> None:
    text = data.draw(mutated(VALID[name]))
    path.write_bytes(text.encode())
    turns = read(path, name)
    if turns is not None:
        assert len(turns) == num_rows(name, text, json.loads)


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_what_survives_a_mutation_is_a_workload_that_can_be_kept(
    path: Path, name: str, data: st.DataObject
) -> None:
    path.write_bytes(data.draw(mutated(VALID[name])).encode())
    turns = read(path, name)
    if turns is not None:
        workload = read_workload(path, name, aids_for(name))
        for kept in (path.with_name("kept.jsonl"), path.with_name("kept.parquet")):
            write(workload, kept)
            again = read_workload(kept)
            assert (again.header, list(again)) == (workload.header, turns)


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_flipped_and_cut_bytes_are_refused_or_leave_every_row(
    path: Path, name: str, data: st.DataObject
) -> None:
    whole = VALID[name].encode()
    is_packed = data.draw(st.booleans())
    changed = bytearray(gzip.compress(whole, mtime=0) if is_packed else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    path.write_bytes(changed[:cut])
    turns = read(path, name)
    if turns is not None and not is_packed:
        assert len(turns) == num_rows(name, changed[:cut].decode("utf-8-sig"), json.loads)
