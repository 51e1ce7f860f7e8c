"""Rotary position embeddings: each pair of a head's elements turns by an angle in the position.

The pairs are (i, i + head_dim / 2), as in Hugging Face checkpoints; llama.cpp pairs neighbours
instead and keeps Llama's q and k rows in that order, which the loader undoes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from realrun.config import ModelConfig, RopeScaling


class Angles(NamedTuple):
    """Of the tokens of one step: `[T, 1, head_dim]` in the model's type, the second half as the first."""

    cos: torch.Tensor
    sin: torch.Tensor


def inverse_frequencies(config: ModelConfig, device: torch.device) -> torch.Tensor:
    """Radians per position, fp32 `[head_dim / 2]`."""
    even = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    plain = 1.0 / (config.rope_theta ** (even / config.head_dim))
    return plain if config.rope_scaling is None else _scaled(plain, config.rope_scaling)


def _scaled(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1's rule, as in its reference code."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_len * plain / (2 * math.pi)  # within the original context
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def angles(positions_T: torch.Tensor, inverse_D: torch.Tensor, dtype: torch.dtype) -> Angles:
    """Computed in fp32, where position times frequency still has its fraction, then rounded."""
    half_TD = positions_T[:, None].to(torch.float32) * inverse_D
    full_T1D = torch.cat((half_TD, half_TD), dim=-1).unsqueeze(1)
    return Angles(full_T1D.cos().to(dtype), full_T1D.sin().to(dtype))


def rotate(x_THD: torch.Tensor, turn: Angles) -> torch.Tensor:
    """Every head of every token, turned. A new tensor of the same shape."""
    first_THD, second_THD = x_THD.chunk(2, dim=-1)
    swapped_THD = torch.cat((-second_THD, first_THD), dim=-1)
    return x_THD * turn.cos + swapped_THD * turn.sin
