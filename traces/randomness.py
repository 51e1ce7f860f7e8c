"""Seeded randomness: one stream per purpose and name, the same on every platform.

`Streams(seed, run)` gives 64 uniform bits for (purpose, name, k), by hashing. Changing a policy
therefore shifts no other draw (common random numbers), and independent replications are made by
`run`, never by seed + 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SCALE = 1.0 / (1 << 53)
_BELOW_ONE = 1.0 - _SCALE
_NORMAL = NormalDist()


class Streams:
    """A family of streams. Calling it is `policy.views.Draw`. `replica`: of a fleet, each has its own."""

    def __init__(self, seed: int, run: int = 0, replica: int = 0) -> None:
        self.seed = seed
        self.run = run
        self.replica = replica
        prefix = f"{seed}|{run}|" + (f"replica {replica}|" if replica else "")

        @lru_cache(maxsize=1 << 16)
        def origin(purpose: str, name: str) -> int:
            digest = blake2b(f"{prefix}{purpose}|{name}".encode(), digest_size=8)
            return int.from_bytes(digest.digest(), "big")

        self._origin = origin

    def __call__(self, purpose: str, name: str, k: int, /) -> int:
        """64 uniform bits: the k-th of the stream (purpose, name). SplitMix64's output function."""
        z = (self._origin(purpose, name) + k * _GOLDEN) & _MASK
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
        return z ^ (z >> 31)

    def uniform(self, purpose: str, name: str, k: int) -> float:
        """Uniform in the open interval (0, 1)."""
        drawn = ((self(purpose, name, k) >> 11) + 0.5) * _SCALE
        return min(drawn, _BELOW_ONE)  # 53 ones and a half would be rounded to 1

    def normal(self, purpose: str, name: str, k: int) -> float:
        """Standard normal."""
        return _NORMAL.inv_cdf(self.uniform(purpose, name, k))

    def exponential(self, purpose: str, name: str, k: int) -> float:
        """Exponential with mean 1."""
        return -math.log(self.uniform(purpose, name, k))
