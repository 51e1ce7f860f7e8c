"""Builds the machine profiles that ship, from the public op tables and the data sheets.

    FASTSWITCH_MEASUREMENTS=FOLDER python benchmarks/ship_machines.py [NAME...]

Each is what `fastswitch machine build` makes of the same words; they are in its `origin.rebuild`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.step_cost import DATA
from calibrate import build as files
from calibrate.machines import build, gpus, make, shapes
from calibrate.machines.make import Asked
from calibrate.profile import PROFILES

DATE = "2026-12-01"
MODELS = ("llama-3.1-8b", "qwen3-8b", "qwen3-14b", "qwen3-32b", "llama-3.1-70b")
MOST_BYTES = 20_000
AIC = {
    "a100-sxm": "a100_sxm-0.14.0",
    "h100-sxm": "h100_sxm-0.24.0",
    "h200-sxm": "h200_sxm-0.24.0",
    "b200-sxm": "b200_sxm-0.24.0",
    "l40s": "l40s-0.24.0",
    "rtx-pro-6000": "rtx_pro_6000_server-0.24.0",
}
#: All-reduce of a card whose own tables have none.
REDUCE = {"l40s": "l40s-0.22.0"}
#: Tables taken inside an engine, preferred where there are any: folder and numbers of GPUs.
INSIDE = {
    ("rtx-4090", "llama-3.1-8b"): ("rtx4090-llama-3.1-8b", (1,)),
    ("rtx-pro-6000", "llama-3.1-8b"): ("rtxpro6000-tables/Llama-3.1-8B-tp{tp}", (1, 2)),
    ("rtx-pro-6000", "qwen3-32b"): ("rtxpro6000-tables/Qwen3-32B-tp{tp}", (1, 2)),
}
#: Cards with no table of a model: from the data sheet, on one GPU.
DERIVED = (("rtx-4090", "qwen3-8b"), ("a10", "llama-3.1-8b"), ("a10", "qwen3-8b"))
#: KV tokens without which a server is none.
LEAST_ROOM = 8192


def fitting(gpu: str, model: str) -> tuple[int, ...]:
    """Numbers of GPUs on which a model fits, the least and twice and four times it."""
    shape, card = shapes.known()[model], gpus.GPUS[gpu]
    known = [n for n in (1, 2, 4, 8) if build.room_of(card, shape.split(n)) >= LEAST_ROOM]
    return tuple(known[:3])


def everything(data: Path) -> dict[str, Asked]:
    """What ships, by name."""
    found = {}
    for gpu in gpus.GPUS:
        for model in MODELS:
            name = f"{gpu}-{model}"
            if (gpu, model) in INSIDE:
                folder, shards = INSIDE[gpu, model]
                reduce = data / "aiconfigurator" / AIC[gpu] if len(shards) > 1 else None
                found[name] = Asked(gpu, model, DATE, str(data / folder), None, reduce, shards)
            elif gpu in AIC:
                folder = str(data / "aiconfigurator" / AIC[gpu])
                shards = fitting(gpu, model)
                reduce = data / "aiconfigurator" / REDUCE[gpu] if gpu in REDUCE else None
                found[name] = Asked(gpu, model, DATE, folder, None, reduce, shards)
            elif (gpu, model) in DERIVED:
                found[name] = Asked(gpu, model, DATE)
    return found


def main() -> None:
    if DATA not in os.environ:
        sys.exit(f"{DATA} is not set: the folder of the public measurements (docs/machines.md)")
    asked = everything(Path(os.environ[DATA]))
    rows = []
    for name in sys.argv[1:] or asked:
        path = PROFILES / f"{name}.json"
        files.save(make.profile(asked[name], name), path)
        size = path.stat().st_size
        if size > MOST_BYTES:
            sys.exit(f"{name}: {size} bytes, more than {MOST_BYTES}")
        rows.append({"name": name, "bytes": size, "gpus": asked[name].shards})
        print(f"{name:<32} {size:>6} bytes, GPUs {asked[name].shards}", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
