"""Containers of the workload format: zstd and Parquet that are broken, hostile or large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from tests.helpers.formats import VALID, aids_for
from traces.readers import parquet
from traces.readers.catalog import read_workload, reader_for
from traces.readers.native import write
from traces.workload import FORMAT, Header, Turn, Workload

TURNS = [
    Turn("a", "a", 1, 5, 6, arrival_ns=0, hash_ids=(1, 2, 3), components=(("user", "c", 5),)),
    Turn("b", "b", 1, 7, 8, arrival_ns=10**9, priority=-1, hash_ids=()),
    Turn("c", "c", 1, 7, 8, arrival_ns=10**9, components=()),
]
HEADER = {"format": f"{FORMAT}/2"}


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_workload(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(str(path))
    return message.removeprefix(str(path))


# ---------------------------------------------------------------------- zstd


@pytest.mark.parametrize("name", VALID)
def test_every_format_may_be_packed_with_zstd(tmp_path: Path, name: str) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_text(VALID[name])
    packed.write_bytes(zstd(VALID[name].encode()))
    assert name == "columns" or reader_for(packed).name == name
    found = list(read_workload(packed, None, aids_for(name)))
    assert found == list(read_workload(plain, None, aids_for(name))) and found


def test_truncated_zstd_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = zstd(VALID["native"].encode())
    for length in range(4, len(whole)):
        (tmp_path / "w").write_bytes(whole[:length])
        assert "broken zstd after" in refusal(tmp_path / "w"), length


def test_a_zstd_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packed = zstd(VALID["native"].encode() + b"0" * 50_000_000)
    (tmp_path / "w").write_bytes(packed)
    assert refusal(tmp_path / "w").endswith(f"more than 200 times its {len(packed)} bytes")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_equal_workloads_are_equal_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    for path in (first, second):
        write(Workload.of(TURNS, Header(source="a test")), path)
    assert first.read_bytes() == second.read_bytes()


# ---------------------------------------------------------------------- Parquet


def table(folder: Path, columns: dict[str, Any], header: Any = HEADER, **options: Any) -> Path:
    path = folder / "w.parquet"
    metadata = {} if header is None else {FORMAT: json.dumps(header)}
    found = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(found, path, **options)
    return path


def rows(**columns: Any) -> dict[str, Any]:
    tokens = pa.array([5, 7], pa.int32())
    return {
        "request_id": ["a", "b"],
        "input_tokens": tokens,
        "output_tokens": tokens,
        **columns,
    }


def test_row_groups_are_closed_by_rows_and_by_block_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 4)
    monkeypatch.setattr(parquet, "GROUP_BLOCKS", 10)
    turns = [Turn(str(k), str(k), 1, 1, 1, hash_ids=tuple(range(k))) for k in range(12)]
    path = tmp_path / "w.parquet"
    write(Workload.of(turns, Header()), path)
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    assert sizes == [4, 3, 2, 2, 1]
    assert list(read_workload(path)) == turns


def test_a_workload_without_a_request_is_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    with pytest.raises(InputError, match="nothing to write: not one request is left"):
        write(Workload.of([], Header(source="nothing", timing="closed")), path)
    assert not path.exists()
    empty = pa.schema([("request_id", pa.string())], {"fastswitch-workload": json.dumps(HEADER)})
    pq.write_table(empty.empty_table(), path)
    assert refusal(path) == ": no requests in it"


def test_columns_that_nobody_filled_may_be_missing(tmp_path: Path) -> None:
    path = table(tmp_path, rows())
    assert list(read_workload(path)) == [Turn("a", "a", 1, 5, 5), Turn("b", "b", 1, 7, 7)]


@pytest.mark.parametrize(
    ("columns", "header", "where"),
    [
        (rows(), None, ": Parquet without fastswitch-workload in its metadata"),
        (rows(), [], ": the header is not a JSON object"),
        (rows(), {"format": "other/1"}, ": format: "),
        (rows(), {**HEADER, "surprise": 1}, ": surprise: "),
        (rows(surprise=[1, 2]), HEADER, ": surprise: unknown column"),
        (rows(arrival_s=["0", "1"]), HEADER, ": arrival_s: column of string, not double"),
        (rows(turn=[1.0, 1.0]), HEADER, ": turn: column of double, not int32"),
        (rows(arrival_s=[float("nan"), 1.0]), HEADER, ":1: arrival_s: nan is not a finite"),
        (rows(arrival_s=[0.0, float("inf")]), HEADER, ":2: arrival_s: inf is not a finite"),
        (rows(arrival_s=[1.0, 0.5]), HEADER, ":2: arrival_s: time runs backwards"),
        (rows(arrival_s=[0.0, -1.0]), HEADER, ":2: arrival_s: "),
        (rows(request_id=["a", "a"]), HEADER, ":2: request_id: 'a' came before"),
        (rows(request_id=["a", None]), HEADER, ":2: request_id: missing"),
        (rows(request_id=["a", "x" * 129]), HEADER, ":2: request_id: "),
        (rows(request_id=["a", "x" * 5000]), HEADER, ": request_id: 5000 bytes"),
        (rows(parent_id=["b", None]), HEADER, ":1: parent_id: 'b' does not come before"),
        (rows(turn=pa.array([1, 0], pa.int32())), HEADER, ":2: turn: "),
        (rows(hash_ids=[[1], [-1]]), HEADER, ":2: hash_ids: "),
        (rows(hash_ids=[[1], [None]]), HEADER, ":2: hash_ids: "),
        (rows(hash_ids=[[1], []]), {**HEADER, "block_size": 16}, ":2: hash_ids: 0 ids for 7"),
        ({"request_id": ["a"]}, HEADER, ":1: input_tokens: missing"),
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, str) else "",
)
def test_a_broken_table_is_refused(
    tmp_path: Path, columns: dict[str, Any], header: Any, where: str
) -> None:
    assert refusal(table(tmp_path, columns, header)).startswith(where)


def test_a_part_of_a_prompt_that_is_null_is_refused(tmp_path: Path) -> None:
    part = pa.struct([("kind", pa.string()), ("id", pa.string()), ("tokens", pa.int32())])
    for broken in ([None], [{"kind": "a", "id": None, "tokens": 1}]):
        path = table(tmp_path, rows(components=pa.array([[], broken], pa.list_(part))))
        assert refusal(path).startswith(":2: components: ")


def test_a_table_that_unpacks_to_very_much_is_refused(tmp_path: Path) -> None:
    many = 3_000_000
    tokens = pa.array([5] * many, pa.int32())
    ids = pa.array(["a"] * many)
    columns = {"request_id": ids, "input_tokens": tokens, "output_tokens": tokens}
    path = table(tmp_path, columns, compression="zstd")
    assert refusal(path) == f": {many} rows in {path.stat().st_size} bytes"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "w.parquet"
    write(Workload.of(TURNS, Header(source="a test")), path)
    return path


@given(st.data())
def test_flipped_and_cut_bytes_of_a_table_are_read_or_refused(
    whole: Path, data: st.DataObject
) -> None:
    changed = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(4, len(changed)) | st.just(len(changed)))
    path = whole.with_name("changed.parquet")
    path.write_bytes(changed[:cut])
    try:
        assert len(list(read_workload(path, "native"))) <= len(TURNS)
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and str(error).startswith(str(path))
