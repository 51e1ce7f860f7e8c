"""What the tokens of a turn are. A workload says how many; these say which.

A later turn repeats its parent's tokens, prompt and reply, as they really were, because the KV that
was kept for it is theirs.
"""

from __future__ import annotations

from typing import Protocol

from realrun.tokenizer import Message, Tokenizer, smollm2_chat, smollm2_turn
from traces.draw import Streams
from traces.workload import Turn


class Prompts(Protocol):
    """The source of new tokens."""

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """The whole prompt of a turn whose parent left `history` (empty for a first turn)."""


class RandomPrompts:
    """Tokens drawn uniformly, as many as the workload says: for timing, and for any model."""

    def __init__(self, streams: Streams, vocab: int) -> None:
        self._streams = streams
        self._vocab = vocab

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """See Prompts. A history longer than the workload's prompt is cut."""
        shared = len(history)
        if turn.parent_prefix_tokens is not None:
            shared = min(shared, turn.parent_prefix_tokens)
        tokens = history[: min(shared, turn.input_tokens)]
        for position in range(len(tokens), turn.input_tokens):
            draw = self._streams("prompt-token", turn.request_id, position)
            tokens.append(draw % self._vocab)
        return tokens


class TextPrompts:
    """What people really typed, in SmolLM2's chat format. Lengths are the texts' own."""

    def __init__(self, texts: dict[str, str], tokenizer: Tokenizer, eos: frozenset[int]) -> None:
        """`texts`: request id -> what the user says in that turn."""
        self._texts = texts
        self._tokenizer = tokenizer
        self._eos = eos

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """See Prompts."""
        text = self._texts[turn.request_id]
        if not history:
            return self._tokenizer.encode(smollm2_chat([Message("user", text)]))
        said = smollm2_turn(text, ended=history[-1] in self._eos)
        return history + self._tokenizer.encode(said, begins=False)
