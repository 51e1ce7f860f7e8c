"""What kinds of devices do in ways of their own: attention of a step, and the work between products.

Plain torch (`realrun.attention`, `realrun.model`) and Triton (`realrun.splitkv`, `realrun.fused`) each have
one of both. Shapes end names, as in those files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from realrun.rope import Angles


class Decode(Protocol):
    """Attention of one new token for each of B requests; made once a step, called once a layer.

    `table_BN`: block ids, whatever behind a row's length; `lengths_B`: keys of each row, the new one
    included, 0 for padding. Both int64. Slots behind a length may hold anything, NaN too, and never
    show in a result; a row without keys gets zeros.
    """

    def __call__(
        self, q_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, /
    ) -> torch.Tensor:
        """`out_BHD`."""


class Kernels(NamedTuple):
    """How a kind of device does it.

    `store(keys, values, blocks_T, offsets_T, k_TKD, v_TKD)` writes new K and V to their slots;
    `decode(table_BN, lengths_B, block_size, splits)` makes a Decode, with every row's keys cut into
    `splits` parts if `has_splits`: a row's result then depends on its own keys and on their number.
    """

    store: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None
    ]
    decode: Callable[[torch.Tensor, torch.Tensor, int, int], Decode]
    has_splits: bool


class Ops(NamedTuple):
    """The element-wise work between matrix products, so that fused kernels can take its place.

    `norm(x_TM, weight_M, eps)`, `add_norm(x_TM, delta_TM, weight_M, eps) -> (normed, x + delta)`,
    `turn(qk_THD, weight_HD or None, eps, angles)`, `gate(gate_up_TF) -> silu(gate) * up`.
    """

    norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    add_norm: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]
    ]
    turn: Callable[[torch.Tensor, torch.Tensor | None, float, Angles], torch.Tensor]
    gate: Callable[[torch.Tensor], torch.Tensor]
