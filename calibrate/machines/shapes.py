"""A model's shape from its Hugging Face `config.json`: what decides matrix products, attention and KV.

Only dense decoders with grouped-query attention are worked out here; others are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import ConfigError, InputError
from traces.strict import quoted, reason, shown_path

#: What ships: `config.json` of the models that profiles ship for, without what nobody reads here.
CONFIGS = Path(__file__).parent / "configs.json"
#: `model_type`s whose layers are the four matrix products and the attention below.
DENSE = ("llama", "qwen2", "qwen3", "mistral")


class Gemm(NamedTuple):
    """A matrix product of m rows with weights of n columns and k rows, so many times a step."""

    name: str
    n: int
    k: int
    times: int


class Shape(NamedTuple):
    """One GPU's share of a model. `heads` and `kv_heads` are its own, `shards` how many share it."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_model_len: int
    tied: bool = False
    shards: int = 1
    dtype_bytes: int = 2

    def gemms(self) -> tuple[Gemm, ...]:
        """Of all layers; the output head is apart, since only rows that yield a token go through it."""
        attention = self.heads * self.head_dim
        return (
            Gemm("qkv", attention + 2 * self.kv_heads * self.head_dim, self.hidden, self.layers),
            Gemm("o", self.hidden, attention, self.layers),
            Gemm("gate_up", 2 * self.inner, self.hidden, self.layers),
            Gemm("down", self.hidden, self.inner, self.layers),
        )

    def head(self) -> Gemm:
        """The output head."""
        return Gemm("lm_head", -(-self.vocabulary // self.shards), self.hidden, 1)

    @property
    def weight_bytes(self) -> int:
        """Of one GPU: products, head, and the embedding where it is not the head's."""
        products = sum(gemm.n * gemm.k * gemm.times for gemm in self.gemms())
        head = self.head()
        embedding = 0 if self.tied else head.n * head.k
        norms = (2 * self.layers + 1) * self.hidden
        return (products + head.n * head.k + embedding + norms) * self.dtype_bytes

    @property
    def token_bytes(self) -> int:
        """KV bytes of a token on one GPU."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    def split(self, shards: int) -> Shape:
        """Its share under tensor parallelism. Raises ConfigError if it cannot be shared so."""
        if shards == self.shards:
            return self
        if self.heads % shards or self.inner % shards or self.kv_heads % shards:
            raise ConfigError(
                f"tensor parallel {shards}: {self.name} has {self.heads} heads, {self.kv_heads} KV heads"
                f" and {self.inner} inner columns, which do not divide"
            )
        return self._replace(
            heads=self.heads // shards,
            kv_heads=self.kv_heads // shards,
            inner=self.inner // shards,
            shards=shards,
        )


def shape_of(config: Mapping[str, Any], name: str) -> Shape:
    """From a parsed `config.json`. Raises InputError naming the field."""
    kind = config.get("model_type")
    if kind not in DENSE:
        raise InputError(
            f"{name}: model_type {quoted(str(kind))} is not one of {', '.join(DENSE)}: only dense"
            " models can be worked out from a config; others need measured tables"
        )
    if config.get("use_sliding_window") or (kind == "mistral" and config.get("sliding_window")):
        raise InputError(f"{name}: sliding_window: every layer is taken to read the whole context")

    def number(field: str, default: int | None = None) -> int:
        value = config.get(field, default)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise InputError(f"{name}: {field}: {quoted(str(value))} is not a whole number above 0")
        return value

    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    return Shape(
        name=name,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        inner=number("intermediate_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", max(1, hidden // heads)),
        vocabulary=number("vocab_size"),
        max_model_len=number("max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def known() -> dict[str, Shape]:
    """Models that profiles ship for, by name."""
    return {name: shape_of(config, name) for name, config in _json(CONFIGS).items()}


def find(name_or_path: str) -> Shape:
    """A known model by name, or a `config.json`. Raises ConfigError or InputError."""
    shapes = known()
    if name_or_path in shapes:
        return shapes[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"model: {quoted(name_or_path)} is neither a config.json nor one of {', '.join(shapes)}"
        )
    config = _json(path)
    named = str(config.get("_name_or_path") or "").strip("/").split("/")[-1]
    return shape_of(config, named or path.resolve().parent.name)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{shown_path(path)}: not a mapping")
    return found
