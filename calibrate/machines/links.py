"""What copies between host and device cost, by the generation of the link: constants that others have
published, with their ranges (docs/machines.md; `benchmarks/copy_cost.py` fits and tests them)."""

from __future__ import annotations

from typing import Literal

from calibrate.machines.gpus import Gpu
from calibrate.profile import Quantity, TransferCost

Kind = Literal["published", "assumed", "derived"]

_H100 = "vLLM pull requests 42212 and 48434, batched copies of an H100"
#: One way and both ways by generation, bytes per second: value, low, high.
_RATES = {4: (25e9, 24e9, 26.5e9), 5: (55e9, 52e9, 56e9)}
_DUPLEX_IN = {4: (12e9, 11e9, 25e9), 5: (45e9, 25e9, 55e9)}
_DUPLEX_OUT = {4: (24e9, 20e9, 25e9), 5: (45e9, 35e9, 55e9)}
_RATES_FROM = {
    4: "nvbandwidth issues 11 and 53: an A100-SXM4 moves 24.8 GB/s one way",
    5: "vLLM pull request 48434: merged runs reach 54.1 GB/s; copy-engine samples 55.6",
}
_DUPLEX_FROM = {
    4: "nvbandwidth issues 11 and 53: both ways, 24 GB/s out, 11 to 13 in",
    5: "no clean published figure of both ways at once",
}


def _number(
    within: tuple[float, float, float], unit: str, source: str, kind: Kind = "assumed"
) -> Quantity:
    """`within`: value, low, high."""
    value, low, high = within
    return Quantity(value=value, unit=unit, kind=kind, source=source, low=low, high=high)


#: What no card changes.
_ALIKE = {
    "per_job": _number((50e3, 10e3, 1e6), "ns", "Python and driver work per swap job"),
    "per_call": _number(
        (2300, 1500, 5000), "ns", "FlexKV pull request 193: about 2.3 us per copy call on an H20",
        "published",
    ),
    "lock_growth": _number(
        (0.5, 0, 1), "share per thread", "driver lock between submitting threads"
    ),
    "queue_depth": Quantity(
        value=1000.0, unit="calls", kind="published",
        source="vLLM issue 29013: a stream takes about 1,000 operations, then the call blocks",
    ),
    "gather_launch": _number((10e3, 5e3, 30e3), "ns", "one kernel launch"),
}  # fmt: skip


def transfer_of(gpu: Gpu) -> TransferCost:
    """The host link of one card."""
    return TransferCost(**_ALIKE, **_pieces(gpu), **_link(gpu), **_beside_memory(gpu))


def _pieces(gpu: Gpu) -> dict[str, Quantity]:
    """What descriptors and pieces cost: an H100's, published for it alone."""
    own = gpu.key.startswith("h100")
    kind: Kind = "published" if own else "assumed"
    where = _H100 if own else f"{_H100}, taken for this card too"
    small = f"{where}: pieces of 4 to 24 KiB"
    border = f"{where}: the driver takes another way below 28 KiB"
    return {
        "per_descriptor": _number((570, 520, 630), "ns", f"{where}: seven figures", kind),
        "piece_setup": _number((130, 0, 700), "ns", f"{where}: pieces of 28 KiB and more", kind),
        "small_piece": _number((28672, 24576, 28672), "bytes", border, kind),
        "small_setup": _number((300, 100, 500), "ns", small, kind),
        "small_rate": _number((7.7e9, 6.8e9, 9e9), "bytes/s", small, kind),
    }


def _link(gpu: Gpu) -> dict[str, Quantity]:
    """Rates one way and both ways."""
    alone = _number(_RATES[gpu.pcie], "bytes/s", _RATES_FROM[gpu.pcie], "published")
    source = _DUPLEX_FROM[gpu.pcie]
    return {
        "to_device": alone,
        "to_host": alone,
        "to_device_duplex": _number(_DUPLEX_IN[gpu.pcie], "bytes/s", source),
        "to_host_duplex": _number(_DUPLEX_OUT[gpu.pcie], "bytes/s", source),
    }


def _beside_memory(gpu: Gpu) -> dict[str, Quantity]:
    """What copies take of the device memory's rate."""
    slower = Quantity(
        value=_RATES[gpu.pcie][0] / gpu.memory_rate,
        unit="share",
        kind="derived",
        source="copy-engine traffic over the device memory rate",
    )
    gathered = (0.35 * gpu.memory_rate, 0.2 * gpu.memory_rate, 0.45 * gpu.memory_rate)
    source = "a gather reads and writes device memory: 0.35 of the data sheet's rate per byte moved"
    return {
        "gather_bandwidth": _number(gathered, "bytes/s", source),
        "interference_to_device": slower,
        "interference_to_host": slower,
    }
