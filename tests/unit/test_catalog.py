"""Which reader reads a file, and what holds for every format alike."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from policy.errors import ConfigError, InputError
from tests.helpers.formats import AIDS, VALID, aids_for
from traces.readers.catalog import READERS, read_workload, reader_for
from traces.strict import MAX_LINE
from traces.workload import Turn


class Sample(NamedTuple):
    """A small file of one format, and the turns it holds as (session, turn, input, output)."""

    name: str
    lines: tuple[str, ...]
    turns: tuple[tuple[str, int, int, int], ...]

    @property
    def data(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode()


SAMPLES = [
    Sample(
        "native",
        (
            '{"format": "fastswitch-workload/1", "source": "a test"}',
            '{"request_id": "a", "input_tokens": 5, "output_tokens": 6, "arrival_s": 0.5}',
            '{"request_id": "b", "input_tokens": 7, "output_tokens": 8, "arrival_s": 0.5}',
        ),
        (("a", 1, 5, 6), ("b", 1, 7, 8)),
    ),
    Sample(
        "native",
        (
            '{"request_id": "a", "input_tokens": 5, "output_tokens": 6, "arrival_s": 0.5}',
            '{"request_id": "b", "input_tokens": 7, "output_tokens": 8, "arrival_s": 0.5}',
        ),
        (("a", 1, 5, 6), ("b", 1, 7, 8)),
    ),
    Sample(
        "azure",
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:15:46.6805900,374,44",
            "2023-11-16 18:15:50.9951690,396,109",
        ),
        (("r0000000", 1, 374, 44), ("r0000001", 1, 396, 109)),
    ),
    Sample(
        "mooncake",
        (
            '{"timestamp": 0, "input_length": 513, "output_length": 5, "hash_ids": [0, 14]}',
            '{"timestamp": 3000, "input_length": 512, "output_length": 0, "hash_ids": [0]}',
        ),
        (("r0000000", 1, 513, 5), ("r0000001", 1, 512, 0)),
    ),
    Sample(
        "sharegpt",
        ("conversation_id,turn,user_tokens,assistant_tokens", "a,1,33,255", "a,2,35,328"),
        (("a", 1, 33, 255), ("a", 2, 323, 328)),
    ),
    Sample(
        "kv-cache-tester-table",
        (
            "id,turn,t,type,model,in,out,api_time,think_time,stop,block_size,tool_tokens,"
            "system_tokens,n_blocks,shared_prefix_blocks,hash_id_ranges",
            "s,1,0.0,n,m,130,9,7.34,0.0,tool_use,64,40,20,3,0,1-3",
            "s,2,19.0,n,m,200,8,9.19,12.0,end_turn,64,40,20,4,3,1-3;9",
        ),
        (("s", 1, 130, 9), ("s", 2, 200, 8)),
    ),
    Sample(
        "kv-cache-tester",
        (
            '{"id": "s", "models": ["m"], "block_size": 64, "requests": [',
            '{"t": 0.0, "type": "n", "in": 130, "out": 9, "hash_ids": [1, 2, 3]},',
            '{"t": 9.0, "type": "n", "in": 64, "out": 8, "hash_ids": [1], "think_time": 1}]}',
        ),
        (("s", 1, 130, 9), ("s", 2, 64, 8)),
    ),
]
#: What each format's file of `tests.helpers.formats` holds.
EXPECTED: dict[str, tuple[tuple[str, int, int, int], ...]] = {
    "burstgpt": (
        ("1722ac82-0a46", 1, 906, 446),
        ("r0000001", 1, 36, 0),
        ("1722ac82-0a46", 2, 1400, 29),
    ),
    "qwen-bailian": (("0", 1, 33, 5), ("0", 2, 40, 7)),
    "ragpulse": (("a", 1, 31, 9), ("a", 2, 40, 8)),
    "sharegpt-text": (("x", 1, 3, 1), ("x", 2, 5, 2), ("y", 1, 2, 0)),
    "lmcache-agent": (("a/1", 1, 2, 1), ("b/1", 1, 1, 1), ("a/1", 2, 3, 0)),
    "vtc-arena": (("0", 1, 13, 199), ("1", 1, 36, 0)),
    "token-lengths": (("r0000000", 1, 74, 918), ("r0000001", 1, 290, 905)),
    "vllm-bench": (("r0000001", 1, 30, 0), ("r0000000", 1, 12, 3)),
    "otel": (("c", 1, 12, 5), ("0b", 1, 20, 7)),
    "splitwise-sim": (("0", 1, 4096, 32), ("1", 1, 2048, 0)),
    "aiperf-export": (("s", 1, 20, 0), ("s", 2, 25, 3)),
    "columns": (("a", 1, 12, 3), ("a", 2, 20, 4), ("r0000002", 1, 7, 0)),
}
SAMPLES += [
    Sample(name, tuple(VALID[name].removesuffix("\n").split("\n")), turns)
    for name, turns in EXPECTED.items()
]
#: Formats of one row a line.
DOCUMENTS = ("kv-cache-tester", "sharegpt-text", "vllm-bench", "otel")
#: Formats that are put in order of time, so that rows are held back.
SORTED = ("lmcache-agent", "ragpulse", "aiperf-export", "columns")
#: Formats whose rows hold texts or batches.
LONG_LINES = {"lmcache-agent": 1 << 24, "aiperf-export": 1 << 24}
LINE_SAMPLES = [sample for sample in SAMPLES if sample.name not in DOCUMENTS]


def label(sample: Sample) -> str:
    return sample.name if sample.name != "native" else f"native of {len(sample.lines)} lines"


each_format = pytest.mark.parametrize("sample", SAMPLES, ids=label)
each_line_format = pytest.mark.parametrize("sample", LINE_SAMPLES, ids=label)


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "workload"
    path.write_bytes(data)
    return path


def refusal(path: Path, name: str | None = None) -> str:
    """The one message a broken file ends in, without the file's name at its start."""
    with pytest.raises(InputError) as caught:
        list(read_workload(path, name, aids_for(name)))
    message = str(caught.value)
    num_lines = len(message.splitlines())
    assert num_lines <= 5 and message.startswith(str(path))
    return message.removeprefix(str(path))


