"""SmolLM2 on the real machine: every system under preemption, and text that a person can read."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from explore.validation import validate
from policy.systems import SYSTEMS
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.runner import Runner, Work
from realrun.serve import Options, serve
from runs.scenario import load

CHAT = Path(__file__).resolve().parents[2] / "scenarios/cpu-smoke.chat.jsonl"
#: Logits of the same context, decoded token by token or computed at once, in fp32.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LoadedModel]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one waits for the first on a busy machine
    yield load_model("smollm2", torch.float32, "cpu")
    torch.set_num_threads(before)


@pytest.mark.parametrize("system", SYSTEMS)
def test_cpu_smoke_preempts_and_replays_under_every_system(
    smollm2: LoadedModel, tmp_path: Path, system: str
) -> None:
    loaded = load("cpu-smoke", {"system": system})
    recording = serve(
        loaded, Options(), out=tmp_path / "run", decisions=True, check="full", model=smollm2
    )
    metrics = recording.summary["metrics"]
    print(system, metrics["preemptions"], metrics["copy_jobs"], metrics["makespan_s"])
    assert (metrics["finished"], metrics["rows"]) == (24, 24)
    # who comes displaces nobody under `never`, so growth alone preempts
    displaces = SYSTEMS[system].switches()["displacement"] != "never"
    assert metrics["preemptions"] > (10 if displaces else 0)
    assert validate.replay(tmp_path / "run").difference is None


def talk(
    model: LoadedModel, out: Path, device_blocks: int
) -> tuple[dict[str, str], dict[str, Any]]:
    """Texts of a conversation, and metrics."""
    loaded = load("cpu-smoke", {"pool.device_blocks": device_blocks, "priority.frequency": 0.5})
    options = Options(deterministic=True, conversation=CHAT)
    recording = serve(loaded, options, out=out, model=model)
    rows = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    return {row["request_id"]: row["text"] for row in rows}, recording.summary["metrics"]


def test_a_conversation_reads_well_and_swapping_changes_not_one_letter(
    smollm2: LoadedModel, tmp_path: Path
) -> None:
    roomy, calm = talk(smollm2, tmp_path / "roomy", 400)
    tight, busy = talk(smollm2, tmp_path / "tight", 16)
    for name, text in tight.items():
        print(f"{name}: {text}")
    assert calm["preemptions"] == 0
    assert busy["preemptions"] > 5
    assert tight == roomy
    assert "Paris" in tight["france/1"]
    assert all(len(text.split()) > 2 and text.isascii() for text in tight.values())


def test_after_a_recompute_logits_agree_and_other_tokens_are_near_ties(
    smollm2: LoadedModel,
) -> None:
    """Not deterministic: 160 tokens decoded one by one, every eighth context computed at once too."""
    store = KVStore(
        smollm2.config,
        layout="layer_major",
        device_blocks=32,
        host_blocks=1,
        block_size=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    runner = Runner(smollm2.decoder, store.device)
    mine, other = list(range(16)), list(range(16, 32))
    tokens = [1, 3575, 418, 253]
    other_ties: list[tuple[int, float]] = []
    largest = 0.0
    with torch.inference_mode():
        logits = runner.step([Work(tokens, 0, mine)])[0]
        while len(tokens) < 164:
            if len(tokens) % 8 == 0:
                again = runner.step([Work(tokens, 0, other)])[0]
                largest = max(largest, float((logits - again).abs().max()))
                best, names = torch.topk(logits, 2)
                if again.argmax() != names[0]:
                    other_ties.append((len(tokens), float(best[0] - best[1])))
            tokens.append(int(logits.argmax()))
            logits = runner.step([Work(tokens[-1:], len(tokens) - 1, mine)])[0]
    print(f"largest difference {largest:.2e}; tokens that differ: {other_ties or 'none'}")
    assert largest < TOLERANCE
    assert all(margin < 2 * TOLERANCE for _, margin in other_ties)
