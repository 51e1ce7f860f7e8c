"""Text to tokens and back: tokenizer.json as it is, or the same thing made from GGUF metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from policy.errors import ConfigError, InputError
from realrun.config import gguf_path
from traces.strict import quoted, reason, shown_path

if TYPE_CHECKING:
    from gguf import GGUFReader

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that text is never merged into


class Tokenizer:
    """Encodes and decodes whole texts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Token ids. `begins`: whether a begin token goes in front, where the model has one; text
        behind earlier tokens of a conversation gets none. Names of special tokens in the text
        become these tokens, as a chat format needs it."""
        return self._backend.encode(text, add_special_tokens=begins).ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text. `special`: spell out special tokens as well."""
        return self._backend.decode(list(ids), skip_special_tokens=not special)

    @property
    def size(self) -> int:
        """Token ids are below this."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        self._backend.save(str(path))

    def id_of(self, token: str) -> int | None:
        """The id of one token by its name."""
        return self._backend.token_to_id(token)


def from_file(path: Path, vocab: int) -> Tokenizer:
    """tokenizer.json. Raises InputError if it is broken or knows more tokens than the model."""
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # noqa: BLE001  # the package raises nothing narrower
        raise InputError(f"{shown_path(path)}: {reason(error)}") from None
    return _checked(backend, path, vocab)


def from_gguf(reader: GGUFReader, vocab: int) -> Tokenizer:
    """The byte-level BPE in a GGUF file, as SmolLM2 has it. Raises ConfigError for another kind."""
    path = gguf_path(reader)
    for field, known in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")):
        found = reader.fields[field].contents() if field in reader.fields else None
        if found != known:
            raise ConfigError(
                f"{shown_path(path)}: {field}: {quoted(found)} is not supported, only {known}"
            )
    tokens, kinds, merges = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "token_type", "merges")
    )
    return _checked(_byte_level_bpe(tokens, kinds, merges), path, vocab)


def _byte_level_bpe(tokens: Sequence[str], kinds: Sequence[int], merges: Iterable[str]) -> Backend:
    """GPT-2's BPE behind SmolLM's own split, in which every digit is a token of its own."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = (_CONTROL, _USER_DEFINED)
    names = [token for token, kind in zip(tokens, kinds, strict=True) if kind in special]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    return backend


def _checked(backend: Backend, path: Path, vocab: int) -> Tokenizer:
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > vocab:
        raise InputError(f"{shown_path(path)}: {size} tokens, the model has {vocab}")
    return Tokenizer(backend)
