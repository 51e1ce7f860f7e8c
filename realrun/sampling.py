"""The next token. Greedy, or drawn so that a draw depends on nothing but the request.

A drawn token is a pure function of (logits, parameters, seed, request id, position): there is no
generator whose state the other requests of a batch, a preemption or a recompute could shift. And no
row can change another by the way a sum is split over threads: probabilities become integers before
they are summed, and sums of integers are exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from policy.errors import ConfigError
from traces.randomness import Streams

#: The likeliest token of a row counts 2**34, so a sum over 2**18 tokens is exact in a double.
#: A token less than half of 2**-34 times as likely is never drawn.
_UNIT = float(1 << 34)
#: Rows sorted at once: a vocabulary of 128 thousand takes about 6 MB a row.
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request's tokens are chosen. Temperature 0 is greedy; `top_k` 0 keeps all tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"sampling.temperature: {self.temperature} is not a number >= 0")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"sampling.top_p: {self.top_p} is not above 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k: {self.top_k} is below 0")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0.0


class Draws(NamedTuple):
    """One step's rows as `sample` wants them, each `[N]` on the device."""

    temperature: torch.Tensor  # fp64, 0 is greedy
    top_p: torch.Tensor  # fp64
    top_k: torch.Tensor  # int64, 0 is all
    uniform: torch.Tensor  # fp64, in (0, 1)


def uniform(seed: int, request_id: str, position: int) -> float:
    """The draw for the token at `position` of a request, counted from the prompt's first token."""
    return _streams(seed).uniform("sampling", request_id, position)


@lru_cache(maxsize=1024)
def _streams(seed: int) -> Streams:
    return Streams(seed)


def draws(rows: Sequence[tuple[SamplingParams, str, int]], device: torch.device | str) -> Draws:
    """(parameters, request id, position of the token to draw) of every row. One copy in all."""
    table = [
        (
            params.temperature,
            params.top_p,
            float(params.top_k),
            uniform(params.seed, request_id, position),
        )
        for params, request_id, position in rows
    ]
    columns = torch.tensor(table, dtype=torch.float64).reshape(-1, 4).T.contiguous().to(device)
    temperature, top_p, top_k, drawn = columns
    return Draws(temperature, top_p, top_k.long(), drawn)


def greedy(logits_NV: torch.Tensor) -> torch.Tensor:
    """`tokens_N`: the likeliest, of equals the one with the lowest id."""
    return logits_NV.argmax(dim=-1)


def sample(logits_NV: torch.Tensor, rows: Draws) -> torch.Tensor:
    """`tokens_N`, greedy and drawn rows mixed; every row as if it were alone."""
    chunks = (torch.split(column, _ROWS_AT_ONCE) for column in (logits_NV, *rows))
    return torch.cat([_sample(logits, Draws(*row)) for logits, *row in zip(*chunks, strict=True)])


def _sample(logits_NV: torch.Tensor, rows: Draws) -> torch.Tensor:
    """Inverse transform over the tokens in order of likelihood, equals in order of id."""
    drawn = rows.temperature > 0
    temperature_N1 = torch.where(drawn, rows.temperature, 1.0).unsqueeze(1)
    wide_NV = logits_NV.double()
    below_NV = (wide_NV - wide_NV.amax(dim=-1, keepdim=True)) / temperature_N1
    whole_NV = (below_NV.exp() * _UNIT).round().long()
    weight_NV, token_NV = whole_NV.sort(dim=-1, descending=True, stable=True)
    kept_NV = torch.where(_keeps(weight_NV, rows), weight_NV, 0)
    upto_NV = kept_NV.cumsum(dim=-1)
    total_N = upto_NV[:, -1]
    goal_N = torch.minimum((total_N.double() * rows.uniform).long(), total_N - 1)
    place_N1 = (upto_NV <= goal_N.unsqueeze(1)).sum(dim=-1, keepdim=True)
    return torch.where(drawn, token_NV.gather(1, place_N1).squeeze(1), greedy(logits_NV))


def _keeps(weight_NV: torch.Tensor, rows: Draws) -> torch.Tensor:
    """Which of the sorted tokens are in play: the first `top_k`, then of these the fewest that
    together have `top_p` of what is left. The likeliest always is."""
    rank_V = torch.arange(weight_NV.shape[1], device=weight_NV.device)
    first_NV = (rank_V < rows.top_k.unsqueeze(1)) | (rows.top_k.unsqueeze(1) == 0)
    kept_NV = torch.where(first_NV, weight_NV, 0)
    upto_NV = kept_NV.cumsum(dim=-1)
    enough_N1 = (upto_NV[:, -1].double() * rows.top_p).unsqueeze(1)
    return first_NV & ((upto_NV - kept_NV).double() < enough_N1)
