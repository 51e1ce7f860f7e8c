"""A graph on a CPU: the tensor operations of a function, recorded once and done again on the same memory.

As with a CUDA graph, Python does not run again: shapes, addresses and every value that came from Python
are those of the recording. What a CUDA graph cannot record is refused: a look at a tensor's value, a
result whose shape depends on values, data that comes from Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique")


class NotRecordable(Exception):
    """A CUDA graph could not hold this."""


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(word in str(func) for word in REFUSED):
            raise NotRecordable(str(func))
        if "index" in str(func) and any(t.dtype == torch.bool for t in _tensors(args[1:2])):
            raise NotRecordable(f"{func} by a mask")
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class Recorder:
    """A `realrun.graphs.Capture`. `num_recorded`, `num_replayed`: how often it was made to."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        run()
        with _Tape() as tape:
            run()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            for func, args, kwargs, before in tape.calls:
                given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
                found = func(*args, **kwargs)
                for old, new in zip(_tensors(before), _tensors(found), strict=True):
                    if new.untyped_storage().data_ptr() not in given:
                        old.copy_(new)

        return replay
