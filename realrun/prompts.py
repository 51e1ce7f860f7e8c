"""What the tokens of a turn are. A workload says how many; these say which.

A later turn repeats its parent's tokens, prompt and reply, as they really were, because the KV that
was kept for it is theirs.
"""

from __future__ import annotations

from typing import Protocol

from realrun.chat import ChatFormat
from realrun.tokenizer import Tokenizer
from traces.randomness import Streams
from traces.workload import Header, Turn


class Prompts(Protocol):
    """The source of new tokens."""

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """The whole prompt of a turn whose parent left `history` (empty for a first turn)."""


class RandomPrompts:
    """Tokens drawn uniformly, as many as the workload says: for timing, and for any model.

    Blocks with equal hash_ids get equal tokens, as far as the workload says that they hold, whether
    or not the system makes anything of it.
    """

    def __init__(self, streams: Streams, vocab: int, header: Header | None = None) -> None:
        self._streams = streams
        self._vocab = vocab
        self._size = None if header is None else header.block_size
        self._is_global = header is not None and header.hash_scope == "global"

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """See Prompts. A history longer than the workload's prompt is cut."""
        shared = len(history)
        if turn.parent_prefix_tokens is not None:
            shared = min(shared, turn.parent_prefix_tokens)
        tokens = history[: min(shared, turn.input_tokens)]
        for position in range(len(tokens), turn.input_tokens):
            draw = self._streams("prompt-token", *self._place(turn, position))
            tokens.append(draw % self._vocab)
        return tokens

    def _place(self, turn: Turn, position: int) -> tuple[str, int]:
        """The stream that a position's token is drawn from, and where in it."""
        ids, size = turn.hash_ids, self._size
        if ids is None or size is None or position // size >= len(ids):
            return turn.request_id, position
        block, offset = divmod(position, size)
        scope = "" if self._is_global else turn.session_id
        return f"{scope} block {ids[block]}", offset


class TextPrompts:
    """What people really typed, in the model's own chat format. Lengths are the texts' own."""

    def __init__(
        self, texts: dict[str, str], tokenizer: Tokenizer, chat: ChatFormat, eos: frozenset[int]
    ) -> None:
        """`texts`: request id -> what the user says in that turn, `SESSION/TURN`."""
        self._texts = texts
        self._tokenizer = tokenizer
        self._chat = chat
        self._eos = eos

    def prompt(self, turn: Turn, history: list[int]) -> list[int]:
        """See Prompts. The template writes its special tokens itself, so none is put in front."""
        text = self._texts[turn.request_id]
        if not history:
            return self._tokenizer.encode(self._chat.opening(text), begins=False)
        earlier = [self._texts[f"{turn.session_id}/{nth}"] for nth in range(1, turn.turn)]
        new = self._tokenizer.encode(self._chat.following(earlier, text), begins=False)
        if history[-1] in self._eos and new[:1] == history[-1:]:
            new = new[1:]  # the reply ended itself
        return history + new
