"""Prompts that count only what is new in them, told from whole ones.

A multi-turn row may give the whole prompt as sent, or (as AIPerf's multi-turn files do) only what it
adds to the session. The rows do not say which. What cannot be whole prompts of a growing session is
refused until the user says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from traces.strict import Place, count_of
from traces.workload import Turn

#: Rows that are looked at for later turns.
_LOOK = 1 << 10


def added_up(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """Turns whose prompts were given as what they add; they become the session's context so far and
    that. Raises InputError for block ids, which would name blocks of nobody knows what."""
    contexts: dict[str, int] = {}
    for turn in turns:
        if turn.hash_ids is not None:
            place.fail("of prompts that count only what is new", "hash_ids")
        new, history = turn.input_tokens, 0
        made = turn
        if turn.turn > 1:
            history = contexts[turn.session_id]
            prompt = count_of(history + new, "input tokens and what came before", place)
            made = replace(
                turn,
                input_tokens=prompt,
                parent_prefix_tokens=history,
                new_input_tokens=new,
            )
        contexts[turn.session_id] = history + new + turn.output_tokens
        yield made


def whole_prompts(turns: Iterable[Turn], place: Place) -> Iterator[Turn]:
    """The same turns. Raises InputError if every later turn of the first rows is shorter than the
    context before it, and nothing says that it does not repeat that. From the first such turn on
    rows are held back until one is not."""
    rows = iter(turns)
    held: list[Turn] = []
    contexts: dict[str, int] = {}
    for turn in islice(rows, _LOOK):
        is_short = False
        if turn.turn > 1:
            is_short = (
                turn.parent_prefix_tokens is None
                and turn.parent_id is None
                and turn.input_tokens < contexts[turn.session_id]
            )
            if not is_short:
                held.append(turn)
                break
        contexts[turn.session_id] = turn.input_tokens + turn.output_tokens
        if is_short or held:
            held.append(turn)
        else:
            yield turn
    else:
        short = sum(turn.turn > 1 for turn in held)
        if short:
            place.line = 0
            place.fail(
                f"{short} later turns, each shorter than the context before it: do they count only"
                " what is new? Say --turns increments or --turns whole (workload.turns)"
            )
    yield from held
    yield from rows
