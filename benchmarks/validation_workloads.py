"""The three workloads that `make validate-full` serves, scaled to what a CPU gives SmolLM2.

    python benchmarks/validation_workloads.py [FOLDER]

writes scenarios/validate-{chat,agent,bursty}.jsonl (or to FOLDER): the same bytes each time.

Turns, prompts and replies of `chat` are those of the chat generator (fitted on ShareGPT), divided by
SCALE; `agent` is a few sessions of many short turns with tool waits, contexts only grow; `bursty` is
single requests in bursts of twelve, at about nine tenths of what the machine can do. At least 200 turns each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from traces.randomness import Streams
from traces.readers.native import write
from traces.sources import open_workload
from traces.workload import Header, Turn, Workload
from traces.workload_spec import build_spec

SCALE = 128
TURNS = 200
LONGEST = 64
SEED = 11


def chat() -> Workload:
    """Conversations with tokens and times of the chat generator, divided."""
    streams = Streams(SEED, 0)
    spec = build_spec(
        {
            "generator": "chat",
            "conversations": 49,
            "rate": 10.0,
            "think": "exponential",
            "think_mean_s": 0.4,
            "context_cap": 4096,
        }
    )
    made = open_workload(spec, streams)
    sent: dict[str, int] = {}  # session -> tokens of its context

    def turns() -> Iterator[Turn]:
        sent.clear()
        for turn in made:
            new = min(16, max(2, (turn.new_input_tokens or 0) // SCALE))
            reply = min(8, max(2, turn.output_tokens // SCALE))
            before = sent.get(turn.session_id, 0)
            if before < 0 or before + new + reply > LONGEST:
                sent[turn.session_id] = -1  # the conversation ends before this turn
                continue
            sent[turn.session_id] = before + new + reply
            yield replace(
                turn, input_tokens=before + new, new_input_tokens=new, output_tokens=reply
            )

    return _held("chat", turns())


def agent() -> Workload:
    """Sessions of four turns: a prompt, then tool results after waits."""
    streams = Streams(SEED, 1)

    def turns() -> Iterator[Turn]:
        clock = 0.0
        for session in range(50):
            name = f"a{session}"
            clock += streams.exponential("arrival", name, 0) * 0.2
            context = 0
            for turn in range(1, 5):
                new = (
                    6 + _below(streams, 6, name, turn)
                    if turn == 1
                    else 2 + _below(streams, 5, name, turn)
                )
                reply = 2 + _below(streams, 4, f"{name}r", turn)
                wait = round(streams.exponential("think", name, turn) * 0.3e9)
                yield Turn(
                    f"{name}/{turn}", name, turn, context + new, reply,
                    arrival_ns=round(clock * 1e9) if turn == 1 else None,
                    think_ns=None if turn == 1 else wait,
                    new_input_tokens=new,
                )  # fmt: skip
                context += new + reply

    return _held("agent", turns())


def bursty() -> Workload:
    """Single requests that come in bursts."""
    streams = Streams(SEED, 2)

    def turns() -> Iterator[Turn]:
        clock = 0.0
        for index in range(TURNS + 4):
            burst = index % 12 == 0
            gap = streams.exponential("arrival", "", index) * (1.0 if burst else 0.04)
            clock += gap if index else 0.0  # nobody waits for the first
            new = 2 + _below(streams, 7, "b", index)
            reply = 2 + _below(streams, 6, "br", index)
            yield Turn(
                f"b{index}",
                f"b{index}",
                1,
                new,
                reply,
                arrival_ns=round(clock * 1e9),
                new_input_tokens=new,
            )

    return _held("bursty", turns())


def _below(streams: Streams, bound: int, name: str, k: int) -> int:
    return min(bound - 1, int(streams.uniform("length", name, k) * bound))


def _held(name: str, turns: Iterator[Turn]) -> Workload:
    header = Header(
        source=f"made for validation: {name}",
        timing="closed",
        seed=SEED,
        notes="benchmarks/validation_workloads.py",
    )
    return Workload.of(turns, header)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "scenarios"
    for make in (chat, agent, bursty):
        path = folder / f"validate-{make.__name__}.jsonl"
        workload = make()
        count = sum(1 for _ in workload)
        assert count >= TURNS, f"{make.__name__}: {count} turns"
        write(workload, path)
        print(f"{path.name}: {count} turns")


if __name__ == "__main__":
    main()
