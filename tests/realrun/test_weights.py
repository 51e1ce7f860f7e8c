"""Weights: each tensor of a checkpoint lands in its place, and one that does not fit is named."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("safetensors", reason="the executor needs safetensors")
gguf = pytest.importorskip("gguf", reason="the executor needs gguf")

import numpy as np
from safetensors.torch import save_file

from policy.errors import ConfigError, InputError
from realrun.config import PRESETS, ModelConfig, from_gguf, from_hf
from realrun.weights import Weights, empty, load_gguf, load_hf, open_gguf, random_weights

TINY = PRESETS["tiny"]
QWEN2 = dataclasses.replace(TINY, qkv_bias=True)
QWEN3 = dataclasses.replace(TINY, qk_norm=True, head_dim=24)
TIED = dataclasses.replace(TINY, tied_embeddings=True)
SHAPES = {"llama": TINY, "qwen2": QWEN2, "qwen3": QWEN3, "tied": TIED}


def hf_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """A random checkpoint with Hugging Face's names, nothing fused."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Any:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def vector(size: int, centre: float) -> Any:
        return centre + 0.3 * torch.randn(size, generator=generator)

    hidden, head_dim = config.hidden, config.head_dim
    rows = {"q": config.heads * head_dim} | dict.fromkeys("kv", config.kv_heads * head_dim)
    tensors = {"model.embed_tokens.weight": matrix(config.vocab, hidden)}
    for index in range(config.layers):
        at = f"model.layers.{index}"
        for side, size in rows.items():
            tensors[f"{at}.self_attn.{side}_proj.weight"] = matrix(size, hidden)
            if config.qkv_bias:
                tensors[f"{at}.self_attn.{side}_proj.bias"] = vector(size, 0.0)
        if config.qk_norm:
            for side in "qk":
                tensors[f"{at}.self_attn.{side}_norm.weight"] = vector(head_dim, 1.0)
        tensors[f"{at}.self_attn.o_proj.weight"] = matrix(hidden, rows["q"])
        tensors[f"{at}.mlp.gate_proj.weight"] = matrix(config.intermediate, hidden)
        tensors[f"{at}.mlp.up_proj.weight"] = matrix(config.intermediate, hidden)
        tensors[f"{at}.mlp.down_proj.weight"] = matrix(hidden, config.intermediate)
        tensors[f"{at}.input_layernorm.weight"] = vector(hidden, 1.0)
        tensors[f"{at}.post_attention_layernorm.weight"] = vector(hidden, 1.0)
    tensors["model.norm.weight"] = vector(hidden, 1.0)
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = matrix(config.vocab, hidden)
    return tensors


def hf_values(config: ModelConfig) -> dict[str, Any]:
    """What config.json says of it."""
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_len,
        }
    return {
        "model_type": kind,
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_model_len,
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_embeddings,
    }


