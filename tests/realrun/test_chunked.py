"""Prompts in chunks beside decodes, on the real machine: the same text, and the same decisions again."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from policy.plan import Plan
from realrun.engine import Engine, Served
from realrun.runner import Work
from realrun.serve import Machine
from tests.helpers.real import (
    ROOM,
    Run,
    failing_copy,
    run,
    same_text,
    scenario,
    unswapped,
    write_workload,
)

LIMITS = {"max_model_len": 60, "max_num_seqs": 4, "max_num_batched_tokens": 6}


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workload(tmp_path_factory.mktemp("w") / "w.jsonl", seed=4)


@pytest.fixture(scope="module")
def expected(workload: Path) -> dict[str, list[int]]:
    return unswapped(workload)


def chunks(found: Run) -> int:
    """Stretches of a prompt that yielded no token."""
    spans = found.recording.table("spans").to_pylist()
    tokens = {(s["request_id"], s["first_step"]) for s in spans if s["kind"] == "token"}
    prefills = [(s["request_id"], s["first_step"]) for s in spans if s["kind"] == "prefill"]
    return len([one for one in prefills if one not in tokens])


@pytest.mark.parametrize("system", ["+chunked", "fastswitch-chunked"])
@pytest.mark.parametrize("size", [3, 4])
def test_chunks_and_swaps_change_no_token_and_replay(
    workload: Path, expected: dict[str, list[int]], system: str, size: int
) -> None:
    pool = {**ROOM, "device_blocks": 18, "block_size": size}
    loaded = scenario(workload, system=system, pool=pool, limits=LIMITS)
    found = same_text(loaded, expected)
    assert chunks(found) > 3
    steps = found.recording.table("steps").to_pylist()
    assert any(step["batch"] and step["prefill_tokens"] for step in steps)
    assert max(step["batch"] + step["prefill_tokens"] for step in steps) <= 6
    assert found.metrics["preemptions"] > 3


def test_chunks_that_recompute_say_the_same(workload: Path, expected: dict[str, list[int]]) -> None:
    system = {"base": "+chunked", "preemption": "recompute"}
    found = run(scenario(workload, system=system, limits=LIMITS), deterministic=True)
    assert found.replies == expected
    assert found.metrics["recomputed_tokens"] > 0


def test_where_prompts_share_blocks_chunks_share_them_too(
    workload: Path, expected: dict[str, list[int]]
) -> None:
    system = {"base": "fastswitch-prefix", "shape": "chunked"}
    loaded = scenario(workload, system=system, limits=LIMITS)
    same_text(loaded, expected)


def test_a_copy_that_fails_costs_a_recompute_and_no_text(
    workload: Path, expected: dict[str, list[int]]
) -> None:
    loaded = scenario(workload, system="fastswitch-chunked", limits=LIMITS)
    for which in range(0, 20, 2):
        same_text(loaded, expected, on_engine=failing_copy(which))


def test_a_chunk_of_the_wrong_tokens_is_noticed(
    workload: Path, expected: dict[str, list[int]]
) -> None:
    """The checks above can fail: what follows the first chunk is computed back to front."""

    def reverse(engine: Engine, _machine: Machine) -> None:
        work = engine._work

        def wrong(plan: Plan) -> tuple[list[Served], list[Work]]:
            who, rows = work(plan)
            return who, [one._replace(tokens=one.tokens[::-1]) if one.past else one for one in rows]

        engine._work = wrong  # type: ignore[method-assign]

    loaded = scenario(workload, system="+chunked", limits=LIMITS)
    assert run(loaded, deterministic=True, on_engine=reverse).replies != expected
