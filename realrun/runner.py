"""One step of the real model: tokens in, the next token of each segment out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from realrun.attention import Segment, StepAttention, kernels_for
from realrun.device_ops import Kernels
from realrun.ferry import Ferry
from realrun.graphs import Capture, DecodeGraphs, Work, capture_for
from realrun.kvstore import Tier
from realrun.model import Decoder
from realrun.sampling import greedy

__all__ = ["FIXED_ROWS", "Runner", "Work"]

#: Rows of every matrix product in the deterministic mode. A row's result depends on the number of
#: rows and on nothing else, so it is always the same.
FIXED_ROWS = 32


class Runner:
    """Runs the decoder over paged memory. `deterministic`: see FIXED_ROWS and StepAttention.

    `eager`: no graphs. `capture`, `kernels`: how graphs are recorded and attention is computed, by
    default as the device does it.
    """

    def __init__(
        self,
        decoder: Decoder,
        tier: Tier,
        *,
        deterministic: bool = False,
        eager: bool = False,
        capture: Capture | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self._decoder = decoder
        self._tier = tier
        self._deterministic = deterministic
        self._device = tier.keys(0).device
        self._kernels = kernels_for(self._device.type) if kernels is None else kernels
        self._ferry = Ferry(self._device, self._kernels.move)
        if capture is None:
            capture = capture_for(self._device)
        self.graphs: DecodeGraphs | None = None
        if capture is not None and not deterministic and not eager:
            self.graphs = DecodeGraphs(decoder, tier, capture, kernels=self._kernels)

    def greedy_step(self, work: Sequence[Work], decoding: int = 0) -> list[int]:
        """The likeliest next token of each segment, of equals the one with the lowest id.

        By a graph where there is one for the step: every segment a single token, the batch and its
        longest context within the buckets. K and V of all new tokens are in their blocks afterwards.
        """
        if self.graphs is not None and not [one for one in work if len(one.tokens) != 1]:
            tokens = self.graphs.step(work)
            if tokens is not None:
                return tokens
        return self._ferry.to_host(greedy(self.step(work, decoding)))

    def again(self) -> list[int] | None:
        """Another `greedy_step` of the same requests, which have the tokens it gave them and no other, with
        nothing run in between; None where it must be asked for with everything again."""
        return None if self.graphs is None else self.graphs.again()

    def step(self, work: Sequence[Work], decoding: int = 0) -> torch.Tensor:
        """Logits of the last new token of each segment, `[len(work), vocab]`, fp32.

        K and V of all new tokens are in their blocks afterwards. The last `decoding` segments decode. A
        segment may read what an earlier one writes, and a prompt what a decode does: blocks that are found
        in the step that fills them (docs/vllm_v1.md R4). A layer stores all K and V before it attends;
        where segments are computed apart, decodes come first and prompts in order.
        """
        self._ferry.let_go()  # the step before was read
        if not self._deterministic:
            return self._forward(work, padded_to=0)
        logits: list[torch.Tensor] = []
        for first in range(len(work) - decoding, len(work), FIXED_ROWS):
            logits.extend(self._forward(work[first : first + FIXED_ROWS], FIXED_ROWS))
        prompts = [self._in_chunks(one)[0] for one in work[: len(work) - decoding]]
        return torch.stack([*prompts, *logits])

    def _in_chunks(self, work: Work) -> torch.Tensor:
        """A prompt by itself, FIXED_ROWS tokens at a time."""
        tokens, past, table = work
        chunks = [
            Work(tokens[first : first + FIXED_ROWS], past + first, table)
            for first in range(0, len(tokens), FIXED_ROWS)
        ]
        for chunk in chunks[:-1]:
            self._forward([chunk], FIXED_ROWS)
        return self._forward(chunks[-1:], FIXED_ROWS)

    def _forward(self, work: Sequence[Work], padded_to: int) -> torch.Tensor:
        tokens = [token for one in work for token in one.tokens]
        positions = [one.past + i for one in work for i in range(len(one.tokens))]
        ends = []
        row = -1
        for one in work:
            row += len(one.tokens)
            ends.append(row)
        padding = padded_to - len(tokens) if padded_to else 0
        tokens_T, positions_T, ends_N = self._ferry.to_device(
            tokens + [0] * padding, positions + [0] * padding, ends
        )
        attend = StepAttention(
            self._tier,
            [Segment(one.past, len(one.tokens), one.table) for one in work],
            alone=self._deterministic,
            kernels=self._kernels,
            ferry=self._ferry,
        )
        hidden_TD = self._decoder.forward(tokens_T, positions_T, attend)
        if padded_to:
            return self._decoder.logits(hidden_TD).float()[ends_N]
        return self._decoder.logits(hidden_TD[ends_N]).float()
