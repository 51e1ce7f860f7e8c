"""The numbers a scheduler runs under: pool sizes, limits, knobs. Checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf

from policy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything but the system's switches and the order.

    Blocks are `block_size` tokens. `watermark` is a share of the device pool that admission leaves
    free, floored to blocks as vLLM 0.3.3 does. Groups: `initial_group` blocks are sought for a
    first prefill and `growth_group` for growth, the unused part reserved; `host_increment` blocks
    are reserved beside a host copy for the next turn (systems with reuse).
    `update_every` steps (or `update_every_ns`, a wall-clock variant) between priority updates.
    `displacement_gap`: what a difference in priority must exceed, in the order's units (systems that
    displace by gap). `min_run_steps`: a request resident for fewer steps is no victim. After `max_parkings` parkings
    without `token_quantum` tokens in between a request is shielded until it has made them (rule 10).
    Backups (systems with a movement): at most `backup_blocks` under way; lazy ones come every `backup_every`
    steps, for the last in order that with free blocks hold `backup_depth` of the device. Proactive
    parking starts where less than `free_low` of the device is free and goes on up to `free_high`.
    V1 offloads `offload_chunk_blocks` at a time. It admits nobody whose whole known sequence does not fit (`reserve_full_isl`), and gives a prompt at
    most `long_prefill_token_threshold` tokens a step (0: no cap), or its equal share if that is more
    (`_adaptive`).
    `prefix_block`: tokens that one of a request's `prefix_keys` names (systems that share prefixes).
    """

    device_blocks: int
    host_blocks: int
    block_size: int = 16
    watermark: float = 0.01
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_paddings: int = 256
    max_model_len: int = 8192
    initial_group: int = 60
    growth_group: int = 16
    host_increment: int = 16
    update_every: int | Fraction | None = None
    update_every_ns: int | None = None
    displacement_gap: float = 0.0
    min_run_steps: int = 0
    max_parkings: int = 3
    token_quantum: int = 16
    idle_limit: int = 10_000
    prefix_block: int | None = None
    backup_every: int = 32
    backup_blocks: int = 64
    backup_depth: float = 0.25
    free_low: float = 0.02
    free_high: float = 0.05
    offload_chunk_blocks: int = 1
    reserve_full_isl: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False

    def __post_init__(self) -> None:
        for name, low in (
            ("device_blocks", 1),
            ("host_blocks", 0),
            ("block_size", 1),
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
            ("max_paddings", 0),
            ("max_model_len", 1),
            ("initial_group", 1),
            ("growth_group", 1),
            ("host_increment", 0),
            ("min_run_steps", 0),
            ("max_parkings", 1),
            ("token_quantum", 1),
            ("backup_every", 1),
            ("backup_blocks", 1),
            ("long_prefill_token_threshold", 0),
            ("offload_chunk_blocks", 1),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}: {getattr(self, name)} is below {low}")
        if not 0 <= self.watermark < 1:
            raise ConfigError(f"pool.watermark: {self.watermark} is not in 0 <= share < 1")
        if not 0 <= self.backup_depth <= 1:
            raise ConfigError(f"movement.depth: {self.backup_depth} is not in 0 <= share <= 1")
        if not 0 <= self.free_low < self.free_high < 1:
            raise ConfigError(
                f"movement.low: {self.free_low} and movement.high: {self.free_high} are not in"
                " 0 <= low < high < 1"
            )
        if not 0 <= self.displacement_gap < inf:
            raise ConfigError(
                f"hysteresis.gap: {self.displacement_gap} is not in 0 <= gap < infinity"
            )
        if self.update_every is not None and self.update_every < 1:
            raise ConfigError(f"update_every: {self.update_every} steps is below 1")
        if self.prefix_block is not None and (
            self.prefix_block < 1 or self.prefix_block % self.block_size
        ):
            raise ConfigError(
                f"pool.block_size: {self.block_size} does not divide the {self.prefix_block} tokens"
                f" of the blocks that the workload's hash_ids name"
            )

    @property
    def watermark_blocks(self) -> int:
        """Blocks that admission leaves free."""
        return int(self.watermark * self.device_blocks)

    @property
    def low_blocks(self) -> int:
        """Free blocks below which proactive parking starts."""
        return int(self.free_low * self.device_blocks)

    @property
    def high_blocks(self) -> int:
        """Free blocks up to which it goes on."""
        return int(self.free_high * self.device_blocks)

    @property
    def prompt_limit(self) -> int:
        """Longest prompt that is not rejected, as in vLLM 0.3.3."""
        return min(self.max_model_len, self.max_num_batched_tokens)