def named(sample: Sample) -> str | None:
    """What must be said of a file: its format, if nobody finds it out."""
    return sample.name if sample.name == "columns" else None


def numbers(turns: list[Turn]) -> tuple[tuple[str, int, int, int], ...]:
    return tuple(
        (turn.session_id, turn.turn, turn.input_tokens, turn.output_tokens) for turn in turns
    )


# ---------------------------------------------------------------------- detection


def test_every_reader_has_a_sample_here() -> None:
    assert {reader.name for reader in READERS} == {sample.name for sample in SAMPLES}


@each_format
def test_a_format_is_known_by_its_first_line_and_by_no_other_readers(
    tmp_path: Path, sample: Sample
) -> None:
    claiming = [reader.name for reader in READERS if reader.claims(sample.lines[0])]
    if sample.name == "columns":  # somebody must name them
        assert claiming == []
        return
    assert reader_for(file_of(tmp_path, sample.data)).name == sample.name
    assert claiming == [sample.name]


@each_format
def test_a_named_format_is_read_without_a_look_at_the_file(tmp_path: Path, sample: Sample) -> None:
    assert reader_for(tmp_path / "absent", sample.name).name == sample.name
    found = list(read_workload(file_of(tmp_path, sample.data), sample.name, aids_for(sample.name)))
    assert numbers(found) == sample.turns


def test_an_unknown_format_name_is_a_config_error_that_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_workload(tmp_path / "absent", "excel", AIDS)
    assert str(caught.value) == (
        "format: 'excel' is not one of native, azure, burstgpt, mooncake, qwen-bailian, ragpulse,"
        " sharegpt, sharegpt-text, kv-cache-tester-table, kv-cache-tester, lmcache-agent, vtc-arena,"
        " token-lengths, splitwise-sim, aiperf-export, vllm-bench, otel, columns"
    )


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"# Real traces\n", "'# Real traces'"),
        (b"\x1b[2J\x07\n", "'\\x1b[2J\\x07'"),
        (b"a" * 2_000_000, f"{'a' * 120!r}"),
        (b"timestamp,ContextTokens,GeneratedTokens\n", "'timestamp,ContextTokens,GeneratedTokens'"),
        (b'{"input_length": 5}\n', "'{\"input_length\": 5}'"),
        (gzip.compress(b"PAR1"), "'PAR1'"),
    ],
    ids=["text", "control", "long", "wrong case", "half a row", "gzip"],
)
def test_unrecognised_content_is_refused_and_shown(tmp_path: Path, data: bytes, shown: str) -> None:
    message = refusal(file_of(tmp_path, data))
    assert message.startswith(": no known format; any CSV or JSON of requests is read by naming")
    assert "--columns (workload.columns) arrival=NAME:ms,input=NAME" in message
    assert message.endswith(f"; it begins {shown}")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in (None, *(reader.name for reader in READERS)):
        problem = ": cannot be read: No such file or directory"
        assert refusal(tmp_path / "absent", name) == problem


