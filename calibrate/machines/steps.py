"""One step of a server as the step-cost forms see it, and a step whose time is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """`batch` requests decode and read `kv_tokens` tokens of KV, the `longest` context among them;
    `chunks`: (new tokens, tokens already there) of each prompt or part of one."""

    batch: int = 0
    kv_tokens: int = 0
    longest: int = 0
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> str:
        """`decode`, `prefill` or `mixed`."""
        if not self.chunks:
            return "decode"
        return "mixed" if self.batch else "prefill"

    @property
    def tokens(self) -> int:
        """All new tokens: one of every decoding request, and the prompts'."""
        return self.batch + sum(new for new, _ in self.chunks)

    @property
    def outputs(self) -> int:
        """Rows that go through the output head."""
        return self.batch + len(self.chunks)

    @property
    def all_kv(self) -> int:
        """KV tokens that have to be in memory for it."""
        return self.kv_tokens + sum(new + past for new, past in self.chunks)

    @property
    def squares(self) -> int:
        """Twice the sum of new * (past + new / 2): pairs that causal attention of prompts looks at."""
        return sum(new * (2 * past + new) for new, past in self.chunks)

    @property
    def past(self) -> int:
        """Tokens before the chunks."""
        return sum(past for _, past in self.chunks)

    @property
    def uneven(self) -> int:
        """longest * batch - kv_tokens."""
        return max(0, self.longest * self.batch - self.kv_tokens)


class Timed(NamedTuple):
    """A step and its time. `skewed`: its decoding contexts are of different lengths."""

    step: Step
    ns: float
    skewed: bool = False

    @property
    def kind(self) -> str:
        """Of the step; skewed ones are a kind of their own."""
        return "skewed" if self.skewed else self.step.kind


def even(batch: int, context: int, chunks: Sequence[tuple[int, int]] = ()) -> Step:
    """A step whose decoding requests all have `context` tokens."""
    return Step(batch, batch * context, context if batch else 0, tuple(chunks))
