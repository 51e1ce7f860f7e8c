"""What a copy job moves, by address: arrays, so that thousands of pieces cost microseconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Addresses = np.ndarray[Any, np.dtype[np.int64]]


class Pieces(NamedTuple):
    """One row for each stretch of memory that is moved by itself: contiguous int64 arrays of equal
    length, bytes. No two targets overlap."""

    targets: Addresses
    sources: Addresses
    sizes: Addresses


def cut(pieces: Pieces, side: Addresses, borders: Addresses) -> Pieces:
    """The same bytes, with no piece across a border on one side (`pieces.targets` or `.sources`).
    `borders`: rising addresses."""
    if not len(borders):
        return pieces
    first = np.searchsorted(borders, side, "right")
    parts = np.searchsorted(borders, side + pieces.sizes, "left") - first + 1
    if (parts == 1).all():
        return pieces
    row = np.repeat(np.arange(len(parts)), parts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = np.where(nth == 0, side[row], borders[np.maximum(first[row] + nth - 1, 0)])
    at_end = nth == parts[row] - 1
    inside = borders[np.minimum(first[row] + nth, len(borders) - 1)]
    end = np.where(at_end, (side + pieces.sizes)[row], inside)
    offset = begin - side[row]
    return Pieces(pieces.targets[row] + offset, pieces.sources[row] + offset, end - begin)
