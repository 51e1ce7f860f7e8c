"""What kinds of devices do in ways of their own: attention of a step, and the work between products.

Plain torch (`realrun.attention`, `realrun.model`) and Triton (`realrun.splitkv`, `realrun.fused`) each have
one of both. Shapes end names, as in those files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from realrun.heads import Heads

#: A row's keys are cut into no more parts than this.
MAX_SPLITS = 32


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

    `store(keys, values, blocks_T, offsets_T, heads) -> q_THD` turns the heads and writes K and V of the
    first tokens, as many as `blocks_T` has, to their slots;
    `move(source, target)` fills a tensor from another of its size and type, of which either may be
    page-locked memory of the host, and waits for no swap;
    `decode(table_BN, lengths_B, block_size, splits)` makes a Decode, with every row's keys cut into
    `splits` parts if `has_splits`: a row's result then depends on its own keys and on their number.
    """

    store: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Heads], torch.Tensor]
    decode: Callable[[torch.Tensor, torch.Tensor, int, int], Decode]
    move: Callable[[torch.Tensor, torch.Tensor], None]
    has_splits: bool


class Ops(NamedTuple):
    """The element-wise work between matrix products, so that fused kernels can take its place.

    `norm(x_TM, weight_M, eps)`, `add_norm(x_TM, delta_TM, weight_M, eps) -> (normed, x + delta)`,
    `gate(gate_up_TF) -> silu(gate) * up`. Norm and turn of heads are with what stores them (Kernels).
    """

    norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    add_norm: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]
    ]
    gate: Callable[[torch.Tensor], torch.Tensor]
