"""Weights of a decoder, with Q, K, V in one matrix and gate and up in another.

Every way in goes through the same table, Hugging Face tensor name -> place in the fused weights:
shards and GGUF tensors are checked against it, all of them, before any memory is taken.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from safetensors import SafetensorError, safe_open

from policy.errors import InputError
from realrun.config import ModelConfig, gguf_path
from traces.strict import Place, parse_json, quoted, read_document, reason, shown, shown_path

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_INDEX = 1 << 26
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN_NAMES = 3
#: Old files store RoPE's table; it follows from the configuration.
_NOT_WEIGHTS = re.compile(r"\.rotary_emb\.inv_freq$")
_HEAD = "lm_head.weight"


class LayerWeights(NamedTuple):
    """One layer. M hidden, D head size, N heads and key heads together."""

    attention_norm: torch.Tensor  # [M]
    qkv: torch.Tensor  # [q_size + 2 * kv_size, M]
    qkv_bias: torch.Tensor | None  # [q_size + 2 * kv_size]
    qk_norm: torch.Tensor | None  # [N, D]: q's norm once per head, k's once per key head
    output: torch.Tensor  # [M, q_size]
    mlp_norm: torch.Tensor  # [M]
    gate_up: torch.Tensor  # [2 * intermediate, M]
    down: torch.Tensor  # [M, intermediate]


class Weights(NamedTuple):
    """All of a decoder. `head` is the embedding itself where the two are tied."""

    embedding: torch.Tensor  # [vocab, M]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [M]
    head: torch.Tensor  # [vocab, M]

    @property
    def num_bytes(self) -> int:
        """Bytes on the device; a tied head counts once."""
        tensors = {id(tensor): tensor for tensor in self.tensors()}
        return sum(tensor.nbytes for tensor in tensors.values())

    def tensors(self) -> Iterable[torch.Tensor]:
        """Every tensor, in a fixed order; a tied head comes again at the end."""
        yield self.embedding
        for layer in self.layers:
            yield from (tensor for tensor in layer if tensor is not None)
        yield self.norm
        yield self.head


class _Part(NamedTuple):
    """Where a tensor of a checkpoint goes, and the shape it must have."""

    target: torch.Tensor
    shape: tuple[int, ...]


def empty(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Weights:
    """Memory for the weights; nothing is in it yet. On the device "meta": their shapes alone."""

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    hidden, inner, qkv = config.hidden, config.intermediate, config.q_size + 2 * config.kv_size
    layers = tuple(
        LayerWeights(
            attention_norm=new(hidden),
            qkv=new(qkv, hidden),
            qkv_bias=new(qkv) if config.qkv_bias else None,
            qk_norm=new(config.heads + config.kv_heads, config.head_dim)
            if config.qk_norm
            else None,
            output=new(hidden, config.q_size),
            mlp_norm=new(hidden),
            gate_up=new(2 * inner, hidden),
            down=new(hidden, inner),
        )
        for _ in range(config.layers)
    )
    embedding = new(config.vocab, hidden)
    head = embedding if config.tied_embeddings else new(config.vocab, hidden)
    return Weights(embedding, layers, new(hidden), head)


def _parts(config: ModelConfig, weights: Weights) -> dict[str, _Part]:
    """The table: Hugging Face's tensor names and where each goes."""
    whole = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.norm}
    if not config.tied_embeddings:
        whole[_HEAD] = weights.head
    parts = {name: _Part(target, tuple(target.shape)) for name, target in whole.items()}
    for index, layer in enumerate(weights.layers):
        for name, part in _layer_parts(config, layer):
            parts[f"model.layers.{index}.{name}"] = part
    return parts


