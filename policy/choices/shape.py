"""The shape of a step: how many prompt tokens it takes, and whether the batch decodes beside them.

A decision. The planner asks it prompt by prompt, in rank order, once their room is granted; who gets
room is not its business.
"""

from __future__ import annotations

from typing import Protocol

from policy.engines.draft import PrefillShape
from policy.settings import Settings


class Shape(Protocol):
    """One step being filled. `decodes_beside`: the batch decodes in a step with prompts too."""

    decodes_beside: bool

    def __init__(self, settings: Settings, decoding: int) -> None:
        """`decoding` requests decode in the step if `decodes_beside`."""

    def grant(self, tokens: int, *, is_again: bool) -> int:
        """How many of a prompt's next `tokens` the step takes; 0 if none. `is_again`: a context that
        was computed before, and may have grown past any budget."""

    @staticmethod
    def longest_prompt(settings: Settings) -> int:
        """A longer one is rejected on arrival."""


class PrefillOnly:
    """vLLM 0.3.3: whole prompts, padded to the longest, in steps without decodes (`PrefillShape`)."""

    decodes_beside = False

    def __init__(self, settings: Settings, decoding: int) -> None:  # noqa: ARG002
        self._shape = PrefillShape(settings)

    def grant(self, tokens: int, *, is_again: bool) -> int:
        """All or nothing."""
        return tokens if self._shape.admits(tokens, alone_at_any_length=is_again) else 0

    @staticmethod
    def longest_prompt(settings: Settings) -> int:
        """It must fit one step."""
        return settings.prompt_limit


class Chunked:
    """Stall-free chunked prefill: every decode first, then prompts up to the token budget.

    Sarathi-Serve (2403.02310) and vLLM V1: decodes take a token each of `max_num_batched_tokens`,
    prompts what is left, the last one a chunk of itself. Unlike there, prompts go by the order's rank
    and not by who has begun; without priorities that is the same.
    """

    decodes_beside = True

    def __init__(self, settings: Settings, decoding: int) -> None:
        self._left = settings.max_num_batched_tokens - decoding

    def grant(self, tokens: int, *, is_again: bool) -> int:  # noqa: ARG002
        """As much as is left of the budget."""
        granted = min(tokens, self._left)
        self._left -= granted
        return granted

    @staticmethod
    def longest_prompt(settings: Settings) -> int:
        """It may take many steps."""
        return settings.max_model_len


SHAPES: dict[str, type[PrefillOnly] | type[Chunked]] = {
    "prefill_only": PrefillOnly,
    "chunked": Chunked,
}
