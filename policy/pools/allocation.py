"""What a holder of blocks has, and what every pool must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from policy.pools.partition import Holder
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

    def check(self, holders: Sequence[Holder]) -> None:
        """Raise InvariantError unless free, reserved and `holders` are every block, once each."""
