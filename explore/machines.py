"""Machines in words: what a profile says a step, a prompt and a copy take, alone and beside another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from calibrate.profile import Profile, Quantity, TokenCost
from policy.plan import Copy, Direction
from policy.systems import custom_system
from sim.costs import CopyCosts, StepCosts, step_costs

_BLOCK = 16


class _Line(NamedTuple):
    """Something that both machines can be asked. `unit` stands behind the number."""

    what: str
    unit: str
    of: Callable[[Profile], float]


def _step(batch: int, context: int, new: int) -> Callable[[Profile], float]:
    def milliseconds(profile: Profile) -> float:
        costs = step_costs(profile)
        chunks = [(new, 0)] if new else []
        return _ns(costs, batch, batch * context, chunks) / 1e6

    return milliseconds


def _ns(costs: StepCosts, batch: int, kv_tokens: int, chunks: list[tuple[int, int]]) -> int:
    if not chunks:
        return costs.decode_ns(batch, kv_tokens)
    return costs.mixed_ns(batch, kv_tokens, 0, chunks) if batch else costs.prefill_ns(chunks)


def _copy(layout: str, way: Direction) -> Callable[[Profile], float]:
    def milliseconds(profile: Profile) -> float:
        system = custom_system({"layout": layout, "submission": "batched"})
        blocks = 64
        runs = tuple((2 * i, 2 * i, 1) for i in range(blocks))
        costs = CopyCosts(profile, system, _BLOCK)
        cost = costs.cost(Copy(0, way, "", runs, blocks))
        return max(cost.first_call_ns + cost.link_ns, cost.submit_ns + cost.last_piece_ns) / 1e6

    return milliseconds


LINES = (
    _Line("KV tokens on the device", "", lambda p: p.device_blocks(_BLOCK) * _BLOCK),
    _Line("decode step, 1 x 1,024 tokens", "ms", _step(1, 1024, 0)),
    _Line("decode step, 32 x 1,024", "ms", _step(32, 1024, 0)),
    _Line("decode step, 128 x 2,048", "ms", _step(128, 2048, 0)),
    _Line("prompt of 512", "ms", _step(0, 0, 512)),
    _Line("prompt of 2,048", "ms", _step(0, 0, 2048)),
    _Line("512 of a prompt beside 32 x 1,024", "ms", _step(32, 1024, 512)),
    _Line(
        "1,024 scattered tokens in, layer-major", "ms", _copy("layer_major", Direction.TO_DEVICE)
    ),
    _Line(
        "1,024 scattered tokens in, block-major", "ms", _copy("block_major", Direction.TO_DEVICE)
    ),
    _Line("1,024 scattered tokens out, block-major", "ms", _copy("block_major", Direction.TO_HOST)),
)


def shown(profile: Profile) -> list[str]:
    """What one machine is, what it costs, and how each number is known."""
    model = profile.model
    lines = [
        f"{profile.name}: {profile.machine}, {model.name} ({profile.kind}, {profile.date})",
        f"weights {model.weight_bytes / 1e9:.2f} GB, {model.token_bytes:,} bytes of KV a token",
    ]
    lines += [f"{line.what:<42} {_number(line.of(profile), line.unit)}" for line in LINES]
    if profile.shares:
        lines.append("shares: " + ", ".join(f"{profile.name}@tp{gpus}" for gpus in profile.shares))
    lines += ["", *_quantities(profile)]
    origin = profile.origin
    if origin is not None:
        errors = ", ".join(
            f"{one.kind} {100 * one.mean:.1f} / {100 * one.p95:.1f} %" for one in origin.errors
        )
        lines += ["", f"source: {origin.source} ({origin.licence})", f"built by: {origin.rebuild}"]
        lines += [f"assumed: {text}" for text in origin.assumed]
        lines.append(f"error of a step, mean / P95: {errors} ({origin.judged})")
    return lines + [f"WARNING: {warning}" for warning in profile.warnings()]


def _quantities(profile: Profile) -> Iterator[str]:
    """Every number with its range, kind and source."""
    if isinstance(profile.step, TokenCost):
        step = profile.step
        first, last = step.tokens[0], step.tokens[-1]
        yield (
            f"step.table: {len(step.tokens)} rows, {step.ns[0] / 1e6:.3g} ms at {first}"
            f" to {step.ns[-1] / 1e6:.3g} ms at {last:,} tokens"
        )
    for section in ("memory", "step", "transfer"):
        for name, quantity in getattr(profile, section):
            if isinstance(quantity, Quantity):
                ends = ""
                if quantity.low is not None and quantity.high is not None:
                    ends = f" ({quantity.low:.4g} to {quantity.high:.4g})"
                yield (
                    f"{section}.{name}: {quantity.value:.6g} {quantity.unit}{ends},"
                    f" {quantity.kind}: {quantity.source}"
                )


def compared(first: Profile, second: Profile) -> list[str]:
    """Two machines side by side, and how many times as much the second takes or holds."""
    lines = [f"{'':<42} {first.name:>24} {second.name:>24}   ratio"]
    for line in LINES:
        one, two = line.of(first), line.of(second)
        ratio = f"{two / one:7.2f}" if one else "      -"
        numbers = f"{_number(one, line.unit):>24} {_number(two, line.unit):>24}"
        lines.append(f"{line.what:<42} {numbers} {ratio}")
    warnings = dict.fromkeys([*first.warnings(), *second.warnings()])
    return lines + [f"WARNING: {warning}" for warning in warnings]


def _number(value: float, unit: str) -> str:
    return f"{value:,.0f}" if not unit else f"{value:.3g} {unit}"
