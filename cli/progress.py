"""A progress bar over anything that lasts, silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """To be called for units done."""

    def __call__(self, count: int = 1, /) -> None:
        """So many more."""


@contextmanager
def progress(total: int | None, unit: str) -> Iterator[Advance]:
    """A progress bar after two seconds, silent when stderr is not a terminal. Yields what to call
    for every unit done."""
    if not sys.stderr.isatty():
        yield lambda _count=1: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", delay=2, leave=False) as bar:

        def advance(count: int = 1, /) -> None:
            bar.update(count)

        yield advance
