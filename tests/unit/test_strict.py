"""Strict input: what passes is exact, and what is broken ends in one InputError that says where."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policy.errors import InputError
from traces import strict
from traces.strict import (
    MAX_LINE,
    MAX_SECONDS,
    Place,
    count_of,
    csv_rows,
    nanoseconds_of,
    open_lines,
    parse_json,
    text_of,
)
from traces.workload import MAX_TOKENS

HERE = Place(Path("some.file"), 7)
LINES = ["first", "", "third \u00e9\u4e2d"]
TEXT = "\n".join(LINES).encode()


def refusal(call: Callable[[], Any]) -> str:
    """The one message a broken input ends in."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5
    return message


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "input"
    path.write_bytes(data)
    return path


def read(path: Path) -> list[str]:
    return list(open_lines(path, Place(path)))


# ---------------------------------------------------------------------- lines of a file


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT + b"\n",
        TEXT.replace(b"\n", b"\r\n") + b"\r\n",
        b"\xef\xbb\xbf" + TEXT,
        gzip.compress(TEXT),
        gzip.compress(b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n")),
        gzip.compress(TEXT[:3]) + gzip.compress(TEXT[3:]),
    ],
    ids=["plain", "last line ended", "crlf", "bom", "gzip", "gzip bom crlf", "two gzip members"],
)
def test_the_same_lines_come_out_of_every_wrapping(tmp_path: Path, data: bytes) -> None:
    assert read(file_of(tmp_path, data)) == LINES


def test_the_place_follows_the_line_that_was_just_handed_out(tmp_path: Path) -> None:
    place = Place(file_of(tmp_path, TEXT))
    numbered = [(place.line, line) for line in open_lines(place.path, place)]
    assert numbered == list(enumerate(LINES, start=1))


@pytest.mark.parametrize(("line", "field"), [(0, ""), (9, ""), (9, "size")])
def test_a_message_names_the_file_the_line_and_the_field_it_has(line: int, field: str) -> None:
    where = "some.file:9: " if line else "some.file: "
    text = refusal(lambda: Place(Path("some.file"), line).fail("is odd", field))
    assert text == where + ("size: " if field else "") + "is odd"


def test_a_line_may_fill_the_limit_and_not_pass_it(tmp_path: Path) -> None:
    full = b"x" * (MAX_LINE - 1)
    assert read(file_of(tmp_path, b"a\n" + full + b"\nb\n")) == ["a", full.decode(), "b"]
    path = file_of(tmp_path, b"a\n" + full + b"xx\nb\n")
    assert refusal(lambda: read(path)) == f"{path}:2: line is longer than {MAX_LINE} bytes"


def test_text_that_is_not_utf_8_is_refused_with_its_line_and_byte(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"good\nbad \xff\n")
    assert refusal(lambda: read(path)) == f"{path}:2: not UTF-8: invalid start byte at byte 4"


def test_a_gzip_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(TEXT)
    for length in range(2, len(whole)):
        path = file_of(tmp_path, whole[:length])
        message = refusal(lambda path=path: read(path))
        assert message.startswith(f"{path}: broken gzip after"), length


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-8] + b"\0\0\0\0" + data[-4:],
        lambda data: data[:-4] + b"\0\0\0\0",
        lambda data: data[:2] + b"\7" + data[3:],
        lambda data: data[:10] + b"\xff" * 8 + data[18:],
        lambda data: data + b"more",
    ],
    ids=["checksum", "length", "method", "deflate stream", "text behind it"],
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = file_of(tmp_path, change(gzip.compress(TEXT)))
    message = refusal(lambda: read(path))
    assert message.startswith(str(path)) and "broken gzip after" in message


def test_a_gzip_bomb_is_refused_after_the_first_mebibyte(tmp_path: Path) -> None:
    harmless = file_of(tmp_path, gzip.compress(b"\n" * MAX_LINE))
    assert len(read(harmless)) == MAX_LINE
    packed = gzip.compress(b"\n" * 3_000_000)
    bomb = file_of(tmp_path, packed)
    message = refusal(lambda: read(bomb))
    assert message.startswith(str(bomb))
    assert message.endswith(f"unpacks to more than 200 times its {len(packed)} bytes")


