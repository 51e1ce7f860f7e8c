"""What the engine itself orders: each line taken out in turn, and a run over a late device notices."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from policy.errors import InvariantError
from realrun import engine as engine_module
from realrun import serve
from tests.helpers.fake_device import FakeDevice
from tests.helpers.planted import changed
from tests.helpers.real import ROOM, run, scenario, write_workload
from tests.helpers.swapping import one_thread

SEEDS = range(6)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    return write_workload(tmp_path / "w.jsonl", seed=11, sessions=6)


def goes_well(
    workload: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, int]:
    """Whether tokens are those of an unswapped run, whatever the device does; and barriers set."""
    expected = run(scenario(workload, pool={**ROOM, "device_blocks": 300}), deterministic=True)
    monkeypatch.setattr(serve, "Engine", module.Engine)
    barriers = 0
    for seed in SEEDS:
        device = FakeDevice(seed)
        set_before = device.barrier

        def counted(set_before: object = set_before) -> object:
            nonlocal barriers
            barriers += 1
            return set_before()  # type: ignore[operator]

        monkeypatch.setattr(device, "barrier", counted)
        monkeypatch.setattr(serve, "runtime_for", lambda _, device=device: device)
        system = ("vllm-0.3.3-keep", "+async", "fastswitch")[seed % 3]
        try:
            found = run(scenario(workload, system=system), deterministic=True)
        except InvariantError:
            return False, barriers
        if found.replies != expected.replies:
            return False, barriers
    return True, barriers


def test_over_a_late_device_the_engine_says_the_same(
    workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, barriers = goes_well(workload, engine_module, monkeypatch)
    assert well
    assert barriers > 100


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("            swap.wait(transfer.copy.copy_id for transfer in named)\n", ""),
        (
            "                if copy.direction is way:\n",
            "                if way is Direction.TO_HOST:\n",
        ),
        (
            "            lost = self._copy(plan)\n        stall",
            "            late = True\n        stall",
        ),
    ],
    ids=["waits-for-the-named-copies", "stores-end-before-loads-begin", "copies-before-kernels"],
)
def test_without_one_of_its_orders_it_does_not(
    workload: Path, monkeypatch: pytest.MonkeyPatch, line: str, instead: str
) -> None:
    planted = changed(engine_module, line, instead)
    assert not goes_well(workload, planted, monkeypatch)[0]


def test_a_step_sets_a_barrier_behind_itself(
    workload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU no kernel is late, so what is seen is that the barrier is missing."""
    planted = changed(engine_module, "        self.swap.set_barrier()\n", "")
    assert goes_well(workload, planted, monkeypatch)[1] <= len(SEEDS)
