"""Sobol points in up to 16 dimensions: direction numbers of Joe and Kuo, shifted by a seed.

S. Joe and F. Y. Kuo, "Constructing Sobol sequences with better two-dimensional projections", SIAM
J. Sci. Comput. 30 (2008), table new-joe-kuo-6. Whole numbers throughout, so that the points are the
same on every machine. Why not a library: docs/decisions/0023-own-sobol.md.
"""

from __future__ import annotations

BITS = 32
MAX_POINTS = 1 << 16

#: Degree and coefficients of each dimension's primitive polynomial, and its first odd numbers.
_TABLE: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (1, 0, (1,)),
    (2, 1, (1, 3)),
    (3, 1, (1, 3, 1)),
    (3, 2, (1, 1, 1)),
    (4, 1, (1, 1, 3, 3)),
    (4, 4, (1, 3, 5, 13)),
    (5, 2, (1, 1, 5, 5, 17)),
    (5, 4, (1, 1, 5, 5, 5)),
    (5, 7, (1, 1, 7, 11, 19)),
    (5, 11, (1, 1, 5, 1, 1)),
    (5, 13, (1, 1, 1, 3, 11)),
    (5, 14, (1, 3, 5, 5, 31)),
    (6, 1, (1, 3, 3, 9, 7, 49)),
    (6, 13, (1, 1, 1, 15, 21, 21)),
    (6, 16, (1, 3, 1, 13, 27, 49)),
)
MAX_DIMENSIONS = 1 + len(_TABLE)


def points(count: int, shifts: list[int]) -> list[tuple[int, ...]]:
    """The first `count` points as BITS-bit numbers, a dimension for each of `shifts`, which is
    added to it bit by bit (a digital shift: every balance of the points stays).

    Raises ValueError for more than MAX_DIMENSIONS or MAX_POINTS.
    """
    if not 0 < len(shifts) <= MAX_DIMENSIONS or not 0 <= count <= MAX_POINTS:
        raise ValueError(f"{count} points in {len(shifts)} dimensions")
    directions = [_directions(dimension) for dimension in range(len(shifts))]
    state = list(shifts)
    found = []
    for index in range(count):
        found.append(tuple(state))
        flipped = (~index & (index + 1)).bit_length() - 1  # Gray code: one bit changes
        for dimension, numbers in enumerate(directions):
            state[dimension] ^= numbers[flipped]
    return found


def _directions(dimension: int) -> list[int]:
    if dimension == 0:
        return [1 << (BITS - 1 - k) for k in range(BITS)]
    degree, coefficients, first = _TABLE[dimension - 1]
    numbers = [odd << (BITS - 1 - k) for k, odd in enumerate(first)]
    for k in range(degree, BITS):
        number = numbers[k - degree] ^ (numbers[k - degree] >> degree)
        for power in range(1, degree):
            if coefficients >> (degree - 1 - power) & 1:
                number ^= numbers[k - power]
        numbers.append(number)
    return numbers
