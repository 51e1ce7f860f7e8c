"""Readers of what a server or a benchmark recorded: OpenTelemetry spans, vLLM's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy.errors import InputError
from traces.readers.catalog import read_workload
from traces.workload import Turn

START = 1_700_000_000_000_000_000
SECOND = 10**9
TOKENS = "gen_ai.usage.input_tokens"


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "served"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def refusal(path: Path, name: str) -> str:
    with pytest.raises(InputError) as caught:
        list(read_workload(path, name))
    return str(caught.value).removeprefix(str(path))


# ---------------------------------------------------------------------- OpenTelemetry


def otlp(name: Any, at: Any, given: Any, got: Any, **more: Any) -> dict[str, Any]:
    """A span as OTLP/JSON writes it; numbers as text, as protobuf's JSON has them."""
    attributes = {
        "gen_ai.usage.input_tokens": None if given is None else {"intValue": given},
        "gen_ai.usage.output_tokens": None if got is None else {"intValue": got},
        **{key: value for key, value in more.items() if "." in key},
    }
    return {
        "spanId": name,
        "startTimeUnixNano": at,
        "endTimeUnixNano": str(int(at) + SECOND)
        if str(at)[:30].isdigit() and len(str(at)) < 30
        else at,
        "attributes": [{"key": k, "value": v} for k, v in attributes.items() if v is not None],
        **{key: value for key, value in more.items() if "." not in key},
    }


