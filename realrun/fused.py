"""The element-wise work of a decoder as one kernel each: `realrun.model.Ops` for a GPU.

A row's result depends on the row alone. Rounded once, where plain torch rounds after every operation,
so the two agree to the tensors' precision and not to the bit. Needs triton.
"""

from __future__ import annotations

import torch

from realrun import kernels
from realrun.device_ops import Ops
from realrun.splitkv import OPTIONS, padded

_GATE_TILE = 1024


def _norm(
    x_TM: torch.Tensor, delta_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, size = x_TM.shape
    x_TM = x_TM.contiguous()
    normed_TM = torch.empty_like(x_TM)
    sum_TM = x_TM if delta_TM is None else torch.empty_like(x_TM)
    if rows:
        kernels.add_norm[(rows,)](
            x_TM,
            x_TM if delta_TM is None else delta_TM.contiguous(),
            weight_M,
            normed_TM,
            sum_TM,
            eps,
            SIZE=size,
            PADDED_SIZE=padded(size),
            ADDS=delta_TM is not None,
            **OPTIONS,
        )
    return normed_TM, sum_TM


def norm(x_TM: torch.Tensor, weight_M: torch.Tensor, eps: float) -> torch.Tensor:
    """See `realrun.model.norm`."""
    return _norm(x_TM, None, weight_M, eps)[0]


def add_norm(
    x_TM: torch.Tensor, delta_TM: torch.Tensor, weight_M: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `realrun.model.add_norm`."""
    return _norm(x_TM, delta_TM, weight_M, eps)


def gate(gate_up_TF: torch.Tensor) -> torch.Tensor:
    """See `realrun.model.gate`."""
    rows, both = gate_up_TF.shape
    size = both // 2
    gate_up_TF = gate_up_TF.contiguous()
    out_TF = torch.empty((rows, size), dtype=gate_up_TF.dtype, device=gate_up_TF.device)
    if rows:
        kernels.gate[(rows, -(-size // _GATE_TILE))](
            gate_up_TF, out_TF, SIZE=size, TILE=_GATE_TILE, **OPTIONS
        )
    return out_TF


FUSED = Ops(norm, add_norm, gate)
