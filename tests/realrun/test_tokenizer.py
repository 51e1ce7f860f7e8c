"""Text to tokens and back."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the executor needs torch")
tokenizers = pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from hypothesis import example, given
from hypothesis import strategies as st

from policy.errors import ConfigError, InputError
from realrun.chat import from_gguf as from_gguf_chat
from realrun.smollm2 import smollm2_path
from realrun.tokenizer import Tokenizer, from_file, from_gguf
from realrun.weights import open_gguf

_MADE: list[Tokenizer] = []


def smollm2() -> Tokenizer:
    """Made once: reading 49 thousand names takes seconds. No fixture, so that properties have it."""
    if not _MADE:
        try:
            path = smollm2_path()
        except ConfigError as error:
            pytest.skip(str(error))
        _MADE.append(from_gguf(open_gguf(path), 49152))
    return _MADE[0]


def test_smollm2_splits_a_known_sentence_as_it_was_trained() -> None:
    assert smollm2().encode("The capital of France is") == [504, 3575, 282, 4649, 314]


def test_every_digit_is_a_token_of_its_own() -> None:
    ids = smollm2().encode("In 2024, 100 of 31")
    digits = [smollm2().decode([token]) for token in ids]
    assert [piece for piece in digits if piece.strip().isdigit()] == list("202410031")


#: SmolLM2 has no token for some control bytes, nor for the first bytes of planes nobody uses.
_SPELLABLE = st.characters(
    max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters="\4\6\x13\x14\x16\x1d"
)


@given(st.text(_SPELLABLE, max_size=60))
@example("  two  spaces\n\n\ttab\r\n")
@example("naïve 北京 🤦🏽‍♂️ \u0000 ½ ① \u202e")
def test_text_survives_the_round_trip(text: str) -> None:
    assert smollm2().decode(smollm2().encode(text), special=True) == text


def test_special_tokens_are_whole_and_left_out_of_the_text() -> None:
    tokenizer = smollm2()
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert (tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|nothing|>")) == (2, None)
    assert tokenizer.decode(ids) == "user\nHi"
    assert tokenizer.decode(ids, special=True) == "<|im_start|>user\nHi<|im_end|>"


def test_a_chat_is_laid_out_as_smollm2_was_trained() -> None:
    smollm2()
    chat = from_gguf_chat(open_gguf(smollm2_path()))
    assert chat is not None
    assert chat.opening("Hi") == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.following(["Hi"], "On to 5!") == (
        "<|im_end|>\n<|im_start|>user\nOn to 5!<|im_end|>\n<|im_start|>assistant\n"
    )


def write_tokenizer(path: Path) -> Path:
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.save(str(path))
    return path


def test_a_begin_token_is_given_only_where_a_text_begins(tmp_path: Path) -> None:
    tokenizer = from_file(write_tokenizer(tmp_path / "tokenizer.json"), 4)
    assert tokenizer.encode("a b") == [0, 1, 2]
    assert tokenizer.encode("a b", begins=False) == [1, 2]


def test_a_tokenizer_that_knows_more_than_the_model_is_named(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json: 4 tokens, the model has 3"):
        from_file(path, 3)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"model": {"type": "Telepathy"}}', "\0\0"])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"tokenizer\.json") as caught:
        from_file(tmp_path / "tokenizer.json", 4)
    assert "\n" not in str(caught.value)
