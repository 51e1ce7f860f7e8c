"""A progress bar over anything that lasts, silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None, unit: str) -> Iterator[Callable[[], None]]:
    """A progress bar after two seconds, silent when stderr is not a terminal. Yields what to call
    for every unit done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", delay=2, leave=False) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance
