"""Pages that keep the name of what they hold, so that whoever begins alike finds them again.

The block pool of vLLM 0.33.0 (V1), rules R1 to R5 (docs/vllm_v1.md). A name stands for a block's
tokens *and* all before them, so a block is found by its name alone. Free blocks wait in two parts:

    next to be handed out ->  [ nameless, last freed first ] [ named, freed longest ago first ]

One named block may have several holders; it is free when the last has let it go, and keeps its name
until it is handed out again. Block ids run from 0: the release's block 0, which is never handed
out, is left out here (R1), so a pool of n blocks is the release's of n + 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from policy.errors import InvariantError, OutOfBlocks

Name = Hashable


class NamedPool:
    """`num_evicted`: names that were lost because their block was handed out."""

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self.num_evicted = 0
        self._nameless = list(range(num_blocks - 1, -1, -1))  # the end is handed out first
        self._named: OrderedDict[int, None] = OrderedDict()  # the front is handed out first
        self._name: list[Name | None] = [None] * num_blocks
        self._holders = [0] * num_blocks
        self._oldest: dict[Name, int] = {}  # name -> the block that is found by it
        self._others: dict[Name, list[int]] = {}  # later blocks of the same name, oldest first
        self._sound: tuple[Any, ...] | None = None  # as it was when its law held last

    @property
    def num_free(self) -> int:
        """Blocks that could be handed out now, named ones included."""
        return len(self._nameless) + len(self._named)

    @property
    def nameless(self) -> list[int]:
        """Free blocks that hold nothing anybody could find, the last to be handed out first."""
        return self._nameless

    def find(self, names: Iterable[Name]) -> list[int]:
        """The blocks of a sequence's names, from the first on as far as they are here. Of equal
        blocks the one named first (R5: they are not merged)."""
        oldest = self._oldest
        found = []
        for name in names:
            block = oldest.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def holds(self, name: Name) -> bool:
        """Whether some block has this name."""
        return name in self._oldest

    def num_idle(self, blocks: Sequence[int]) -> int:
        """How many of them nobody holds: sharing them takes them out of the free ones."""
        holders = self._holders
        return sum([not holders[block] for block in blocks])

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        holders, named = self._holders, self._named
        for block in blocks:
            if not holders[block]:
                del named[block]
            holders[block] += 1

    def num_sole(self, blocks: Sequence[int]) -> int:
        """How many of them have one holder: they are free once it lets them go."""
        holders = self._holders
        return sum([holders[block] == 1 for block in blocks])

    def take(self, count: int, after: int | None = None) -> list[int]:  # noqa: ARG002
        """`count` free blocks for one holder, whose last block is `after`. A named one loses its name
        (R2). Raises OutOfBlocks, with nothing changed, if there are fewer."""
        if count > self.num_free:
            raise OutOfBlocks(f"{self.name}: {count} blocks wanted, {self.num_free} free")
        nameless, holders = self._nameless, self._holders
        taken = []
        for _ in range(count):
            if nameless:
                block = nameless.pop()
            else:
                block, _none = self._named.popitem(last=False)
                self._forget(block)
            holders[block] = 1
            taken.append(block)
        return taken

    def name_block(self, block: int, name: Name) -> None:
        """What a block holds, or will hold once the step just planned has run (R4)."""
        self._name[block] = name
        if name in self._oldest:
            self._others.setdefault(name, []).append(block)
        else:
            self._oldest[name] = block

    def free(self, blocks: Iterable[int]) -> None:
        """One holder less for each, given in the order in which they are to go: a sequence's last
        block first (R3). Nameless ones go to the front and named ones to the back (R2)."""
        holders, names, named = self._holders, self._name, self._named
        nameless = []
        for block in blocks:
            holders[block] -= 1
            if not holders[block]:
                if names[block] is None:
                    nameless.append(block)
                else:
                    named[block] = None
        if nameless:
            self._put_back(nameless)

    def _put_back(self, nameless: list[int]) -> None:
        """Free blocks without a name, in the order in which they are to go."""
        nameless.reverse()
        self._nameless += nameless

    def unname(self, block: int) -> None:
        """What a held block was to hold will not be computed: nobody may find it."""
        self._forget(block)
        self.num_evicted -= 1

    def _forget(self, block: int) -> None:
        """The block loses its name; the next oldest of that name is found from now on."""
        name = self._name[block]
        self._name[block] = None
        self.num_evicted += 1
        others = self._others.get(name)
        if self._oldest[name] != block:
            assert others is not None
            others.remove(block)
        elif others:
            self._oldest[name] = others.pop(0)
        else:
            del self._oldest[name]
        if others is not None and not others:
            del self._others[name]

    def state(self) -> Hashable:
        """What decides all that it does from now on; equal states go on alike."""
        names = self._name
        return (self.num_free - len(self._named), tuple([names[block] for block in self._named]))

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Law 1 for shared blocks: each block is free, or held exactly as often as the tables say;
        and every name is found. Raises InvariantError. Where all is as it was when the law held last,
        which most steps of a batch leave it, it holds."""
        tables = list(tables)
        now = self._picture(tables)
        if now != self._sound:
            self._check(tables)
            self._sound = now

    def _picture(self, tables: Iterable[Sequence[int]]) -> tuple[Any, ...]:
        """Copies of all that the law is about, values and not objects; the order of free names is none
        of it."""
        oldest, others = self._oldest, self._others
        return (
            [list(table) for table in tables],
            list(self._holders),
            list(self.nameless),
            list(dict.keys(self._named)),
            list(self._name),
            list(oldest),
            list(oldest.values()),
            [(name, list(blocks)) for name, blocks in others.items()],
        )

    def _check(self, tables: Iterable[Sequence[int]]) -> None:
        held = [0] * self.num_blocks
        for table in tables:
            for block in table:
                held[block] += 1
        if held != self._holders:
            block = next(b for b in range(self.num_blocks) if held[b] != self._holders[b])
            raise InvariantError(
                f"{self.name}: block {block} is in {held[block]} tables,"
                f" {self._holders[block]} holders counted"
            )
        nameless = self.nameless
        free = sorted([*nameless, *self._named])
        if free != [block for block in range(self.num_blocks) if not held[block]]:
            raise InvariantError(f"{self.name}: the free blocks are not those that nobody holds")
        for block in nameless:
            if self._name[block] is not None:
                raise InvariantError(f"{self.name}: block {block} has a name among the nameless")
        listed = sorted(
            [*self._oldest.values(), *[b for others in self._others.values() for b in others]]
        )
        if listed != [b for b in range(self.num_blocks) if self._name[b] is not None]:
            raise InvariantError(f"{self.name}: the blocks found by name are not the named ones")
