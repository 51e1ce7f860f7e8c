"""The shape of a decoder: read from a Hugging Face folder or a GGUF file, or one of the presets.

Llama 3, Qwen2, Qwen2.5, Qwen3 and Mistral. A variant that the decoder does not compute (sliding windows,
other RoPE scalings, biases elsewhere, quantised shards) is refused here, by name: computed without
it, a model still writes fluent text, only not its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from policy.errors import ConfigError
from traces.strict import Place, parse_json, quoted, read_document, shown, shown_path

if TYPE_CHECKING:
    from gguf import GGUFReader

_MAX_SIZE = 1 << 20
_MAX_LAYERS = 1 << 10
_MAX_LENGTH = 1 << 24
_MAX_DOCUMENT = 1 << 20


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's `llama3` scaling: wavelengths longer than `original_len / low_freq_factor` are
    stretched by `factor`, those shorter than `original_len / high_freq_factor` are kept, and
    between them it goes smoothly."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder. Sizes are in elements; `kv_heads` divides `heads`; `head_dim` is even."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_model_len: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    eos_ids: tuple[int, ...] = ()

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def token_elements(self) -> int:
        """KV elements of one token over all layers, K and V."""
        return 2 * self.layers * self.kv_size


class _Family(NamedTuple):
    qkv_bias: bool
    qk_norm: bool


_FAMILIES = {
    "llama": _Family(qkv_bias=False, qk_norm=False),
    "qwen2": _Family(qkv_bias=True, qk_norm=False),
    "qwen3": _Family(qkv_bias=False, qk_norm=True),
    "mistral": _Family(qkv_bias=False, qk_norm=False),
}


class Generation(NamedTuple):
    """What generation_config.json says of sampling: greedy without it. `unheeded`: fields that would
    change the text and are not applied, in words."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    unheeded: tuple[str, ...] = ()


GREEDY = Generation()
#: Fields of generation_config.json that change no text at these values.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "min_p": (None, 0, 0.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
}

#: Random weights mean nothing by an end token, so these have none: lengths come from the trace.
PRESETS = {
    config.name: config
    for config in (
        ModelConfig(
            name="llama-3-8b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14336,
            vocab=128256,
            max_model_len=8192,
            rms_eps=1e-5,
            rope_theta=500000.0,
        ),
        ModelConfig(
            name="qwen2.5-7b",
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18944,
            vocab=152064,
            max_model_len=32768,
            rms_eps=1e-6,
            rope_theta=1000000.0,
            qkv_bias=True,
        ),
        ModelConfig(
            name="qwen3-8b",
            layers=36,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=12288,
            vocab=151936,
            max_model_len=40960,
            rms_eps=1e-6,
            rope_theta=1000000.0,
            qk_norm=True,
        ),
        ModelConfig(  # a few milliseconds a step on any CPU
            name="small",
            layers=4,
            hidden=256,
            heads=8,
            kv_heads=4,
            head_dim=32,
            intermediate=704,
            vocab=2048,
            max_model_len=4096,
            rms_eps=1e-5,
            rope_theta=10000.0,
        ),
        ModelConfig(
            name="tiny",
            layers=2,
            hidden=64,
            heads=4,
            kv_heads=2,
            head_dim=16,
            intermediate=128,
            vocab=256,
            max_model_len=4096,
            rms_eps=1e-5,
            rope_theta=10000.0,
        ),
    )
}