def batch(*spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": list(spans)}]}]}


def test_spans_of_model_calls_are_requests_in_the_order_of_their_start(tmp_path: Path) -> None:
    conversation = {"gen_ai.conversation.id": {"stringValue": "c"}}
    tool = {"gen_ai.operation.name": {"stringValue": "execute_tool"}}
    finish = {"stringValue": "stop"}
    path = file_of(
        tmp_path,
        batch(
            otlp("b", str(START + 5 * SECOND), "20", "6", **conversation),
            otlp("t", str(START), "1", "1", **tool),
            otlp("n", str(START), None, None),
            otlp("h", str(START), "1", None),
        ),
        batch(otlp("a", str(START), 12, 5, **conversation)),
        {
            "name": "chat m",
            "context": {"trace_id": "0x1", "span_id": "f"},
            "start_time": "2023-11-14T22:13:21.5+00:00",
            "end_time": "2023-11-14T22:13:22Z",
            "attributes": {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.request.model": "m",
                "gen_ai.usage.prompt_tokens": 7,
                "gen_ai.usage.completion_tokens": 3,
                "gen_ai.response.finish_reasons": ["stop"],
            },
        },
        otlp(
            "e",
            str(START + 6 * SECOND),
            "9",
            None,
            status={"code": 2},
            **{"gen_ai.response.finish_reasons": {"arrayValue": {"values": [finish]}}},
        ),
    )
    workload = read_workload(path)
    assert workload.header.timing == "open"
    served = {"service_ns": SECOND, "kind": "chat"}
    assert list(workload) == [
        Turn("a", "c", 1, 12, 5, arrival_ns=0, **served),
        Turn(
            *("f", "f", 1, 7, 3),
            arrival_ns=1_500_000_000,
            service_ns=500_000_000,
            model="m",
            kind="text_completion",
            stop="stop",
        ),
        Turn("b", "c", 2, 20, 6, arrival_ns=5 * SECOND, **served),
        Turn("e", "e", 1, 9, 0, arrival_ns=6 * SECOND, stop="stop", **served),
    ]
    list(workload)  # what is left out is counted anew
    assert workload.left_out == {
        "span of another operation than a reply": 1,
        "span without token counts": 1,
        "span without output tokens that did not fail": 1,
    }


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (otlp("a", str(START), "1", "1"), "request_id: 'a' came before"),
        (otlp("b", "x", "1", "1"), "startTimeUnixNano: "),
        (otlp("b", None, "1", "1"), "startTimeUnixNano: missing"),
        (otlp("b", -1, "1", "1"), "startTimeUnixNano: "),
        (otlp("b", "9" * 4300, "1", "1"), "startTimeUnixNano: "),
        (otlp("b", "14/11/2023 22:13", "1", "1"), "startTimeUnixNano: "),
        (otlp("b", str(START), "-1", "1"), "gen_ai.usage.input_tokens: "),
        (otlp("b", str(START), "1", 1.5), "gen_ai.usage.output_tokens: "),
        (otlp("b", str(START), "1", "1", endTimeUnixNano="1"), "endTimeUnixNano: before"),
        (otlp(None, str(START), "1", "1"), "spanId: "),
        (
            otlp("b", str(START), "1", "1", attributes=[{"key": TOKENS, "value": {"int": 1}}]),
            f"{TOKENS}: a value of no kind that is known",
        ),
        (otlp("b", str(START), "1", "1", attributes="x"), "attributes: "),
        (otlp("b", str(START), "1", "1", attributes=[{"key": 1}]), "attributes: "),
        ({"resourceSpans": {}}, "resourceSpans: not a list of objects"),
        ({"resourceSpans": [{"scopeSpans": [1]}]}, "scopeSpans: "),
        ({"resourceSpans": [{"scopeSpans": [{"spans": 1}]}]}, "spans: "),
        ("7", "not a JSON object"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_broken_span_is_refused(tmp_path: Path, row: Any, where: str) -> None:
    path = file_of(tmp_path, otlp("a", str(START), "1", "1"), row)
    assert refusal(path, "otel").startswith(f":2: {where}")


# ---------------------------------------------------------------------- vLLM's result

RESULT: dict[str, Any] = {
    "date": "20261121-120000",
    "model_id": "m",
    "duration": 9.5,
    "request_throughput": 0.2,
    "input_lens": [12, 30],
    "output_lens": [3, 0],
    "ttfts": [0.25, 0.0],
    "itls": [[0.5, 0.25], []],
    "start_times": [101.5, 101.0],
}


def result(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in {**RESULT, **values}.items() if value is not None}


@pytest.mark.parametrize("indent", [None, 1])
def test_what_a_benchmark_sent_is_replayed_at_its_own_times(
    tmp_path: Path, indent: int | None
) -> None:
    workload = read_workload(file_of(tmp_path, json.dumps(RESULT, indent=indent)))
    assert workload.header.timing == "open"
    assert list(workload) == [
        Turn("r0000001", "r0000001", 1, 30, 0, arrival_ns=0, model="m"),
        Turn(
            *("r0000000", "r0000000", 1, 12, 3),
            arrival_ns=500_000_000,
            service_ns=SECOND,
            model="m",
        ),
    ]


def test_without_start_times_the_scenario_says_when(tmp_path: Path) -> None:
    bare = result(start_times=None, ttfts=None, itls=None, model_id=None)
    workload = read_workload(file_of(tmp_path, bare))
    assert workload.header.timing == "closed"
    assert "when requests were sent" in workload.header.lost
    assert [(t.input_tokens, t.arrival_ns, t.service_ns) for t in workload] == [
        (12, None, None),
        (30, None, None),
    ]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"input_lens": None}, ": input_lens: missing; save the result with --save-detailed"),
        ({"output_lens": [1]}, ": output_lens: 1 entries, input_lens has 2"),
        ({"output_lens": {}}, ": output_lens: "),
        ({"input_lens": [1, -1]}, ": input_lens[1]: "),
        ({"input_lens": [1, "2"]}, ": input_lens[1]: "),
        ({"ttfts": ["x", 0]}, ": ttfts[0]: "),
        ({"itls": [[-1], []]}, ": itls[0]: "),
        ({"itls": [7, []]}, ": itls[0]: "),
        ({"start_times": [1, True]}, ": start_times[1]: "),
        ({"model_id": 7}, ": model_id: "),
    ],
    ids=str,
)
def test_a_broken_result_is_refused(tmp_path: Path, values: dict[str, Any], where: str) -> None:
    path = file_of(tmp_path, result(**values))
    assert refusal(path, "vllm-bench").startswith(where)
