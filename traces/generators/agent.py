"""`agent`: coding agents, long contexts that mostly grow, mostly waiting for tools.

Turns, the share of resets and the kinds of waits are those of kv-cache-tester's 692 Claude Code
sessions; lengths and waits are mixtures fitted on a cut of 420 of them. The tools and the system
prompt, 15,000 tokens at the median, are shared by all sessions. What a prompt adds counts the
repeated reply too: the hashes of that trace do not show whether a reply's KV could be reused.
"""

from __future__ import annotations

from traces.generators.laws import Mixture, Values
from traces.generators.sessions import Reset, SessionModel, Wait

SYSTEM_TOKENS = 15_000
#: Nobody asks once; then turns are nearly geometric with a mean of 65.8 in all.
HAZARDS = (1.0, 0.98457)
MAX_TURNS = 500
FIRST: Mixture = (
    (0.3691, 8.4283, 0.4036),
    (0.2915, 11.2577, 0.4523),
    (0.1479, 12.5604, 0.5118),
    (0.1119, 9.9799, 0.791),
    (0.0796, 7.0614, 0.9766),
)
ADDED: Mixture = ((0.5114, 6.0959, 0.5947), (0.4886, 7.4111, 1.0489))
REPLY: Mixture = ((0.3521, 6.126, 1.1221), (0.3447, 5.6117, 0.5541), (0.3032, 4.9339, 0.2935))
REPLY_ALIKE = 0.28
TOOL_WAIT: Mixture = (
    (0.3781, 1.6758, 0.338),
    (0.3644, 2.3871, 0.5569),
    (0.2575, 3.8654, 1.4515),
)
HUMAN_WAIT: Mixture = (
    (0.2536, 5.2037, 0.6192),
    (0.243, 4.2469, 0.9602),
    (0.2156, 6.9067, 0.7342),
    (0.1647, 1.455, 0.482),
    (0.1231, 7.9929, 1.5399),
)
#: After a reply of which nobody says why it ended: longer than a tool, shorter than a human.
UNSAID_WAIT: Mixture = (
    (0.4618, 4.5226, 0.8046),
    (0.2998, 3.2036, 0.5645),
    (0.2384, 6.4954, 0.9201),
)
MAX_WAIT_S = 86_400.0

#: 86 % wait for a tool, 5 % for their human, and of 9 % nobody says. Against the half of the sessions
#: that the last law was not fitted on, the distance of all waits is .051 (two halves: .041).
WAITS = (
    Wait(0.861, Values(TOOL_WAIT, high=MAX_WAIT_S), "tool_use"),
    Wait(0.051, Values(HUMAN_WAIT, high=MAX_WAIT_S), "end_turn"),
    Wait(0.088, Values(UNSAID_WAIT, low=5, high=4351), None),
)

MODEL = SessionModel(
    name="agent",
    lengths="laws fitted on kv-cache-tester",
    times="tools' and people's by stop, fitted on kv-cache-tester",
    hazards=HAZARDS,
    max_turns=MAX_TURNS,
    first=Values(FIRST, low=161, high=830_868, grid=1),
    later=Values(ADDED, low=18, high=235_102, grid=1),
    reply=Values(REPLY, low=2, high=18_195, grid=1),
    alike=REPLY_ALIKE,
    waits=WAITS,
    repeats_reply=False,
    reset=Reset(0.028, SYSTEM_TOKENS, (0.034, 0.455, 1.0, 1.016, 1.08)),
    system_tokens=SYSTEM_TOKENS,
    long_first="redraw",
    kind="agent",
)
DEFAULT_CAP = 131_072
