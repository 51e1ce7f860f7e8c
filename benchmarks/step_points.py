"""Which steps a step-cost form is judged on, and which of them it may see: the rule.

Written down before any form was fitted to these tables, and nothing here looks at a fit.

Op points: whole steps put together from measured rows by `calibrate.machines.tables.OpTables`. A step
qualifies if its new tokens are measured ones (at most 2,048 in an engine's step, 8,192 where the tables
go further) and the KV it needs fits the card beside the weights. All decode steps and all steps of
prompts are taken; of mixed ones (both in one step) 240 and of uneven ones 60, drawn by the seed.
Held out: 30 % of all points at random, and in every draw the corners: largest batch and most KV of a
decode step, longest prompt and longest past, most new tokens and most KV of a mixed step. The fit sees
whole-step times of the others alone, so that no held-out row gives a knot or enters a coefficient.

Steps a server runs: one simulated run of the chat generator on the card's KV room, chunked prefill of
2,048 tokens, recompute, prefix sharing; arrivals in waves, so that light load and memory pressure are
both there. 2,000 of its steps, evenly spaced. Their true times are interpolated in the tables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from calibrate.machines import aiconfigurator, llmservingsim, shapes
from calibrate.machines.steps import Step, Timed
from calibrate.machines.tables import OpTables
from explore.validation.step_replay import Contexts
from runs import scenario
from runs.metrics.columns import columns_of
from sim.simulate import simulate

SHARE = 0.3
DRAWS = 5
MIXED, SKEWED = 240, 60
SERVER_STEPS = 2000
UTILISATION = 0.9


class Card(NamedTuple):
    """Tables of one card and model. `memory`: bytes of the card; `most`: new tokens of a step."""

    name: str
    folder: str
    kind: str
    model: str
    shards: int
    memory: float
    most: int

    def read(self, data: Path) -> OpTables:
        """The tables, from the folder that holds all data."""
        shape = shapes.known()[self.model].split(self.shards)
        if self.kind == "llmservingsim":
            return llmservingsim.read(data / self.folder, shape, self.name)
        return aiconfigurator.read(data / self.folder, shape, self.name)

    def room(self, tables: OpTables) -> int:
        """KV tokens that fit beside the weights."""
        left = self.memory * UTILISATION - tables.shape.weight_bytes - 1.5e9
        return max(4096, int(left // tables.shape.token_bytes))


_GIB = float(1 << 30)
CARDS = (
    Card(
        "RTX 4090", "rtx4090-llama-3.1-8b", "llmservingsim", "llama-3.1-8b", 1, 23.52 * _GIB, 2048
    ),
    *(
        Card(
            "RTX PRO 6000",
            f"rtxpro6000-tables/{folder}-tp{shards}",
            "llmservingsim",
            model,
            shards,
            95.6 * _GIB,
            2048,
        )
        for folder, model in (("Llama-3.1-8B", "llama-3.1-8b"), ("Qwen3-32B", "qwen3-32b"))
        for shards in (1, 2)
    ),
    *(
        Card(name, f"aiconfigurator/{folder}", "aiconfigurator", "qwen3-14b", 1, gib * _GIB, 8192)
        for name, folder, gib in (
            ("A100 SXM", "a100_sxm-0.14.0", 80),
            ("H100 SXM", "h100_sxm-0.24.0", 80),
            ("H200 SXM", "h200_sxm-0.24.0", 141),
            ("B200 SXM", "b200_sxm-0.24.0", 180),
            ("L40S", "l40s-0.24.0", 44.99),
            ("RTX PRO 6000", "rtx_pro_6000_server-0.24.0", 95.6),
        )
    ),
)


def op_points(tables: OpTables, room: int, most: int, seed: int) -> list[Timed]:
    """The points of one draw, in a fixed order."""
    rng = random.Random(f"points {seed}")
    kinds: dict[str, list[Timed]] = {}
    for point in tables.points():
        if point.step.tokens <= most and point.step.all_kv <= room:
            kinds.setdefault(point.kind, []).append(point)
    found: list[Timed] = []
    for kind in sorted(kinds):
        points = sorted(kinds[kind])
        count = {"mixed": MIXED, "skewed": SKEWED}.get(kind, len(points))
        found += sorted(rng.sample(points, min(count, len(points))))
    return found


def held_out(points: Sequence[Timed], seed: int) -> set[int]:
    """Indices of points that no fit sees."""
    rng = random.Random(f"held out {seed}")
    chosen = set(rng.sample(range(len(points)), round(SHARE * len(points))))

    def corner(kind: str, *of: str) -> None:
        mine = [i for i, point in enumerate(points) if point.kind == kind]
        if mine:
            chosen.add(max(mine, key=lambda i: [getattr(points[i].step, name) for name in of]))

    corner("decode", "batch", "kv_tokens")
    corner("decode", "kv_tokens", "batch")
    corner("prefill", "tokens", "past")
    corner("prefill", "past", "tokens")
    corner("mixed", "tokens", "kv_tokens")
    corner("mixed", "kv_tokens", "tokens")
    return chosen


def server_steps(room: int) -> list[Step]:
    """Steps of a simulated server with so much room."""
    run = scenario.build(
        {
            "name": "compositions",
            "workload": {
                "generator": "chat",
                "conversations": 600,
                "rate": 2.5,
                "arrivals": {"law": "modulated", "swing": 1.0, "memory_s": 60.0},
                "context_cap": 8192,
                "think": "human",
            },
            "system": {
                "base": "+chunked",
                "preemption": "recompute",
                "between_turns": "drop",
                "prefix_sharing": True,
            },
            "profile": "a10-llama-3-8b",
            "pool": {"device_blocks": room // 16, "watermark": 0.0, "aging": "none"},
            "limits": {
                "max_num_seqs": 256,
                "max_num_batched_tokens": 2048,
                "max_model_len": 8192,
            },
        },
        "benchmarks/step_points.py",
    )
    recorded = simulate(run)
    columns = columns_of(recorded, "steps")
    contexts = Contexts(recorded)
    rows = [
        Step(
            int(batch),
            int(kv_tokens),
            contexts.longest(int(step)) if batch else 0,
            tuple(contexts.prompts(int(step))),
        )
        for step, batch, kv_tokens in zip(
            columns["step"], columns["batch"], columns["kv_tokens"], strict=True
        )
    ]
    rows = [row for row in rows if row.tokens]
    count = min(SERVER_STEPS, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]