# ---------------------------------------------------------------------- every format alike


@each_format
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        gzip.compress,
        lambda data: gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
    ],
    ids=["plain", "last line not ended", "crlf", "bom", "gzip", "gzip bom crlf"],
)
def test_every_wrapping_gives_the_same_turns_at_every_reading(
    tmp_path: Path, sample: Sample, wrap: Callable[[bytes], bytes]
) -> None:
    workload = read_workload(file_of(tmp_path, wrap(sample.data)), None, aids_for(sample.name))
    first, second = list(workload), list(workload)
    assert numbers(first) == sample.turns
    assert second == first


@each_format
@pytest.mark.parametrize("name", [None, "its own"])
@pytest.mark.parametrize("data", [b"", gzip.compress(b"")], ids=["plain", "gzip"])
def test_an_empty_file_is_refused(
    tmp_path: Path, sample: Sample, name: str | None, data: bytes
) -> None:
    message = refusal(file_of(tmp_path, data), name and sample.name)
    assert message.startswith((": ", ":1: "))


@each_format
def test_a_truncated_gzip_file_is_refused_wherever_it_ends(tmp_path: Path, sample: Sample) -> None:
    whole = gzip.compress(sample.data)
    for length in range(2, len(whole)):
        assert "broken gzip after" in refusal(file_of(tmp_path, whole[:length])), length


@each_format
def test_a_gzip_bomb_is_refused(tmp_path: Path, sample: Sample) -> None:
    for start in (b"", sample.data):
        packed = gzip.compress(start + b"0" * 3_000_000)
        for name in (None, sample.name):
            message = refusal(file_of(tmp_path, packed), name)
            told = f"unpacks to more than 200 times its {len(packed)} bytes"
            early = ("no known format", "more after the end of the list", "not a JSON object")
            assert message.endswith(told) or any(words in message for words in early)


@each_line_format
def test_a_line_longer_than_its_limit_is_refused(tmp_path: Path, sample: Sample) -> None:
    before = "\n".join(sample.lines[:-1]) + "\n"
    limit = LONG_LINES.get(sample.name, MAX_LINE)
    path = file_of(tmp_path, before.encode() + b" " * limit + sample.lines[-1].encode())
    assert (
        refusal(path, named(sample)) == f":{len(sample.lines)}: line is longer than {limit} bytes"
    )


@each_format
def test_a_byte_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path, sample: Sample) -> None:
    path = file_of(tmp_path, sample.data[:-2] + b"\xff\n")
    line = "" if sample.name in ("sharegpt-text", "otel") else f"{len(sample.lines)}: "
    assert refusal(path, named(sample)).startswith(f":{line or ' '}not UTF-8: ")


@each_line_format
def test_an_empty_line_is_refused_unless_it_ends_the_file(tmp_path: Path, sample: Sample) -> None:
    for line in range(len(sample.lines)):
        lines = [*sample.lines[:line], "", *sample.lines[line:]]
        path = file_of(tmp_path, ("\n".join(lines) + "\n").encode())
        assert refusal(path, sample.name).startswith(f":{line + 1}: ")
    path = file_of(tmp_path, sample.data + b"\n\n")
    assert numbers(list(read_workload(path, sample.name, aids_for(sample.name)))) == sample.turns


@each_line_format
def test_a_broken_last_row_ends_in_an_error_and_never_in_fewer_turns(
    tmp_path: Path, sample: Sample
) -> None:
    last = sample.lines[-1]
    for length in range(1, len(last) - 1):
        lines = [*sample.lines[:-1], last[:length]]
        path = file_of(tmp_path, ("\n".join(lines) + "\n").encode())
        try:
            found = list(read_workload(path, None, aids_for(sample.name)))
        except InputError as error:
            assert str(error).startswith(f"{path}:{len(lines)}: ")
        else:
            assert len(found) == len(sample.turns)


@pytest.mark.parametrize(
    "sample", [sample for sample in LINE_SAMPLES if sample.name not in SORTED], ids=label
)
def test_turns_stream_so_the_rows_before_a_broken_one_come_out(
    tmp_path: Path, sample: Sample
) -> None:
    path = file_of(tmp_path, sample.data + b"broken\n")
    turns = iter(read_workload(path, None, aids_for(sample.name)))
    found = [next(turns) for _ in sample.turns]
    assert numbers(found) == sample.turns
    with pytest.raises(InputError, match=f":{len(sample.lines) + 1}: "):
        next(turns)
