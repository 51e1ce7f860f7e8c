"""What the blocks of a request are called, replies included, so that whoever repeats them finds them.

A name stands for a block's tokens and all before them. Two blocks have one name only if they hold the
same KV. Engines that find KV by name (`policy.pools.named`) read names one by one, the generated ones
as they fill.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b

_FIRST = 0x5EED
_POSITIVE = (1 << 63) - 1
#: Blocks of one request are counted in so many bits.
_BITS = 24


def chained(keys: Sequence[int | str]) -> tuple[int, ...]:
    """One name a key, each standing for all keys up to it. Integers alone are hashed with `hash`,
    which no seed changes."""
    names, before = [], _FIRST
    for key in keys:
        number = key
        if isinstance(key, str):
            number = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        before = hash((before, number)) & _POSITIVE
        names.append(before)
    return tuple(names)


class Lineage:
    """Names by descent: what a prompt repeats of its parent's context is called what it was called
    there; what `keys` name, by these; all else is this request's own.

    `keys` cover `per_key` blocks each from the first on; where they differ from the parent's, the
    tokens do, and nothing behind is inherited. `own`: a number no other request has, not negative.
    """

    __slots__ = ("_chain", "_ends", "_per_key", "_sources")

    _ends: tuple[int, ...]
    _sources: tuple[tuple[int, ...] | int, ...]

    def __init__(
        self,
        own: int,
        keys: Sequence[int | str] = (),
        per_key: int = 1,
        parent: Lineage | None = None,
        shared_blocks: int = 0,
    ) -> None:
        chain = chained(keys)
        self._chain = chain
        self._per_key = per_key
        ends: list[int] = []
        sources: list[tuple[int, ...] | int] = []
        keyed = len(chain) * per_key
        if parent is not None:
            alike = 0
            for mine, theirs in zip(chain, parent._chain, strict=False):
                if mine != theirs:
                    break
                alike += 1
            if alike < min(len(chain), len(parent._chain)):
                shared_blocks = min(shared_blocks, alike * per_key)
            start = 0
            for reach, source in zip(parent._ends, parent._sources, strict=True):
                end = min(reach, shared_blocks)
                if end > start:
                    ends.append(end)
                    sources.append(source)
                    start = end
        if keyed > (ends[-1] if ends else 0):
            ends.append(keyed)
            sources.append(chain)
        ends.append(1 << _BITS)
        sources.append(own)
        self._ends = tuple(ends)
        self._sources = tuple(sources)

    def __getitem__(self, index: int) -> int:
        """The name of the block at `index`."""
        source = self._sources[bisect_right(self._ends, index)]
        if isinstance(source, int):
            return (source << _BITS) + index
        return ~((source[index // self._per_key] << _BITS) + index % self._per_key)


class TokenNames:
    """Names by what the blocks hold, of tokens that grow while it is served (BLAKE2b, 128 bits)."""

    __slots__ = ("_names", "_size", "tokens")

    def __init__(self, tokens: list[int], size: int) -> None:
        self.tokens = tokens
        self._size = size
        self._names: list[int] = []

    def __getitem__(self, index: int) -> int:
        """The name of the block at `index`, whose tokens are known."""
        names, size = self._names, self._size
        while len(names) <= index:
            at = len(names) * size
            before = names[-1] if names else _FIRST
            content = before.to_bytes(16, "big") + array("q", self.tokens[at : at + size]).tobytes()
            names.append(int.from_bytes(blake2b(content, digest_size=16).digest(), "big"))
        return names[index]

    def known(self) -> tuple[int, ...]:
        """All names so far, of the full blocks."""
        full = len(self.tokens) // self._size
        return tuple([self[index] for index in range(full)])
