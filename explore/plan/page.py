"""A plan in words: answer, interval, bottleneck, one less, one more, assumptions."""

from __future__ import annotations

from typing import Any

from explore.plan.size import (
    HOURS,
    Asked,
    Sized,
    bottleneck,
    gpus_of,
    hours_per_million,
    kind_of,
)


def as_text(asked: Asked, found: list[Sized]) -> str:
    """One page, the answer first."""
    known = [one for one in found if one.answer is not None]
    lines = [_question(asked), ""]
    for one in sorted(known, key=lambda s: (gpus_of(s) or 0, s.candidate.name)):
        lines += _of(asked, one)
    for one in found:
        if one.answer is None:
            lines.append(f"{one.candidate.name}: not known, because {_because(asked, one)}")
    lines += ["", "Assumed:"]
    lines += [f"  {line}" for line in _assumed(asked, known)]
    return "\n".join(lines)


def _question(asked: Asked) -> str:
    users = asked.scenario.workload.users
    load = f"{users} users" if users is not None else "the workload"
    limits = " and ".join(f"{name} <= {limit:g}" for name, limit in asked.limits.items())
    return f"{asked.scenario.name}: {load}, {limits}"


def _of(asked: Asked, one: Sized) -> list[str]:
    answer, candidate = one.answer, one.candidate
    assert answer is not None
    counts = [count for count in one.needed if count is not None]
    each = f" of {candidate.gpus} GPUs each" if candidate.gpus > 1 else ""
    lines = [
        f"{candidate.name}: {answer} replica{'s' * (answer > 1)}{each}, {gpus_of(one)} GPUs",
        f"  runs: {min(counts)} to {max(counts)} replicas over {len(counts)} runs",
        f"  bottleneck: {bottleneck(one)}",
    ]
    below = "nobody is left" if answer == 1 else _values(asked, one, answer - 1)
    lines.append(f"  with one less: {below}")
    lines.append(f"  as answered: {_values(asked, one, answer)}")
    lines.append(f"  with one more: {_values(asked, one, answer + 1)}")
    hours = hours_per_million(one)
    if hours is not None:
        cost = f"  {hours:.3g} GPU hours per million output tokens"
        if candidate.price is not None:
            cost += f", cost {hours * candidate.price:.4g}"
            users = asked.scenario.workload.users
            if users is not None:
                month = (gpus_of(one) or 0) * candidate.price * HOURS
                cost += f"; a user costs {month / users:.4g} a month"
        lines.append(cost)
    return lines


def _values(asked: Asked, one: Sized, replicas: int) -> str:
    told = []
    for name in asked.limits:
        value = one.worst(replicas, name)
        told.append(f"{name} {'not known' if value is None else format(value, '.3g')}")
    return ", ".join(told) + " (worst run)"


def _because(asked: Asked, one: Sized) -> str:
    return one.candidate.because or f"{asked.most} replicas do not keep it, and more were not tried"


def _assumed(asked: Asked, known: list[Sized]) -> list[str]:
    scenario = asked.scenario
    lines = [
        f"system {scenario.system}, router {scenario.router}, order {scenario.order_name}; steady state"
        f" after {asked.warm_up_s:g} s; nothing is said of days or of bursts beyond the workload's",
        "nothing fails and nothing starts up: with one less is what is left after a loss",
    ]
    for one in known:
        lines.append(f"{one.candidate.name}: profile is {kind_of(one.candidate.profile or '')}")
        lines += list(one.candidate.assumed)
    return lines


def as_json(asked: Asked, found: list[Sized]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "format": "fastswitch-plan/1",
        "scenario": asked.scenario.name,
        "users": asked.scenario.workload.users,
        "limits": asked.limits,
        "router": asked.scenario.router,
        "warm_up_s": asked.warm_up_s,
        "candidates": [_as_json(asked, one) for one in found],
    }


def _as_json(asked: Asked, one: Sized) -> dict[str, Any]:
    answer = one.answer
    told: dict[str, Any] = {"name": one.candidate.name, "replicas": answer, "gpus": gpus_of(one)}
    if answer is None:
        return {**told, "because": _because(asked, one)}
    hours, price = hours_per_million(one), one.candidate.price
    sizes = {
        str(size): {name: one.worst(size, name) for name in asked.limits}
        for size in (answer - 1, answer, answer + 1)
        if size in one.points
    }
    return {
        **told,
        "by_run": list(one.needed),
        "bottleneck": bottleneck(one),
        "sizes": sizes,
        "gpu_hours_per_million_tokens": hours,
        "cost_per_million_tokens": None if None in (hours, price) else (hours or 0) * (price or 0),
        "assumed": list(one.candidate.assumed),
    }