def test_a_file_may_not_unpack_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict, "MAX_UNPACKED", len(TEXT))
    assert read(file_of(tmp_path, gzip.compress(TEXT))) == LINES
    path = file_of(tmp_path, gzip.compress(TEXT + b"!"))
    assert refusal(lambda: read(path)) == f"{path}: unpacks to more than {len(TEXT)} bytes"


def test_a_file_that_is_not_there_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    gone = refusal(lambda: read(absent))
    assert gone == f"{absent}: cannot be read: No such file or directory"
    folder = refusal(lambda: read(tmp_path))
    assert folder == f"{tmp_path}: cannot be read: Is a directory"


def test_a_disk_that_fails_in_the_middle_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    path = file_of(tmp_path, gzip.compress(TEXT))
    monkeypatch.setattr(gzip.GzipFile, "read", broken)
    message = refusal(lambda: read(path))
    assert message.startswith(str(path)) and "Input/output error" in message


# ---------------------------------------------------------------------- JSON

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_every_sane_json_value_is_read_as_itself(value: Any) -> None:
    assert parse_json(json.dumps(value), HERE) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9" * 33, "a number of 33 digits"),
        ("[" + "9" * 4300 + "]", "a number of 4300 digits"),
        ("9" * 5000, "a number of 5000 digits"),
        ("0." + "1" * 63, "a number of 65 digits"),
        ('{"a": 1, "a": 1}', "a: given twice"),
        ('[{"b": {"c": 1, "c": 2}}]', "c: given twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("", "not JSON: "),
        ("   ", "not JSON: "),
        ("{", "not JSON: "),
        ("[1,]", "not JSON: "),
        ("{'a': 1}", "not JSON: "),
        ("1 2", "not JSON: "),
        ("\ufeff1", "not JSON: "),
        ('"a\tb"', "not JSON: "),
        ('"\\x"', "not JSON: "),
        ("0x10", "not JSON: "),
        ("nan", "not JSON: "),
    ],
    ids=lambda value: value[:16],
)
def test_json_beyond_sense_is_refused_with_file_and_line(text: str, problem: str) -> None:
    assert refusal(lambda: parse_json(text, HERE)).startswith(f"some.file:7: {problem}")


def test_numbers_may_have_as_many_digits_as_the_limit() -> None:
    assert parse_json("9" * 32, HERE) == 10**32 - 1
    assert parse_json("0." + "1" * 62, HERE) == 1 / 9


@pytest.mark.parametrize(
    "key",
    ["a\nb\nc\nd\ne\nf", "\u2028" * 9, "\x85" * 9, "k" * 100_000],
    ids=["lines", "separators", "next lines", "long"],
)
def test_a_doubled_key_cannot_make_its_message_long(key: str) -> None:
    text = f"{{{json.dumps(key)}: 1, {json.dumps(key)}: 2}}"
    message = refusal(lambda: parse_json(text, HERE))
    size = len(message)
    assert message.startswith("some.file:7: ") and size < 500


# ---------------------------------------------------------------------- CSV


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=9),
            min_size=1,
        )
    )
)
def test_rows_that_a_csv_writer_writes_are_read_back(rows: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    lines = file.getvalue().split("\n")[:-1]
    assert list(csv_rows(iter(lines), HERE)) == rows


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('a,"b', "not CSV: unexpected end of data"),
        ('a,"b"c', "not CSV: ',' expected after '\"'"),
        ("a,b\rc,d", "not CSV: new-line character seen in unquoted field"),
        ("a" * 140_000, "not CSV: field larger than field limit (131072)"),
    ],
    ids=["open quote", "text behind quote", "bare return", "field too long"],
)
def test_a_line_that_is_not_a_csv_row_is_refused(line: str, problem: str) -> None:
    message = refusal(lambda: list(csv_rows(iter(["a,b", line]), HERE)))
    assert message.startswith(f"some.file:7: {problem}")


# ---------------------------------------------------------------------- fields


@pytest.mark.parametrize("value", ["a", "x" * 128, "\u00e9\u4e2d \U0001f600", '"', "a b", "0"])
def test_an_id_of_printable_characters_is_kept(value: str) -> None:
    assert text_of(value, "id", HERE) == value


