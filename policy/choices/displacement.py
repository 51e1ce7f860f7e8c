"""May a request that waits take the place of one that runs? A decision; the planner keeps every rule.

It says where a request stands when the planner asks who should be on the device. Ties, and all that
it does not tell apart, are the order's: the planner sorts by (this key, rank).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from policy.views import RequestView

Place = tuple[int | float, ...]


class Displacement(Protocol):
    """`by_rank`: the order alone decides, so nothing needs sorting."""

    name: str
    by_rank: bool

    def key(self, request: RequestView) -> Place:
        """Smaller stands first. Asked anew at every decision, of those that hold device memory and of
        the first others: these must stand as the order has them."""


class ByOrder:
    """Whoever is later in the order gives way (docs/sources.md#fastswitch-priorities)."""

    name = "order"
    by_rank = True

    def key(self, request: RequestView) -> Place:  # noqa: ARG002
        """Nobody has a better place than the order gives."""
        return ()


class ByGap:
    """Only for a gap in priority larger than a threshold (SGLang's priority preemption,
    docs/sources.md#sglang). All or nothing: a target is chosen whole or not at all (`policy.engines.target`).

    Who holds a place counts as `threshold` more urgent. So a waiting request r stands before a
    running v exactly if key(v) - key(r) > threshold, and v, once out, comes back only over a gap of
    its own: hysteresis by gap. The gap is that of the first number of the order's key.
    """

    name = "gap"
    by_rank = False

    def __init__(self, threshold: float, block_size: int) -> None:
        self._threshold = int(threshold) if threshold == int(threshold) else threshold
        self._block_size = block_size

    def key(self, request: RequestView) -> Place:
        """(priority less the head start, waits)."""
        priority = (*request.rank[0], -inf)[0]  # an empty key is the smallest
        if holds_a_place(request, self._block_size):
            return (priority - self._threshold, 0)
        return (priority, 1)


class Never:
    """Who runs stays until growth takes the room, and then the last in order goes: `max(priority,
    arrival)` as in vLLM V1 (docs/sources.md#vllm-v1)."""

    name = "never"
    by_rank = False

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def key(self, request: RequestView) -> Place:
        """Who holds a place, then who waits."""
        return (0,) if holds_a_place(request, self._block_size) else (1,)


def holds_a_place(request: RequestView, block_size: int) -> bool:
    """Decodes, or has all its blocks and only its prefill to come: taking it off the device would
    undo what was done for it."""
    return request.is_decoding or (
        request.is_resident and request.num_tokens <= request.device_blocks * block_size
    )


#: By name, each made from the threshold (in units of the order's key) and the block size.
DISPLACEMENTS: dict[str, Callable[[float, int], Displacement]] = {
    "order": lambda _threshold, _block_size: ByOrder(),
    "gap": ByGap,
    "never": lambda _threshold, block_size: Never(block_size),
}
