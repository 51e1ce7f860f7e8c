"""Real runs of others: per-request records as five tools write them, and what is known about the engine.

    vllm-bench       one JSON of `vllm bench serve --save-result --save-detailed` (vllm/benchmarks/serve.py):
                     input_lens, output_lens, ttfts, itls, start_times, errors, max_concurrency, request_rate
    llmservingsim    `requests.jsonl` of its vLLM bench (casys-kaist/LLMServingSim): input_toks, output_toks,
                     queued_ts, first_token_ts, last_token_ts, stamps of the engine itself; `meta.json` beside
                     it has the engine's limits
    blis             TraceV2 data, a CSV (inference-sim/inference-sim, sim/workload/tracev2.go): send_time_us,
                     first_chunk_time_us, last_chunk_time_us, input_tokens, output_tokens, status
    aiperf           `profile_export.jsonl` (ai-dynamo/aiperf, working with profile exports)
    inference-perf   `per_request_lifecycle_metrics.json` (kubernetes-sigs/inference-perf): start_time, end_time,
                     info with input_tokens, output_tokens, output_token_times, flat or in two parts

Requests that failed are left out and counted. Times are seconds here, from the first request on.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import InputError
from traces.strict import quoted, reason, shown_path


class Measured(NamedTuple):
    """One request that was served. `arrival_s`: when the client sent it, or the engine queued it."""

    name: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float | None:
        """Time of an output token after the first; None if there is none."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True)
class RealRun:
    """What one file says. `limits`: scenario values that it recorded. `inside`: stamps are the engine's
    own, so that nothing beyond it is in them. `concurrency`: requests the client keeps under way."""

    name: str
    tool: str
    requests: tuple[Measured, ...]
    failed: int = 0
    inside: bool = False
    concurrency: int | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


