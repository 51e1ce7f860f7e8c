"""What a holder of blocks has, and what every pool must offer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from policy.errors import InvariantError

if TYPE_CHECKING:
    from policy.pools.prefix import SharedBlock


class Allocation:
    """The blocks of one holder in one pool, in logical order.

    `blocks` is the flat block table that attention kernels read. `runs` says the same as
    `[start, length]` pairs where the pool knows them (None for `paged`). `reserved` blocks directly
    after the last run belong to the holder but are unused; the pool may take them back. The first
    `num_shared` blocks are those of `shared`, which others may hold too (`policy.pools.prefix`);
    the rest is the holder's alone.
    """

    __slots__ = ("blocks", "num_shared", "reserved", "runs", "shared")

    def __init__(self, *, with_runs: bool) -> None:
        self.blocks: list[int] = []
        self.runs: list[list[int]] | None = [] if with_runs else None
        self.reserved = 0
        self.shared: tuple[SharedBlock, ...] = ()
        self.num_shared = 0


class Pool(Protocol):
    """One tier's blocks.

    `num_free` blocks could be handed out now; `num_reserved` are unused tails that the pool may
    take back. Admission counts both (`num_available`), or reserving would make the pool look
    smaller than `paged` and the comparison unfair (docs/sources.md#fastswitch-groups).
    """

    name: str
    num_blocks: int
    kind: str

    @property
    def num_free(self) -> int: ...
    @property
    def num_reserved(self) -> int: ...
    @property
    def num_available(self) -> int: ...
    @property
    def num_shared(self) -> int:
        """Blocks of shared prefixes that somebody holds; each counts once."""

    @property
    def num_leaving(self) -> int:
        """Those of them that copies in flight alone hold: they come back when these end."""

    def worn(self) -> Any:
        """What use has made of this pool, of which nothing is held now: a value for `wear`."""

    def wear(self, use: Any) -> None:
        """Become, while fresh, what a pool of the same kind and size was when it gave `use`."""

    def new(self) -> Allocation:
        """An empty allocation of this pool's kind."""

    def allocate(self, holder: Allocation, count: int, reserve: int = 0) -> None:
        """Give `holder` `count` more blocks, and up to `reserve` unused ones next to them.

        Raises OutOfBlocks, with nothing changed, if fewer than `count` are available.
        """

    def grow(self, holders: Sequence[Allocation], reserve: int) -> None:
        """`allocate` one block to each of `holders`, in order: what a decode step needs.

        Raises OutOfBlocks, with nothing changed, if there are fewer blocks than holders.
        """

    def truncate(self, holder: Allocation, keep: int) -> None:
        """Free the blocks from logical index `keep` on, the reserved tail included."""

    def split(self, holder: Allocation, at: int) -> Allocation:
        """Move the blocks from logical index `at` on, with the tail, to a new allocation."""

    def join(self, holder: Allocation, suffix: Allocation) -> None:
        """Append `suffix` to `holder`; `suffix` is empty afterwards."""

    def check(self, holders: Iterable[Allocation]) -> None:
        """Raise InvariantError unless free, reserved and `holders` are every block, once each."""


def check_partition(
    pool: Pool, free: Iterable[int], holders: Iterable[Allocation], num_reserved: int
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


def check_runs(pool: Pool, holder: Allocation) -> None:
    """Raise InvariantError unless a holder's runs say the same as its block table."""
    flat = [block for start, length in holder.runs or [] for block in range(start, start + length)]
    if flat != holder.blocks:
        raise InvariantError(f"{pool.name}: runs {holder.runs} are not the table {holder.blocks}")
    if holder.reserved and not holder.runs:
        raise InvariantError(f"{pool.name}: {holder.reserved} blocks reserved after no run")
