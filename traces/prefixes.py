"""What the blocks of a prompt are called, so that prompts that begin alike can be told.

A key stands for the tokens of one full block behind the blocks before it; the scheduler compares
keys from the first on and stops at the first that differs (`policy.pools.prefix`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

from policy.settings import Settings
from policy.systems import System
from traces.workload import Header, Turn

Keys = Callable[[Turn], tuple[int | str, ...]]


def no_keys(_turn: Turn) -> tuple[int | str, ...]:
    """Of a system that shares nothing."""
    return ()


def with_prefix_block(settings: Settings, system: System, header: Header) -> Settings:
    """The settings with the size of the blocks that the workload's hash_ids name, where the system
    shares prefixes. Raises ConfigError if pool blocks do not divide it."""
    if not system.shares_prefixes or header.block_size is None:
        return settings
    return replace(settings, prefix_block=header.block_size)


def keys_from_ids(header: Header, system: System) -> Keys:
    """Keys from a workload's hash_ids: its full blocks alone. Ids that hold within a session, or
    do not say how far they hold, say nothing of other sessions: the first key names the session."""
    return keys_of(header) if system.shares_prefixes else no_keys


def keys_of(header: Header) -> Keys:
    """The same, whoever asks."""
    size = header.block_size
    if size is None:
        return no_keys
    everywhere = header.hash_scope == "global"

    def keys(turn: Turn) -> tuple[int | str, ...]:
        ids = (turn.hash_ids or ())[: turn.input_tokens // size]
        if everywhere or not ids:
            return ids
        return (f"{turn.session_id}:{ids[0]}", *ids[1:])

    return keys


def keys_from_tokens(tokens: list[int], size: int) -> tuple[int, ...]:
    """Keys from what the full blocks of `size` tokens hold (BLAKE2b, 128 bits)."""
    return tuple(
        int.from_bytes(blake2b(array("q", tokens[at : at + size]), digest_size=16).digest(), "big")
        for at in range(0, len(tokens) - size + 1, size)
    )
