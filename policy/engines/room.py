"""Room on the device: one subtraction, for every engine that must know who fits."""

from __future__ import annotations

from policy.request import Request


class Room:
    """Blocks and seats that one decision has to give: of the whole device, free now, or free and coming.

    Who comes takes a seat and the blocks that it needs beyond those it holds, and must leave a `floor`;
    who goes gives both back. Below zero, so many are short.
    """

    __slots__ = ("blocks", "seats")

    def __init__(self, blocks: int, seats: int) -> None:
        self.blocks = blocks
        self.seats = seats

    def fits(self, blocks: int, floor: int = 0) -> bool:
        """Whether one more may come that needs so many. The last seat ends a line; seats that were
        overdrawn by who was taken regardless do not."""
        return self.blocks - blocks >= floor and self.seats != 0

    def take(self, blocks: int) -> None:
        """One more comes, whether there is room or not."""
        self.blocks -= blocks
        self.seats -= 1

    def give(self, blocks: int) -> None:
        """One goes."""
        self.blocks += blocks
        self.seats += 1

    @property
    def is_short(self) -> bool:
        """More was taken than there is."""
        return self.blocks < 0 or self.seats < 0


def blocks_needed(request: Request, block_size: int) -> int:
    """Blocks of a whole context and the token of one step more (rule 6)."""
    return request.num_tokens // block_size + 1


def floor_of(need: int, total: int, watermark: int) -> int:
    """Blocks that who comes to the device leaves free: the watermark, or all that it does not need, where
    it has grown so long that there is less (rule 11)."""
    return watermark if need + watermark <= total else max(0, total - need)


def blocks_missing(request: Request, block_size: int) -> int:
    """Those of them that it does not hold."""
    return max(0, blocks_needed(request, block_size) - request.device_blocks)
