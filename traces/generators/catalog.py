"""The generators by name, and from what a user says to a generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import ConfigError
from traces.generators import agent, chat, code
from traces.generators.arrivals import Arrivals, Clients, Modulated, Poisson, Renewal, Spaced
from traces.generators.files import load_generator
from traces.generators.laws import Values
from traces.generators.sessions import Generator, Priorities, SessionModel, Think, Wait
from traces.workload_spec import (
    ArrivalSpec,
    PriorityShares,
    ThinkLaw,
    WorkloadSpec,
    is_generator_file,
)


class Preset(NamedTuple):
    """A model with the choices that go with it; None: the user must choose."""

    model: SessionModel
    context_cap: int | None
    arrivals: ArrivalSpec
    conversations: int | None = None
    rate: float | None = None


PRESETS = {
    "chat": Preset(chat.MODEL, chat.DEFAULT_CAP, ArrivalSpec()),
    "agent": Preset(agent.MODEL, agent.DEFAULT_CAP, ArrivalSpec()),
    "code": Preset(code.MODEL, code.DEFAULT_CAP, ArrivalSpec(law="gamma", cv=code.CV)),
}


def preset(name: str) -> Preset:
    """A built-in generator, or a fitted one from its file. Raises ConfigError."""
    if is_generator_file(name):
        read = load_generator(Path(name))
        return Preset(read.model, read.context_cap, read.arrivals, read.conversations, read.rate)
    return PRESETS[name]


def make_generator(spec: WorkloadSpec) -> Generator:
    """The generator that a scenario or a command line asks for. Raises ConfigError."""
    chosen = preset(str(spec.generator))
    conversations = spec.conversations or chosen.conversations
    rate = spec.rate or chosen.rate
    if conversations is None or rate is None:
        raise ConfigError(f"workload: generator {spec.generator} needs conversations and rate")
    model = chosen.model
    if spec.system_tokens is not None:
        model = replace(model, system_tokens=spec.system_tokens)
    if spec.think is not None:
        think = think_of(spec.think, spec.think_mean_s)
        model = replace(model, waits=think.waits, times=think.words, waits_from="reply")
    return Generator(
        model,
        conversations,
        arrivals_of(spec.arrivals or chosen.arrivals, rate),
        None if spec.uncapped else spec.context_cap or chosen.context_cap,
        hash_block=spec.hash_block,
        priorities=priorities_of(spec.priority),
        priority_process=spec.priority_process or "",
    )


def priorities_of(spec: PriorityShares | None) -> Priorities | None:
    """Static priorities, if any."""
    return None if spec is None else Priorities(spec.shares, spec.by)


def think_of(name: ThinkLaw, mean_s: float = 10.0) -> Think:
    """A law of think times by its name."""
    if name == "human":
        return Think(chat.HUMAN, chat.MODEL.times)
    if name == "agent":
        return Think(agent.WAITS, agent.MODEL.times)
    if name == "none":
        return Think(code.NOTHING, "none")
    return Think((Wait(1.0, Values(mean=mean_s)),), f"exponential, mean {mean_s:g} s")


_ARRIVALS: dict[str, Callable[..., Arrivals]] = {
    "poisson": Poisson,
    "gamma": Renewal,
    "weibull": Renewal,
    "modulated": Modulated,
    "clients": Clients,
    "fitted": Spaced,
}


def arrivals_of(spec: ArrivalSpec, rate: float) -> Arrivals:
    """The law that a specification names."""
    values: dict[str, Any] = {key: value for key, value in spec if value is not None}
    law = values.pop("law")
    if law in ("gamma", "weibull"):
        values["law"] = law
    elif "client_law" in values:
        values["law"] = values.pop("client_law")
    return _ARRIVALS[law](rate=rate, **values)
