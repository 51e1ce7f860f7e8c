"""A profile is checked when it is read: every number has its kind, source and range."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from calibrate.profile import PROFILES, Profile, load, names
from policy.errors import ConfigError

A10 = "a10-llama-3-8b"


def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PROFILES / f"{A10}.json").read_text())
    return found


def put(folder: Path, path: str, value: Any) -> str:
    """The profile with one value changed, written to a file; its name."""
    changed = data()
    *parents, last = path.split(".")
    inner = changed
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    file = folder / "profile.json"
    file.write_text(json.dumps(changed))
    return str(file)


def quantity(**changes: Any) -> dict[str, Any]:
    whole = {"value": 5.0, "unit": "ns", "kind": "published", "source": "somebody"}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


# ---------------------------------------------------------------------- those that ship


@pytest.mark.parametrize("name", names())
def test_every_profile_that_ships_is_valid_and_found_under_its_own_name(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.device_blocks(16) > 0
    assert profile.host_blocks(16) > 0


@pytest.mark.parametrize("name", names())
def test_every_assumption_states_its_range_around_its_value(name: str) -> None:
    for quantity in load(name).assumptions().values():
        assert quantity.low is not None and quantity.high is not None
        assert quantity.low <= quantity.value <= quantity.high


def test_a_file_is_a_profile_too(tmp_path: Path) -> None:
    assert load(put(tmp_path, "name", "mine")).name == "mine"


def test_the_kv_of_a_token_is_keys_and_values_of_all_layers() -> None:
    profile = load(A10)
    assert profile.model.token_bytes == 2 * 32 * 8 * 128 * 2
    assert profile.block_bytes(16) == 2 * 1024 * 1024


def test_kv_blocks_are_what_weights_and_activations_leave(tmp_path: Path) -> None:
    size = load(A10).block_bytes(16)
    room = {
        "memory.device_bytes": 10 * size,
        "memory.utilisation": 1.0,
        "memory.activation_bytes": 1.5 * size,
    }
    path = put(tmp_path, "model.weight_bytes", 2 * size)
    assert load(path).with_values(room).device_blocks(16) == 6
    assert load(path).with_values({**room, "memory.utilisation": 0.1}).device_blocks(16) == 0
    assert load(path).with_values({"memory.host_kv_bytes": 3.9 * size}).host_blocks(16) == 3


# ---------------------------------------------------------------------- those that are wrong

WRONG = {
    "an unknown key": ("colour", "blue", "colour: Extra inputs are not permitted"),
    "a missing number": ("step.base", ..., "step.base: Field required"),
    "another format": ("format", "fastswitch-profile/2", "format: Input should be"),
    "text for a number": ("step.base", quantity(value="5"), "step.base.value: Input should be"),
    "a negative number": (
        "step.base",
        quantity(value=-1.0),
        "step.base.value: Input should be greater",
    ),
    "infinity": ("step.base", quantity(value=1e999), "step.base.value: Input should be a finite"),
    "no source": ("step.base", quantity(source=""), "step.base.source: String should have"),
    "a kind that is none": ("step.base", quantity(kind="guessed"), "step.base.kind: Input should"),
    "an assumption without range": (
        "step.base",
        quantity(kind="assumed", low=1.0),
        "step.base: Value error, an assumed number needs its range",
    ),
    "a value below its range": (
        "step.base",
        quantity(low=6.0, high=9.0),
        "step.base: Value error, 5.0 is outside its range 6.0 to 9.0",
    ),
    "a value above its range": (
        "step.base",
        quantity(high=4.0),
        "step.base: Value error, 5.0 is outside its range 5.0 to 4.0",
    ),
    "a model without layers": ("model.layers", 0, "model.layers: Input should be greater"),
    "a fraction of a layer": ("model.layers", 1.5, "model.layers: Input should be a valid integer"),
    "a range of validity of nothing": ("valid.max_batch", 0, "valid.max_batch: Input should be"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_error_names_the_file_the_field_and_what_is_wrong(
    wrong: tuple[str, Any, str], tmp_path: Path
) -> None:
    path, value, says = wrong
    file = put(tmp_path, path, value)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: {says}")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_json_is_refused_with_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"profile\.json: .*Invalid JSON"):
        load(str(path))


def test_a_name_that_is_no_profile_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'b200' is neither a file that can be read") as error:
        load("b200")
    assert A10 in str(error.value)


# ---------------------------------------------------------------------- values set by a scenario


def test_a_value_that_is_set_is_an_assumption_from_then_on_and_widens_its_range() -> None:
    before = load(A10)
    after = before.with_values({"transfer.per_call": 1e6})
    changed = after.transfer.per_call
    assert (changed.value, changed.kind, changed.source) == (1e6, "assumed", "set by the scenario")
    assert changed.high == 1e6
    assert changed.low is not None and changed.low <= before.transfer.per_call.value
    assert "transfer.per_call" in after.assumptions()
    assert load(A10) == before


def test_other_numbers_make_another_hash_and_the_same_ones_the_same() -> None:
    before = load(A10)
    assert before.hash == load(A10).hash
    assert before.hash != before.with_values({"step.base": 1.0}).hash


@pytest.mark.parametrize("path", ["per_call", "transfer.speed", "model.layers", "name", ""])
def test_only_numbers_of_a_profile_can_be_set(path: str) -> None:
    with pytest.raises(ConfigError, match=f"profile_values.{path}: no such number in a profile"):
        load(A10).with_values({path: 1.0})


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_only_numbers_from_zero_up_can_be_set(value: float) -> None:
    with pytest.raises(ConfigError, match="is not a number >= 0"):
        load(A10).with_values({"step.base": value})


def test_a_profile_cannot_be_changed_in_place() -> None:
    profile: Profile = load(A10)
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"