class _Fields:
    """One object of a file, its values checked as they are asked for."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self._values = values
        self._path = path
        self._prefix = prefix

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise ConfigError: file, field, what is wrong with it."""
        field = shown(self._prefix + name)
        raise ConfigError(f"{shown_path(self._path)}: {field}: {shown(problem, 300)}")

    def get(self, name: str) -> Any:
        """The value, None if there is none."""
        return self._values.get(name)

    def need(self, name: str) -> Any:
        """The value, which must be there."""
        value = self.get(name)
        if value is None:
            self.fail(name, "missing")
        return value

    def count(self, name: str, limit: int = _MAX_SIZE, default: int | None = None) -> int:
        """An integer from 1 to `limit`."""
        value = self.need(name) if default is None else self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= limit:
            self.fail(name, f"{quoted(value)} is not an integer from 1 to {limit}")
        return value

    def number(self, name: str) -> float:
        """A finite number above 0."""
        value = self.need(name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            self.fail(name, f"{quoted(value)} is not a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false if it is not there."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.fail(name, f"{quoted(value)} is not true or false")
        return bool(value)

    def word(self, name: str, known: Mapping[str, Any]) -> str:
        """One of the known words."""
        value = self.need(name)
        if not isinstance(value, str) or value not in known:
            self.fail(name, f"{quoted(value)} is not supported, only {', '.join(known)}")
        return value

    def inner(self, name: str) -> _Fields:
        """An object in this one; an empty one if it is not there."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            self.fail(name, f"{quoted(value)} is not an object")
        return _Fields(value or {}, self._path, f"{self._prefix}{name}.")

    def refuse(self, name: str, *harmless: Any) -> None:
        """Fail if it is there and is not one of the values that change nothing."""
        value = self.get(name)
        if value is not None and value not in harmless:
            self.fail(name, f"{quoted(value)} is not supported")

    def __bool__(self) -> bool:
        return bool(self._values)

    def sizes(self, names: Mapping[str, str]) -> dict[str, int]:
        """The integers of a ModelConfig; `names`: what each is called here."""
        found = {
            "layers": self.count(names["layers"], _MAX_LAYERS),
            "hidden": self.count(names["hidden"]),
            "heads": self.count(names["heads"]),
            "kv_heads": self.count(names["kv_heads"]),
            "intermediate": self.count(names["intermediate"]),
            "vocab": self.count(names["vocab"]),
            "max_model_len": self.count(names["max_model_len"], _MAX_LENGTH),
        }
        heads, kv_heads = found["heads"], found["kv_heads"]
        if heads % kv_heads:
            self.fail(names["kv_heads"], f"{kv_heads} does not divide {heads} heads")
        found["head_dim"] = self.count(names["head_dim"], default=max(1, found["hidden"] // heads))
        if found["head_dim"] % 2:
            self.fail(names["head_dim"], f"{found['head_dim']} is odd, RoPE turns pairs")
        return found


_HF_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
    "max_model_len": "max_position_embeddings",
}


def from_hf(folder: Path) -> ModelConfig:
    """The model of a Hugging Face folder, from config.json and generation_config.json.

    Raises ConfigError naming file and field; InputError for a file that is not JSON.
    """
    fields = _document(folder / "config.json")
    family = fields.word("model_type", _FAMILIES)
    _refuse_variants(fields)
    if family == "mistral":
        # its first release sees no further back than this
        longest = fields.count("max_position_embeddings", _MAX_LENGTH)
        window = fields.get("sliding_window")
        if window is not None and not (type(window) is int and window >= longest):
            fields.fail("sliding_window", f"{quoted(window)} is not supported, only none")
    scaling, theta = _rope(fields)
    return ModelConfig(
        **fields.sizes(_HF_NAMES),
        name=folder.resolve().name,
        rms_eps=fields.number("rms_norm_eps"),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=_FAMILIES[family].qkv_bias,
        qk_norm=_FAMILIES[family].qk_norm,
        eos_ids=_end_tokens(folder, fields),
    )


def _document(path: Path) -> _Fields:
    place = Place(path)
    values = parse_json(read_document(path, place, _MAX_DOCUMENT), place)
    if not isinstance(values, dict):
        place.fail(f"{quoted(values)} where an object must be")
    return _Fields(values, path)


def _refuse_variants(fields: _Fields) -> None:
    """What changes the result and is not computed here."""
    fields.refuse("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        fields.refuse(name, False)
    fields.refuse("quantization_config")
    kinds = fields.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)
    ):
        fields.fail("layer_types", "a layer is not full_attention")


def _rope(fields: _Fields) -> tuple[RopeScaling | None, float]:
    """Scaling and theta. transformers 5 writes both into `rope_parameters`; before, theta stood
    beside `rope_scaling`, whose type was once called `type`."""
    new, old = fields.inner("rope_parameters"), fields.inner("rope_scaling")
    if new and old:
        fields.fail("rope_scaling", "given beside rope_parameters: which one counts?")
    rope = new or old
    theta = (rope if rope.get("rope_theta") is not None else fields).number("rope_theta")
    for place in (fields, rope):
        place.refuse("partial_rotary_factor", 1)
    if not rope:
        return None, theta
    kind = "type" if rope.get("rope_type") is None and rope.get("type") else "rope_type"
    if rope.word(kind, {"default": None, "llama3": None}) == "default":
        return None, theta
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_len=rope.count("original_max_position_embeddings", _MAX_LENGTH),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        rope.fail("high_freq_factor", "not above low_freq_factor")
    return scaling, theta


def _end_tokens(folder: Path, fields: _Fields) -> tuple[int, ...]:
    """Tokens that end an answer. generation_config.json knows more of them than config.json."""
    path = folder / "generation_config.json"
    generation = _document(path) if path.exists() else fields
    source = generation if generation.get("eos_token_id") is not None else fields
    ids = source.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if any(type(token) is not int or token < 0 for token in ids):
        source.fail("eos_token_id", "not a token id or a list of token ids")
    return tuple(ids)


def generation_of(folder: Path) -> Generation:
    """How a folder's generation_config.json would have tokens chosen. Raises ConfigError naming the field,
    InputError."""
    path = folder / "generation_config.json"
    if not path.exists():
        return Generation()
    fields = _document(path)
    unheeded = tuple(
        f"generation_config.json: {name} {quoted(fields.get(name))} is not applied"
        for name, harmless in _HARMLESS.items()
        if fields.get(name) not in harmless
    )
    most = None
    if fields.get("max_new_tokens") is not None:
        most = fields.count("max_new_tokens", _MAX_LENGTH)
    if not fields.flag("do_sample"):
        return Generation(max_new_tokens=most, unheeded=unheeded)
    top_p = 1.0 if fields.get("top_p") is None else fields.number("top_p")
    if top_p > 1.0:
        fields.fail("top_p", f"{top_p:g} is above 1")
    return Generation(
        1.0 if fields.get("temperature") is None else fields.number("temperature"),
        top_p,
        fields.count("top_k") if fields.get("top_k") else 0,
        most,
        unheeded,
    )


def from_gguf(reader: GGUFReader) -> ModelConfig:
    """The model of a GGUF file (llama.cpp's format). Raises ConfigError naming file and field."""
    fields = _metadata(reader)
    arch = fields.word("general.architecture", _FAMILIES)
    names = {
        "layers": f"{arch}.block_count",
        "hidden": f"{arch}.embedding_length",
        "heads": f"{arch}.attention.head_count",
        "kv_heads": f"{arch}.attention.head_count_kv",
        "head_dim": f"{arch}.attention.key_length",
        "intermediate": f"{arch}.feed_forward_length",
        "vocab": f"{arch}.vocab_size",
        "max_model_len": f"{arch}.context_length",
    }
    sizes = fields.sizes(names)
    fields.refuse(f"{arch}.rope.scaling.type", "none")
    fields.refuse(f"{arch}.rope.dimension_count", sizes["head_dim"])
    fields.refuse(f"{arch}.attention.value_length", sizes["head_dim"])
    fields.refuse(f"{arch}.attention.sliding_window", 0)
    eos = fields.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        **sizes,
        name=str(fields.get("general.name") or arch),
        rms_eps=fields.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_theta=fields.number(f"{arch}.rope.freq_base"),
        rope_scaling=None,
        tied_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        qkv_bias=_FAMILIES[arch].qkv_bias,
        qk_norm=_FAMILIES[arch].qk_norm,
        eos_ids=() if eos is None else (int(eos),),
    )


def _metadata(reader: GGUFReader) -> _Fields:
    """The scalars. Files that do not say how large the vocabulary is have a token list."""
    values = {
        name: field.contents() for name, field in reader.fields.items() if len(field.types) == 1
    }
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    if tokens is not None:
        values.setdefault(f"{values.get('general.architecture')}.vocab_size", len(tokens.data))
    return _Fields(values, gguf_path(reader))


def gguf_path(reader: GGUFReader) -> Path:
    """The file behind a reader, which keeps it only in its memory map."""
    return Path(str(getattr(reader.data, "filename", "GGUF")))