def _layer_parts(config: ModelConfig, layer: LayerWeights) -> Iterable[tuple[str, _Part]]:
    rows = [config.q_size, config.kv_size, config.kv_size]
    fused = {"weight": layer.qkv, "bias": layer.qkv_bias}
    for kind, tensor in fused.items():
        if tensor is not None:
            for side, target in zip("qkv", torch.split(tensor, rows), strict=True):
                yield f"self_attn.{side}_proj.{kind}", _Part(target, tuple(target.shape))
    if layer.qk_norm is not None:
        heads = torch.split(layer.qk_norm, [config.heads, config.kv_heads])
        for side, target in zip("qk", heads, strict=True):
            yield f"self_attn.{side}_norm.weight", _Part(target, (config.head_dim,))
    gate, up = layer.gate_up.chunk(2)
    for name, target in {
        "input_layernorm": layer.attention_norm,
        "self_attn.o_proj": layer.output,
        "post_attention_layernorm": layer.mlp_norm,
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": layer.down,
    }.items():
        yield f"{name}.weight", _Part(target, tuple(target.shape))


def random_weights(
    config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device | str
) -> Weights:
    """Weights drawn on the device, for timing where there are none to load.

    Scaled so that activations keep their size through any depth. The same seed gives the same
    weights on the same kind of device, not across kinds.
    """
    generator = torch.Generator(device).manual_seed(seed)
    weights = empty(config, dtype, device)
    for tensor in {id(tensor): tensor for tensor in weights.tensors()}.values():
        tensor.normal_(0.0, 1.0 / math.sqrt(tensor.shape[-1]), generator=generator)
    for layer in weights.layers:
        for scale in (layer.attention_norm, layer.mlp_norm, layer.qk_norm):
            if scale is not None:
                scale.add_(1.0)
    weights.norm.add_(1.0)
    return weights


def load_hf(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> Weights:
    """The safetensors of a Hugging Face folder, one tensor at a time straight to the device.

    Raises InputError naming file and tensor: missing, unexpected, of another shape or type.
    """
    shards = _shards(folder)
    expected = _parts(config, empty(config, dtype, "meta"))
    _check_names(folder, expected, shards, config)
    for path, names in shards.items():
        _check_shard(path, names, expected)
    weights = empty(config, dtype, device)
    parts = _parts(config, weights)
    for path, names in shards.items():
        with safe_open(path, framework="pt", device=str(device)) as shard:
            for name in names:
                if name in parts:
                    parts[name].target.copy_(shard.get_tensor(name))
                    _check_finite(path, name, parts[name].target)
                elif name == _HEAD:
                    _check_tied(path, shard.get_tensor(name), folder, shards, device)
    return weights


def _shards(folder: Path) -> dict[Path, list[str]]:
    """Every shard and its tensors, as the index has them and as the shards themselves do."""
    if not (folder / _INDEX).exists():
        path = folder / _SINGLE
        if not path.exists():
            raise InputError(f"{shown_path(folder)}: neither {_INDEX} nor {_SINGLE} in it")
        return {path: _names_in(path)}
    place = Place(folder / _INDEX)
    document = parse_json(read_document(place.path, place, _MAX_INDEX), place)
    table = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table:
        place.fail("not an object that maps tensors to files", "weight_map")
    shards: dict[Path, list[str]] = {}
    for name, file in table.items():
        if not isinstance(file, str) or Path(file).name != file:
            place.fail(f"{quoted(file)} is not the name of a file beside it", f"weight_map.{name}")
        shards.setdefault(folder / file, []).append(name)
    for path, names in shards.items():
        there = _names_in(path)
        _complain(path, "the index names tensors that are not in it", set(names) - set(there))
        _complain(path, "tensors that the index does not name", set(there) - set(names))
    return shards


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as shard:
            return sorted(shard.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{shown_path(path)}: {reason(error)}") from None


def _check_names(
    folder: Path,
    expected: Mapping[str, _Part],
    shards: Mapping[Path, list[str]],
    config: ModelConfig,
) -> None:
    there = {name for names in shards.values() for name in names if not _NOT_WEIGHTS.search(name)}
    _complain(folder, "missing tensors", set(expected) - there)
    if config.tied_embeddings:
        there.discard(_HEAD)  # some files have it all the same; its values are looked at later
    _complain(folder, "unexpected tensors", there - set(expected))


def _complain(path: Path, what: str, names: set[str]) -> None:
    """Raise InputError if there are any, and name the first of them."""
    if names:
        first = ", ".join(shown(name) for name in sorted(names)[:_SHOWN_NAMES])
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        raise InputError(f"{shown_path(path)}: {what}: {first}{more}")


def _check_shard(path: Path, names: list[str], expected: Mapping[str, _Part]) -> None:
    with safe_open(path, framework="pt") as shard:
        for name in names:
            if name not in expected:
                continue
            header = shard.get_slice(name)
            kind, shape = header.get_dtype(), tuple(header.get_shape())
            if kind not in _FLOATS:
                _fail(path, name, f"type {kind}, only {', '.join(_FLOATS)} are read")
            if shape != expected[name].shape:
                _fail(path, name, f"shape {shape}, the configuration says {expected[name].shape}")


def _fail(path: Path, name: str, problem: str) -> None:
    raise InputError(f"{shown_path(path)}: {shown(name)}: {shown(problem, 300)}")


def _check_tied(
    path: Path,
    head: torch.Tensor,
    folder: Path,
    shards: Mapping[Path, list[str]],
    device: torch.device | str,
) -> None:
    """A head stored beside a tied embedding must be that embedding: else one of them is lost."""
    name = "model.embed_tokens.weight"
    owner = next(shard for shard, names in shards.items() if name in names)
    with safe_open(owner, framework="pt", device=str(device)) as shard:
        embedding = shard.get_tensor(name)
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        _fail(path, _HEAD, f"differs from {name}; config.json of {folder.name} ties them")


def open_gguf(path: Path) -> GGUFReader:
    """A GGUF file, its directory read and its tensors mapped. Raises InputError."""
    try:
        return GGUFReader(path)
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        raise InputError(f"{shown_path(path)}: not a whole GGUF file: {reason(error)}") from None


_GGUF_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": _HEAD,
}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAME = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)")


