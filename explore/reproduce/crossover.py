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
from policy.errors import InvariantError
from policy.plan import Copy, Direction
from policy.systems import System, named_system
from runs.recording import Recording
from runs.scenario import build
from sim.costs import CopyCosts, step_costs
from sim.simulate import simulate

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
            yield _line(profile, "paged-keep", per_call)
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
    system = named_system("paged-keep")
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
        cost = costs.cost(Copy(0, way, "", runs, blocks))
        total += max(cost.first_call_ns + cost.link_ns, cost.submit_ns + cost.last_piece_ns)
    return total


def recompute_ns(profile: Profile, tokens: int) -> int:
    """A prefill step of the whole context, beside nothing else."""
    return step_costs(profile).prefill_ns([(tokens, 0)])


def checks() -> Iterator[Check]:
    """A request of so many tokens is preempted once by a more urgent one, by swap and by recompute."""
    for machine in MACHINES:
        profile = profiles.load(machine)
        for length in CHECKED:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "three.jsonl"
                path.write_text(_three_requests(profile, length), encoding="utf-8")
                swapped = _preempted(machine, path, length, "paged")
                again = _preempted(machine, path, length, "paged-recompute")
            moved, waited = _swaps(swapped)
            tokens, took = _second_prefill(again)
            swap = swap_ns(profile, named_system("paged-keep"), moved * BLOCK)
            yield Check(machine, length, waited, took, swap, recompute_ns(profile, tokens))


def _three_requests(profile: Profile, length: int) -> str:
    """One that decodes throughout (the last runner is never preempted), one that has just begun to, and
    an urgent one that needs the room of the second."""
    begun_ns = recompute_ns(profile, length) + 20 * step_costs(profile).decode_ns(2, length)
    rows = [
        {"request_id": "leader", "input_tokens": 8, "output_tokens": 400, "priority": 0},
        {"request_id": "victim", "input_tokens": length, "output_tokens": 200, "priority": 2},
        {"request_id": "urgent", "input_tokens": length, "output_tokens": 4, "priority": 1},
    ]
    arrivals = (0.0, 0.0, begun_ns / 1e9)
    text = [json.dumps({**row, "arrival_s": at}) for row, at in zip(rows, arrivals, strict=True)]
    return "\n".join(text) + "\n"


def _preempted(machine: str, path: Path, length: int, system: str) -> Recording:
    data: dict[str, Any] = {
        "workload": {"file": str(path)},
        "profile": machine,
        "system": system,
        "order": "priority",
        "limits": {"max_model_len": 2 * length + 1024},
        "pool": {
            "device_blocks": length // BLOCK + 50,
            "host_blocks": 4 * length // BLOCK,
            "aging": "none",
        },
    }
    return simulate(build(data, "crossover"))


def _swaps(recording: Recording) -> tuple[int, int]:
    """Blocks of the victim's copies, one way, and the nanoseconds of both."""
    copies = recording.table("copies").to_pylist()
    ways = [copy["direction"] for copy in copies if copy["request_id"] == "victim"]
    if ways != ["d2h", "h2d"] or len(copies) != 2:
        raise InvariantError(f"crossover: not one swap out and in, but {ways}")
    return copies[0]["blocks"], sum(copy["end_ns"] - copy["submit_ns"] for copy in copies)


def _second_prefill(recording: Recording) -> tuple[int, int]:
    """Tokens and nanoseconds of the step that computes the victim's context again."""
    steps = {row["step"]: row for row in recording.table("steps").to_pylist()}
    prefills = [
        row
        for row in recording.table("spans").to_pylist()
        if (row["request_id"], row["kind"]) == ("victim", "prefill")
    ]
    if len(prefills) != 2:
        raise InvariantError(
            f"crossover: the victim was prefilled {len(prefills)} times, not twice"
        )
    step = steps[prefills[1]["first_step"]]
    return prefills[1]["tokens"], step["end_ns"] - step["start_ns"]
