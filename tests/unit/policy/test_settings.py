"""Numbers that cannot work are refused when they are given, by name."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import ConfigError
from policy.settings import Settings

LOWEST = {
    "device_blocks": 1,
    "host_blocks": 0,
    "block_size": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_paddings": 0,
    "max_model_len": 1,
    "initial_group": 1,
    "growth_group": 1,
    "host_increment": 0,
    "min_run_steps": 0,
    "max_parkings": 1,
    "token_quantum": 1,
    "backup_every": 1,
    "backup_blocks": 1,
}


def settings(**values: Any) -> Settings:
    return Settings(**{"device_blocks": 10, "host_blocks": 10, **values})


def test_the_lowest_of_everything_is_accepted() -> None:
    made = settings(**LOWEST, update_every=1, watermark=0.0)
    assert {name: getattr(made, name) for name in LOWEST} == LOWEST


@pytest.mark.parametrize("name", LOWEST)
def test_a_number_below_its_lowest_is_refused_by_name(name: str) -> None:
    low = LOWEST[name]
    with pytest.raises(ConfigError, match=f"^{name}: {low - 1} is below {low}$"):
        settings(**{name: low - 1})


@pytest.mark.parametrize("tokens", [0, 6, 3])
def test_pool_blocks_divide_those_that_hash_ids_name(tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"^pool\.block_size: 4 does not divide the"):
        settings(block_size=4, prefix_block=tokens)
    assert settings(block_size=4, prefix_block=8).prefix_block == 8


@pytest.mark.parametrize("share", [-0.01, 1.0, 1.5])
def test_a_watermark_is_a_share_of_the_pool(share: float) -> None:
    with pytest.raises(ConfigError, match=r"pool\.watermark"):
        settings(watermark=share)


@pytest.mark.parametrize("share", [-0.01, 1.01])
def test_likely_victims_hold_a_share_of_the_device(share: float) -> None:
    with pytest.raises(ConfigError, match=r"movement\.depth: .* is not in 0 <= share <= 1"):
        settings(backup_depth=share)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.1), (0.2, 0.1), (-0.1, 0.1), (0.1, 1.0)])
def test_the_low_threshold_lies_below_the_high_one(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=r"movement\.low: .* are not in 0 <= low < high < 1"):
        settings(free_low=low, free_high=high)
    assert settings(free_low=0.0, free_high=0.19).high_blocks == 1


def test_updates_come_at_most_once_a_step() -> None:
    with pytest.raises(ConfigError, match="update_every: 0 steps is below 1"):
        settings(update_every=0)


@pytest.mark.parametrize(("share", "blocks"), [(0.0, 0), (0.01, 1), (0.019, 1), (0.99, 99)])
def test_the_watermark_is_floored_to_blocks(share: float, blocks: int) -> None:
    assert settings(device_blocks=100, watermark=share).watermark_blocks == blocks


@pytest.mark.parametrize(("length", "budget"), [(50, 90), (90, 50)])
def test_a_prompt_must_fit_both_the_model_and_a_step(length: int, budget: int) -> None:
    assert settings(max_model_len=length, max_num_batched_tokens=budget).prompt_limit == 50
