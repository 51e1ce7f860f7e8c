"""Schedulers, draws and workloads small enough that pools run out."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from policy.orders.base import Order
from policy.orders.catalog import OrderSettings, make_order
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS, System, custom_system, served_under
from tests.helpers.shadow import Turn

#: Tokens that one of `random_ids` names: two blocks of 16.
IDS_NAME = 32


def random_ids(rng: random.Random, tokens: int) -> list[int] | None:
    """hash_ids of a prompt, of which the first few often meet those of others."""
    if not tokens:
        return None
    return [4 * i + rng.choice([0, 0, 0, 1, 2]) for i in range(-(-tokens // IDS_NAME))]


@lru_cache(maxsize=1 << 14)
def draw(purpose: str, name: str, k: int) -> int:
    """64 uniform bits, for tests that do not care which."""
    digest = blake2b(f"{purpose}|{name}|{k}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def settings(**values: Any) -> Settings:
    """A tiny machine: 4 tokens a block, 16 device and 64 host blocks, no watermark."""
    numbers: dict[str, Any] = {
        "device_blocks": 16,
        "host_blocks": 64,
        "block_size": 4,
        "watermark": 0.0,
        "max_num_batched_tokens": 256,
        "max_model_len": 256,
        "initial_group": 4,
        "growth_group": 2,
        "host_increment": 2,
        "update_every": 5,
    }
    return Settings(**{**numbers, **values})


def scheduler(
    system: str | System = "fastswitch", order: str | Order = "priority", **values: Any
) -> Scheduler:
    """A scheduler of a named system under a named order."""
    chosen = SYSTEMS[system] if isinstance(system, str) else system
    made = make_order(order, draw, OrderSettings()) if isinstance(order, str) else order
    served = served_under(chosen, is_fcfs=type(made) is Order)
    return Scheduler(settings(**values), served, made, draw)


def variant(base: str, **switches: Any) -> System:
    """A named system with some switches changed."""
    return SYSTEMS[base].but(f"{base}*", **switches)


def random_system(rng: random.Random) -> System:
    """Any combination of switches, or one of the baselines that follow the release."""
    if rng.random() < 0.2:
        return SYSTEMS[rng.choice(["vllm-0.3.3", "vllm-0.3.3-keep", "vllm-0.3.3-recompute"])]
    system = custom_system(
        {
            "name": "random",
            "allocator": rng.choice(["paged", "groups", "buddy"]),
            "overlap": rng.choice(["sync", "async", "adaptive"]),
            "reuse": rng.random() < 0.5,
            "between_turns": rng.choice(["drop", "keep_host", "keep_device"]),
            "preemption": rng.choice(["swap", "swap", "swap", "recompute"]),
            "host_eviction": rng.choice(["priority", "lru"]),
            "contamination": rng.choice(["whole", "tail"]),
        }
    )
    return with_policies(system)


#: The order in which a system is spelt to seed what else is drawn for it; any will do that stays.
SPELLING = (
    *("allocator", "layout", "submission", "dispatch", "threads", "overlap", "reuse"),
    *("between_turns", "preemption", "displacement", "shape", "movement", "host_eviction"),
    *("contamination", "fcfs_planner", "prefix_sharing", "protects_leader", "caps_parkings"),
)


def _spelt(system: System) -> str:
    found = system.switches()
    return f"System(name={system.name!r}, " + ", ".join(f"{k}={found[k]!r}" for k in SPELLING) + ")"


def with_policies(system: System) -> System:
    """Some with other policies, shapes of steps and movements, by a stream of their own."""
    rng = random.Random(_spelt(system))
    if rng.random() < 0.5:
        system = system.but(shape="chunked")
    if rng.random() < 0.33:
        system = system.but(
            displacement=rng.choice(["order", "gap", "never"]),
            preemption=rng.choice([system.options.preemption, "cost"]),
            host_eviction=rng.choice(["lru", "arc", "isolated_lru"]),
        )
    if rng.random() < 0.3 and not system.options.prefix_sharing:
        system = system.but(reuse=True, preemption="swap", movement="write_through")
        match rng.randrange(3):
            case 1:
                system = system.but(movement="incremental")
            case 2:
                overlap = "async" if system.options.overlap == "sync" else system.options.overlap
                system = system.but(movement="proactive", overlap=overlap)
    return system


def with_movements(numbers: Settings) -> Settings:
    """Numbers of movements, by a stream of their own."""
    rng = random.Random(repr(numbers))
    low = rng.choice([0.02, 0.1, 0.3])
    return replace(
        numbers,
        backup_every=rng.choice([1, 3, 32]),
        backup_blocks=rng.choice([1, 5, 64]),
        backup_depth=rng.choice([0.25, 0.7, 1.0]),
        free_low=low,
        free_high=low + rng.choice([0.05, 0.3]),
    )


def random_settings(rng: random.Random) -> Settings:
    """Pools and limits that are short more often than not."""
    numbers = Settings(
        device_blocks=rng.randrange(6, 40),
        host_blocks=rng.choice([0, 1, 8, 30, 200]),
        block_size=rng.choice([1, 2, 4, 16]),
        watermark=rng.choice([0.0, 0.01, 0.1]),
        max_num_seqs=rng.choice([2, 5, 63]),
        max_num_batched_tokens=rng.choice([64, 256]),
        max_paddings=rng.choice([0, 8, 256]),
        max_model_len=rng.choice([50, 256]),
        initial_group=rng.choice([1, 4, 60]),
        growth_group=rng.choice([1, 4, 16]),
        host_increment=rng.choice([0, 2, 16]),
        update_every=rng.choice([1, 2, 5, 25]),
        min_run_steps=rng.choice([0, 0, 3, 10]),
    )
    return with_movements(numbers)


def sharing_system(rng: random.Random) -> System:
    """Any combination of switches in which prompts share what they begin with."""
    system = custom_system(
        {
            "name": "sharing",
            "allocator": rng.choice(["paged", "groups", "buddy"]),
            "overlap": rng.choice(["sync", "async", "adaptive"]),
            "reuse": rng.random() < 0.5,
            "between_turns": rng.choice(["drop", "keep_host"]),
            "preemption": rng.choice(["swap", "swap", "swap", "recompute"]),
            "host_eviction": rng.choice(["priority", "lru"]),
            "contamination": rng.choice(["whole", "tail"]),
            "prefix_sharing": True,
        }
    )
    return with_policies(system)


def sharing_scheduler(rng: random.Random) -> Scheduler:
    """Any order, sizes and system that shares prefixes; names of one to three blocks each."""
    name = rng.choice(["fcfs", "priority", "random", "markov", "vtc"])
    numbers = random_settings(rng)
    numbers = replace(numbers, prefix_block=numbers.block_size * rng.choice([1, 1, 2, 3]))
    return Scheduler(numbers, sharing_system(rng), make_order(name, draw, OrderSettings()), draw)


def sharing_turns(rng: random.Random, block_size: int) -> list[Turn]:
    """As `random_turns`; many begin alike, and some conversations fork."""
    turns = random_turns(rng, block_size)
    openings = [(f"o{i}", rng.randrange(1, 8 * block_size)) for i in range(rng.randrange(1, 4))]
    for turn in turns:
        if turn.parent_id is None:
            turn.opening = rng.choice(openings)
            turn.input_tokens += rng.choice([0, turn.opening[1]])
        elif rng.random() < 0.2:
            turn.parent_id = rng.choice(
                [t.request_id for t in turns if t.session_id == turn.session_id][:1]
            )
    return turns


def random_turns(rng: random.Random, block_size: int) -> list[Turn]:
    """Conversations of a few turns; some repeat only part of their parent's context."""
    turns: list[Turn] = []
    arrival = 0
    for conversation in range(rng.randrange(1, 12)):
        arrival += rng.randrange(0, 20)
        context, parent = 0, None
        for index in range(rng.randrange(1, 5)):
            shared = None
            if parent is not None and rng.random() < 0.3:
                shared = rng.randrange(0, context + 1)
            prompt = (context if shared is None else shared) + rng.randrange(1, 2 * block_size + 3)
            output = rng.randrange(1, 3 * block_size + 2)
            turns.append(
                Turn(
                    f"c{conversation}t{index}",
                    arrival + rng.choice([0, 0, 5, 50]) * index,
                    prompt,
                    output,
                    session_id=f"c{conversation}",
                    parent_id=parent,
                    parent_prefix_tokens=shared,
                    client_id=f"k{conversation % 3}",
                    priority=rng.randrange(3),
                )
            )
            context, parent = prompt + output, turns[-1].request_id
    return turns


def random_scheduler(rng: random.Random) -> Scheduler:
    """Any system, order and size."""
    name = rng.choice(["fcfs", "priority", "random", "markov", "vtc"])
    order = make_order(name, draw, OrderSettings())
    numbers = random_settings(rng)
    served = served_under(random_system(rng), is_fcfs=name == "fcfs")
    return Scheduler(numbers, served, order, draw)
