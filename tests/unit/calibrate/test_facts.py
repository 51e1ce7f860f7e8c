"""What goes into a profile's provenance about the machine itself."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from calibrate.facts import QUERIES, cpu_facts, gpu_facts

SAID = "570.86.15, 1980 MHz, 1980 MHz, 2619 MHz, 700.00 W, 5, 5, 16\n"


def test_a_gpu_tells_driver_clocks_and_link() -> None:
    asked: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        return SAID

    found = gpu_facts(3, run)
    assert found["driver"] == "570.86.15"
    assert found["memory_clock"] == "2619 MHz"
    assert (found["link_generation"], found["link_width"]) == ("5", "16")
    assert "--id=3" in asked[0]
    assert set(found) == set(QUERIES)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("nvidia-smi"),
        PermissionError("nvidia-smi"),
        subprocess.CalledProcessError(9, "nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 20),
    ],
)
def test_without_the_tool_nothing_is_invented(error: Exception) -> None:
    def run(_: Sequence[str]) -> str:
        raise error

    assert gpu_facts(0, run) == {}


def test_an_answer_of_another_length_is_not_guessed_at() -> None:
    assert gpu_facts(0, lambda _: "570.86.15, 1980 MHz\n") == {}


def test_a_cpu_tells_its_name_and_the_clock_of_its_first_core(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor: 0\nmodel name\t: A CPU: fast\ncpu MHz\t\t: 2900.0\ncpu MHz\t: 1.0\n"
    )
    found = cpu_facts(info)
    assert found["cpu"] == "A CPU: fast"
    assert found["mhz"] == "2900.0"
    assert int(found["cores"]) > 0
    assert cpu_facts(tmp_path / "none")["cpu"]
