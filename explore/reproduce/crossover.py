"""Swap or recompute: which parks and brings back a lone context faster, by its length, the GPU and what a
copy call costs. From the cost model alone, and checked by simulations of one preemption."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from calibrate.profile import Profile
from policy.plan import Copy, Direction
from policy.systems import System, named_system
from sim.costs import CopyCosts, StepCosts
from sim.simulate import simulate
from traces.recording import Recording
from traces.scenario import build

MACHINES = ("a10-llama-3-8b", "a100-80gb-qwen-32b", "h100-llama-3-8b")
CALLS_US = (1.0, 2.3, 5.0, 10.0, 20.0)
LENGTHS = tuple(64 * 2**power for power in range(8))  # to 8,192 tokens
CHECKED = (1024, 4096)
BLOCK = 16
#: A merged copy moves so many blocks here; runs seen in simulations are shorter and longer.
RUN_BLOCKS = 20


@dataclass(frozen=True)
class Line:
    """Times cheaper to swap than to recompute, at every length. `per_call_us` None: as published."""

    machine: str
    system: str
    per_call_us: float
    lengths: tuple[int, ...]
    cheaper: tuple[float, ...]


@dataclass(frozen=True)
class Check:
    """One preemption, simulated: times in nanoseconds beside what the formula says of them."""

    machine: str
    length: int
    swap_ns: int
    recompute_ns: int
    swap_formula_ns: int
    recompute_formula_ns: int


def lines() -> Iterator[Line]:
    """Per-block copies at every cost of a call; block-major blocks and merged groups as published."""
    for machine in MACHINES:
        profile = profiles.load(machine)
        published = profile.transfer.per_call.value / 1000
        for per_call in CALLS_US:
            yield _line(profile, "vllm-0.3.3-keep", per_call)
        for name in ("+groups", "+batched", "+block-major"):
            yield _line(profile, name, published)


def _line(profile: Profile, system: str, per_call_us: float) -> Line:
    priced = profile.with_values({"transfer.per_call": per_call_us * 1000})
    named = named_system(system)
    cheaper = [recompute_ns(priced, n) / swap_ns(priced, named, n) for n in LENGTHS]
    return Line(profile.name, system, per_call_us, LENGTHS, tuple(cheaper))


def break_even_us(machine: str, tokens: int) -> float:
    """What a copy call would have to cost for per-block swapping to take as long as recompute."""
    profile = profiles.load(machine)
    system = named_system("vllm-0.3.3-keep")
    target = recompute_ns(profile, tokens)
    low, high = 0.0, 1000.0
    while high - low > 0.01:
        middle = (low + high) / 2
        priced = profile.with_values({"transfer.per_call": middle * 1000})
        low, high = (middle, high) if swap_ns(priced, system, tokens) < target else (low, middle)
    return round((low + high) / 2, 1)


def swap_ns(profile: Profile, system: System, tokens: int) -> int:
    """Out and back in, each alone on an idle link and waited for."""
    costs = CopyCosts(profile, system, BLOCK)
    blocks = -(-tokens // BLOCK)
    whole, rest = divmod(blocks, RUN_BLOCKS)
    pieces = [RUN_BLOCKS] * whole + ([rest] if rest else [])
    runs = tuple((0, 0, length) for length in pieces)
    total = 0
    for way in (Direction.TO_HOST, Direction.TO_DEVICE):
        cost = costs.cost(Copy(0, way, "", runs, blocks, urgent=True))
        total += max(cost.first_call_ns + cost.link_ns, cost.submit_ns + cost.last_piece_ns)
    return total


def recompute_ns(profile: Profile, tokens: int) -> int:
    """A prefill step of the whole context, beside nothing else."""
    return StepCosts(profile).prefill_ns([(tokens, 0)])


def checks() -> Iterator[Check]:
    """A request of so many tokens is preempted once by a more urgent one, by swap and by recompute."""
    for machine in MACHINES:
        profile = profiles.load(machine)
        for length in CHECKED:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "two.jsonl"
                path.write_text(_two_requests(length), encoding="utf-8")
                swapped = _preempted(machine, path, length, "vllm-0.3.3-keep")
                again = _preempted(machine, path, length, "vllm-0.3.3-recompute")
            waited = sum(swapped.table("steps").column("stall_ns").to_pylist())
            tokens, took = _second_prefill(again)
            moved = sum(swapped.table("copies").column("blocks").to_pylist()) // 2
            swap = swap_ns(profile, named_system("vllm-0.3.3-keep"), moved * BLOCK)
            yield Check(machine, length, waited, took, swap, recompute_ns(profile, tokens))


def _two_requests(length: int) -> str:
    """One that decodes for long, and an urgent one that needs its room."""
    rows = [
        {"request_id": "a", "input_tokens": length - 8, "output_tokens": 400, "arrival_s": 0.0},
        {"request_id": "b", "input_tokens": length, "output_tokens": 4, "arrival_s": 5.0},
    ]
    priorities = (1, 0)
    text = [json.dumps({**row, "priority": p}) for row, p in zip(rows, priorities, strict=True)]
    return "\n".join(text) + "\n"


def _preempted(machine: str, path: Path, length: int, system: str) -> Recording:
    data: dict[str, Any] = {
        "workload": {"file": str(path)},
        "profile": machine,
        "system": system,
        "order": "priority",
        "limits": {"max_model_len": 2 * length + 1024},
        "pool": {
            "device_blocks": length // BLOCK + 40,
            "host_blocks": 4 * length // BLOCK,
            "aging": "none",
        },
    }
    return simulate(build(data, "crossover"))


def _second_prefill(recording: Recording) -> tuple[int, int]:
    """Tokens and nanoseconds of the step that computes the preempted request's context again."""
    steps = {row["step"]: row for row in recording.table("steps").to_pylist()}
    prefills = [
        row
        for row in recording.table("spans").to_pylist()
        if (row["request_id"], row["kind"]) == ("a", "prefill")
    ]
    last = prefills[-1]
    step = steps[last["first_step"]]
    return last["tokens"], step["end_ns"] - step["start_ns"]
