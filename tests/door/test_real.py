"""The real machine behind the door: a tiny model with random weights, whose tokens are bytes."""

# ruff: noqa: E402
from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for _needed in ("torch", "starlette", "tokenizers", "gguf", "safetensors"):
    pytest.importorskip(_needed)

from door.real import Real
from explore.validation.validate import replay
from realrun.serve import Options
from runs.recording import load
from tests.helpers.door import Door, Raw, open_door, requests_of, scenario, wait_for
from tests.helpers.real import tiny

PLAIN = "/v1/completions"
ROOM = {"device_blocks": 24, "host_blocks": 80, "block_size": 4, "aging": "none"}


def machine(system: str = "fastswitch", **values: Any) -> Real:
    made = scenario(
        system=system,
        pool=ROOM,
        limits={"max_model_len": 80, "max_num_seqs": 4},
        groups={"initial_blocks": 2, "growth_blocks": 2, "host_increment_blocks": 1},
        **values,
    )
    options = Options(model="random:tiny", deterministic=True)
    return Real(made, options, None, None, "full", keep_replies=True, model=tiny())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A door for requests that are served alone."""
    with open_door(tmp_path_factory.mktemp("real") / "run", machine=machine) as door:
        yield door
    assert door.error is None


def asked(k: int, count: int = 24) -> dict[str, Any]:
    return {
        "prompt": [(7 * k + i) % 200 for i in range(9 + k)],
        "max_tokens": count,
        "ignore_eos": True,
        "temperature": 0,
    }


def replies(run: Path) -> dict[str, list[int]]:
    import json

    lines = (run / "replies.jsonl").read_text().splitlines()
    return {row["request_id"]: row["tokens"] for row in map(json.loads, lines)}


def prompts(run: Path) -> dict[str, list[int]]:
    import json

    lines = (run / "asked.jsonl").read_text().splitlines()
    return {row["request_id"]: row["prompt"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("system", ["fastswitch", pytest.param("vllm-v1", marks=pytest.mark.full)])
def test_greedy_replies_under_preemption_are_those_of_prompts_served_alone(
    tmp_path: Path, system: str
) -> None:
    crowded, single = tmp_path / "crowded", tmp_path / "single"
    with open_door(crowded, machine=lambda: machine(system), keep_prompts=True) as door:
        threads = [
            threading.Thread(target=door.ask, args=(PLAIN, {**asked(k, 30), "priority": -k}))
            for k in range(8)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
    with open_door(single, machine=lambda: machine(system), keep_prompts=True) as door:
        for k in range(8):
            assert door.ask(PLAIN, asked(k, 30))[0] == 200
    told = {tuple(prompts(single)[name]): reply for name, reply in replies(single).items()}
    found = replies(crowded)
    assert len(found) == 8
    for name, prompt in prompts(crowded).items():
        assert found[name] == told[tuple(prompt)]
    assert sum(row["preemptions"] for row in requests_of(crowded).values()) > 0
    assert replay(crowded).difference is None


def test_a_stop_string_ends_a_reply_in_its_own_step_and_is_no_part_of_it(alone: Door) -> None:
    whole = alone.ask(PLAIN, asked(1))[1]["choices"][0]["text"]
    plain = [c for c in whole if c.isascii() and c.isprintable()]
    stop = plain[3]
    answer = alone.ask(PLAIN, {**asked(1), "stop": stop})[1]
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == whole[: whole.index(stop)]
    kept = alone.ask(PLAIN, {**asked(1), "stop": [stop], "include_stop_str_in_output": True})[1]
    assert kept["choices"][0]["text"] == whole[: whole.index(stop) + 1]
    events = alone.stream(PLAIN, {**asked(1), "stop": stop})
    assert "".join(one["choices"][0]["text"] for one in events[:-1]) == choice["text"]


def test_a_stop_token_ends_a_reply_unless_it_comes_too_early(alone: Door) -> None:
    alone.ask(PLAIN, asked(2))
    events = alone.stream(PLAIN, {**asked(2), "temperature": 0})
    assert len(events) == 25
    ids = alone.machine.known.words.encode(
        alone.ask(PLAIN, {**asked(2), "max_tokens": 1})[1]["choices"][0]["text"]
    )
    if len(ids) == 1:
        answer = alone.ask(PLAIN, {**asked(2), "stop_token_ids": ids})[1]
        assert answer["usage"]["completion_tokens"] == 1
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_seed_draws_the_same_again_and_another_seed_something_else(alone: Door) -> None:
    def text(seed: int) -> str:
        body = {**asked(3), "temperature": 1.0, "seed": seed}
        found: str = alone.ask(PLAIN, body)[1]["choices"][0]["text"]
        return found

    assert text(5) == text(5) != text(6)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_a_real_machine_is_cancelled(tmp_path: Path, stream: bool) -> None:
    run = tmp_path / "run"
    with open_door(run, machine=machine) as door:
        bodies = [{**asked(k, 60), "stream": stream} for k in range(6)]
        leavers = [Raw(door, body, PLAIN) for body in bodies]
        wait_for(lambda: door.front.live)
        for one in leavers:
            one.close()
        wait_for(lambda: not door.front.live)
        assert door.ask(PLAIN, asked(1))[0] == 200
    assert replay(run).difference is None
    statuses = [row["status"] for row in requests_of(run).values()]
    assert statuses.count("finished") < len(statuses)
    assert load(run).summary["served"]
