"""Numbers beyond sense end in one line that names the field and its limit, or in a warning."""

from __future__ import annotations

from typing import Any

import pytest

from calibrate import profile as profiles
from policy.errors import ConfigError
from runs.scenario import build, merge
from sim.simulate import simulate

SMALL: dict[str, Any] = {
    "workload": {"generator": "chat", "conversations": 2, "rate": 1.0, "context_cap": 300},
    "profile": "a10-llama-3-8b",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool.device_blocks", 10**12),
        ("pool.host_blocks", 10**12),
        ("pool.block_size", 10**9),
        ("limits.max_model_len", 10**12),
        ("limits.max_num_seqs", 10**12),
        ("limits.max_num_batched_tokens", 10**12),
        ("workload.conversations", 10**12),
        ("workload.concurrency", 10**12),
    ],
)
def test_a_number_beyond_sense_is_refused_with_its_limit(field: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        build(merge(SMALL, {field: value}), "here")
    assert str(caught.value).startswith(f"here: {field}: ") and "less than or equal" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("memory.utilisation", 90.0, "utilisation: 90 is not a share"),
        ("memory.utilisation", 0.0, "utilisation: 0 is not a share"),
        ("transfer.to_device", 25.0, "to_device: 25 bytes per second is not in .*25 GB/s is 25e9"),
        ("transfer.to_host", 1e21, "to_host: 1e.21 bytes per second is not in"),
    ],
)
def test_a_profiles_number_in_another_unit_is_refused(name: str, value: float, says: str) -> None:
    section = name.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"^profile_values\.{section}\.{says}"):
        profiles.load("a10-llama-3-8b").with_values({name: value})


def test_a_context_above_the_models_or_the_pools_is_warned_of() -> None:
    made = build(merge(SMALL, {"limits.max_model_len": 100_000, "pool.device_blocks": 100}), "here")
    warnings = [
        w for w in simulate(made).summary["warnings"] if w.startswith("limits.max_model_len")
    ]
    assert warnings == [
        "limits.max_model_len: 100000 tokens, the model has 8192: extrapolated",
        "limits.max_model_len: 100000 tokens, the device holds 1600: longer contexts are rejected",
    ]
