"""A small valid file of every format, written by hand, and how to read it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from traces.readers.base import Aids
from traces.readers.sharegpt import ROLES, USER


def words(text: str) -> Sequence[int]:
    """A tokenizer for tests: every word is a token."""
    return [zlib.crc32(word.encode()) for word in text.split()]


#: What texts are read with; other formats do not look at it.
AIDS = Aids(tokenizer=words)
COLUMNS = "arrival=ts:ms,input=prompt,output=reply,session=chat,client=user"


def aids_for(name: str | None) -> Aids:
    """What a file of that format is read with; None: a format to be found out."""
    return AIDS._replace(columns=COLUMNS) if name == "columns" else AIDS


VALID = {
    "native": (
        '{"format": "fastswitch-workload/2", "source": "a test", "timing": "open", "seed": 3}\n'
        '{"request_id": "a", "turn": 1, "input_tokens": 5, "output_tokens": 6, "arrival_s": 0.5}\n'
        '{"request_id": "b", "input_tokens": 20, "output_tokens": 6, "arrival_s": 1e0,'
        ' "priority": -1, "hash_ids": [1, 2], "components": [["user", "c", 5]], "model": "m"}\n'
        '{"request_id": "c", "session_id": "b", "turn": 2, "input_tokens": 9, "output_tokens": 1,'
        ' "arrival_s": 1.5, "parent_id": "a", "hash_ids": "1-3;9"}\n'
    ),
    "azure": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    ),
    "burstgpt": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n"
        "19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n"
        "19440161.0,,,ChatGPT,36,0,36,API log\n"
        "19440162.5,1722ac82-0a46,2,GPT-4,1400,29,1429,Conversation log\n"
    ),
    "mooncake": (
        '{"timestamp": 0, "input_length": 513, "output_length": 5, "hash_ids": [0, 14]}\n'
        '{"timestamp": 3000.5, "input_length": 512, "output_length": 0, "session_id": "s"}\n'
    ),
    "qwen-bailian": (
        '{"chat_id": 0, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 33,'
        ' "output_length": 5, "type": "text", "turn": 1, "hash_ids": [7, 8, 9]}\n'
        '{"chat_id": 4, "parent_chat_id": 0, "timestamp": 0.206, "input_length": 40,'
        ' "output_length": 7, "type": "search", "turn": 2, "hash_ids": [7, 8, 10]}\n'
    ),
    "ragpulse": (
        '{"timestamp": "82", "input_length": 31, "output_length": 9, "hash_ids": {"sys_prompt":'
        ' [1, 2], "passages_ids": [3], "history": [], "web_search": [], "user_input": [4]},'
        ' "session_id": "a"}\n'
        '{"timestamp": "93", "input_length": 40, "output_length": 8, "hash_ids": {"sys_prompt":'
        ' [1], "passages_ids": [], "history": [5], "web_search": [6], "user_input": [7]},'
        ' "session_id": "a"}\n'
    ),
    "sharegpt": "conversation_id,turn,user_tokens,assistant_tokens\na,1,33,255\na,2,35,328\n",
    "sharegpt-text": (
        '[{"id": "x_0", "conversations": [{"from": "human", "value": "how are you"},'
        ' {"from": "gpt", "value": "well"}]},\n'
        '{"id": "y", "conversations": [{"from": "human", "value": "a b"}]},'
        '{"id": "x_2", "conversations": [{"from": "human", "value": "and"},'
        ' {"from": "gpt", "value": "no more"}]}]\n'
    ),
    "kv-cache-tester-table": (
        "id,turn,t,type,model,in,out,api_time,think_time,stop,block_size,tool_tokens,"
        "system_tokens,n_blocks,shared_prefix_blocks,hash_id_ranges\n"
        "s,1,0.0,n,m,130,9,7.34,0.0,tool_use,64,40,20,3,0,1-3\n"
        "s,2,19.0,n,m,200,8,9.19,12.0,end_turn,64,40,20,4,3,1-3;9\n"
    ),
    "kv-cache-tester": (
        '{"id": "s", "models": ["m"], "block_size": 64, "tool_tokens": 40, "requests": [\n'
        '{"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 9, "hash_ids": [1, 2, 3]},\n'
        '{"t": 2.0, "type": "subagent", "agent_id": "x", "requests": [\n'
        '{"t": 0.0, "type": "n", "in": 64, "out": 1, "hash_ids": [1], "api_time": 0.5}]},\n'
        '{"t": 9.0, "type": "n", "in": 64, "out": 8, "hash_ids": [1], "think_time": 1}]}\n'
    ),
    "lmcache-agent": (
        '{"timestamp": 1760428436442742, "input": "fix it", "output": "ls", "session_id": "a"}\n'
        '{"timestamp": 1760428436942742, "input": "fix it now", "output": "", "session_id": "a"}\n'
        '{"timestamp": 1760428436842742, "input": "hello", "output": "yes", "session_id": "b"}\n'
    ),
    "vtc-arena": (
        "req_id,req_time,adapter_dir,prompt_len,output_len\n"
        "0,0.0,dummy-13,13,199\n1,0.20793754160099873,dummy-2,36,0\n"
    ),
    "token-lengths": (
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
        "74,918,992,0.0806100217864923\n290,905,1195,0.3204419889502762\n"
    ),
    "splitwise-sim": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,"
        "token_size\n0,2,0,1,1,4096,32\n1,2,7,3.5,1,2048,0\n"
    ),
    "aiperf-export": (
        '{"metadata": {"x_request_id": "a", "conversation_id": "s", "request_start_ns": 200,'
        ' "benchmark_phase": "profiling"}, "metrics": {"input_sequence_length": {"value": 25,'
        ' "unit": "tokens"}, "output_sequence_length": {"value": 3, "unit": "tokens"},'
        ' "request_latency": {"value": 1.5, "unit": "ms"}}, "error": null}\n'
        '{"metadata": {"x_request_id": "b", "conversation_id": "s", "request_start_ns": 100,'
        ' "cancellation_time_ns": 150}, "metrics": {"error_isl": {"value": 20}}}\n'
    ),
    "columns": (
        "chat,ts,user,prompt,reply,remark\na,1500,u,12,3,x\na,2500.5,u,20,4,\n,2600,v,7,0,y\n"
    ),
    "vllm-bench": (
        '{"model_id": "m", "duration": 9.5, "input_lens": [12, 30], "output_lens": [3, 0],'
        ' "start_times": [101.5, 101.0], "ttfts": [0.25, 0.0], "itls": [[0.5, 0.25], []]}\n'
    ),
    "otel": (
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": "0a", "startTimeUnixNano":'
        ' "1700000000000000000", "endTimeUnixNano": "1700000001000000000", "attributes":'
        ' [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},'
        ' {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "5"}},'
        ' {"key": "gen_ai.conversation.id", "value": {"stringValue": "c"}}]}]}]}]}\n'
        '{"span_id": "0b", "start_time": "2023-11-14T22:13:22Z", "end_time":'
        ' "2023-11-14T22:13:23.5Z", "attributes": {"gen_ai.operation.name": "chat",'
        ' "gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 7}}\n'
    ),
}


def num_rows(name: str, text: str, loads: Any) -> int:
    """How many requests a file of that format holds, counted without the reader. `loads` reads
    JSON."""
    if name == "kv-cache-tester":
        return _num_requests(loads(text)["requests"])
    if name == "vllm-bench":
        return len(loads(text)["input_lens"])
    if name == "sharegpt-text":
        return _num_answers(_objects(text))
    if name == "otel":
        return sum(_num_spans(row) for row in _objects(text))
    lines = text.split("\n")
    while not lines[-1].strip():
        lines.pop()  # empty lines may end it
    if name == "native":
        return len(lines) - ("format" in loads(lines[0]))
    if name == "aiperf-export":
        return sum(_has_length(loads(line)) for line in lines)
    return len(lines) - (name not in ("mooncake", "qwen-bailian", "ragpulse", "lmcache-agent"))


def _objects(text: str) -> list[dict[str, Any]]:
    """Objects of one JSON list, or that follow one another."""
    found: list[dict[str, Any]] = []
    text = text.removeprefix("\ufeff").strip(" \t\r\n")
    while text:
        value, at = json.JSONDecoder().raw_decode(text)
        found.extend(value if isinstance(value, list) else [value])
        text = text[at:].strip(" \t\r\n")
    return found


def _has_length(row: dict[str, Any]) -> bool:
    """Whether a record of AIPerf's is a request of the benchmark with a length."""
    lengths = (row["metrics"].get(key) for key in ("input_sequence_length", "error_isl"))
    known = any(isinstance(one, dict) and one.get("value") is not None for one in lengths)
    return known and row["metadata"].get("benchmark_phase") != "warmup"


