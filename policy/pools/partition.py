"""The conservation law of a pool: each block is free, reserved or held, exactly once.

`check_partition` looks at every block. A pool may have a hundred thousand of them and a check comes after
every decision, so a `Partition` keeps a copy of all that it saw last, compares by value, so that what was
changed behind the pool's back is seen too, and counts only what differs. What it cannot explain is
looked at block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from policy.errors import InvariantError


class Counted(Protocol):
    """What the law reads of a pool."""

    name: str
    num_blocks: int

    @property
    def num_free(self) -> int: ...


class Holder(Protocol):
    """What it reads of whoever has blocks: see Allocation."""

    @property
    def blocks(self) -> list[int]: ...
    @property
    def runs(self) -> list[list[int]] | None: ...
    @property
    def reserved(self) -> int: ...
    @property
    def num_shared(self) -> int: ...


class Partition:
    """What the last check saw, if it ended well. `free` of a check is a table of blocks, or runs of them by
    their first block; it must be of the same sort every time."""

    def __init__(self) -> None:
        self._is_known = False
        self._taken = bytearray()  # 1 for each block that is accounted for
        self._holders: dict[Holder, _Seen] = {}
        self._free_list: list[int] = []
        self._free_runs: dict[int, int] = {}
        self._num_free = 0
        self._num_held = 0

    def check(
        self,
        pool: Counted,
        free: Sequence[int] | Mapping[int, int],
        holders: Sequence[Holder],
        num_reserved: int,
    ) -> None:
        """Raises InvariantError naming the first block that breaks the law."""
        if self._is_known and self._follows(pool, free, holders, num_reserved):
            return
        self._is_known = False
        check_partition(pool, _each(free), holders, num_reserved)
        self._taken = bytearray(pool.num_blocks)
        self._holders, self._free_list, self._free_runs = {}, [], {}
        self._num_free = self._num_held = 0
        self._is_known = self._follows(pool, free, holders, num_reserved)

    def _follows(
        self,
        pool: Counted,
        free: Sequence[int] | Mapping[int, int],
        holders: Sequence[Holder],
        num_reserved: int,
    ) -> bool:
        """Whether it follows from what was seen last that the law holds; that is what was seen then."""
        left: list[int] = []
        come: list[int] = []
        seen, here = self._holders, {}
        reserved = 0
        for holder in holders:
            old = seen.get(holder)
            if old is None:
                old = _Seen()
            here[holder] = old
            if not (old.is_of(holder) or old.turn_to(holder, left, come)):
                return False
            reserved += old.reserved
        if len(here) != len(holders) or reserved != num_reserved:
            return False
        for holder, old in seen.items():
            if holder not in here:
                left += old.own()
        self._holders = here
        self._num_held += len(come) - len(left)
        runs_come = self._free_has(free, left, come)
        if self._num_free != pool.num_free or self._num_free + self._num_held != pool.num_blocks:
            return False
        return self._exchange(left, come, runs_come)

    def _free_has(
        self, free: Sequence[int] | Mapping[int, int], left: list[int], come: list[int]
    ) -> list[tuple[int, int]]:
        """Add to `left` and `come` what the free blocks lost and won. Returns whole runs won."""
        if not isinstance(free, Mapping):
            if free != self._free_list:
                at, lost = _catch_up(self._free_list, free)
                left += lost
                come += free[at:]
                self._num_free = len(free)
            return []
        old = self._free_runs
        if free == old:
            return []
        taken = self._taken
        for start, length in [(s, n) for s, n in old.items() if free.get(s) != n]:
            taken[start : start + length] = bytes(length)
            self._num_free -= length
            del old[start]
        new = [(s, n) for s, n in free.items() if s not in old]
        old.update(new)
        self._num_free += sum([length for _, length in new])
        return new

    def _exchange(self, left: list[int], come: list[int], runs_come: list[tuple[int, int]]) -> bool:
        """Whether whatever has come had been let go."""
        taken = self._taken
        limit = len(taken)
        for block in left:
            taken[block] = 0
        for block in come:
            if not 0 <= block < limit or taken[block]:
                return False
            taken[block] = 1
        for start, length in runs_come:
            end = start + length
            if start < 0 or length < 1 or end > limit or taken.find(1, start, end) >= 0:
                return False
            taken[start:end] = b"\1" * length
        return True


class _Seen:
    """A copy of a holder."""

    __slots__ = ("blocks", "num_shared", "reserved", "runs")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.runs: list[list[int]] | None = None
        self.reserved = 0
        self.num_shared = 0

    def is_of(self, holder: Holder) -> bool:
        """Whether the holder has what it had."""
        return (
            self.blocks == holder.blocks
            and self.runs == holder.runs
            and self.reserved == holder.reserved
            and self.num_shared == holder.num_shared
        )

    def own(self) -> list[int]:
        """The blocks that are the holder's alone, its unused tail included."""
        return self.blocks[self.num_shared :] + self.tail()

    def tail(self) -> list[int]:
        """The unused tail."""
        if not self.reserved or not self.runs:
            return []
        end = sum(self.runs[-1])
        return list(range(end, end + self.reserved))

    def turn_to(self, holder: Holder, left: list[int], come: list[int]) -> bool:
        """Become a copy of what the holder has now, and add the difference to `left` and `come`. False if
        its runs are not its table."""
        left += self.tail()
        old_shared, shared = self.num_shared, holder.num_shared
        if self.blocks != holder.blocks or old_shared != shared:
            before = self.blocks[old_shared:] if old_shared or shared else []
            at, lost = _catch_up(self.blocks, holder.blocks)
            if old_shared or shared:
                left += before
                come += holder.blocks[shared:]
            else:
                left += lost
                come += holder.blocks[at:]
        self.num_shared, self.reserved = shared, holder.reserved
        runs = holder.runs
        if runs is None:
            self.runs = None
            return True
        self.runs = [list(run) for run in runs]
        if not _are_table(runs, holder.blocks) or (self.reserved and not runs):
            return False
        come += self.tail()
        return True


