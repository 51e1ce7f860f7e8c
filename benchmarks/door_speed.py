"""CPU of a whole door for each token it streams, and how late it is: `python benchmarks/door_speed.py`.

The simulated machine, scale 1, plain sockets for clients, in a process of their own. CPU is that of the server's
process over the whole session, idle waits included, divided by the tokens that clients counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_SETTINGS = (
    "order=fcfs",
    "pool.aging=none",
    "pool.device_blocks=40000",
    "limits.max_num_seqs=1024",
)


async def stream(port: int, tokens: int) -> int:
    """One client: how many tokens came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {"prompt": "hello " * 20, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    )
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    count = 0
    while part := await reader.read(1 << 16):
        count += part.count(b'"text":')
    writer.close()
    return count


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def measure(streams: int, tokens: int) -> dict[str, Any]:
    """One session."""

    async def all_of(port: int) -> int:
        return sum(await asyncio.gather(*(stream(port, tokens) for _ in range(streams))))

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-c", "import fastswitch; fastswitch.main()", "serve"]
        values = [word for value in _SETTINGS for word in ("--set", value)]
        with subprocess.Popen(
            [*command, "paper-8b-a10", *values, "--check", "off", "--out", str(run)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
            asyncio.run(all_of_few(port))
            before = cpu_s(process.pid)
            count = asyncio.run(all_of(port))
            used = cpu_s(process.pid) - before
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
        summary = json.loads((run / "run.json").read_text())
    late = summary["door"]["lateness_us"]
    return {
        "streams": streams,
        "tokens": count,
        "cpu_us_per_token": round(used / count * 1e6, 1),
        "late_p50_ms": late["p50"] / 1000,
        "late_p99_ms": late["p99"] / 1000,
        "late_max_ms": late["max"] / 1000,
    }


async def all_of_few(port: int) -> None:
    """Warm up."""
    await stream(port, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200)
    asked = parser.parse_args()
    rows = [measure(64, asked.tokens), measure(512, max(1, asked.tokens // 4))]
    print("| streams | tokens | CPU us a token | late P50 ms | P99 ms | max ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps({"door_speed": rows}))


if __name__ == "__main__":
    main()
