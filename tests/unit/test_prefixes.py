"""What blocks of prompts are called: by ids as far as they hold, or by what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import ConfigError
from policy.systems import SYSTEMS
from runs.scenario import Scenario, build
from sim.simulate import simulate
from tests.helpers.small import settings
from traces.prefixes import (
    keys_from_ids,
    keys_from_tokens,
    no_keys,
    with_prefix_block,
)
from traces.workload import Header, Turn

SHARING, PLAIN = SYSTEMS["+prefix"], SYSTEMS["+groups"]
GLOBAL = Header(block_size=8, hash_scope="global")


def turn(tokens: int, ids: tuple[int, ...] | None, session: str = "s") -> Turn:
    return Turn("r", session, 1, tokens, 1, hash_ids=ids)


def test_only_blocks_that_the_prompt_fills_have_keys() -> None:
    keys = keys_from_ids(GLOBAL, SHARING)
    assert keys(turn(23, (5, 6, 7))) == (5, 6)
    assert keys(turn(24, (5, 6, 7))) == (5, 6, 7)
    assert keys(turn(7, (5,))) == keys(turn(24, None)) == ()


@pytest.mark.parametrize("scope", ["session", None])
def test_ids_that_do_not_hold_everywhere_say_nothing_of_other_sessions(scope: Any) -> None:
    keys = keys_from_ids(Header(block_size=8, hash_scope=scope), SHARING)
    assert keys(turn(16, (5, 6), "a")) == ("a:5", 6)
    assert keys(turn(16, (5, 6), "b")) == ("b:5", 6)


def test_a_system_that_does_not_share_is_told_nothing() -> None:
    assert keys_from_ids(GLOBAL, PLAIN) is no_keys
    assert keys_from_ids(Header(), SHARING) is no_keys
    assert no_keys(turn(16, (5, 6))) == ()
    assert with_prefix_block(settings(), PLAIN, GLOBAL) == settings()
    assert with_prefix_block(settings(), SHARING, Header()) == settings()
    assert with_prefix_block(settings(), SHARING, GLOBAL) == settings(prefix_block=8)


def test_blocks_of_tokens_are_called_by_what_they_hold() -> None:
    one, two = keys_from_tokens([1, 2, 3, 4, 5], 2), keys_from_tokens([1, 2, 4, 3], 2)
    assert (len(one), len(two)) == (2, 2)
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert keys_from_tokens([1, 2, 1, 2], 2) == (one[0], one[0])


def scenario(**pool: int) -> Scenario:
    return build(
        {
            "name": "shared",
            "profile": "a10-llama-3-8b",
            "workload": "nowhere.jsonl",
            "system": "+prefix",
            "pool": {"device_blocks": 400, "host_blocks": 400, **pool},
        },
        "test",
    )


def mooncake(folder: Any) -> str:
    """Two prompts that begin with the same 512 tokens."""
    path = folder / "m.jsonl"
    row = '{{"timestamp": {}, "input_length": 600, "output_length": 3, "hash_ids": [1, {}]}}\n'
    path.write_text(row.format(0, 2) + row.format(60000, 3))
    return str(path)


def test_a_simulation_tells_what_was_found(tmp_path: Any) -> None:
    found = scenario().with_values({"workload": mooncake(tmp_path)})
    recording = simulate(found, check="full")
    assert recording.summary["prefixes"] == {
        "block_tokens": 512,
        "hit_tokens": 512,
        "looked_up_tokens": 1024,
        "evicted_tokens": 0,
        "lost_host_copies": 0,
    }
    assert recording.table("requests")["cached_tokens"].to_pylist() == [0, 512]
    prefilled = recording.table("steps")["prefill_tokens"].to_pylist()
    assert sum(prefilled) == 600 + 88


def test_pool_blocks_that_do_not_divide_the_traces_are_refused(tmp_path: Any) -> None:
    found = scenario(block_size=24).with_values({"workload": mooncake(tmp_path)})
    with pytest.raises(ConfigError, match=r"^pool\.block_size: 24 does not divide the 512 tokens"):
        simulate(found)


def test_a_workload_without_hashes_is_warned_of(tmp_path: Any) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 600, "output_length": 3}\n')
    recording = simulate(scenario().with_values({"workload": str(path)}))
    assert [w for w in recording.summary["warnings"] if w.startswith("prefix_sharing: no prompt")]