@pytest.mark.parametrize(
    "value",
    ["", "x" * 129, "a\nb", "a\0", "\x1b[31m", "\u200b", "\ud800", "\x7f", 5, True, None, ["a"]],
    ids=ascii,
)
def test_an_id_that_is_not_1_to_128_printable_characters_is_refused(value: Any) -> None:
    assert refusal(lambda: text_of(value, "id", HERE)).startswith("some.file:7: id: ")


@pytest.mark.parametrize(
    ("value", "number"),
    [(0, 0), ("0", 0), (17, 17), ("17", 17), (MAX_TOKENS, MAX_TOKENS), ("16777216", MAX_TOKENS)],
)
def test_a_count_is_read_from_json_and_from_csv(value: int | str, number: int) -> None:
    assert count_of(value, "n", HERE) == number


@pytest.mark.parametrize(
    "value",
    [
        *(-1, MAX_TOKENS + 1, 10**31, 1.0, 0.5, True, False, None, [], {}),
        *("", "-1", "+1", "1.0", "1e3", " 1", "1 ", "1_000", "0x1", "\u0661", "\u00b2", "NaN"),
        *("True", "16777217", "9" * 33, "9" * 5000),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_what_is_not_a_count_is_refused_with_file_line_and_field(value: Any) -> None:
    message = refusal(lambda: count_of(value, "n", HERE))
    assert message.startswith("some.file:7: n: ") and len(message) < 120


@pytest.mark.parametrize(("value", "is_ok"), [(2, False), (3, True), (5, True), (6, False)])
def test_a_count_may_have_limits_of_its_own(value: int, *, is_ok: bool) -> None:
    if is_ok:
        assert count_of(value, "n", HERE, limit=5, low=3) == value
    else:
        message = refusal(lambda: count_of(value, "n", HERE, limit=5, low=3))
        assert message == f"some.file:7: n: {value} is not in 3 to 5"


@given(st.integers(0, MAX_SECONDS * 10**9))
@example(MAX_SECONDS * 10**9)
def test_csv_times_are_read_to_the_nanosecond_up_to_ten_years(ns: int) -> None:
    text = f"{ns // 10**9}.{ns % 10**9:09d}"
    assert nanoseconds_of(text, "t", HERE) == ns


@pytest.mark.parametrize(
    ("value", "per_unit", "ns"),
    [
        (0, 10**9, 0),
        (3, 10**9, 3_000_000_000),
        (0.1, 10**9, 100_000_000),
        ("0.1", 10**9, 100_000_000),
        ("1e3", 10**9, 10**12),
        ("7.", 10**9, 7_000_000_000),
        (".5", 10**9, 500_000_000),
        ("0.0000000014", 10**9, 1),
        ("1e-30", 10**9, 0),
        (27482, 10**6, 27_482_000_000),
        ("0.25", 10**6, 250_000),
    ],
)
def test_a_time_is_rounded_once_to_whole_nanoseconds(value: Any, per_unit: int, ns: int) -> None:
    assert nanoseconds_of(value, "t", HERE, per_unit) == ns


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -1e-30, MAX_SECONDS + 1, 1e300, 10**31, True, False, None, [], {}),
        *("", "-1", "-1e-9", "nan", "NaN", "sNaN", "inf", "-Infinity", "1e999", "1e99999", "x"),
        *("1e999999", "-1e999999", "1e99999999999999999999", "9" * 65, "0x10", "1,5", "1 2"),
        str(MAX_SECONDS + 1),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_what_is_not_a_time_is_refused_with_file_line_and_field(value: Any) -> None:
    message = refusal(lambda: nanoseconds_of(value, "t", HERE))
    assert message.startswith("some.file:7: t: ") and len(message) < 150


@pytest.mark.parametrize("text", ["1_000", " 1", "1 ", "+1", "\u0661", "\uff11.5"], ids=ascii)
def test_a_csv_time_is_written_in_plain_digits_as_a_csv_count_is(text: str) -> None:
    assert refusal(lambda: nanoseconds_of(text, "t", HERE)).startswith("some.file:7: t: ")
