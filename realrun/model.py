"""A decoder of the Llama family as functions over fused weights.

It owns no memory of the past: `attend` is handed in, stores K and V wherever the caller keeps them
and answers with attention. Shapes end names: T tokens of the step, N rows of it, M hidden,
F twice the intermediate size, H query heads, K key heads, D head size, V vocabulary.

Nothing here depends on values: no branch, no copy to the host. With static inputs, and an `attend`
as well behaved, a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from policy.errors import ConfigError
from realrun import chat as chats
from realrun import config as configs
from realrun import tokenizer as tokenizers
from realrun import weights as loader
from realrun.chat import ChatFormat
from realrun.config import GREEDY, PRESETS, Generation, ModelConfig
from realrun.device_ops import Ops
from realrun.heads import Heads
from realrun.rope import angles, inverse_frequencies
from realrun.smollm2 import smollm2_path
from realrun.tokenizer import Tokenizer
from realrun.weights import Weights
from traces.strict import shown


class Attend(Protocol):
    """What a layer asks of the caller. `out_THD` may be of any strides."""

    def __call__(self, layer: int, heads: Heads, /) -> torch.Tensor:
        """Turn the heads, store K and V of the step's tokens, then attend. Returns `out_THD`."""


def norm(x_TM: torch.Tensor, weight_M: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm. Computed in fp32 and rounded once, whatever the type."""
    return F.rms_norm(x_TM, (x_TM.shape[-1],), weight_M, eps)


def add_norm(
    x_TM: torch.Tensor, delta_TM: torch.Tensor, weight_M: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, normed and as it is."""
    sum_TM = x_TM + delta_TM
    return norm(sum_TM, weight_M, eps), sum_TM


def gate(gate_up_TF: torch.Tensor) -> torch.Tensor:
    """SwiGLU of the two halves."""
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF


PLAIN = Ops(norm, add_norm, gate)


def ops_for(device: torch.device) -> Ops:
    """One kernel for each on a GPU, plain torch elsewhere. Triton is imported for a GPU only."""
    if device.type != "cuda":
        return PLAIN
    from realrun.fused import FUSED  # noqa: PLC0415

    return FUSED


class Decoder:
    """Weights and how to run them. Call it under `torch.inference_mode`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops = PLAIN) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self._inverse_D = inverse_frequencies(config, self.device)

    def forward(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Hidden states `hidden_TM` of the step's tokens behind the last norm.

        `tokens_T`, `positions_T`: integers on the device; tokens of several requests lie one
        behind another, and only `attend` knows whose they are.
        """
        ops, config, eps = self.ops, self.config, self.config.rms_eps
        layers, last_M = self.weights.layers, self.weights.norm
        step = angles(positions_T, self._inverse_D, self.dtype)
        sum_TM = F.embedding(tokens_T, self.weights.embedding)
        normed_TM = ops.norm(sum_TM, layers[0].attention_norm, eps)
        following = [*(layer.attention_norm for layer in layers[1:]), last_M]
        for index, (layer, next_M) in enumerate(zip(layers, following, strict=True)):
            qkv_TF = F.linear(normed_TM, layer.qkv, layer.qkv_bias)
            heads = Heads(
                qkv_TF.view(qkv_TF.shape[0], -1, config.head_dim),
                config.heads,
                config.kv_heads,
                layer.qk_norm,
                eps,
                step,
            )
            out_THD = attend(index, heads)
            delta_TM = F.linear(out_THD.flatten(1), layer.output)
            normed_TM, sum_TM = ops.add_norm(sum_TM, delta_TM, layer.mlp_norm, eps)
            inner_TF = ops.gate(F.linear(normed_TM, layer.gate_up))
            normed_TM, sum_TM = ops.add_norm(sum_TM, F.linear(inner_TF, layer.down), next_M, eps)
        return normed_TM

    def logits(self, hidden_NM: torch.Tensor) -> torch.Tensor:
        """`logits_NV`, in the model's type, of the rows that need them."""
        return F.linear(hidden_NM, self.weights.head)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `tokenizer` and `chat` are None where there is none, as with random weights;
    `generation`: how its makers would have it sampled."""

    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None
    chat: ChatFormat | None = None
    generation: Generation = GREEDY


def load_model(
    spec: str, dtype: torch.dtype, device: torch.device | str, *, seed: int = 0
) -> LoadedModel:
    """`smollm2`, `random:NAME` (a preset of `realrun.config`, weights drawn from `seed`), or the
    path of a Hugging Face folder or a GGUF file.

    Raises ConfigError for a spec or a model that cannot be used, InputError for broken files.
    """
    device = torch.device(device)
    if spec.startswith("random:"):
        return _random(spec.removeprefix("random:"), seed, dtype, device)
    path = smollm2_path() if spec == "smollm2" else Path(spec)
    if spec and os.path.isdir(path):  # of os.path, since pathlib's raises for impossible names
        return _from_folder(path, dtype, device)
    if path.suffix == ".gguf" and os.path.isfile(path):
        return _from_gguf(path, dtype, device)
    raise ConfigError(
        f"model: {shown(spec)!r} is no folder, no .gguf file, not smollm2 and not one of "
        + ", ".join(f"random:{name}" for name in PRESETS)
    )


def _random(name: str, seed: int, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    config = PRESETS.get(name)
    if config is None:
        raise ConfigError(f"model: random:{shown(name)} is not one of {', '.join(PRESETS)}")
    weights = loader.random_weights(config, seed, dtype, device)
    return LoadedModel(config, Decoder(config, weights, ops_for(device)), None)


def _from_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    config = configs.from_hf(folder)
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.from_file(path, config.vocab) if path.exists() else None
    chat, generation = chats.from_folder(folder), configs.generation_of(folder)
    weights = loader.load_hf(folder, config, dtype, device)
    decoder = Decoder(config, weights, ops_for(device))
    return LoadedModel(config, decoder, tokenizer, chat, generation)


def _from_gguf(path: Path, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    reader = loader.open_gguf(path)
    config = configs.from_gguf(reader)
    tokenizer = tokenizers.from_gguf(reader, config.vocab)
    weights = loader.load_gguf(reader, config, dtype, device)
    chat = chats.from_gguf(reader)
    return LoadedModel(config, Decoder(config, weights, ops_for(device)), tokenizer, chat)
