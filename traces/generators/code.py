"""`code`: completion in an editor: one long prompt, a short answer, in bursts.

Lengths are mixtures fitted on the first 2,400 s of Azure's 2023 code trace (7,491 requests). Its
gaps have a CV of 13, of 6 without its 25 silences above 30 s; the default arrivals have 6.
"""

from __future__ import annotations

from traces.generators.laws import Mixture, Values
from traces.generators.sessions import SessionModel, Wait

PROMPT: Mixture = (
    (0.3443, 7.8065, 0.3453),
    (0.2366, 6.9978, 0.3482),
    (0.187, 5.7326, 0.8698),
    (0.1145, 4.8312, 1.3213),
    (0.0662, 8.6136, 0.1552),
    (0.0514, 8.9103, 0.02),
)
ANSWER: Mixture = (
    (0.3729, 2.5486, 0.2735),
    (0.2194, 3.2506, 0.5317),
    (0.1434, 1.8603, 0.0803),
    (0.1368, 4.1748, 0.9133),
    (0.1275, 2.1771, 0.0869),
)
CV = 6.0
NOTHING = (Wait(1.0, Values((), zero=1.0)),)

MODEL = SessionModel(
    name="code",
    lengths="laws fitted on Azure code 2023",
    times="none, every session is one request",
    hazards=(0.0,),
    max_turns=1,
    first=Values(PROMPT, low=3, high=7437, grid=1),
    later=Values(PROMPT, low=3, high=7437, grid=1),
    reply=Values(ANSWER, low=6, high=1899, grid=1),
    alike=0.0,
    waits=NOTHING,
)
DEFAULT_CAP = 8192
