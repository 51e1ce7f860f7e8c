"""Model configurations: what is read, and what is refused by file and field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import ConfigError, InputError
from realrun.config import PRESETS, ModelConfig, RopeScaling, from_hf

LLAMA31 = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": [128001, 128009],
}
QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "eos_token_id": 151645,
}
QWEN3 = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
    "layer_types": ["full_attention"] * 36,
    "eos_token_id": None,
}


def read(folder: Path, values: Any, **changes: Any) -> ModelConfig:
    """A folder with these values; a change to None takes the field out."""
    values = {k: v for k, v in {**values, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return from_hf(folder)


def complaint(folder: Path, values: Any, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, values, **changes)
    message = str(caught.value)
    assert str(folder / "config.json") in message
    assert message.count("\n") < 5
    return message


def without_name(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, name="", eos_ids=())


def test_llama_3_1_is_read_with_its_rope_scaling(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA31)
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 500000.0
    assert (config.head_dim, config.kv_heads, config.qkv_bias, config.qk_norm) == (128, 8, 0, 0)
    assert config.eos_ids == (128001, 128009)
    assert config.name == tmp_path.name


def test_transformers_5_says_the_same_in_rope_parameters(tmp_path: Path) -> None:
    scaling = LLAMA31["rope_scaling"]
    assert isinstance(scaling, dict)
    new = {"rope_parameters": {**scaling, "rope_theta": 500000.0}, "rope_scaling": None}
    old = read(tmp_path, LLAMA31)
    assert read(tmp_path, LLAMA31, **new, rope_theta=None) == old


def test_the_scaling_type_had_another_name_once(tmp_path: Path) -> None:
    scaling = dict(LLAMA31["rope_scaling"], type="llama3")  # type: ignore[call-overload]
    del scaling["rope_type"]
    assert read(tmp_path, LLAMA31, rope_scaling=scaling) == read(tmp_path, LLAMA31)


@pytest.mark.parametrize(("values", "preset"), [(QWEN2, "qwen2.5-7b"), (QWEN3, "qwen3-8b")])
def test_qwen_files_give_the_shapes_of_the_presets(
    tmp_path: Path, values: Any, preset: str
) -> None:
    assert without_name(read(tmp_path, values)) == without_name(PRESETS[preset])


def test_llama_3_gives_the_shape_of_its_preset(tmp_path: Path) -> None:
    changes = {"rope_scaling": None, "max_position_embeddings": 8192}
    read_here = read(tmp_path, LLAMA31, **changes)
    assert without_name(read_here) == without_name(PRESETS["llama-3-8b"])


@pytest.mark.parametrize("window", [None, 32768, 65536])
def test_mistral_is_llama_whose_window_ends_nothing(tmp_path: Path, window: int | None) -> None:
    mistral = {"model_type": "mistral", "max_position_embeddings": 32768, "rope_scaling": None}
    config = read(tmp_path, LLAMA31, **mistral, sliding_window=window)
    llama = read(tmp_path, LLAMA31, max_position_embeddings=32768, rope_scaling=None)
    assert config == llama
    assert "sliding_window: 4096 is not supported" in complaint(
        tmp_path, LLAMA31, **mistral, sliding_window=4096
    )


def test_generation_config_knows_more_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    assert read(tmp_path, QWEN2).eos_ids == (151645, 151643)
    (tmp_path / "generation_config.json").write_text("{}")
    assert read(tmp_path, QWEN2).eos_ids == (151645,)
    assert read(tmp_path, QWEN3).eos_ids == ()


@pytest.mark.parametrize(
    ("preset", "token_bytes"),
    [("llama-3-8b", 131072), ("qwen2.5-7b", 57344), ("qwen3-8b", 147456)],
)
def test_a_token_of_a_preset_takes_the_kv_bytes_known_for_it(preset: str, token_bytes: int) -> None:
    assert 2 * PRESETS[preset].token_elements == token_bytes


REQUIRED = [
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    assert f"{field}: missing" in complaint(tmp_path, LLAMA31, **{field: None})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gemma3"),
        ("model_type", 3),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "fp8"}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", "full_attention"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1 << 40),
        ("num_hidden_layers", "32"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 32.0),
        ("num_key_value_heads", 5),
        ("num_key_value_heads", -8),
        ("head_dim", 127),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", -1.0),
        ("tie_word_embeddings", "yes"),
        ("tie_word_embeddings", 1),
        ("rope_scaling", "llama3"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, -2]),
        ("eos_token_id", True),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, field: str, value: Any) -> None:
    assert f" {field}: " in complaint(tmp_path, LLAMA31, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_type", "yarn"),
        ("rope_type", None),
        ("factor", None),
        ("factor", "8"),
        ("low_freq_factor", 4.0),
        ("original_max_position_embeddings", 0),
        ("partial_rotary_factor", 0.25),
    ],
)
def test_a_rope_scaling_that_cannot_be_used_is_named(
    tmp_path: Path, field: str, value: Any
) -> None:
    scaling = dict(LLAMA31["rope_scaling"], **{field: value})  # type: ignore[call-overload]
    named = "high_freq_factor" if field == "low_freq_factor" else field
    assert f"rope_scaling.{named}: " in complaint(tmp_path, LLAMA31, rope_scaling=scaling)


def test_two_ropes_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    both = {"rope_type": "default", "rope_theta": 10000.0}
    assert "rope_scaling: " in complaint(tmp_path, LLAMA31, rope_parameters=both)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1, "a": 2}', "\0"])
def test_a_file_that_is_not_an_object_of_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        from_hf(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        from_hf(tmp_path)


def test_a_hostile_value_is_quoted_on_one_short_line(tmp_path: Path) -> None:
    message = complaint(tmp_path, LLAMA31, model_type="x\n" * 10000)
    assert "\n" not in message
    assert len(message) < 600
