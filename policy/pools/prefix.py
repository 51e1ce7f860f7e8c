"""Device blocks that prompts which begin alike hold together.

A `SharedBlock` is the KV of one block of a prompt, as the workload's hashes cut prompts up: a few
pool blocks, full, computed, and never written again, so nobody ever has to copy one before a write.
They form a tree: a block is known by its key *and* by the chain before it, so a lookup walks from
the start and stops at the first miss. A block that nobody holds stays findable until its room is
wanted; it counts as free all along. Whoever holds a block holds the chain before it, hence the one
unheld for longest has no successor: suffixes go before prefixes (vLLM's order of eviction).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from policy.errors import InvariantError
from policy.pools.allocation import Allocation, Pool
from policy.pools.partition import Holder, check_runs

Key = int | str


class SharedBlock:
    """`users` allocations hold it; `leaving` of them belong to copies in flight. To the law of the pool
    below it is a holder like any other."""

    runs: ClassVar[None] = None
    reserved: ClassVar[int] = 0
    num_shared: ClassVar[int] = 0
    __slots__ = ("blocks", "children", "key", "leaving", "parent", "users")

    def __init__(self, key: Key, parent: SharedBlock | None, blocks: list[int]) -> None:
        self.key = key
        self.parent = parent
        self.blocks = blocks
        self.children: dict[Key, SharedBlock] = {}
        self.users = 0
        self.leaving = 0

    def __repr__(self) -> str:
        return f"<shared block {self.key!r}: {self.users} users, {self.leaving} leaving>"


class PrefixPool:
    """Another pool, and on top of it the tree of shared blocks, `blocks_each` pool blocks each."""

    def __init__(self, inner: Pool, blocks_each: int) -> None:
        self.inner = inner
        self.name = inner.name
        self.num_blocks = inner.num_blocks
        self.kind = inner.kind
        self.blocks_each = blocks_each
        self.num_evicted = 0  # shared blocks given up for their room
        self._root = SharedBlock("", None, [])
        self._idle: OrderedDict[SharedBlock, None] = OrderedDict()  # unheld for longest first
        self._spared: dict[SharedBlock, None] = {}  # of those: last in order, kept in this plan
        self._num_held = 0
        self._num_leaving = 0

    # ------------------------------------------------------------------ counts

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now, those of prefixes that nobody holds included."""
        return self.inner.num_free + len(self._idle) * self.blocks_each

    @property
    def num_reserved(self) -> int:
        """See Pool."""
        return self.inner.num_reserved

    @property
    def num_available(self) -> int:
        """See Pool."""
        return self.inner.num_available + len(self._idle) * self.blocks_each

    @property
    def num_shared(self) -> int:
        """See Pool."""
        return self._num_held * self.blocks_each

    @property
    def num_leaving(self) -> int:
        """See Pool."""
        return self._num_leaving * self.blocks_each

    # ------------------------------------------------------------------ what every pool offers

    def worn(self) -> Any:
        """See Pool: the tree is empty then."""
        return self.inner.worn()

    def wear(self, use: Any) -> None:
        """See Pool."""
        self.inner.wear(use)

    def new(self) -> Allocation:
        """See Pool."""
        return self.inner.new()

    def allocate(self, holder: Allocation, count: int, reserve: int = 0) -> None:
        """See Pool. Prefixes that nobody holds give way before anybody's reserved tail does."""
        if count <= self.num_available:
            self._make_room(count - holder.reserved)
        self.inner.allocate(holder, count, reserve)

    def grow(self, holders: Sequence[Allocation], reserve: int) -> None:
        """See Pool."""
        if len(holders) <= self.num_available:
            self._make_room(sum(not holder.reserved for holder in holders))
        self.inner.grow(holders, reserve)

    def truncate(self, holder: Allocation, keep: int) -> None:
        """See Pool. Shared blocks are let go; `keep` must not cut one in two."""
        if keep >= holder.num_shared:
            self.inner.truncate(holder, keep)
            return
        count, rest = divmod(keep, self.blocks_each)
        if rest:
            raise InvariantError(f"{self.name}: {keep} blocks kept cut a shared block in two")
        self.inner.truncate(holder, holder.num_shared)
        for shared in reversed(holder.shared[count:]):
            self._let_go(shared)
        holder.shared = holder.shared[:count]
        holder.num_shared = keep
        del holder.blocks[keep:]
        if holder.runs is not None:
            holder.runs = runs_of(holder.blocks)

    def split(self, holder: Allocation, at: int) -> Allocation:
        """See Pool. Shared blocks stay with `holder`, so `at` must lie behind them."""
        if at < holder.num_shared:
            raise InvariantError(f"{self.name}: split at {at} of {holder.num_shared} shared blocks")
        return self.inner.split(holder, at)

    def join(self, holder: Allocation, suffix: Allocation) -> None:
        """See Pool. Nothing shared can follow what is the holder's alone."""
        if suffix.num_shared:
            raise InvariantError(f"{self.name}: {suffix.num_shared} shared blocks joined on")
        self.inner.join(holder, suffix)

    def check(self, holders: Sequence[Holder]) -> None:
        """Raise InvariantError unless the pool is whole, each shared block counted once, and each
        shared block is held by as many of `holders` as it says."""
        everything = list(self)
        self.inner.check([*holders, *everything])
        users = dict.fromkeys(everything, 0)
        for index, holder in enumerate(holders):
            assert isinstance(holder, Allocation)
            self._check_holder(index, holder)
            for shared in holder.shared:
                if shared not in users:
                    raise InvariantError(f"{self.name}: #{index} holds {shared!r}, not in the tree")
                users[shared] += 1
        for shared, count in users.items():
            if shared.users != count:
                raise InvariantError(f"{self.name}: {shared!r} is held by {count}")
            if (shared in self._idle) != (not count):
                raise InvariantError(f"{self.name}: {shared!r} is both cached and used, or neither")
            parent = shared.parent
            if parent is not self._root and parent is not None and parent.users < count:
                raise InvariantError(f"{self.name}: {shared!r} is held without {parent!r}")
        if self._num_held != len(everything) - len(self._idle):
            raise InvariantError(f"{self.name}: {self._num_held} shared blocks counted as held")
        if self._num_leaving != sum(bool(s.leaving) and s.leaving == s.users for s in everything):
            raise InvariantError(f"{self.name}: {self._num_leaving} shared blocks counted leaving")

    # ------------------------------------------------------------------ sharing

    def match(self, keys: Sequence[Key], most: int) -> list[SharedBlock]:
        """The longest chain of shared blocks that `keys` name, `most` at the most."""
        found: list[SharedBlock] = []
        block = self._root
        for key in keys[:most] if most < len(keys) else keys:
            child = block.children.get(key)
            if child is None:
                break
            found.append(child)
            block = child
        return found

    def share(self, holder: Allocation, chain: Sequence[SharedBlock]) -> None:
        """Let an empty allocation begin with a chain that `match` found."""
        for shared in chain:
            self._take(shared)
            holder.blocks.extend(shared.blocks)
        holder.shared = tuple(chain)
        holder.num_shared = len(holder.blocks)
        if holder.runs is not None:
            holder.runs = runs_of(holder.blocks)

    def publish(self, holder: Allocation, keys: Sequence[Key], most: int) -> None:
        """Share the holder's own blocks too, as far as `keys` name them, up to `most` shared ones.

        Where somebody else was quicker the holder takes theirs and gives its own back.
        """
        chain = list(holder.shared)
        parent = chain[-1] if chain else self._root
        size = self.blocks_each
        for index in range(len(chain), min(most, len(keys))):
            key, at = keys[index], index * size
            shared = parent.children.get(key)
            if shared is None:
                shared = SharedBlock(key, parent, holder.blocks[at : at + size])
                shared.users = 1
                self._num_held += 1
                parent.children[key] = shared
            else:
                self._exchange(holder, at, shared)
            chain.append(shared)
            parent = shared
        holder.shared = tuple(chain)
        holder.num_shared = len(chain) * size

    def spare(self, chain: Sequence[SharedBlock], spared: dict[SharedBlock, None]) -> None:
        """`chain` counts as used just now. Until this is called again with another dict, none of
        `spared` gives way."""
        self._spared = spared
        for shared in reversed(chain):
            if not shared.users:
                self._idle.move_to_end(shared)

    def start_leaving(self, source: Allocation) -> None:
        """A copy in flight holds this from now on."""
        for shared in source.shared:
            shared.leaving += 1
            self._num_leaving += shared.leaving == shared.users

    def stop_leaving(self, source: Allocation) -> None:
        """It is somebody else's again, or about to be given back."""
        for shared in source.shared:
            self._num_leaving -= shared.leaving == shared.users
            shared.leaving -= 1

    # ------------------------------------------------------------------ pieces

    def _take(self, shared: SharedBlock) -> None:
        if not shared.users:
            del self._idle[shared]
            self._num_held += 1
        elif shared.users == shared.leaving:
            self._num_leaving -= 1
        shared.users += 1

    def _let_go(self, shared: SharedBlock) -> None:
        shared.users -= 1
        if not shared.users:
            self._num_held -= 1
            self._idle[shared] = None
        elif shared.users == shared.leaving:
            self._num_leaving += 1

    def _exchange(self, holder: Allocation, at: int, shared: SharedBlock) -> None:
        """Put `shared` in the place of the holder's own blocks from index `at` on."""
        inner = self.inner
        rest = inner.split(holder, at + self.blocks_each)
        inner.truncate(inner.split(holder, at), 0)
        self._take(shared)
        holder.blocks.extend(shared.blocks)
        if holder.runs is not None:
            holder.runs = runs_of(holder.blocks)
        inner.join(holder, rest)

    def _make_room(self, count: int) -> None:
        """Give up unheld blocks until `count` pool blocks are free, or none is left to give up."""
        while self._idle and self.inner.num_free < count:
            shared = next(iter(self._idle))
            if shared in self._spared:
                return
            del self._idle[shared]
            assert shared.parent is not None
            del shared.parent.children[shared.key]
            self.inner.truncate(self._as_allocation(shared), 0)
            self.num_evicted += 1

    def _as_allocation(self, shared: SharedBlock) -> Allocation:
        made = self.inner.new()
        made.blocks = list(shared.blocks)
        if made.runs is not None:
            made.runs = runs_of(made.blocks)
        return made

    def __iter__(self) -> Iterator[SharedBlock]:
        """Every shared block, held or not."""
        todo = list(self._root.children.values())
        while todo:
            shared = todo.pop()
            yield shared
            todo.extend(shared.children.values())

    def _check_holder(self, index: int, holder: Allocation) -> None:
        size = self.blocks_each
        if holder.runs is not None:
            check_runs(self, holder)
        if holder.num_shared != len(holder.shared) * size:
            raise InvariantError(f"{self.name}: #{index} counts {holder.num_shared} shared blocks")
        for at, shared in enumerate(holder.shared):
            if holder.blocks[at * size : (at + 1) * size] != shared.blocks:
                raise InvariantError(
                    f"{self.name}: the table of #{index} is not {shared!r} at {at}"
                )


def runs_of(blocks: Sequence[int]) -> list[list[int]]:
    """`[start, length]` of each run of consecutive ascending ids, in table order."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return runs
