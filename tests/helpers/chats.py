"""The chat generator, as tests ask for it."""

from __future__ import annotations

from dataclasses import replace

from traces.generators import chat
from traces.generators.arrivals import Poisson
from traces.generators.catalog import think_of
from traces.generators.sessions import Generator
from traces.workload_spec import ThinkLaw


def chat_of(
    conversations: int,
    rate: float,
    context_cap: int | None = chat.DEFAULT_CAP,
    think: ThinkLaw = "human",
    think_mean_s: float = 10.0,
) -> Generator:
    law = think_of(think, think_mean_s)
    model = replace(chat.MODEL, waits=law.waits, times=law.words)
    return Generator(model, conversations, Poisson(rate), context_cap)