class _Row:
    """One record: numbers out of it, or an error naming file, record and field."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{where}: not a mapping")
        self.data = data
        self.where = where

    def number(self, *path: str) -> float:
        value: Any = self.data
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(f"{self.where}: {'.'.join(path)}: no number")
        return float(value)

    def tokens(self, *path: str) -> int:
        value = self.number(*path)
        if not value.is_integer() or not 0 < value < 1 << 24:
            raise InputError(f"{self.where}: {'.'.join(path)}: {value:g} is no number of tokens")
        return int(value)

    def served(
        self, name: str, start: float, first: float, end: float, tokens: tuple[int, int]
    ) -> Measured:
        if not start <= first <= end:
            raise InputError(
                f"{self.where}: starts at {start:g}, first token at {first:g}, ends at {end:g}"
            )
        return Measured(name, start, *tokens, first - start, end - start)


def read(path: Path) -> RealRun:
    """The run in a file, whichever of the tools wrote it. Raises InputError naming file and field."""
    text = _text(path)
    head = text.lstrip()[:4096]
    shown = shown_path(path)
    if "first_chunk_time_us" in head.split("\n", 1)[0]:
        return _blis(path, csv.DictReader(text.splitlines()), shown)
    if head.startswith("["):
        return _inference_perf(path, _json(text, shown), shown)
    first = _json(text.split("\n", 1)[0], shown, strict=False)
    if isinstance(first, dict) and "queued_ts" in first:
        return _llmservingsim(path, _lines(text, shown))
    if isinstance(first, dict) and "metrics" in first:
        return _aiperf(path, _lines(text, shown))
    data = _json(text, shown)
    if isinstance(data, dict) and {"ttfts", "input_lens"} & set(data):
        return _vllm_bench(path, data, shown)
    raise InputError(
        f"{shown}: per-request records of none of vllm bench, LLMServingSim, BLIS TraceV2, AIPerf,"
        " inference-perf"
    )


def _vllm_bench(path: Path, data: dict[str, Any], shown: str) -> RealRun:
    columns = ["input_lens", "output_lens", "ttfts", "itls"]
    for name in columns:
        if not isinstance(data.get(name), list):
            raise InputError(f"{shown}: {name}: missing; run vllm bench serve with --save-detailed")
    count = len(data["ttfts"])
    at_once = data.get("request_rate") in ("inf", "Infinity", math.inf)
    starts = data.get("start_times")
    if not isinstance(starts, list):
        if not at_once:
            raise InputError(f"{shown}: start_times: missing, so nobody knows when requests came")
        starts = [0.0] * count
    errors = data.get("errors") or [""] * count
    if {len(data[name]) for name in columns} | {len(starts), len(errors)} != {count}:
        raise InputError(f"{shown}: columns of different lengths")
    cap = data.get("max_concurrency")
    requests, failed = [], 0
    for index in range(count):
        row = _Row({name: data[name][index] for name in columns}, f"{shown}: request {index}")
        gaps = row.data["itls"]
        if errors[index] or not row.number("ttfts"):
            failed += 1
            continue
        if not isinstance(gaps, list) or not all(isinstance(gap, int | float) for gap in gaps):
            raise InputError(f"{row.where}: itls: no list of seconds")
        start = (
            0.0
            if at_once and cap
            else _Row({"start_times": starts[index]}, row.where).number("start_times")
        )
        first = start + row.number("ttfts")
        tokens = row.tokens("input_lens"), row.tokens("output_lens")
        requests.append(row.served(str(index), start, first, first + sum(gaps), tokens))
    return _run(
        path,
        "vllm-bench",
        requests,
        failed,
        concurrency=cap if isinstance(cap, int) and cap > 0 else None,
    )


def _llmservingsim(path: Path, rows: Iterable[_Row]) -> RealRun:
    requests = [
        row.served(
            str(row.data.get("request_id")),
            row.number("queued_ts"),
            row.number("first_token_ts"),
            row.number("last_token_ts"),
            (row.tokens("input_toks"), row.tokens("output_toks")),
        )
        for row in rows
    ]
    limits: dict[str, Any] = {}
    meta = path.with_name("meta.json")
    if meta.is_file():
        told = _Row(_json(_text(meta), shown_path(meta)), shown_path(meta))
        cache, engine = told.data.get("kv_cache") or {}, told.data.get("engine_kwargs") or {}
        for section, name, ours in (
            (cache, "num_gpu_blocks", "pool.device_blocks"),
            (cache, "block_size", "pool.block_size"),
            (engine, "max_num_seqs", "limits.max_num_seqs"),
            (engine, "max_num_batched_tokens", "limits.max_num_batched_tokens"),
            (engine, "max_model_len", "limits.max_model_len"),
        ):
            if section.get(name) is not None:
                limits[ours] = int(_Row(section, f"{shown_path(meta)}").number(name))
    return _run(path, "llmservingsim", requests, 0, inside=True, limits=limits)


def _blis(path: Path, rows: Iterable[dict[str, Any]], shown: str) -> RealRun:
    requests, failed = [], 0
    for line, data in enumerate(rows, start=2):
        row = _Row(data, f"{shown}:{line}")
        if data.get("status") != "ok":
            failed += 1
            continue
        sent = row.number("send_time_us") or row.number("arrival_time_us")
        requests.append(
            row.served(
                str(data.get("request_id")),
                sent / 1e6,
                row.number("first_chunk_time_us") / 1e6,
                row.number("last_chunk_time_us") / 1e6,
                (row.tokens("input_tokens"), row.tokens("output_tokens")),
            )
        )
    return _run(path, "blis", requests, failed)


def _aiperf(path: Path, rows: Iterable[_Row]) -> RealRun:
    requests, failed = [], 0
    for number, row in enumerate(rows):
        if row.data.get("error") or (row.data.get("metadata") or {}).get("was_cancelled"):
            failed += 1
            continue
        start = row.number("metadata", "request_start_ns") / 1e9
        name = (row.data.get("metadata") or {}).get("x_request_id")
        requests.append(
            row.served(
                str(name or number),
                start,
                start + _milliseconds(row, "time_to_first_token"),
                start + _milliseconds(row, "request_latency"),
                (
                    row.tokens("metrics", "input_sequence_length", "value"),
                    row.tokens("metrics", "output_sequence_length", "value"),
                ),
            )
        )
    return _run(path, "aiperf", requests, failed)


def _milliseconds(row: _Row, name: str) -> float:
    unit = ((row.data.get("metrics") or {}).get(name) or {}).get("unit")
    scale = {"ms": 1e3, "s": 1.0, "sec": 1.0, "us": 1e6, "ns": 1e9}.get(str(unit))
    if scale is None:
        raise InputError(
            f"{row.where}: metrics.{name}.unit: {quoted(str(unit))} is no unit of time"
        )
    return row.number("metrics", name, "value") / scale


def _inference_perf(path: Path, data: Any, shown: str) -> RealRun:
    requests, failed = [], 0
    for number, one in enumerate(data):
        row = _Row(one, f"{shown}: request {number}")
        if one.get("error"):
            failed += 1
            continue
        info = one.get("info") or {}
        response = info.get("response_metrics") or info
        times = response.get("output_token_times") if isinstance(response, dict) else None
        if not isinstance(times, list) or not times:
            failed += 1
            continue
        flat = _Row({**one, "first": times[0], "last": times[-1], **response}, row.where)
        prompt = ("info", "request_metrics", "text", "input_tokens")
        sent = row.tokens(*(("info", "input_tokens") if "input_tokens" in info else prompt))
        requests.append(
            flat.served(
                str(number),
                flat.number("start_time"),
                flat.number("first"),
                flat.number("last"),
                (sent, flat.tokens("output_tokens")),
            )
        )
    return _run(path, "inference-perf", requests, failed)


def _run(path: Path, tool: str, requests: list[Measured], failed: int, **more: Any) -> RealRun:
    if not requests:
        raise InputError(f"{shown_path(path)}: no request was served")
    begin = min(request.arrival_s for request in requests)
    moved = [one._replace(arrival_s=one.arrival_s - begin) for one in requests]
    moved.sort(key=lambda one: (one.arrival_s, one.name))
    return RealRun(path.stem, tool, tuple(moved), failed, **more)


# ---------------------------------------------------------------------- files


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None


def _json(text: str, shown: str, *, strict: bool = True) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if not strict:
            return None
        raise InputError(f"{shown}: no JSON: {reason(error)}") from None


def _lines(text: str, shown: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _Row(_json(line, f"{shown}:{number}"), f"{shown}:{number}")
