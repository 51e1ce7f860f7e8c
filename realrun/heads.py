"""The heads of a layer as its projection leaves them, and the norm and turn that come before attention.

Shapes as in `realrun.model`: T tokens, H query heads, K key heads and as many value heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from realrun.rope import Angles, rotate


class Heads(NamedTuple):
    """All heads of a step's tokens in one layer, `all_THD` with H + 2 K of them, a view whose rows may
    be apart. `weight_ND`: the norm of query and key heads, where the model has one."""

    all_THD: torch.Tensor
    num_query: int
    num_key: int
    weight_ND: torch.Tensor | None
    eps: float
    angles: Angles

    def turned(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query and key heads, normed and rotated, and value heads, in plain torch: `q_THD, k_TKD,
        v_TKD`."""
        turning = self.num_query + self.num_key
        qk_THD = self.all_THD[:, :turning]
        if self.weight_ND is not None:
            qk_THD = F.rms_norm(qk_THD, (qk_THD.shape[-1],), None, self.eps) * self.weight_ND
        qk_THD = rotate(qk_THD, self.angles)
        return qk_THD[:, : self.num_query], qk_THD[:, self.num_query :], self.all_THD[:, turning:]