def _num_requests(requests: list[dict[str, Any]]) -> int:
    """Requests of a session, those of its sub-agents included."""
    return sum(
        _num_requests(request["requests"]) if request.get("type") == "subagent" else 1
        for request in requests
    )


def _num_spans(row: dict[str, Any]) -> int:
    """Spans of a line that are requests."""
    spans = row.get("spans", [row])
    batches = row.get("resourceSpans", row.get("resource_spans"))
    if batches is not None:
        spans = [
            span
            for batch in batches
            for scope in batch.get("scopeSpans", batch.get("scope_spans", []))
            for span in scope.get("spans", [])
        ]
    return sum(_is_request(span) for span in spans)


def _is_request(span: dict[str, Any]) -> bool:
    found = span.get("attributes", {})
    if isinstance(found, list):
        found = {
            item["key"]: next(iter((item.get("value") or {"": None}).values()), None)
            for item in found
            if isinstance(item.get("value", {}), (dict, type(None)))
        }
    given, got = (found.get(f"gen_ai.usage.{side}_tokens") for side in ("input", "output"))
    is_reply = found.get("gen_ai.operation.name", "chat") == "chat"
    return is_reply and given is not None and got is not None


def _num_answers(records: list[dict[str, Any]]) -> int:
    """Turns after joining the chunks of a conversation and the messages of one role."""
    chunks: dict[str, list[tuple[int, list[bool]]]] = {}
    for record in records:
        if not record["conversations"]:
            continue
        base, _, offset = str(record.get("id")).rpartition("_")
        is_chunk = bool(base) and offset.isascii() and offset.isdigit() and len(offset) <= 9
        said = [ROLES[message["from"]] == USER for message in record["conversations"]]
        key = (int(offset), said) if is_chunk else (-1, said)
        chunks.setdefault(base if is_chunk else str(record.get("id")), []).append(key)
    total = 0
    for parts in chunks.values():
        said = [side for _, part in sorted(parts, key=lambda part: part[0]) for side in part]
        begins = [True, *(not before for before in said)]
        total += sum(side and begin for side, begin in zip(said, begins, strict=False))
        total += bool(said) and not said[0]
    return total
