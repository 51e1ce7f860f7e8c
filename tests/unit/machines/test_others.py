"""Real runs of others: rows written by hand in the formats of five tools, laid beside their prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from explore.validation import beside, others
from explore.validation.others import Measured
from policy.errors import InputError

PROFILE = "h100-llama-3-8b"

BENCH = {
    "request_rate": 2.0,
    "max_concurrency": None,
    "input_lens": [100, 50, 7],
    "output_lens": [3, 1, 2],
    "ttfts": [0.5, 0.25, 0.0],
    "itls": [[0.1, 0.2], [], []],
    "start_times": [10.0, 10.5, 11.0],
    "errors": ["", "", "refused"],
}
SERVED = (Measured("0", 0.0, 100, 3, 0.5, 0.8), Measured("1", 0.5, 50, 1, 0.25, 0.25))


def engine_row(name: str, queued: float) -> dict[str, Any]:
    return {
        "request_id": name,
        "input_toks": 100,
        "output_toks": 3,
        "queued_ts": queued,
        "first_token_ts": queued + 0.5,
        "last_token_ts": queued + 0.8,
    }


def aiperf_row(start_ns: int, error: object = None) -> dict[str, Any]:
    return {
        "metadata": {"request_start_ns": start_ns, "was_cancelled": False},
        "metrics": {
            "time_to_first_token": {"value": 500.0, "unit": "ms"},
            "request_latency": {"value": 800.0, "unit": "ms"},
            "input_sequence_length": {"value": 100, "unit": "tokens"},
            "output_sequence_length": {"value": 3, "unit": "tokens"},
        },
        "error": error,
    }


def perf_row(start: float, **info: Any) -> dict[str, Any]:
    return {"start_time": start, "end_time": start + 1, "info": info, "error": None}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def close(found: tuple[Measured, ...], expected: tuple[Measured, ...]) -> bool:
    return [one.name for one in found] == [one.name for one in expected] and all(
        one[1:] == pytest.approx(other[1:]) for one, other in zip(found, expected, strict=True)
    )


def test_vllm_bench_has_columns_and_its_failures_are_counted(tmp_path: Path) -> None:
    run = others.read(written(tmp_path / "bench.json", json.dumps(BENCH)))
    assert close(run.requests, SERVED)
    assert (run.tool, run.failed, run.inside, run.concurrency) == ("vllm-bench", 1, False, None)
    assert run.requests[0].tpot_s == pytest.approx(0.15)
    assert run.requests[1].tpot_s is None


def test_a_cap_at_full_rate_is_played_from_the_first_moment(tmp_path: Path) -> None:
    capped = {**BENCH, "request_rate": "inf", "max_concurrency": 2}
    run = others.read(written(tmp_path / "bench.json", json.dumps(capped)))
    assert run.concurrency == 2
    assert {one.arrival_s for one in run.requests} == {0.0}


def test_llmservingsims_stamps_are_the_engines_and_its_limits_stand_beside(tmp_path: Path) -> None:
    meta = {
        "engine_kwargs": {"max_num_seqs": 256, "max_num_batched_tokens": 2048},
        "kv_cache": {"num_gpu_blocks": 2588, "block_size": 16},
    }
    written(tmp_path / "meta.json", json.dumps(meta))
    rows = lines(engine_row("b", 7.5), engine_row("a", 7.0))
    run = others.read(written(tmp_path / "requests.jsonl", rows))
    assert [one.name for one in run.requests] == ["a", "b"]
    assert run.requests[0][1:] == pytest.approx((0.0, 100, 3, 0.5, 0.8))
    assert run.inside
    assert run.limits["pool.device_blocks"] == 2588
    assert run.limits["limits.max_num_seqs"] == 256


def test_blis_sends_are_microseconds_and_bad_status_is_a_failure(tmp_path: Path) -> None:
    head = "request_id,input_tokens,output_tokens,arrival_time_us,send_time_us"
    head += ",first_chunk_time_us,last_chunk_time_us,status\n"
    rows = "0,100,3,1,1000000,1500000,1800000,ok\n1,50,1,1,1,0,0,timeout\n"
    run = others.read(written(tmp_path / "data.csv", head + rows))
    assert close(run.requests, SERVED[:1])
    assert run.failed == 1


def test_aiperf_says_its_units(tmp_path: Path) -> None:
    rows = lines(aiperf_row(5 * 10**9), aiperf_row(6 * 10**9, {"code": 500}))
    run = others.read(written(tmp_path / "profile_export.jsonl", rows))
    assert close(run.requests, SERVED[:1])
    assert run.failed == 1
    row = aiperf_row(0)
    row["metrics"]["request_latency"]["unit"] = "furlongs"
    with pytest.raises(InputError, match=r"request_latency\.unit: 'furlongs' is no unit"):
        others.read(written(tmp_path / "profile_export.jsonl", lines(row)))


@pytest.mark.parametrize(
    "info",
    [
        {"input_tokens": 100, "output_tokens": 3, "output_token_times": [3.5, 3.6, 3.8]},
        {
            "request_metrics": {"text": {"input_tokens": 100}},
            "response_metrics": {"output_tokens": 3, "output_token_times": [3.5, 3.6, 3.8]},
        },
    ],
)
def test_inference_perf_is_flat_or_in_two_parts(tmp_path: Path, info: dict[str, Any]) -> None:
    rows = [perf_row(3.0, **info), {**perf_row(4.0), "error": {"error_type": "x"}}]
    run = others.read(written(tmp_path / "per_request.json", json.dumps(rows)))
    assert close(run.requests, SERVED[:1])
    assert run.failed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "records of none of vllm bench"),
        (json.dumps({**BENCH, "start_times": None}), "start_times: missing"),
        (json.dumps({**BENCH, "ttfts": [1.0]}), "columns of different lengths"),
        (json.dumps({**BENCH, "itls": None}), "itls: missing; run vllm bench serve with"),
        (lines({**engine_row("a", 1.0), "input_toks": 1.5}), ":1: input_toks: 1.5 is no number of"),
        (lines({**engine_row("a", 1.0), "queued_ts": 9.0}), ":1: starts at 9"),
        (lines(engine_row("a", 1.0), [3]), ":2: not a mapping"),
        ("[]", "no request was served"),
        ('[{"start_time": ', "no JSON"),
    ],
)
def test_what_is_no_run_is_refused_with_file_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        others.read(written(tmp_path / "run.json", text))


# ---------------------------------------------------------------------- beside their prediction


def test_a_run_that_the_simulator_made_is_foretold_exactly(tmp_path: Path) -> None:
    """What the predicted machine itself does is no error at all."""
    rows = [engine_row(f"r{i}", 0.05 * i) for i in range(8)]
    first = others.read(written(tmp_path / "requests.jsonl", lines(*rows)))
    found = beside.lay([first], PROFILE, None, {})[0]
    assert not found.holds
    served = beside.lay([first], PROFILE, None, {})[0]
    assert [line.predicted for line in served.lines] == [line.predicted for line in found.lines]
    ttft, e2e = found.of("ttft").predicted, found.of("e2e").predicted
    assert 0 < ttft < e2e < 1
    text = beside.as_text([found])
    assert "ttft mean" in text
    assert "not known: the engine's KV blocks were not recorded" in text


def test_of_several_runs_it_says_up_to_which_load_it_holds(tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow.jsonl", tmp_path / "fast.jsonl"
    written(slow, lines(*(engine_row(f"r{i}", 2.0 * i) for i in range(4))))
    written(fast, lines(*(engine_row(f"r{i}", 0.01 * i) for i in range(4))))
    found = beside.lay([others.read(fast), others.read(slow)], PROFILE, None, {})
    assert [one.run.name for one in found] == ["slow", "fast"]
    assert found[0].load < found[1].load
    assert "holds at no load measured" in beside.as_text(found)
    assert beside.as_json(found)[0]["run"] == "slow"


def test_clients_that_keep_one_request_under_way_are_served_one_by_one(tmp_path: Path) -> None:
    capped = {**BENCH, "errors": None, "ttfts": [0.5] * 3, "itls": [[0.1, 0.2], [], [0.1]]}
    capped |= {"request_rate": "inf", "max_concurrency": 1}
    run = others.read(written(tmp_path / "bench.json", json.dumps(capped)))
    found = beside.lay([run], PROFILE, None, {})[0]
    free = beside.lay([run], PROFILE, None, {"workload.concurrency": 3})[0]
    assert found.predicted_rate < free.predicted_rate


def test_requests_that_do_not_finish_are_an_error_and_not_a_figure(tmp_path: Path) -> None:
    run = others.read(written(tmp_path / "requests.jsonl", lines(engine_row("r", 0.0))))
    with pytest.raises(InputError, match="1 of 1 requests do not finish"):
        beside.lay([run], PROFILE, None, {"limits.max_model_len": 50})
