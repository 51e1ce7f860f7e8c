"""ServeGen's laws of single clients: the original pairs of files, and the tables of all clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InputError
from traces.readers.catalog import read_workload
from traces.readers.servegen import (
    QUANTILES,
    Client,
    Lengths,
    LengthWindow,
    RateWindow,
    read_client,
    read_folder,
    read_tables,
)

TRACE = "0,0,0,,0,0\n600,0.025,2.74,Gamma,0.13,175.75\n1200,1e-2,1,Weibull,0.5,3\n"
HISTOGRAMS = {
    "21600": {"input_tokens": "{}", "output_tokens": "{}", "reason_ratio": "{}"},
    "0": {
        "input_tokens": "{378: 0.25, 387: 0.75}",
        "output_tokens": "{1: 0.5, 2: 0.5}",
        "reason_ratio": "{0.0: 0.0, 0.25: 1.0}",
    },
}
RATES = "client_id,timestamp,rate,cv,pat,param1,param2"
LENGTHS = "client_id,timestamp,field,n_support,mean,p5,p25,p50,p75,p90,p95,p99,max"
ROW = "input_tokens,4,263.8,49.0,63.0,143.0,414.0,657.0,793.0,900.0,1056.0"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pair(folder: Path, trace: str = TRACE, dataset: str = json.dumps(HISTOGRAMS)) -> Client:
    return read_client(
        write(folder, "chunk-17-trace.csv", trace), write(folder, "chunk-17-dataset.json", dataset)
    )


def test_the_two_original_files_are_a_client(tmp_path: Path) -> None:
    client = pair(tmp_path)
    assert client.client_id == "17"
    assert client.rates == (
        RateWindow(0.0, 0.0, 0.0, None, 0.0, 0.0),
        RateWindow(600.0, 0.025, 2.74, "gamma", 0.13, 175.75),
        RateWindow(1200.0, 0.01, 1.0, "weibull", 0.5, 3.0),
    )
    first, second = client.lengths
    assert second == LengthWindow(21600.0, None, None, None)
    assert first.inputs == Lengths(
        384.75,
        tuple((share, 378.0 if share <= 0.25 else 387.0) for share in QUANTILES.values()),
        ((378.0, 0.25), (387.0, 0.75)),
    )
    assert first.reason_ratio is not None and first.reason_ratio.mean == 0.25


def test_a_folder_of_pairs_is_read_by_number(tmp_path: Path) -> None:
    for number in (10, 9):
        write(tmp_path, f"chunk-{number}-trace.csv", TRACE)
        write(tmp_path, f"chunk-{number}-dataset.json", json.dumps(HISTOGRAMS))
    write(tmp_path, "chunk-11-trace.csv", TRACE)
    clients, halves = read_folder(tmp_path)
    assert [client.client_id for client in clients] == ["9", "10"]
    assert halves == (str(tmp_path / "chunk-11-trace.csv"),)
    with pytest.raises(InputError, match="no chunk-N-trace"):
        read_folder(tmp_path / "absent")


def test_the_tables_hold_the_same_of_all_clients(tmp_path: Path) -> None:
    rates = write(tmp_path, "r.csv", f"{RATES}\n3,600,0.5,2.5,Gamma,0.2,9\n0,0,1,1,Weibull,1,1\n")
    lengths = write(tmp_path, "l.csv", f"{LENGTHS}\n0,0,{ROW}\n0,21600,{ROW}\n5,0,{ROW}\n")
    clients = read_tables(rates, lengths)
    assert [(c.client_id, len(c.rates), len(c.lengths)) for c in clients] == [
        ("0", 1, 2),
        ("3", 1, 0),
        ("5", 0, 1),
    ]
    assert clients[1].rates == (RateWindow(600.0, 0.5, 2.5, "gamma", 0.2, 9.0),)
    window = clients[0].lengths[0]
    assert window.inputs is not None and window.outputs is None
    assert window.inputs.mean == 263.8 and window.inputs.histogram == ()
    assert window.inputs.quantiles[2] == (0.5, 143.0)


def test_such_a_file_is_no_trace_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "r.csv", f"{RATES}\n")
    with pytest.raises(InputError, match="ServeGen's laws of single clients, which are no req"):
        read_workload(path)


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("600,1,1,Gamma,1,1", "timestamp: time does not go on"),
        ("NaN,1,1,Gamma,1,1", "timestamp: "),
        ("-1,1,1,Gamma,1,1", "timestamp: "),
        ("1200,-1,1,Gamma,1,1", "rate: "),
        ("1200,1e999,1,Gamma,1,1", "rate: "),
        ("1200,1,inf,Gamma,1,1", "cv: "),
        ("1200,1,1,Normal,1,1", "pat: 'Normal' is not Gamma or Weibull"),
        ("1200,1,1,,1,1", "pat: a rate without a law"),
        ("1200,1,1,Gamma,0,1", "pat: a rate without a law"),
        (f"1200,1,1,Gamma,{'9' * 4300},1", "param1: "),
        ("1200,1,1,Gamma,1,x", "param2: "),
        ("1200,1,1,Gamma,1", "5 fields, must be 6"),
    ],
    ids=lambda value: value[:40],
)
def test_a_broken_window_is_refused(tmp_path: Path, line: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        pair(tmp_path, "600,1,1,Gamma,1,1\n" + line + "\n")
    assert str(caught.value).startswith(f"{tmp_path}/chunk-17-trace.csv:2: {where}")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{1: 0.5}", "shares add up to 0.5, not 1"),
        ("{1: 0.5, 1: 0.5}", "a value given twice"),
        ("{1}", "'1' is not a value and its share"),
        ("{1: 1: 1}", "'1: 1' is not a number"),
        ("{-1: 1.0}", "'-1' is not a number"),
        ("{1: nan}", "'nan' is not a number"),
        ("{1e999: 1.0}", "1e999 is not in 0 to"),
        ("1: 1.0", "is not a histogram in braces"),
        ("{__import__('os'): 1.0}", "is not a number"),
        (7, "7 is not a histogram in braces"),
    ],
    ids=str,
)
def test_a_broken_histogram_is_refused(tmp_path: Path, text: object, where: str) -> None:
    with pytest.raises(InputError) as caught:
        pair(tmp_path, TRACE, json.dumps({"0": {"input_tokens": text}}))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/chunk-17-dataset.json: 0.input_tokens: ")
    assert where in message


@pytest.mark.parametrize("dataset", ["[]", '{"x": {}}', '{"0": []}', '{"0": {"other": "{}"}}', ""])
def test_a_broken_dataset_is_refused(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(InputError, match=r"chunk-17-dataset\.json"):
        pair(tmp_path, TRACE, dataset)


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([f"0,0,{ROW}", f"0,0,{ROW}"], "field: "),
        ([f"0,600,{ROW}", f"0,0,{ROW}"], "timestamp: time does not go on"),
        ([f"0,0,{ROW}", f"1,0,{ROW}", f"0,600,{ROW}"], "client_id: 0 came before"),
        ([f"0,0,{ROW.replace('49.0', '99.0')}"], "input_tokens: quantiles that do not grow"),
        ([f"0,0,{ROW.replace('input_tokens', 'tokens')}"], "field: "),
        ([f"0,0,{ROW.replace('263.8', 'NaN')}"], "mean: "),
    ],
)
def test_a_broken_table_of_lengths_is_refused(tmp_path: Path, rows: list[str], where: str) -> None:
    rates = write(tmp_path, "r.csv", f"{RATES}\n")
    with pytest.raises(InputError) as caught:
        read_tables(rates, write(tmp_path, "l.csv", "\n".join([LENGTHS, *rows]) + "\n"))
    assert str(caught.value).startswith(f"{tmp_path}/l.csv:{len(rows) + 1}: {where}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servegen")


HOSTILE = st.sampled_from(["NaN", "1e999", "-1", "{", "}", ":", ",", "\n", '"', "0", "[" * 5000])


@given(st.lists(HOSTILE | st.text(max_size=5), max_size=8).map("".join), st.integers(0, 99))
def test_any_text_in_either_file_is_read_or_refused(folder: Path, text: str, at: int) -> None:
    dataset = json.dumps(HISTOGRAMS)
    for trace, data in ((TRACE[:at] + text + TRACE[at:], dataset), (TRACE, dataset[:at] + text)):
        try:
            pair(folder, trace, data)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
