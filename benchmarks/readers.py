"""How fast every reader reads, and how much memory a conversion takes.

    python benchmarks/readers.py [--rows N] [READER ...]

Writes files of N rows (1,000,000) in a temporary folder, reads each in this process (CPU seconds) and
converts each in a process of its own, whose peak of resident memory is reported. Formats that hold
texts, whole documents or very long prompts get fewer rows, as the table says. Ends with exit code 1
if a row is missing or a conversion of a million rows needs 500 MB. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from traces.readers.base import Aids
from traces.readers.catalog import read_workload

Lines = Iterator[str]
LIMIT_MB = 500
CHILD = """
import resource, sys, zlib
from pathlib import Path
from traces.shaping.convert import convert
from traces.readers.base import Aids
words = lambda text: [zlib.crc32(word.encode()) for word in text.split()]
found = convert([Path(sys.argv[1])], Path(sys.argv[2]), name=sys.argv[3], aids=Aids(words))
print(found.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def words(text: str) -> Sequence[int]:
    return [zlib.crc32(word.encode()) for word in text.split()]


def numbers(rows: int) -> Iterator[tuple[int, int, int]]:
    """Row number, prompt and reply tokens."""
    draw = random.Random(1)
    for k in range(rows):
        yield k, int(draw.lognormvariate(6, 1)) + 1, int(draw.lognormvariate(5, 1)) + 1


def native(rows: int) -> Lines:
    yield '{"format": "fastswitch-workload/2", "timing": "open"}'
    for k, given, got in numbers(rows):
        yield (
            f'{{"request_id":"q{k}","session_id":"q{k}","turn":1,"input_tokens":{given},'
            f'"output_tokens":{got},"arrival_s":{k / 4}}}'
        )


def azure(rows: int) -> Lines:
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for k, given, got in numbers(rows):
        hour, second = divmod(k // 50, 3600)
        yield (
            f"2024-05-{10 + hour // 24:02d} {hour % 24:02d}:{second // 60:02d}:{second % 60:02d}"
            f".{k % 50 * 20000:06d}+00:00,{given},{got}"
        )


def burstgpt(rows: int) -> Lines:
    yield "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    for k, given, got in numbers(rows):
        session = f"{k // 3:08x}-0a46" if k % 20 < 3 else ""
        yield f"{19440110 + k}.0,{session},{got // 20},ChatGPT,{given},{got},{given + got},API log"


def mooncake(rows: int) -> Lines:
    for k, given, got in numbers(rows):
        ids = [0, *range(9 * k, 9 * k + -(-given // 512) - 1)]
        yield json.dumps(
            {
                "timestamp": 3000 * (k // 10),
                "input_length": given,
                "output_length": got,
                "hash_ids": ids,
            }
        )


def qwen(rows: int) -> Lines:
    for k, given, got in numbers(rows):
        ids = list(range(30 * k, 30 * k + -(-given // 16)))
        yield json.dumps(
            {
                "chat_id": k,
                "parent_chat_id": k - 1 if k % 3 else -1,
                "timestamp": k / 8,
                "input_length": given,
                "output_length": got,
                "type": "text",
                "turn": 1 + k % 3,
                "hash_ids": ids,
            }
        )


def ragpulse(rows: int) -> Lines:
    for k, given, got in numbers(rows):
        parts = {"sys_prompt": [1, 2], "passages_ids": [k], "history": [3], "web_search": []}
        yield json.dumps(
            {
                "timestamp": str(k // 2),
                "input_length": given,
                "output_length": got,
                "hash_ids": {**parts, "user_input": [k]},
                "session_id": f"s{k // 2}",
            }
        )


def sharegpt(rows: int) -> Lines:
    yield "conversation_id,turn,user_tokens,assistant_tokens"
    for k, given, got in numbers(rows):
        yield f"c{k // 5},{k % 5 + 1},{given},{got}"


def sharegpt_text(rows: int) -> Lines:
    yield "["
    for k, given, got in numbers(rows // 2):
        said = [
            {"from": "human", "value": "word " * (given // 4)},
            {"from": "gpt", "value": "word " * (got // 4)},
        ]
        comma = "," if k < rows // 2 - 1 else ""
        yield json.dumps({"id": f"c{k}_0", "conversations": said * 2}) + comma
    yield "]"


def kv_cache_tester_table(rows: int) -> Lines:
    yield (
        "id,turn,t,type,model,in,out,api_time,think_time,stop,block_size,tool_tokens,system_tokens,"
        "n_blocks,shared_prefix_blocks,hash_id_ranges"
    )
    for k, _, got in numbers(rows):
        tokens = 6400 * (1 + k % 20)
        blocks = tokens // 64
        yield (
            f"s{k // 20},{k % 20 + 1},{9.0 * (k % 20)},n,m,{tokens},{got},7.25,2.0,tool_use,64,4000,"
            f"2000,{blocks},{blocks - 100},1-{blocks}"
        )


def vtc_arena(rows: int) -> Lines:
    yield "req_id,req_time,adapter_dir,prompt_len,output_len"
    for k, given, got in numbers(rows):
        yield f"{k},{k * 0.4:.6f},lora-{given % 27},{given},{got}"


def token_lengths(rows: int) -> Lines:
    yield "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio"
    for _, given, got in numbers(rows):
        yield f"{given},{got},{given + got},{given / got}"


def lmcache_agent(rows: int) -> Lines:
    for k, given, got in numbers(rows):
        prompt = "word " * (100 * (1 + k % 20) + given % 50)
        yield json.dumps(
            {
                "timestamp": 1760428436000000 + 1000000 * k,
                "input": prompt,
                "output": "word " * (got // 4),
                "session_id": f"s{k // 20}",
            }
        )


def vllm_bench(rows: int) -> Lines:
    drawn = list(numbers(rows))
    yield json.dumps(
        {
            "model_id": "m",
            "input_lens": [given for _, given, _ in drawn],
            "output_lens": [got for _, _, got in drawn],
            "start_times": [1000 + k / 8 for k, _, _ in drawn],
            "ttfts": [0.25] * rows,
            "itls": [[0.02] * 20] * rows,
        }
    )


def otel(rows: int) -> Lines:
    for k, given, got in numbers(rows):
        begin = 1_700_000_000_000_000_000 + 250_000_000 * k
        yield json.dumps(
            {
                "spanId": f"{k:016x}",
                "startTimeUnixNano": str(begin),
                "endTimeUnixNano": str(begin + 10**9),
                "attributes": [
                    {"key": "gen_ai.usage.input_tokens", "value": {"intValue": str(given)}},
                    {"key": "gen_ai.usage.output_tokens", "value": {"intValue": str(got)}},
                    {"key": "gen_ai.conversation.id", "value": {"stringValue": f"c{k // 4}"}},
                ],
            }
        )


#: Reader -> its file, and what part of the rows is asked of it.
FILES: dict[str, tuple[Callable[[int], Lines], float]] = {
    "native": (native, 1),
    "azure": (azure, 1),
    "burstgpt": (burstgpt, 1),
    "mooncake": (mooncake, 1),
    "qwen-bailian": (qwen, 1),
    "ragpulse": (ragpulse, 1),
    "sharegpt": (sharegpt, 1),
    "kv-cache-tester-table": (kv_cache_tester_table, 0.1),
    "vtc-arena": (vtc_arena, 1),
    "token-lengths": (token_lengths, 1),
    "otel": (otel, 1),
    "sharegpt-text": (sharegpt_text, 0.05),
    "lmcache-agent": (lmcache_agent, 0.02),
    "vllm-bench": (vllm_bench, 0.1),
}
#: Containers that the native file is converted to and read from.
CONTAINERS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")


def timed(path: Path, name: str) -> tuple[int, float]:
    """Rows of a file, and the CPU seconds that reading took."""
    begin = time.process_time()
    rows = sum(1 for _ in read_workload(path, name, Aids(words)))
    return rows, time.process_time() - begin


def converted(path: Path, out: Path, name: str) -> tuple[int, int, float]:
    """Rows, peak MB and seconds of a conversion in a process of its own."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(out), name],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    rows, peak = map(int, done.stdout.split())
    return rows, peak, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(FILES)}")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print("| reader | rows | file MB | rows/s read | convert to | s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reader in options.readers or FILES:
            make, share = FILES[reader]
            rows = int(options.rows * share)
            path = folder / reader
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in make(rows))
            ends = CONTAINERS if reader == "native" else ("parquet",)
            for end in ends:
                measure(reader, path, rows, folder / f"out.{end}", found)
            path.unlink()
    print(json.dumps(found))


def measure(
    reader: str, path: Path, rows: int, out: Path, found: dict[str, dict[str, float]]
) -> None:
    """One line of the table: read `path`, then convert it; a container is read back as well."""
    size = path.stat().st_size / 1e6
    count, peak, seconds = converted(path, out, reader)
    read, cpu = timed(path if reader != "native" else out, reader)
    kind = out.name.removeprefix("out.")
    line = f"{reader} {kind}" if reader == "native" else reader
    size = out.stat().st_size / 1e6 if reader == "native" else size
    print(
        f"| {line} | {rows:,} | {size:.1f} | {rows / cpu:,.0f} | {kind} | {seconds:.1f} | {peak} |",
        flush=True,
    )
    found[line] = {"rows": rows, "rows_per_s": round(rows / cpu), "peak_mb": peak}
    out.unlink()
    if count != rows or read != rows:
        sys.exit(f"{line}: {rows} rows, {read} read, {count} converted")
    if rows >= 1_000_000 and peak >= LIMIT_MB:
        sys.exit(f"{line}: {peak} MB, limit {LIMIT_MB}")


if __name__ == "__main__":
    main()
