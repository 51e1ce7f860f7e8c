"""`trace convert`: every row in is a row out or is named, and nothing half-written is left."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import fastswitch
from policy.errors import ConfigError, InputError
from tests.helpers.formats import AIDS, VALID, aids_for, num_rows
from traces import tokenizer
from traces.readers.catalog import read_workload
from traces.readers.native import SUFFIXES
from traces.shaping.convert import convert
from traces.workload import Turn


def run(*words: object) -> Result:
    return CliRunner().invoke(fastswitch.main, ["trace", "convert", *map(str, words)])


def source_of(folder: Path, name: str, text: str | None = None) -> Path:
    path = folder / "source"
    path.write_text(VALID[name] if text is None else text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", VALID)
def test_a_converted_trace_reads_as_its_source_does(tmp_path: Path, name: str, suffix: str) -> None:
    path, out = source_of(tmp_path, name), tmp_path / f"out{suffix}"
    found = convert([path], out, aids=aids_for(name))
    source, again = read_workload(path, None, aids_for(name)), read_workload(out)
    turns = list(source)
    assert (again.header, list(again)) == (source.header, turns)
    assert found.rows == len(turns) == num_rows(name, VALID[name], json.loads)
    assert found.input_tokens == sum(turn.input_tokens for turn in turns)
    assert found.output_tokens == sum(turn.output_tokens for turn in turns)
    assert found.sessions == len({turn.session_id for turn in turns})
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_the_command_tells_rows_and_what_was_lost(tmp_path: Path) -> None:
    rows = "a,1,33,255\na,2,35,0\nb,1,0,7\n"
    names = "conversation_id,turn,user_tokens,assistant_tokens\n"
    out = tmp_path / "out.jsonl.zst"
    done = run(source_of(tmp_path, "sharegpt", names + rows), "-o", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"ShareGPT turn lengths: 3 records in, 3 rows out, in 2 sessions, closed loop: {out}",
        "  tokens: 356 in, 262 out",
        "  kept, though no engine can serve them: 2 rows",
        "  lost: when anything was said",
        "  lost: the text",
    ]
    assert done.stderr == ""  # no progress bar but on a terminal


def test_records_that_are_no_requests_are_counted_with_their_reason(tmp_path: Path) -> None:
    other = '{"span_id": "z", "attributes": {"gen_ai.operation.name": "execute_tool"}}\n'
    path = source_of(tmp_path, "otel", VALID["otel"] + other + other)
    done = run(path, "-o", tmp_path / "out.parquet")
    assert "4 records in, 2 rows out" in done.stdout
    assert "  left out: 2 x span of another operation than a reply" in done.stdout


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", VALID)
def test_a_broken_source_ends_in_exit_code_3_and_leaves_the_folder_as_it_was(
    tmp_path: Path, name: str, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"older")
    path = source_of(tmp_path, name, VALID[name] + "broken,\n")
    with pytest.raises(InputError):
        convert([path], out, name=name, aids=aids_for(name))
    if name not in ("sharegpt-text", "lmcache-agent", "columns"):
        done = run(path, "--format", name, "-o", out)
        assert done.exit_code == 3
        assert str(path) in done.stderr and "Traceback" not in done.output
    assert out.read_bytes() == b"older"
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


@pytest.mark.parametrize("name", ["out.csv", "out", "out.gz", "out.json", ".jsonlx"])
def test_a_name_that_says_no_container_is_refused(tmp_path: Path, name: str) -> None:
    done = run(source_of(tmp_path, "azure"), "-o", tmp_path / name)
    assert done.exit_code == 2
    assert "ends in none of .jsonl, .jsonl.gz, .jsonl.zst, .parquet" in done.stderr


def test_sessions_of_several_files_become_one_workload(tmp_path: Path) -> None:
    paths = []
    for name in ("s", "t"):
        paths.append(tmp_path / name)
        paths[-1].write_text(VALID["kv-cache-tester"].replace('"id": "s"', f'"id": "{name}"'))
    found = convert(paths, tmp_path / "out.parquet")
    assert (found.rows, found.sessions) == (6, 4)
    each = [turn for path in paths for turn in read_workload(path)]
    assert list(read_workload(tmp_path / "out.parquet")) == each
    with pytest.raises(InputError, match="'s/1' came before"):
        convert([paths[0], paths[0]], tmp_path / "twice.parquet")


def test_traces_with_a_clock_each_do_not_become_one(tmp_path: Path) -> None:
    path = source_of(tmp_path, "azure")
    with pytest.raises(ConfigError, match="each has its own clock"):
        convert([path, path], tmp_path / "out.jsonl")
    other = tmp_path / "lengths"
    other.write_text(VALID["token-lengths"])
    table = tmp_path / "table"
    table.write_text(VALID["sharegpt"])
    with pytest.raises(ConfigError, match="its header is not that of"):
        convert([other, table], tmp_path / "out.jsonl")


TEXT = st.sampled_from(sorted(VALID))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@given(TEXT, TEXT, st.integers(0, 400))
def test_mixed_formats_are_refused_or_every_row_comes_out(
    folder: Path, first: str, second: str, cut: int
) -> None:
    path = source_of(folder, first, VALID[first][:cut] + VALID[second])
    try:
        found = convert([path], folder / "out.jsonl", aids=AIDS)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert list(read_workload(folder / "out.jsonl")) == list(read_workload(path, None, AIDS))
        assert found.rows


# ---------------------------------------------------------------------- memory


def peak_of(call: Callable[[], Any]) -> int:
    import tracemalloc

    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_memory_grows_with_the_ids_of_requests_and_with_nothing_else(
    tmp_path: Path, suffix: str
) -> None:
    row = '{{"timestamp": 0, "input_length": 51200, "output_length": 5, "hash_ids": {}}}\n'
    ids = list(range(100))
    peaks = []
    for rows in (1000, 4000):
        path = tmp_path / f"trace{rows}"
        path.write_text(row.format(ids) * rows)
        peaks.append(peak_of(lambda path=path: convert([path], tmp_path / f"out{suffix}")))
    # 100 block ids are about 4 kB a row in Python; what is kept is an id and two entries.
    assert peaks[1] - peaks[0] < 3000 * 800 + (1 << 22) * (suffix == ".parquet")


def test_a_compressed_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"request_id": "a", "input_tokens": 5, "output_tokens": 6, "model": "')
        for _ in range(32):
            file.write(b"x" * (1 << 20))

    def read() -> None:
        with pytest.raises(InputError):
            list(read_workload(path, "native"))

    assert peak_of(read) < 1 << 23


# ---------------------------------------------------------------------- tokenizers


def test_a_tokenizer_file_counts_what_the_package_counts(tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    vocab = {"[UNK]": 0, "how": 1, "are": 2, "you": 3}
    made = package.Tokenizer(package.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = package.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    done = run(
        source_of(tmp_path, "sharegpt-text"),
        *("--tokenizer", tmp_path / "tokenizer.json", "-o", tmp_path / "out.jsonl"),
    )
    assert done.exit_code == 0, done.output
    again = read_workload(tmp_path / "out.jsonl")
    assert again.header.tokenizer == "tokenizer.json"
    first = next(iter(again))
    assert (first.input_tokens, first.output_tokens) == (3, 1)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken\.json: no tokenizer: "):
        tokenizer.from_file(tmp_path / "broken.json")


def test_without_the_package_a_tokenizer_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_text_is_refused_by_the_command_without_a_tokenizer(tmp_path: Path) -> None:
    done = run(source_of(tmp_path, "sharegpt-text"), "-o", tmp_path / "out.jsonl")
    assert done.exit_code == 2
    assert "--tokenizer" in done.stderr


def test_turns_of_a_workload_that_breaks_a_rule_are_not_written(tmp_path: Path) -> None:
    from traces.readers.native import write
    from traces.workload import Workload

    backwards = [Turn("a", "a", 1, 1, 1, arrival_ns=5), Turn("b", "b", 1, 1, 1, arrival_ns=4)]
    with pytest.raises(InputError, match=r"w\.jsonl:2: arrival_s: time runs backwards"):
        write(Workload.of(backwards), tmp_path / "w.jsonl")
    assert list(tmp_path.iterdir()) == []
