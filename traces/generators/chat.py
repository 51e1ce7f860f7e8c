"""`chat`: people talking to an assistant, as ShareGPT conversations with RAGPulse's pauses.

Constants fitted on 9,441 ShareGPT conversations (turn and token laws) and on RAGPulse (gaps, start
to start there, used here as the time from a reply's end). The lengths of one conversation's replies
are alike: a Gaussian copula with correlation .41 keeps their marginal. Conversations begin in a
Poisson process; turns follow in a closed loop. See docs/workloads.md for fit against data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from policy.errors import ConfigError
from traces.draw import Streams
from traces.generators.laws import (
    Mixture,
    draw_mixture,
    draw_turns,
    mixture_at,
    seconds_to_ns,
)
from traces.workload import Header, Turn, Workload

#: Chance of another turn after 1, 2, ... 9; .903 after 10 to 19; .93 from 20 on.
HAZARDS = (0.69, 0.78, 0.81, 0.82, 0.84, 0.85, 0.86, 0.87, 0.89, *(0.903,) * 10, 0.93)
MAX_TURNS = 100
FIRST_USER: Mixture = ((0.782, 2.99, 1.038), (0.218, 5.591, 1.273))
LATER_USER: Mixture = ((0.499, 2.693, 0.66), (0.501, 3.415, 1.756))
ASSISTANT: Mixture = ((0.779, 5.791, 0.675), (0.221, 4.137, 1.426))
ASSISTANT_ALIKE = 0.41
HUMAN_GAP: Mixture = ((0.716, 3.479, 0.689), (0.284, 4.842, 1.445))
MAX_GAP_S = 3600.0

THINKS = ("human", "none", "exponential")


@dataclass(frozen=True, slots=True)
class Chat:
    """`rate`: conversations per second. `context_cap`: a conversation stops before the turn whose
    prompt and reply would pass it; a first turn is cut to fit. `think`: `human`, `none`, or
    `exponential` with mean `think_mean_s`.
    """

    conversations: int
    rate: float
    context_cap: int | None = 8192
    think: str = "human"
    think_mean_s: float = 10.0

    def __post_init__(self) -> None:
        if self.conversations < 1:
            raise ConfigError(f"workload.conversations: {self.conversations} is below 1")
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"workload.rate: {self.rate} is not a positive number")
        if self.context_cap is not None and self.context_cap < 2:
            raise ConfigError(f"workload.context_cap: {self.context_cap} is below 2")
        if self.think not in THINKS:
            raise ConfigError(f"workload.think: {self.think!r} is not one of {', '.join(THINKS)}")
        if not 0 <= self.think_mean_s <= MAX_GAP_S:
            raise ConfigError(f"workload.think_mean_s: {self.think_mean_s} is not in 0 to 3600")

    def workload(self, streams: Streams) -> Workload:
        """The conversations in order of arrival, made anew at every iteration."""
        cap = "uncapped" if self.context_cap is None else f"{self.context_cap}-token cap"
        header = Header(
            source="chat generator",
            tokenizer="SmolLM2, by which the ShareGPT lengths were counted",
            timing="closed",
            composed_from=(
                f"lengths and turns: laws fitted on ShareGPT, {cap}",
                f"think time: {self._think_in_words()}",
                f"arrivals: Poisson, {self.rate:g} conversations per second",
            ),
            seed=streams.seed,
        )
        return Workload(header, lambda: self._turns(streams))

    def _think_in_words(self) -> str:
        if self.think == "none":
            return "none"
        if self.think == "exponential":
            return f"exponential, mean {self.think_mean_s:g} s"
        return "people's, fitted on RAGPulse"

    def _turns(self, streams: Streams) -> Iterator[Turn]:
        clock = 0.0
        for index in range(self.conversations):
            clock += streams.exponential("arrival", "", index) / self.rate
            yield from self._conversation(f"c{index:06d}", seconds_to_ns(clock), streams)

    def _conversation(self, name: str, arrival_ns: int, streams: Streams) -> Iterator[Turn]:
        alike = math.sqrt(ASSISTANT_ALIKE) * streams.normal("reply-level", name, 0)
        own = math.sqrt(1 - ASSISTANT_ALIKE)
        history = 0
        for turn in range(1, draw_turns(HAZARDS, MAX_TURNS, streams, name) + 1):
            law = FIRST_USER if turn == 1 else LATER_USER
            user = max(1, round(draw_mixture(law, streams, "user", name, turn)))
            score = alike + own * streams.normal("reply", name, turn)
            reply = max(1, round(mixture_at(ASSISTANT, score)))
            if self.context_cap is not None and history + user + reply > self.context_cap:
                if turn > 1:
                    return
                user = min(user, self.context_cap - 1)
                reply = min(reply, self.context_cap - user)
            yield Turn(
                f"{name}/{turn}",
                name,
                turn,
                history + user,
                reply,
                arrival_ns=arrival_ns if turn == 1 else None,
                think_ns=None if turn == 1 else self._think_ns(streams, name, turn),
                new_input_tokens=user,
            )
            history += user + reply

    def _think_ns(self, streams: Streams, name: str, turn: int) -> int:
        if self.think == "none":
            return 0
        if self.think == "exponential":
            return seconds_to_ns(self.think_mean_s * streams.exponential("think", name, turn))
        gap = draw_mixture(HUMAN_GAP, streams, "think", name, turn)
        return seconds_to_ns(min(gap, MAX_GAP_S))
