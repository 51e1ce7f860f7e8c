"""Free space as runs of consecutive blocks, of any length or of powers of two.

Both kinds keep exact-length bins and one integer whose set bits are the lengths in use, so that the
smallest run that fits is one shift and one bit count away, however many runs there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class FreeRuns:
    """Runs of any length: best fit, split on demand, merged with both neighbours."""

    def __init__(self, num_blocks: int) -> None:
        self._length_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}  # end -> start
        self._bins: dict[int, dict[int, None]] = {}
        self._lengths = 0  # bit L is set while a run of length L is free
        self.total = 0
        self.release(0, num_blocks)

    def __iter__(self) -> Iterator[int]:
        """Every free block, for the conservation law."""
        for start, length in self._length_at.items():
            yield from range(start, start + length)

    def runs(self) -> Mapping[int, int]:
        """The length of every free run by its first block."""
        return self._length_at

    @property
    def num_runs(self) -> int:
        """How many separate free runs there are."""
        return len(self._length_at)

    def longest(self) -> int:
        """Length of the longest free run, 0 if none."""
        return self._lengths.bit_length() - 1 if self._lengths else 0

    def take(self, want: int, need: int) -> tuple[int, int]:  # noqa: ARG002
        """Take one run: `want` blocks if some run has them, else the longest run, up to `want`.

        `need <= want`; at least one block must be free. Returns (start, length), length >= 1; it is
        below `need` only when no run is that long.
        """
        fitting = self._lengths >> want
        if fitting:
            length = want + (fitting & -fitting).bit_length() - 1
        else:
            length = self._lengths.bit_length() - 1
        bin_ = self._bins[length]
        start = next(reversed(bin_))  # the run freed last: deterministic, and warm
        self._remove(start, length)
        if length > want:
            self._insert(start + want, length - want)
            length = want
        self.total -= length
        return start, length

    def take_at(self, start: int, most: int) -> int:
        """Take up to `most` blocks of the free run that begins exactly at `start`; how many."""
        length = self._length_at.get(start)
        if length is None:
            return 0
        self._remove(start, length)
        if length > most:
            self._insert(start + most, length - most)
            length = most
        self.total -= length
        return length

    def release(self, start: int, length: int) -> None:
        """Put a run back, merging it with the free runs on both sides."""
        if not length:
            return
        self.total += length
        before = self._start_before.get(start)
        after = self._length_at.get(start + length)
        if after is not None:
            self._remove(start + length, after)
            length += after
        if before is not None:
            before_length = start - before
            self._remove(before, before_length)
            start = before
            length += before_length
        self._insert(start, length)

    def _insert(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start
        bin_ = self._bins.get(length)
        if bin_ is None:
            self._bins[length] = {start: None}
            self._lengths |= 1 << length
        else:
            bin_[start] = None

    def _remove(self, start: int, length: int) -> None:
        del self._length_at[start]
        del self._start_before[start + length]
        bin_ = self._bins[length]
        del bin_[start]
        if not bin_:
            del self._bins[length]
            self._lengths ^= 1 << length


class BuddyRuns:
    """Runs of power-of-two length at aligned starts, merged with the twin only.

    Knuth, The Art of Computer Programming 1, 2.5 (buddy system). A request that is no power of two
    gets the front of a larger run; the rest goes back as smaller buddies.
    """

    def __init__(self, num_blocks: int) -> None:
        self._order_at: dict[int, int] = {}
        self._bins: dict[int, dict[int, None]] = {}
        self._orders = 0  # bit k is set while a run of 2**k blocks is free
        self.total = 0
        self.release(0, num_blocks)

    def __iter__(self) -> Iterator[int]:
        """Every free block, for the conservation law."""
        for start, order in self._order_at.items():
            yield from range(start, start + (1 << order))

    def runs(self) -> Mapping[int, int]:
        """The length of every free run by its first block."""
        return {start: 1 << order for start, order in self._order_at.items()}

    @property
    def num_runs(self) -> int:
        """How many separate free runs there are."""
        return len(self._order_at)

    def longest(self) -> int:
        """Length of the longest free run, 0 if none."""
        return 1 << (self._orders.bit_length() - 1) if self._orders else 0

    def take(self, want: int, need: int) -> tuple[int, int]:
        """Take the front of the smallest run that holds `want`, else of `need`, else the longest."""
        fitting = self._orders >> (want - 1).bit_length()
        first = (want - 1).bit_length()
        if not fitting:
            fitting = self._orders >> (need - 1).bit_length()
            first = (need - 1).bit_length()
        order = (
            first + (fitting & -fitting).bit_length() - 1
            if fitting
            else self._orders.bit_length() - 1
        )
        start = next(reversed(self._bins[order]))
        self._remove(start, order)
        length = 1 << order
        taken = min(want, length)
        self.total -= length
        self.release(start + taken, length - taken)
        return start, taken

    def take_at(self, start: int, most: int) -> int:  # noqa: ARG002
        """Never: a buddy allocator does not extend in place."""
        return 0

    def release(self, start: int, length: int) -> None:
        """Put a run back as aligned powers of two, each merged with its twin while it is free."""
        self.total += length
        while length:
            order = min((start & -start).bit_length() - 1 if start else 63, length.bit_length() - 1)
            self._merge(start, order)
            start += 1 << order
            length -= 1 << order

    def _merge(self, start: int, order: int) -> None:
        while True:
            twin = start ^ (1 << order)
            if self._order_at.get(twin) != order:
                break
            self._remove(twin, order)
            start = min(start, twin)
            order += 1
        self._order_at[start] = order
        self._bins.setdefault(order, {})[start] = None
        self._orders |= 1 << order

    def _remove(self, start: int, order: int) -> None:
        del self._order_at[start]
        bin_ = self._bins[order]
        del bin_[start]
        if not bin_:
            self._orders ^= 1 << order
