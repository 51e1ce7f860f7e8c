"""`chat`: people talking to an assistant, as ShareGPT conversations with RAGPulse's pauses.

Constants fitted on 9,441 ShareGPT conversations (turn and token laws) and on RAGPulse (gaps, start
to start there, used here as the time from a reply's end). The lengths of one conversation's replies
are alike: a Gaussian copula with correlation .41 keeps their marginal. See docs/workloads.md for
fit against data.
"""

from __future__ import annotations

from traces.generators.laws import Mixture, Values
from traces.generators.sessions import SessionModel, Wait

#: Chance of another turn after 1, 2, ... 9; .903 after 10 to 19; .93 from 20 on.
HAZARDS = (0.69, 0.78, 0.81, 0.82, 0.84, 0.85, 0.86, 0.87, 0.89, *(0.903,) * 10, 0.93)
MAX_TURNS = 100
FIRST_USER: Mixture = ((0.782, 2.99, 1.038), (0.218, 5.591, 1.273))
LATER_USER: Mixture = ((0.499, 2.693, 0.66), (0.501, 3.415, 1.756))
ASSISTANT: Mixture = ((0.779, 5.791, 0.675), (0.221, 4.137, 1.426))
ASSISTANT_ALIKE = 0.41
HUMAN_GAP: Mixture = ((0.716, 3.479, 0.689), (0.284, 4.842, 1.445))
MAX_GAP_S = 3600.0

#: People reading and typing.
HUMAN = (Wait(1.0, Values(HUMAN_GAP, high=MAX_GAP_S)),)

MODEL = SessionModel(
    name="chat",
    lengths="laws fitted on ShareGPT",
    times="people's, fitted on RAGPulse",
    hazards=HAZARDS,
    max_turns=MAX_TURNS,
    first=Values(FIRST_USER, low=1, grid=1),
    later=Values(LATER_USER, low=1, grid=1),
    reply=Values(ASSISTANT, low=1, grid=1),
    alike=ASSISTANT_ALIKE,
    waits=HUMAN,
    tokenizer="SmolLM2, by which the ShareGPT lengths were counted",
)
DEFAULT_CAP = 8192
