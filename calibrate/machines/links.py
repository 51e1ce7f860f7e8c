"""What copies between host and device cost, by the generation of the link: constants that others have
published, with their ranges (docs/machines.md; `benchmarks/copy_cost.py` fits and tests them)."""

from __future__ import annotations

from typing import Literal

from calibrate.machines.gpus import Gpu
from calibrate.profile import Quantity, TransferCost

Kind = Literal["published", "assumed", "derived"]

#: Rates one way and both ways, bytes per second: value, low, high.
_RATES = {
    4: (25e9, 24e9, 26.5e9),
    5: (55e9, 52e9, 56e9),
}
_DUPLEX_IN = {4: (12e9, 11e9, 25e9), 5: (45e9, 25e9, 55e9)}
_DUPLEX_OUT = {4: (24e9, 20e9, 25e9), 5: (45e9, 35e9, 55e9)}
_H100 = "vLLM pull requests 42212 and 48434, batched copies of an H100"


def transfer_of(gpu: Gpu) -> TransferCost:
    """The host link of one card."""
    rate = _RATES[gpu.pcie]
    own = gpu.key.startswith("h100")
    where = _H100 if own else f"{_H100}, taken for this card too"
    rates = (
        "vLLM pull request 48434: merged runs reach 54.1 GB/s; copy-engine samples 55.6"
        if gpu.pcie == 5
        else "nvbandwidth issues 11 and 53: an A100-SXM4 moves 24.8 GB/s one way"
    )
    duplex = (
        "no clean published figure of both ways at once"
        if gpu.pcie == 5
        else "nvbandwidth issues 11 and 53: both ways, 24 GB/s out, 11 to 13 in"
    )
    kind: Kind = "published" if own else "assumed"
    slower = rate[0] / gpu.memory_rate

    def number(value: float, low: float, high: float, unit: str, source: str, of: Kind) -> Quantity:
        return Quantity(
            value=value,
            unit=unit,
            kind=of,
            source=source,
            low=low,
            high=high,
        )

    return TransferCost(
        per_job=number(50e3, 10e3, 1e6, "ns", "Python and driver work per swap job", "assumed"),
        per_call=number(
            2300, 1500, 5000, "ns", "FlexKV pull request 193: about 2.3 us per copy call on an H20",
            "published",
        ),
        per_descriptor=number(570, 520, 630, "ns", f"{where}: seven figures", kind),
        lock_growth=number(
            0.5, 0, 1, "share per thread", "driver lock between submitting threads", "assumed"
        ),
        queue_depth=Quantity(
            value=1000.0, unit="calls", kind="published",
            source="vLLM issue 29013: a stream takes about 1,000 operations, then the call blocks",
        ),
        piece_setup=number(130, 0, 700, "ns", f"{where}: pieces of 28 KiB and more", kind),
        to_device=number(*rate, "bytes/s", rates, "published"),
        to_host=number(*rate, "bytes/s", rates, "published"),
        to_device_duplex=number(*_DUPLEX_IN[gpu.pcie], "bytes/s", duplex, "assumed"),
        to_host_duplex=number(*_DUPLEX_OUT[gpu.pcie], "bytes/s", duplex, "assumed"),
        gather_launch=number(10e3, 5e3, 30e3, "ns", "one kernel launch", "assumed"),
        gather_bandwidth=number(
            0.35 * gpu.memory_rate, 0.2 * gpu.memory_rate, 0.45 * gpu.memory_rate, "bytes/s",
            "a gather reads and writes device memory: 0.35 of the data sheet's rate per byte moved",
            "assumed",
        ),
        interference_to_device=Quantity(
            value=slower, unit="share", kind="derived",
            source="copy-engine traffic over the device memory rate",
        ),
        interference_to_host=Quantity(
            value=slower, unit="share", kind="derived",
            source="copy-engine traffic over the device memory rate",
        ),
        small_piece=number(
            28672, 24576, 28672, "bytes", f"{where}: the driver takes another way below 28 KiB", kind
        ),
        small_setup=number(300, 100, 500, "ns", f"{where}: pieces of 4 to 24 KiB", kind),
        small_rate=number(7.7e9, 6.8e9, 9e9, "bytes/s", f"{where}: pieces of 4 to 24 KiB", kind),
    )  # fmt: skip