def write_folder(
    folder: Path, config: ModelConfig, tensors: dict[str, Any], shards: int = 3
) -> Path:
    """A Hugging Face folder; its tensors are dealt over the shards in turn."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_values(config)))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    table = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, folder / file)
        table |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path, dtype: Any = torch.float32) -> Weights:
    return load_hf(folder, from_hf(folder), dtype, "cpu")


def complaint(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 1500
    return message


def same(left: Weights, right: Weights) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.tensors(), right.tensors(), strict=True))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_tensor_of_a_folder_lands_in_its_rows(tmp_path: Path, shape: str, shards: int) -> None:
    config, tensors = SHAPES[shape], hf_tensors(SHAPES[shape])
    weights = load(write_folder(tmp_path, config, tensors, shards))
    q, k = config.q_size, config.q_size + config.kv_size
    at = "model.layers.1"
    layer = weights.layers[1]
    assert torch.equal(layer.qkv[:q], tensors[f"{at}.self_attn.q_proj.weight"])
    assert torch.equal(layer.qkv[q:k], tensors[f"{at}.self_attn.k_proj.weight"])
    assert torch.equal(layer.qkv[k:], tensors[f"{at}.self_attn.v_proj.weight"])
    gate_up = [tensors[f"{at}.mlp.{side}_proj.weight"] for side in ("gate", "up")]
    assert torch.equal(layer.gate_up, torch.cat(gate_up))
    assert torch.equal(layer.mlp_norm, tensors[f"{at}.post_attention_layernorm.weight"])
    if layer.qkv_bias is not None:
        assert torch.equal(layer.qkv_bias[k:], tensors[f"{at}.self_attn.v_proj.bias"])
    if layer.qk_norm is not None:
        expected = tensors[f"{at}.self_attn.k_norm.weight"]
        assert all(torch.equal(row, expected) for row in layer.qk_norm[config.heads :])
    assert (layer.qkv_bias is not None, layer.qk_norm is not None) == (
        shape == "qwen2",
        shape == "qwen3",
    )
    assert (weights.head is weights.embedding) == (shape == "tied")


def test_a_checkpoint_in_half_precision_is_widened_as_it_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in hf_tensors(TINY).items()}
    weights = load(write_folder(tmp_path, TINY, tensors))
    assert weights.embedding.dtype == torch.float32
    assert torch.equal(weights.embedding, tensors["model.embed_tokens.weight"].float())


def test_a_stored_rope_table_is_no_weight(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    plain = load(write_folder(tmp_path / "a", TINY, tensors))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    assert same(load(write_folder(tmp_path / "b", TINY, tensors)), plain)


def test_a_head_stored_beside_a_tied_embedding_must_be_equal_to_it(tmp_path: Path) -> None:
    tensors = hf_tensors(TIED)
    head = tensors["model.embed_tokens.weight"].clone()
    load(write_folder(tmp_path / "same", TIED, tensors | {"lm_head.weight": head}))
    head[3, 4] += 1
    folder = write_folder(tmp_path / "other", TIED, tensors | {"lm_head.weight": head})
    assert "lm_head.weight: differs" in complaint(folder)


def test_a_missing_tensor_is_named_and_many_are_counted(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    del tensors["model.norm.weight"]
    folder = write_folder(tmp_path, TINY, tensors)
    assert "missing tensors: model.norm.weight" in complaint(folder)
    tensors = {name: tensor for name, tensor in tensors.items() if "layers" not in name}
    assert "and 16 more" in complaint(write_folder(tmp_path, TINY, tensors))


def test_a_tensor_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors(QWEN2)
    folder = write_folder(tmp_path, TINY, tensors)
    assert "unexpected tensors: model.layers.0.self_attn.k_proj.bias" in complaint(folder)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(127, 64)
    message = complaint(write_folder(tmp_path, TINY, tensors))
    assert "model.layers.1.mlp.up_proj.weight: shape (127, 64)" in message
    assert "(128, 64)" in message


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)
    assert "model.norm.weight: type I8" in complaint(write_folder(tmp_path, TINY, tensors))


def test_shapes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    huge = dataclasses.replace(TINY, vocab=1 << 20, intermediate=1 << 20, layers=2)
    giant = dataclasses.replace(huge, hidden=1 << 20, heads=1 << 16)
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    (folder / "config.json").write_text(json.dumps(hf_values(giant)))
    assert "shape" in complaint(folder)


def test_a_folder_without_shards_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_values(TINY)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "model.safetensors" in complaint(tmp_path)


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a/b", "..", 3, None])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, file: Any) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    change_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": file}))
    message = complaint(folder)
    assert "weight_map.model.norm.weight" in message or "safetensors" in message


def test_an_index_that_names_a_tensor_elsewhere_is_caught(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    table = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in table.values() if file != table["model.norm.weight"])
    change_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": other}))
    assert "model.norm.weight" in complaint(folder)


def test_a_shard_with_more_than_the_index_says_is_caught(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    change_index(folder, lambda index: index["weight_map"].pop("model.norm.weight"))
    assert "does not name: model.norm.weight" in complaint(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    (folder / "model.safetensors.index.json").write_text(text)
    assert "index.json" in complaint(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:keep])
    assert path.name in complaint(folder)


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TINY, hf_tensors(TINY))
    path = sorted(folder.glob("*.safetensors"))[0]
    path.unlink()
    assert path.name in complaint(folder)


def test_random_weights_follow_their_seed_and_stay_finite() -> None:
    first = random_weights(QWEN3, 7, torch.bfloat16, "cpu")
    assert same(first, random_weights(QWEN3, 7, torch.bfloat16, "cpu"))
    assert not same(first, random_weights(QWEN3, 8, torch.bfloat16, "cpu"))
    assert all(bool(tensor.isfinite().all()) for tensor in first.tensors())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("llama-3-8b", 8030261248), ("qwen2.5-7b", 7615616512), ("qwen3-8b", 8190735360)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    config = PRESETS[preset]
    weights = empty(config, torch.bfloat16, "meta")
    repeated = config.layers * (config.heads + config.kv_heads - 2) * config.head_dim
    expected = parameters + (repeated if config.qk_norm else 0)  # q/k norms are kept per head
    assert weights.num_bytes == 2 * expected


def test_a_tied_head_is_counted_once() -> None:
    tied, untied = (empty(config, torch.float32, "meta").num_bytes for config in (TIED, TINY))
    assert untied - tied == 4 * TINY.vocab * TINY.hidden


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}


def neighbours(rows: Any, heads: int) -> Any:
    """llama.cpp's own order of a Llama's q and k rows (convert_hf_to_gguf.py, `permute`)."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def write_gguf(
    path: Path, config: ModelConfig, tensors: dict[str, Any], quantise: bool = False, **extra: Any
) -> Path:
    arch = hf_values(config)["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_context_length(config.max_model_len)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in tensors.items():
        rows = tensor.numpy()
        for side, heads in (("q", config.heads), ("k", config.kv_heads)):
            if arch == "llama" and name.endswith(f"{side}_proj.weight"):
                rows = neighbours(rows, heads)
        known = re.sub("|".join(map(re.escape, GGUF_NAMES)), lambda m: GGUF_NAMES[m[0]], name)
        if quantise and rows.ndim > 1:
            packed = gguf.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(known, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(known, np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_file(path: Path) -> tuple[ModelConfig, Weights]:
    reader = open_gguf(path)
    config = from_gguf(reader)
    return config, load_gguf(reader, config, torch.float32, "cpu")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gguf_file_and_a_folder_of_one_model_are_equal(tmp_path: Path, shape: str) -> None:
    config, tensors = SHAPES[shape], hf_tensors(SHAPES[shape])
    from_folder = load(write_folder(tmp_path / "hf", config, tensors))
    found, from_file = load_file(write_gguf(tmp_path / "m.gguf", config, tensors))
    assert same(from_file, from_folder)
    close = dataclasses.replace(found, name=config.name, rms_eps=config.rms_eps)
    assert close == config
    assert found.rms_eps == pytest.approx(config.rms_eps, rel=1e-6)


def test_a_quantised_gguf_file_is_near_its_original(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    _, weights = load_file(write_gguf(tmp_path / "m.gguf", TINY, tensors, quantise=True))
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    error = (weights.layers[0].qkv[: TINY.q_size] - q).abs().max()
    assert 0 < error < 0.01 * q.abs().max()


def test_a_gguf_file_with_a_tensor_too_few_or_too_many_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors(TINY)
    norm = tensors.pop("model.norm.weight")
    with pytest.raises(InputError, match=r"a\.gguf: missing tensors: model\.norm\.weight"):
        load_file(write_gguf(tmp_path / "a.gguf", TINY, tensors))
    # Llama 3.1's frequencies come as a tensor; without them the model would be another.
    more = tensors | {"model.norm.weight": norm, "rope_freqs.weight": torch.ones(8)}
    with pytest.raises(InputError, match=r"unexpected tensors: rope_freqs\.weight"):
        load_file(write_gguf(tmp_path / "b.gguf", TINY, more))


def test_a_gguf_file_of_another_shape_is_named(tmp_path: Path) -> None:
    wider = dataclasses.replace(TINY, intermediate=160)
    with pytest.raises(InputError, match=r"gate_proj\.weight: shape \(160, 64\)"):
        load_file(_with_metadata_of(TINY, hf_tensors(wider), tmp_path / "m.gguf"))


def _with_metadata_of(config: ModelConfig, tensors: dict[str, Any], path: Path) -> Path:
    ordered = {name: tensors[name] for name in sorted(tensors, key=lambda n: "gate" not in n)}
    return write_gguf(path, config, ordered)


def test_a_gguf_scaling_that_is_not_computed_is_refused(tmp_path: Path) -> None:
    extra = {"llama__rope__scaling__type": "yarn"}
    path = write_gguf(tmp_path / "m.gguf", TINY, hf_tensors(TINY), **extra)
    with pytest.raises(ConfigError, match=r"m\.gguf: llama\.rope\.scaling\.type: 'yarn'"):
        from_gguf(open_gguf(path))


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 2000, -64])
def test_a_truncated_gguf_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", TINY, hf_tensors(TINY))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"m\.gguf"):
        open_gguf(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4" * 100)
    with pytest.raises(InputError, match=r"m\.gguf"):
        open_gguf(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"none\.gguf"):
        open_gguf(tmp_path / "none.gguf")
