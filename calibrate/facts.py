"""What a machine says of itself: driver, clocks and link of a GPU, name and speed of a CPU."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

#: Fields of `nvidia-smi --query-gpu`, by the name they get in a profile's provenance.
QUERIES = {
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "power_limit": "power.limit",
    "link_generation": "pcie.link.gen.current",
    "link_generation_max": "pcie.link.gen.max",
    "link_width": "pcie.link.width.current",
}
_CPU_INFO = Path("/proc/cpuinfo")
_WAIT_S = 20


def gpu_facts(index: int, run: Callable[[Sequence[str]], str] | None = None) -> dict[str, str]:
    """Driver, clocks and link as they are now; nothing where the tool is absent or refuses. A link
    at rest may show a lower generation than it has under load, so the largest is told too."""
    command = ["nvidia-smi", f"--id={index}", "--format=csv,noheader"]
    command.append(f"--query-gpu={','.join(QUERIES.values())}")
    try:
        text = (run or _run)(command)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in text.strip().split(",")]
    if len(values) != len(QUERIES):
        return {}
    return dict(zip(QUERIES, values, strict=True))


def cpu_facts(info: Path = _CPU_INFO) -> dict[str, str]:
    """Name, cores and clock of the first core as the system tells them."""
    found = {"cores": str(os.cpu_count())}
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        key = {"model name": "cpu", "cpu MHz": "mhz"}.get(name.strip())
        if key is not None:
            found.setdefault(key, value.strip())
    found.setdefault("cpu", platform.processor() or platform.machine())
    return found


def _run(command: Sequence[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_WAIT_S
    ).stdout
