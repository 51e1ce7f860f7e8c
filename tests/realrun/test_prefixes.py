"""Shared prefixes on the real machine: the same text to the bit, whoever computed the blocks."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from policy.pools.prefix import PrefixPool, SharedBlock
from policy.scheduler import Scheduler
from realrun.prompts import RandomPrompts
from sim.replay import replay
from tests.helpers.inside import swaps_of
from tests.helpers.real import ROOM, Run, run, scenario
from traces.randomness import Streams
from traces.workload import Header, Turn

NAMED = 8  # tokens that a hash id names: two blocks of 4
SHARING = ("+prefix", "fastswitch-prefix")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_workload(path: Path, seed: int = 0) -> Path:
    """Conversations of two turns that begin with one of two openings, all at once."""
    rng = random.Random(seed)
    header = {"format": "fastswitch-workload/1", "timing": "closed"}
    lines = [json.dumps({**header, "block_size": NAMED, "hash_scope": "global"})]
    for session in range(8):
        opening = [1, 2] if session % 3 else [5]
        tokens = NAMED * len(opening) + rng.randrange(1, 7)
        output = rng.randrange(3, 9)
        first = {
            "request_id": f"s{session}/1",
            "session_id": f"s{session}",
            "turn": 1,
            "input_tokens": tokens,
            "output_tokens": output,
            "arrival_s": 0.0,
            "hash_ids": [*opening, 100 + session],
        }
        second = {
            "request_id": f"s{session}/2",
            "session_id": f"s{session}",
            "turn": 2,
            "input_tokens": tokens + output + rng.randrange(1, 6),
            "output_tokens": rng.randrange(2, 7),
            "think_s": 0.0,
        }
        lines += [json.dumps(first), json.dumps(second)]
    path.write_text("\n".join(lines) + "\n")
    return path


def serve(path: Path, system: str, *, device_blocks: int = 14, seats: int = 4) -> Run:
    limits = {"max_model_len": 60, "max_num_seqs": seats}
    pool = {**ROOM, "device_blocks": device_blocks}
    return run(scenario(path, system=system, pool=pool, limits=limits), deterministic=True)


def serve_alone(path: Path) -> Run:
    """Nobody shares, nobody makes way."""
    found = serve(path, "+groups", device_blocks=300, seats=64)
    assert found.metrics["preemptions"] == 0
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("system", SHARING)
def test_replies_are_those_without_sharing_to_the_bit(
    tmp_path: Path, system: str, seed: int
) -> None:
    path = write_workload(tmp_path / "w.jsonl", seed)
    alone = serve_alone(path)
    shared = serve(path, system)
    assert shared.replies == alone.replies
    assert len(shared.replies) == 16
    sharing = swaps_of(shared.machine.scheduler).sharing
    assert sharing is not None
    assert sharing.num_hits >= 8
    assert sharing.tree.num_evicted > 0
    assert shared.metrics["preemptions"] > 3
    assert shared.metrics["cached_tokens"] > alone.metrics["cached_tokens"]


def test_a_block_found_under_a_wrong_name_changes_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above would prove nothing."""
    path = write_workload(tmp_path / "w.jsonl")
    alone = serve_alone(path)

    def any_child(self: PrefixPool, keys: Any, most: int) -> list[SharedBlock]:
        return list(self._root.children.values())[: min(most, 1)]

    monkeypatch.setattr(PrefixPool, "match", any_child)
    monkeypatch.setattr("tests.helpers.real.checker", lambda _kind: lambda _scheduler: None)
    assert serve(path, "+prefix", device_blocks=60).replies != alone.replies


@pytest.mark.parametrize("system", SHARING)
def test_a_real_run_that_shares_is_replayed_decision_for_decision(
    tmp_path: Path, system: str
) -> None:
    path = write_workload(tmp_path / "w.jsonl")
    loaded = scenario(path, system=system, pool={**ROOM, "device_blocks": 14})
    found = run(loaded)
    made: Scheduler = found.machine.scheduler
    assert swaps_of(made).sharing is not None and swaps_of(made).sharing.num_hits >= 8
    found.recording.summary["prefixes"] = {"block_tokens": NAMED}
    assert replay(found.recording, loaded).difference is None


def test_equal_ids_are_equal_tokens_as_far_as_the_workload_says() -> None:
    def turn(name: str, session: str, ids: tuple[int, ...] | None) -> Turn:
        return Turn(name, session, 1, 20, 1, hash_ids=ids)

    streams = Streams(0, 0)
    everywhere = RandomPrompts(streams, 1000, Header(block_size=NAMED, hash_scope="global"))
    first = everywhere.prompt(turn("a", "s", (1, 2, 3)), [])
    second = everywhere.prompt(turn("b", "t", (1, 9, 3)), [])
    assert first[:8] == second[:8]
    assert first[8:16] != second[8:16]
    assert first[16:] == second[16:]
    within = RandomPrompts(streams, 1000, Header(block_size=NAMED, hash_scope="session"))
    one, same, other = (
        within.prompt(turn(name, session, (1, 2, 3)), [])
        for name, session in (("a", "s"), ("b", "s"), ("c", "t"))
    )
    assert one == same
    assert one[:8] != other[:8]
    unnamed = turn("a", "s", None)
    assert everywhere.prompt(unnamed, []) == RandomPrompts(streams, 1000).prompt(unnamed, [])
