"""Which blocks copies in flight use: what the policies promise, asserted block by block."""

from __future__ import annotations

from collections.abc import Iterable

from policy.errors import InvariantError
from policy.plan import Copy, Direction


class BlockGuard:
    """Which blocks copies in flight read or write.

    Copies of one direction take effect in the order of submission, so two may write one block: a
    plan may hand a host block on from a store that it waits for to the next store. Copies of
    opposite directions must not meet.
    """

    def __init__(self) -> None:
        self._users: dict[tuple[str, int], Copy] = {}

    @property
    def is_busy(self) -> bool:
        """Whether any copy in flight uses a block."""
        return bool(self._users)

    def take(self, copy: Copy) -> list[int]:
        """Ids of earlier copies of the same direction that `copy` must come after.

        Raises InvariantError if a block of `copy` is in use in the other direction.
        """
        after: dict[int, None] = {}
        for block in _blocks_of(copy):
            other = self._users.get(block)
            if other is None:
                continue
            if other.direction is not copy.direction:
                raise InvariantError(
                    f"copy {copy.copy_id} and copy {other.copy_id} meet in {block[0]} block"
                    f" {block[1]}"
                )
            after[other.copy_id] = None
        for block in _blocks_of(copy):
            self._users[block] = copy
        return list(after)

    def give_back(self, copy: Copy) -> None:
        """The copy has ended."""
        for block in _blocks_of(copy):
            if self._users.get(block) is copy:
                del self._users[block]

    def give_back_source(self, copy: Copy) -> None:
        """A cancelled copy to the host: its source is somebody's again, who may write it. What the
        copy still reads there is thrown away. The device blocks of a copy to the device are its
        target, which it may still write."""
        if copy.direction is Direction.TO_DEVICE:
            return
        for block in _blocks_of(copy):
            if block[0] == "device" and self._users.get(block) is copy:
                del self._users[block]

    def check_compute(self, blocks: Iterable[int]) -> None:
        """Raise InvariantError if a step writes a device block that a copy uses."""
        for block in blocks:
            user = self._users.get(("device", block))
            if user is not None:
                raise InvariantError(f"a step writes device block {block} of copy {user.copy_id}")


def _blocks_of(copy: Copy) -> Iterable[tuple[str, int]]:
    for device, host, length in copy.runs:
        for i in range(length):
            yield ("device", device + i)
            yield ("host", host + i)
