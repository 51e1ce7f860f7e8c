"""What copies between the two memories cost. Standard library and pydantic only."""

from __future__ import annotations

from pydantic import model_validator

from calibrate.quantity import Quantity, Strict

#: Bytes per second that a link can have, from a slow disk's to one whose copies take no time at all.
BANDWIDTHS = (1e6, 1e20)


class TransferCost(Strict):
    """A copy job. Host: `per_job` + calls * `per_call` (+ descriptors * `per_descriptor` when
    batched), serial in a dispatch thread and slower by `lock_growth` per further thread. Device:
    pieces * `piece_setup` + bytes / bandwidth, one FIFO per direction, from the first call or
    descriptor on; a job ends when both are through. Pieces below `small_piece` bytes that go to the
    device take `small_setup` each and move at `small_rate`. The second pair of bandwidths holds
    while both directions are busy. A stream takes `queue_depth` calls, then the
    submitter blocks. `interference`: how much slower a step is while a copy runs in a direction.
    `python_per_job` and `python_per_piece`: what our own executor's Python adds on the host, which is in
    none of the others: vLLM 0.3.3 submitted from a loop of C++.
    """

    per_job: Quantity
    per_call: Quantity
    per_descriptor: Quantity
    lock_growth: Quantity
    queue_depth: Quantity
    piece_setup: Quantity
    to_device: Quantity
    to_host: Quantity
    to_device_duplex: Quantity
    to_host_duplex: Quantity
    gather_launch: Quantity
    gather_bandwidth: Quantity
    interference_to_device: Quantity
    interference_to_host: Quantity
    python_per_job: Quantity | None = None
    python_per_piece: Quantity | None = None
    small_piece: Quantity | None = None
    small_setup: Quantity | None = None
    small_rate: Quantity | None = None

    @model_validator(mode="after")
    def _small_pieces_are_told_whole(self) -> TransferCost:
        if len({self.small_piece is None, self.small_setup is None, self.small_rate is None}) > 1:
            raise ValueError("small_piece, small_setup and small_rate come together")
        return self

    @model_validator(mode="after")
    def _bandwidths_are_in_bytes_per_second(self) -> TransferCost:
        low, high = BANDWIDTHS
        for name in ("to_device", "to_host", "to_device_duplex", "to_host_duplex"):
            value = getattr(self, name).value
            if not low <= value <= high:
                raise ValueError(
                    f"{name}: {value:g} bytes per second is not in {low:g} to {high:g}; 25 GB/s is 25e9"
                )
        return self
