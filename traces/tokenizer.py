"""Counting tokens of traces that are text, with a tokenizer.json as Hugging Face writes it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from policy.errors import ConfigError, InputError
from traces.readers.base import Encode
from traces.strict import reason, shown_path


def from_file(path: Path) -> Encode:
    """Text to token ids, without the tokens that begin or end a text. Raises ConfigError if the
    package `tokenizers` is not there, InputError for a file that is no tokenizer."""
    try:
        package = importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise ConfigError(
            "--tokenizer: needs the package tokenizers: pip install tokenizers"
        ) from None
    try:
        backend = package.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  # the package raises nothing narrower
        raise InputError(f"{shown_path(path)}: no tokenizer: {reason(error)}") from None

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    return encode
