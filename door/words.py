"""Text and tokens at the door: a folder's own tokenizer and chat template, or bytes where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from policy.errors import ConfigError
from realrun.chat import ChatFormat, Message, from_folder
from realrun.tokenizer import Tokenizer, from_file
from traces.strict import shown_path

_NO_LIMIT = 1 << 30
_CANDIDATES = 20_000
_WORDS = 256


class Words(Protocol):
    """Encodes, decodes and renders. Raises ConfigError for messages that a template refuses."""

    @property
    def vocab(self) -> int:
        """Token ids are below this."""

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Token ids; `begins`: with a begin token, where the tokenizer has one."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""

    def chat(self, messages: Sequence[Message]) -> str:
        """A conversation as one prompt."""

    def mock(self) -> tuple[int, ...]:
        """Tokens that stay what they are, however they are put together, when text is made of them."""


class Bytes:
    """A token is a byte of UTF-8."""

    vocab = 256

    def encode(self, text: str, *, begins: bool = True) -> list[int]:  # noqa: ARG002
        """See Words."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See Words."""
        return bytes(ids).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Words."""
        return [self.decode([one]) for one in ids]

    def chat(self, messages: Sequence[Message]) -> str:
        """See Words."""
        return "".join(f"{one.role}: {one.content}\n" for one in messages) + "assistant:"

    def mock(self) -> tuple[int, ...]:
        """See Words."""
        return tuple(b"etaoinshrdlu")


class Folder:
    """A model's tokenizer. `chat_format` None: messages are refused."""

    def __init__(
        self, tokenizer: Tokenizer, chat_format: ChatFormat | None, vocab: int, where: str
    ) -> None:
        self._tokenizer = tokenizer
        self._format = chat_format
        self._where = where
        self.vocab = vocab

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """See Words."""
        return self._tokenizer.encode(text, begins=begins)

    def decode(self, ids: Sequence[int]) -> str:
        """See Words."""
        return self._tokenizer.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Words."""
        return [self._tokenizer.decode([one], special=True) for one in ids]

    def chat(self, messages: Sequence[Message]) -> str:
        """See Words."""
        if self._format is None:
            raise ConfigError(f"{self._where}: has no chat template; use completions")
        return self._format.whole(messages)

    def _is_kept(self, text: str, token: int) -> bool:
        return self.encode(text + text, begins=False) == [token, token]

    def mock(self) -> tuple[int, ...]:
        """See Words. Raises ConfigError where the tokenizer has too few plain words."""
        found = []
        for token in range(min(self.vocab, _CANDIDATES)):
            text = self._tokenizer.decode([token], special=True)
            is_word = text[:1] == " " and text[1:].isascii() and text[1:].isalpha()
            if is_word and text.islower() and self._is_kept(text, token):
                found.append(token)
            if len(found) == _WORDS:
                break
        if len(found) < 2 or self.encode(self.decode(found), begins=False) != found:
            raise ConfigError(f"{self._where}: words of one token each cannot be found in it")
        return tuple(found)


def words_of(folder: Path | None) -> Words:
    """The tokenizer of a folder, None: bytes. Raises ConfigError, InputError."""
    if folder is None:
        return Bytes()
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"--tokenizer: {shown_path(path)}: no such file")
    tokenizer = from_file(path, _NO_LIMIT)
    return Folder(tokenizer, from_folder(folder), tokenizer.size, shown_path(folder))
