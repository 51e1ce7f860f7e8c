"""Describe a million requests: time and peak memory.

    python benchmarks/describe_large.py [--sessions N] [--hash-block TOKENS] [--cache BLOCKS]

Generates chat conversations until there are enough requests (about five each under the cap), writes
them in the native format to a temporary folder, and describes that file in a fresh process. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from traces.generators.catalog import make_generator
from traces.randomness import Streams
from traces.readers.native import write
from traces.workload_spec import build_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sessions", type=int, default=204_000)
    parser.add_argument("--hash-block", type=int)
    parser.add_argument("--cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jsonl"
        spec = build_spec(
            {
                "generator": "chat",
                "conversations": options.sessions,
                "rate": 5.0,
                "hash_block": options.hash_block,
            }
        )
        begin = time.perf_counter()
        rows = write(make_generator(spec).workload(Streams(0)), path)
        written = time.perf_counter() - begin
        size = path.stat().st_size
        command = [sys.executable, "-m", "fastswitch", "trace", "describe", str(path), "--json"]
        if options.cache:
            command += ["--cache", options.cache]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        described = time.perf_counter() - begin
    found = json.loads(done.stdout)
    assert found["requests"] == rows, (found["requests"], rows)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print("| requests | file MB | generate and write s | describe s | peak memory MB |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| {rows} | {size / 1e6:.0f} | {written:.0f} | {described:.0f} | {peak:.0f} |")
    result = {
        "requests": rows,
        "bytes": size,
        "write_s": round(written, 2),
        "describe_s": round(described, 2),
        "peak_mb": round(peak, 1),
        "prefix_cache": found["prefix_cache"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