def load_gguf(
    reader: GGUFReader, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> Weights:
    """The tensors of a GGUF file, dequantised to fp32 on the host one by one.

    Raises InputError naming file and tensor.
    """
    path = gguf_path(reader)
    there = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    expected = _parts(config, empty(config, dtype, "meta"))
    _complain(path, "missing tensors", set(expected) - set(there))
    _complain(path, "unexpected tensors", set(there) - set(expected))
    for name, tensor in there.items():
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != expected[name].shape:
            _fail(path, name, f"shape {shape}, the metadata say {expected[name].shape}")
    neighbours = reader.fields["general.architecture"].contents() == "llama"
    weights = empty(config, dtype, device)
    for name, part in _parts(config, weights).items():
        values = _dequantised(path, there[name])
        if neighbours and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _halves_apart(values, config.head_dim)
        part.target.copy_(torch.from_numpy(values))
        _check_finite(path, there[name].name, part.target)
    return weights


def _check_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Raise InputError for a weight that is no number: every answer would be noise."""
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        _fail(path, name, f"{bad} of {tensor.numel()} values are NaN or infinite as {tensor.dtype}")


def _hf_name(name: str) -> str:
    """What Hugging Face calls a tensor; the name itself if it has no word for it."""
    found = _GGUF_NAME.fullmatch(name)
    if found is None or found[2] not in _GGUF_LAYER:
        return _GGUF_WHOLE.get(name, name)
    return f"model.layers.{int(found[1])}.{_GGUF_LAYER[found[2]]}.{found[3]}"


def _dequantised(path: Path, tensor: ReaderTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"{shown_path(path)}: {shown(tensor.name)}: {tensor.tensor_type.name}: {reason(error)}"
        ) from None
    return np.require(values, np.float32, ["C", "W"])  # unquantised ones are the mapped file


def _halves_apart(
    values: np.ndarray[Any, np.dtype[np.float32]], head_dim: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of Llama's q and k back in Hugging Face's order. llama.cpp turns neighbouring rows of a
    head together, so its converter moved row i + head_dim / 2 to behind row i."""
    pairs = values.reshape(-1, head_dim // 2, 2, values.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
