"""Exports: every number in the unit that the other tool means, nothing where nothing is known."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from explore.exports import aiperf as export_aiperf
from explore.exports import llm_d as export_llm_d
from explore.exports import vllm as export_vllm
from explore.exports.export import export
from explore.exports.samples import Samples, finished_of
from runs.metrics.summary import summarise
from runs.recording import Recording
from runs.scenario import build
from sim.simulate import simulate
from tests.helpers.hand import SECOND, Hand
from tests.unit.test_cli import SMALL, run

S = SECOND


def by_hand() -> Recording:
    """Two that finish, with four tokens and one, one that is rejected and one that leaves."""
    hand = Hand(1 * S, 2 * S, 5 * S // 2, 4 * S, 5 * S, batch=1)
    hand.prompt("a", 1, 10).tokens("a", (1, 4))
    hand.request("a", 0, 2 * S, 5 * S, 4, session="talk", turn=3)
    hand.prompt("b", 2, 10).tokens("b", (2, 2)).request("b", 0, 5 * S // 2, 5 * S // 2, 1)
    hand.request("no", 3 * S, reason="empty prompt", outputs=0)
    hand.prompt("gone", 3, 10).tokens("gone", (3, 3))
    times = {"cancel_ns": 9 * S // 2, "reason": "client left"}
    hand.request("gone", 1 * S, 4 * S, outputs=1, status="cancelled", **times)
    found = hand.recording()
    found.summary.update(
        scenario="s",
        system="fastswitch",
        order="fcfs",
        machine="simulated",
        model=None,
        profile="a10",
        switches={"reuse": True},
        metrics={"ttft_p99_s": None, "preemptions": 7},
        provenance={"commit": "abc", "scenario_hash": "0123"},
    )
    return found


def nothing() -> Recording:
    return Hand().recording()


def vllm_of(found: Recording) -> dict[str, Any]:
    data: dict[str, Any] = json.loads("".join(export_vllm.pieces(found)))
    return data


def aiperf_of(found: Recording) -> list[dict[str, Any]]:
    return [json.loads(line) for line in "".join(export_aiperf.pieces(found)).splitlines()]


def llm_d_of(found: Recording) -> dict[str, Any]:
    report: dict[str, Any] = json.loads("".join(export_llm_d.pieces(found)))
    return report


# ---------------------------------------------------------------------- vLLM


def test_vllm_aggregates_are_milliseconds_and_durations_seconds() -> None:
    found = vllm_of(by_hand())
    assert {key: value for key, value in found.items() if key.startswith(("mean_", "std_"))} == {
        "mean_ttft_ms": 2250.0,
        "std_ttft_ms": 250.0,
        "mean_tpot_ms": 1000.0,
        "std_tpot_ms": 0.0,
        "mean_itl_ms": 1000.0,
        "std_itl_ms": pytest.approx(math.sqrt(500 * 500 / 1.5)),
        "mean_e2el_ms": 3750.0,
        "std_e2el_ms": 1250.0,
    }
    assert found["duration"] == 5.0
    assert (found["num_prompts"], found["completed"], found["failed"]) == (4, 2, 2)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (20, 5)
    assert found["request_throughput"] == 0.4
    assert (found["output_throughput"], found["total_token_throughput"]) == (1.0, 5.0)


def test_vllm_arrays_are_seconds_and_have_one_entry_per_request_in_one_order() -> None:
    found = vllm_of(by_hand())
    assert found["start_times"] == [0.0, 0.0, 3.0, 1.0]
    assert found["ttfts"] == [2.0, 2.5, None, 3.0]
    assert found["itls"] == [[0.5, 1.5, 1.0], [], [], []]
    assert found["input_lens"] == [10, 10, 10, 10]
    assert found["output_lens"] == [4, 1, 0, 1]
    assert found["errors"] == ["", "", "rejected: empty prompt", "cancelled: client left"]


def test_vllm_percentiles_are_milliseconds_once_there_are_samples_enough() -> None:
    assert vllm_of(by_hand())["median_ttft_ms"] is None
    hand = Hand(*[S * (i + 1) for i in range(400)], batch=1)
    for i in range(400):
        hand.tokens(f"r{i}", (i, i)).request(f"r{i}", 0, S * (i + 1), S * (i + 1), 1)
    found = vllm_of(hand.recording())
    assert found["median_ttft_ms"] == found["p50_ttft_ms"] == 200_500.0
    assert found["p90_ttft_ms"] == pytest.approx(360_100.0)
    assert found["p99_e2el_ms"] == pytest.approx(396_010.0)
    assert found["p99.9_e2el_ms"] is None
    assert found["mean_tpot_ms"] is found["mean_itl_ms"] is None


def test_vllm_fields_that_nothing_is_known_of_are_null() -> None:
    found = vllm_of(by_hand())
    unknown = {key for key, value in found.items() if value is None}
    assert unknown >= {"request_rate", "burstiness", "max_concurrency", "model_id", "tokenizer_id"}
    assert unknown >= {"date", "request_goodput", "generated_texts", "max_concurrent_requests"}
    assert found["fastswitch_system"] == "fastswitch"


# ---------------------------------------------------------------------- AIPerf


def test_aiperf_metrics_have_their_units_beside_them() -> None:
    first, second, *_ = aiperf_of(by_hand())
    assert first["metrics"] == {
        "input_sequence_length": {"value": 10, "unit": "tokens"},
        "output_sequence_length": {"value": 4, "unit": "tokens"},
        "output_token_count": {"value": 4, "unit": "tokens"},
        "time_to_first_token": {"value": 2000.0, "unit": "ms"},
        "time_to_second_token": {"value": 500.0, "unit": "ms"},
        "request_latency": {"value": 5000.0, "unit": "ms"},
        "inter_chunk_latency": {"value": [500.0, 1500.0, 1000.0], "unit": "ms"},
        "inter_token_latency": {"value": 1000.0, "unit": "ms"},
        "output_token_throughput_per_user": {"value": 1.0, "unit": "tokens/sec/user"},
    }
    assert set(second["metrics"]) == {
        "input_sequence_length",
        "output_sequence_length",
        "output_token_count",
        "time_to_first_token",
        "request_latency",
    }


def test_aiperf_metadata_are_nanoseconds_and_turns_count_from_zero() -> None:
    first, _, rejected, cancelled = (record["metadata"] for record in aiperf_of(by_hand()))
    assert first == {
        "session_num": 0,
        "x_request_id": "a",
        "x_correlation_id": None,
        "conversation_id": "talk",
        "turn_index": 2,
        "fastswitch_due_ns": 0,
        "request_start_ns": 0,
        "request_ack_ns": None,
        "request_end_ns": 5_000_000_000,
        "worker_id": "fastswitch",
        "record_processor_id": "fastswitch",
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }
    assert (rejected["request_start_ns"], rejected["request_end_ns"]) == (3_000_000_000,) * 2
    assert cancelled["was_cancelled"] is True
    assert cancelled["cancellation_time_ns"] == cancelled["request_end_ns"] == 4_500_000_000


def test_aiperf_requests_that_failed_say_why_and_have_no_latency() -> None:
    first, _, rejected, cancelled = aiperf_of(by_hand())
    assert first["error"] is None
    assert rejected["error"] == {"code": None, "type": "rejected", "message": "empty prompt"}
    assert cancelled["error"] == {"code": None, "type": "cancelled", "message": "client left"}
    for record in (rejected, cancelled):
        assert record["metrics"] == {"error_isl": {"value": 10, "unit": "tokens"}}


def test_aiperf_tokens_at_one_instant_have_no_rate() -> None:
    hand = Hand(S, S, batch=1).tokens("r", (0, 1)).request("r", 0, S, S, 2)
    (record,) = aiperf_of(hand.recording())
    assert record["metrics"]["inter_token_latency"]["value"] == 0
    assert "output_token_throughput_per_user" not in record["metrics"]


# ---------------------------------------------------------------------- llm-d


def test_llm_d_statistics_carry_units_and_seconds() -> None:
    aggregate = llm_d_of(by_hand())["results"]["request_performance"]["aggregate"]
    assert aggregate["latency"] == {
        "time_to_first_token": {
            "units": "s", "mean": 2.25, "stddev": 0.25, "min": 2.0, "p25": 2.125, "p75": 2.375,
            "max": 2.5,
        },
        "normalized_time_per_output_token": {
            "units": "s/token", "mean": 1.875, "stddev": 0.625, "min": 1.25, "p25": 1.5625,
            "p75": 2.1875, "max": 2.5,
        },
        "time_per_output_token": {
            "units": "s/token", "mean": 1.0, "stddev": 0.0, "min": 1.0, "p25": 1.0, "p75": 1.0,
            "max": 1.0,
        },
        "inter_token_latency": {
            "units": "s/token", "mean": 1.0, "stddev": pytest.approx(math.sqrt(1 / 6)), "min": 0.5,
            "p25": 0.75, "p75": 1.25, "max": 1.5,
        },
        "request_latency": {
            "units": "s", "mean": 3.75, "stddev": 1.25, "min": 2.5, "p25": 3.125, "p75": 4.375,
            "max": 5.0,
        },
    }  # fmt: skip
    assert aggregate["throughput"] == {
        "input_token_rate": {"units": "tokens/s", "mean": 4.0},
        "output_token_rate": {"units": "tokens/s", "mean": 1.0},
        "total_token_rate": {"units": "tokens/s", "mean": 5.0},
        "request_rate": {"units": "queries/s", "mean": 0.4},
    }
    requests = aggregate["requests"]
    assert (requests["total"], requests["failures"], requests["incomplete"]) == (4, 1, 1)
    assert requests["output_length"] == {
        "units": "count", "mean": 2.5, "stddev": 1.5, "min": 1.0, "p25": 1.75, "p75": 3.25, "max": 4.0,
    }  # fmt: skip
    assert requests["input_length"]["mean"] == 10.0


def test_llm_d_says_what_made_it_and_leaves_out_what_is_not_known() -> None:
    report = llm_d_of(by_hand())
    assert report["version"] == "0.2"
    assert report["run"]["time"] == {"duration": "PT5.000000000S"}
    assert len(report["run"]["uid"]) == 32 and set(report["run"]) == {"uid", "time"}
    (component,) = report["scenario"]["stack"]
    assert component == {
        "metadata": {"label": "fastswitch", "cfg_id": "0123"},
        "standardized": {
            "kind": "generic",
            "tool": "fastswitch",
            "tool_version": "abc",
            "machine": "simulated",
            "scenario": "s",
            "system": "fastswitch",
            "order": "fcfs",
            "profile": "a10",
        },
        "native": {"config": {"reuse": True}},
    }
    assert report["results"]["observability"] == {"fastswitch": {"preemptions": 7}}
    assert "null" not in "".join(export_llm_d.pieces(by_hand()))


def test_llm_d_is_the_same_as_yaml_and_as_json(tmp_path: Path) -> None:
    found = by_hand()
    for name in ("r.yaml", "r.yml", "r.json"):
        export(found, "llm-d", tmp_path / name)
        text = (tmp_path / name).read_text()
        assert text.startswith("{") == (name == "r.json")
        assert yaml.safe_load(text) == llm_d_of(found)


# ---------------------------------------------------------------------- all of them


def test_nothing_served_is_exported_as_nothing() -> None:
    found = vllm_of(nothing())
    assert found["duration"] is found["mean_ttft_ms"] is found["request_throughput"] is None
    assert (found["completed"], found["itls"]) == (0, [])
    assert aiperf_of(nothing()) == []
    report = llm_d_of(nothing())
    assert set(report["run"]) == {"uid"}
    aggregate = report["results"]["request_performance"]["aggregate"]
    assert (aggregate["latency"], aggregate["throughput"]) == ({}, {})


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch"])
def test_three_formats_of_one_run_tell_one_story(system: str) -> None:
    """Gaps come to the aggregates by step and to the records by request, so each checks the other."""
    pool = {"device_blocks": 45, "host_blocks": 120, "aging": "none"}
    found = simulate(build({**SMALL, "system": system, "pool": pool}, "test"))
    ours, vllm, report = summarise(found), vllm_of(found), llm_d_of(found)
    latency = report["results"]["request_performance"]["aggregate"]["latency"]
    records = [record["metrics"] for record in aiperf_of(found) if record["error"] is None]
    gaps = [gap for one in vllm["itls"] for gap in one]
    chunks = [
        gap
        for r in records
        if "inter_chunk_latency" in r
        for gap in r["inter_chunk_latency"]["value"]
    ]
    assert ours["preemptions"] > 0 and len(gaps) == ours["tbt_samples"] == len(chunks)
    for field, key, name in (
        ("time_to_first_token", "ttft", "ttft"),
        ("request_latency", "e2el", "e2e"),
        ("inter_token_latency", "itl", "tbt"),
        ("time_per_output_token", "tpot", "tpot"),
    ):
        assert latency[field]["p50"] == pytest.approx(ours[f"{name}_p50_s"], abs=1e-9)
        assert vllm[f"median_{key}_ms"] == pytest.approx(1e3 * latency[field]["p50"])
        assert vllm[f"mean_{key}_ms"] == pytest.approx(1e3 * latency[field]["mean"])
        assert vllm[f"std_{key}_ms"] == pytest.approx(1e3 * latency[field]["stddev"])
    assert latency["inter_token_latency"]["mean"] == pytest.approx(np.mean(gaps))
    assert latency["inter_token_latency"]["stddev"] == pytest.approx(np.std(gaps))
    assert sorted(chunks) == pytest.approx(sorted(1e3 * gap for gap in gaps))
    for record in records:
        if "inter_chunk_latency" in record:
            mean = np.mean(record["inter_chunk_latency"]["value"])
            assert record["inter_token_latency"]["value"] == pytest.approx(mean)
    first = [r["time_to_first_token"]["value"] for r in records]
    assert np.mean(first) == pytest.approx(vllm["mean_ttft_ms"])


def test_names_that_could_break_a_file_do_not() -> None:
    name = '"\n</script>\u2028\U0001f600'
    found = Hand(S).tokens(name, (0, 0)).request(name, 0, S, S, session=name).recording()
    (record,) = aiperf_of(found)
    assert record["metadata"]["x_request_id"] == record["metadata"]["conversation_id"] == name


def test_deviation_and_percentiles_are_those_of_the_repeated_values() -> None:
    values, weights = np.array([5, 1, 9], dtype=np.int64), np.array([300, 2, 98], dtype=np.int64)
    samples, plain = Samples(values, weights), np.repeat(values, weights)
    assert samples.mean == np.mean(plain)
    assert samples.deviation == pytest.approx(np.std(plain))
    assert (samples.least, samples.most, samples.count) == (1, 9, 400)
    for q in (1.0, 25.0, 75.0, 99.0):
        assert samples.percentile(q) == np.percentile(plain, q)
    assert samples.percentile(0.1) is samples.percentile(99.9) is None
    pairs = pairwise([samples.percentile(q) for q in (1.0, 50.0, 99.0)])
    assert all(low is not None and high is not None and low <= high for low, high in pairs)


def test_counts_of_requests_add_up() -> None:
    done = finished_of(by_hand())
    assert done.total == done.ttft.count + done.rejected + done.incomplete
    assert (done.rejected, done.incomplete) == (1, 1)


@pytest.mark.parametrize(("name", "first"), [("vllm", "{"), ("aiperf", "{"), ("llm-d", "version")])
def test_the_command_exports_a_folder(name: str, first: str, tmp_path: Path) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text(yaml.safe_dump(SMALL))
    assert run("simulate", scenario, "--out", tmp_path / "run").exit_code == 0
    out = tmp_path / "found.yaml"
    result = run("export", tmp_path / "run", "--format", name, "--out", out)
    assert result.exit_code == 0 and f"written: {out}" in result.output
    assert out.read_text().startswith(first)