def check_partition(
    pool: Counted, free: Iterable[int], holders: Iterable[Holder], num_reserved: int
) -> None:
    """The conservation law of a pool: each block is free, reserved or held, exactly once.

    Raises InvariantError naming the first block that breaks it.
    """
    owner: dict[int, str] = {}

    def claim(block: int, what: str) -> None:
        if not 0 <= block < pool.num_blocks:
            raise InvariantError(f"{pool.name}: block {block} is outside 0..{pool.num_blocks - 1}")
        if block in owner:
            raise InvariantError(f"{pool.name}: block {block} is both {owner[block]} and {what}")
        owner[block] = what

    for block in free:
        claim(block, "free")
    num_free = len(owner)
    reserved = 0
    for index, holder in enumerate(holders):
        for block in holder.blocks[holder.num_shared :]:
            claim(block, f"held by #{index}")
        reserved += holder.reserved
        if holder.runs is not None:
            check_runs(pool, holder)
            if holder.reserved:
                start, length = holder.runs[-1]
                for block in range(start + length, start + length + holder.reserved):
                    claim(block, f"reserved by #{index}")
    if len(owner) != pool.num_blocks:
        missing = next(block for block in range(pool.num_blocks) if block not in owner)
        raise InvariantError(f"{pool.name}: block {missing} is neither free, reserved nor held")
    if num_free != pool.num_free:
        raise InvariantError(f"{pool.name}: {num_free} blocks are free, {pool.num_free} counted")
    if reserved != num_reserved:
        raise InvariantError(f"{pool.name}: {reserved} blocks reserved, {num_reserved} counted")


def check_runs(pool: Counted, holder: Holder) -> None:
    """Raise InvariantError unless a holder's runs say the same as its block table."""
    if not _are_table(holder.runs or [], holder.blocks):
        raise InvariantError(f"{pool.name}: runs {holder.runs} are not the table {holder.blocks}")
    if holder.reserved and not holder.runs:
        raise InvariantError(f"{pool.name}: {holder.reserved} blocks reserved after no run")


def _are_table(runs: Iterable[Sequence[int]], blocks: Sequence[int]) -> bool:
    """Whether runs say the same as a block table."""
    at = 0
    for start, length in runs:
        end = at + length
        if blocks[at:end] != list(range(start, start + length)):
            return False
        at = end
    return at == len(blocks)


def _catch_up(old: list[int], new: Sequence[int]) -> tuple[int, list[int]]:
    """Make `old`, which is another list, equal to `new`. Most changes are at the end. Returns from where
    on they may differ, and what `old` had there."""
    at = min(len(old), len(new))
    lost = old[at:]
    old[at:] = new[at:]
    step = 4
    while old != new:
        before, at = at, max(0, at - step)
        lost = old[at:before] + lost
        old[at:before] = new[at:before]
        step *= 8
    return at, lost


def _each(free: Sequence[int] | Mapping[int, int]) -> Iterable[int]:
    if not isinstance(free, Mapping):
        return free
    return (block for start, length in free.items() for block in range(start, start + length))
