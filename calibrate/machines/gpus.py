"""GPUs by the vendors' data sheets: what a derived profile and a host link are worked out from."""

from __future__ import annotations

from typing import NamedTuple

from policy.errors import ConfigError
from traces.strict import quoted

_GIB = 1 << 30
_MIB = 1 << 20


class Gpu(NamedTuple):
    """One card. `flops`: dense bf16 per second; `memory_rate` in bytes per second; `pcie`: generation
    of its 16 lanes. `sheet`: where the figures are from."""

    key: str
    name: str
    memory_bytes: int
    memory_source: str
    memory_rate: float
    flops: float
    pcie: int
    sheet: str

    @property
    def consumer(self) -> bool:
        """Its data sheet gives rates for a clock that it does not keep."""
        return self.name.startswith("NVIDIA GeForce")


def _gpu(key: str, name: str, mib: int, rate: float, tera: float, pcie: int, sheet: str) -> Gpu:
    return Gpu(
        key,
        name,
        mib * _MIB,
        f"{mib:,} MiB as the driver reports it",
        rate * 1e9,
        tera * 1e12,
        pcie,
        sheet,
    )


GPUS: dict[str, Gpu] = {
    gpu.key: gpu
    for gpu in (
        _gpu("a100-sxm", "NVIDIA A100-SXM4-80GB", 81_920, 2039, 312, 4,
             "NVIDIA A100 data sheet"),
        _gpu("h100-sxm", "NVIDIA H100-SXM5-80GB", 81_559, 3350, 989, 5,
             "NVIDIA H100 data sheet"),
        _gpu("h200-sxm", "NVIDIA H200-SXM-141GB", 143_771, 4800, 989, 5,
             "NVIDIA H200 data sheet"),
        _gpu("b200-sxm", "NVIDIA B200-SXM-180GB", 183_359, 7700, 2250, 5,
             "NVIDIA B200 data sheet"),
        _gpu("l40s", "NVIDIA L40S", 46_068, 864, 362, 4,
             "NVIDIA L40S data sheet"),
        _gpu("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Server", 97_887, 1792, 467.8, 5,
             "NVIDIA RTX PRO 6000 Blackwell Server data sheet, at 2,430 MHz"),
        _gpu("rtx-4090", "NVIDIA GeForce RTX 4090", 24_081, 1008, 165, 4,
             "NVIDIA Ada architecture white paper, bf16 with fp32 accumulation"),
        _gpu("a10", "NVIDIA A10", 23_028, 600, 125, 4,
             "NVIDIA A10 data sheet"),
        _gpu("l4", "NVIDIA L4", 23_034, 300, 121, 4,
             "NVIDIA L4 data sheet"),
        _gpu("a30", "NVIDIA A30", 24_576, 933, 165, 4,
             "NVIDIA A30 data sheet"),
        _gpu("a100-pcie", "NVIDIA A100-PCIe-80GB", 81_920, 1935, 312, 4,
             "NVIDIA A100 data sheet"),
        _gpu("h100-pcie", "NVIDIA H100-PCIe-80GB", 81_559, 2000, 756.5, 5,
             "NVIDIA H100 data sheet"),
    )
}  # fmt: skip


def find(key: str) -> Gpu:
    """By key. Raises ConfigError listing them."""
    if key not in GPUS:
        raise ConfigError(f"gpu: {quoted(key)} is not one of {', '.join(GPUS)}")
    return GPUS[key]
