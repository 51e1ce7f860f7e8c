"""Small numbers to the device and back past the queues of copies.

A GPU has one copy queue for each direction, and swaps fill them: a step's inputs or its tokens would wait
behind megabytes. So a kernel reads inputs from page-locked memory of the host and writes tokens there
(`realrun.device_ops.Kernels.move`), in the order of the step's other kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_FILL = [0]


class Ferry:
    """Of one device. Host memory that kernels may still read is kept until `to_host`, `wait` or
    `let_go`."""

    def __init__(
        self, device: torch.device, move: Callable[[torch.Tensor, torch.Tensor], None]
    ) -> None:
        self._device = device
        self._move = move
        self._on_gpu = device.type == "cuda"
        self._kept: list[torch.Tensor] = []
        self._landed = self.host_memory(1)

    def host_memory(self, *shape: int) -> torch.Tensor:
        """Integers on the host that kernels can read and write."""
        return torch.zeros(shape, dtype=torch.int64, pin_memory=self._on_gpu)

    def to_device(self, *lists: Sequence[int]) -> Sequence[torch.Tensor]:
        """Each list as an int64 tensor on the device; one move for all. Each begins at a multiple of 16
        bytes: a kernel would be compiled anew for one that does not."""
        filled = [[*numbers, *_FILL[: len(numbers) % 2]] for numbers in lists]
        flat = torch.tensor([number for numbers in filled for number in numbers], dtype=torch.int64)
        if self._on_gpu:
            staged = flat.pin_memory()
            self._kept.append(staged)
            flat = torch.empty(len(staged), dtype=torch.int64, device=self._device)
            self._move(staged, flat)
        parts = torch.split(flat, [len(numbers) for numbers in filled])
        return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]

    def to_host(self, tokens_N: torch.Tensor) -> list[int]:
        """Numbers of the device; waits for the kernels that make them, and for no copy."""
        if not self._on_gpu:
            return [int(token) for token in tokens_N.tolist()]
        if len(self._landed) < len(tokens_N):
            self._landed = self.host_memory(len(tokens_N))
        landed = self._landed[: len(tokens_N)]
        self._move(tokens_N, landed)
        self.wait()
        return [int(token) for token in landed.tolist()]

    def wait(self) -> None:
        """Until every kernel begun has ended."""
        if self._on_gpu:
            torch.cuda.current_stream(self._device).synchronize()
        self.let_go()

    def let_go(self) -> None:
        """Everything that was begun has ended, as who read its results knows."""
        self._kept.clear()
