"""V1's systems on the real executor: text is that of a plain run, blocks shared, swapped or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from realrun.engine import Engine
from realrun.graphs import Work
from sim.replay import replay
from tests.helpers.real import ROOM, Machine, Run, run, scenario
from tests.realrun.test_prefixes import write_workload

SYSTEMS = ("vllm-v1", "vllm-v1+swap", "vllm-v1-offload", "vllm-v1-offload-all")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def serve(path: Path, system: str, device_blocks: int, **named: Any) -> tuple[Run, Any]:
    limits = {"max_model_len": 60, "max_num_seqs": 6}
    pool = {**ROOM, "device_blocks": device_blocks, "aging": "none"}
    loaded = scenario(
        path, system=system, pool=pool, limits=limits, order="fcfs", priority={"pattern": "none"}
    )
    return run(loaded, deterministic=True, **named), loaded


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    path = write_workload(tmp_path_factory.mktemp("v1") / "w.jsonl")
    return path, serve(path, "paged-keep", 300)[0].replies


@pytest.mark.parametrize("system", SYSTEMS)
def test_text_is_that_of_a_plain_run_and_the_run_is_replayed(
    plain: tuple[Path, dict[str, list[int]]], system: str
) -> None:
    path, expected = plain
    found, loaded = serve(path, system, 16)
    assert found.replies == expected
    assert found.metrics["preemptions"] > 0
    facts = found.machine.scheduler.engine.facts()["prefixes"]
    assert facts["hit_tokens"] > 0
    assert replay(found.recording, loaded).difference is None


def test_r4_a_prompt_may_read_what_another_writes_in_the_same_step(
    plain: tuple[Path, dict[str, list[int]]],
) -> None:
    """Computed in another order than theirs, prompts read blocks that nobody has written yet."""
    path, expected = plain

    def reverse(engine: Engine, _machine: Machine) -> None:
        runner: Any = engine.runner
        original = runner.step

        def step(work: list[Work], decoding: int = 0) -> Any:
            prompts = list(work[: len(work) - decoding])
            turned = [*prompts[::-1], *work[len(prompts) :]]
            logits = original(turned, decoding)
            return torch.cat([logits[: len(prompts)].flip(0), logits[len(prompts) :]])

        runner.step = step

    assert serve(path, "vllm-v1", 100)[0].replies == expected
    assert serve(path, "vllm-v1", 100, on_engine=reverse)[0].replies != expected
