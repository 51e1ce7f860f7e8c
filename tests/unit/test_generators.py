"""Generators beside chat: agent and code against what is known of their data
(docs/sources.md#data-laws), prefix ids, priorities, and fitted ones in files.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError
from tests.helpers.chats import chat_of
from traces.generators import agent, code
from traces.generators.arrivals import Clients, Poisson
from traces.generators.catalog import PRESETS, make_generator
from traces.generators.files import GeneratorFile, load_generator, save_generator
from traces.generators.fit_laws import mixture_cdf
from traces.generators.laws import Values, draw_turns
from traces.generators.sessions import Generator, Priorities
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.workload import Turn
from traces.workload_spec import ArrivalSpec, build_spec, parse_law
from traces.yaml import parse_yaml

NS = 1_000_000_000


def sessions_of(generator: Generator, seed: int = 1) -> list[list[Turn]]:
    turns = generator.workload(Streams(seed))
    return [list(rows) for _, rows in groupby(turns, key=lambda turn: turn.session_id)]


def made(seed: int = 1, **values: Any) -> list[list[Turn]]:
    return sessions_of(make_generator(build_spec({"rate": 1.0, **values})), seed)


# ---------------------------------------------------------------------- agent


@pytest.fixture(scope="module")
def agents() -> list[list[Turn]]:
    """1,200 uncapped sessions, 79,000 turns."""
    return sessions_of(Generator(agent.MODEL, 1200, Poisson(1.0)))


def test_agents_take_as_many_turns_as_the_datas(agents: list[list[Turn]]) -> None:
    """20,000 sessions; those that were made have as many as were drawn."""
    model, streams = agent.MODEL, Streams(1)
    turns = [
        draw_turns(model.hazards, model.max_turns, streams, f"c{i:06d}") for i in range(20_000)
    ]
    assert turns[: len(agents)] == [len(session) for session in agents]
    assert min(turns) == 2
    assert np.mean(turns) == pytest.approx(65.8, rel=0.03)
    assert np.percentile(turns, [50, 90, 95, 99]) == pytest.approx([44, 149, 208, 331], rel=0.1)


def test_agents_prompts_grow_by_what_the_datas_do(agents: list[list[Turn]]) -> None:
    added = [t.new_input_tokens or 0 for session in agents for t in session[1:]]
    assert np.percentile(added, [50, 90]) == pytest.approx([713, 4213], rel=0.15)


def test_agents_replies_are_as_long_as_the_datas(agents: list[list[Turn]]) -> None:
    replies = [turn.output_tokens for session in agents for turn in session]
    assert np.percentile(replies, [50, 90]) == pytest.approx([217, 894], rel=0.1)


@pytest.mark.parametrize(
    ("stop", "share", "quantiles"),
    [("tool_use", 0.861, (9, 74)), ("end_turn", 0.051, (186, 2557)), (None, 0.088, (80.5, 744))],
)
def test_agents_wait_for_tools_and_for_people_as_long_as_the_datas(
    agents: list[list[Turn]], stop: str | None, share: float, quantiles: tuple[float, float]
) -> None:
    pairs = [pair for session in agents for pair in pairwise(session)]
    waits = np.sort([(b.think_ns or 0) / NS for a, b in pairs if a.stop == stop])
    assert len(waits) / len(pairs) == pytest.approx(share, abs=0.005)
    # The law is as long as the data's, and what was drawn is the law's (Kolmogorov, 1 in 1,000).
    [law] = [wait.law.parts for wait in agent.WAITS if wait.stop == stop]
    times = np.geomspace(0.1, 1e5, 10_001)
    exact = np.interp([0.5, 0.9], mixture_cdf(law, times), times)
    assert exact == pytest.approx(quantiles, rel=0.13)
    drawn = (np.arange(len(waits)) + 0.5) / len(waits)
    assert np.abs(mixture_cdf(law, waits) - drawn).max() < 1.95 / len(waits) ** 0.5


def test_agents_wait_as_long_as_the_datas_whatever_a_reply_ended_by(
    agents: list[list[Turn]],
) -> None:
    waits = [(turn.think_ns or 0) / NS for session in agents for turn in session[1:]]
    assert np.percentile(waits, [50, 90, 95]) == pytest.approx([10, 171, 478], rel=0.2)


def test_a_share_of_agents_prompts_falls_back_to_the_system_prompt(
    agents: list[list[Turn]],
) -> None:
    pairs = [pair for session in agents for pair in pairwise(session)]
    reset = [
        (before, after)
        for before, after in pairs
        if after.parent_prefix_tokens != before.input_tokens
    ]
    assert len(reset) / len(pairs) == pytest.approx(0.028, abs=0.003)
    for before, after in reset:
        assert after.parent_prefix_tokens == min(agent.SYSTEM_TOKENS, before.input_tokens)
    shorter = sum(after.input_tokens < before.input_tokens for before, after in reset)
    assert 0.3 < shorter / len(reset) < 0.6


def test_under_a_cap_an_agents_first_prompt_is_drawn_again_until_it_fits() -> None:
    firsts = [session[0] for session in made(generator="agent", conversations=300)]
    assert max(turn.input_tokens + turn.output_tokens for turn in firsts) <= agent.DEFAULT_CAP
    assert sum(turn.input_tokens == agent.DEFAULT_CAP - 1 for turn in firsts) <= 3


# ---------------------------------------------------------------------- code


def test_code_requests_are_as_long_as_the_datas() -> None:
    """20,000 of them. The data's p99 of the prompt is a limit of the service, 7,436."""
    rows = [s[0] for s in made(generator="code", conversations=20_000)]
    assert len({row.session_id for row in rows}) == 20_000
    prompts = [row.input_tokens for row in rows]
    assert np.percentile(prompts, [50, 95, 99]) == pytest.approx([1469, 7303, 7436], rel=0.09)
    answers = [row.output_tokens for row in rows]
    assert np.percentile(answers, [50, 95, 99]) == pytest.approx([13, 90, 251], rel=0.12)


def test_code_requests_come_in_bursts_of_the_stated_cv() -> None:
    times = [s[0].arrival_ns or 0 for s in made(generator="code", conversations=20_000)]
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(code.CV, rel=0.15)


# ---------------------------------------------------------------------- any generator


@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(15_010, 200_000),
    st.integers(0, 1 << 40),
    st.sampled_from([1, 16, 64, 512]),
)
def test_the_form_holds_for_every_generator(name: str, cap: int, seed: int, block: int) -> None:
    rows = made(
        seed, generator=name, conversations=3, context_cap=cap, hash_block=block, uncapped=False
    )
    for session in rows:
        before: Turn | None = None
        for number, turn in enumerate(session, start=1):
            assert turn.turn == number
            assert turn.input_tokens + turn.output_tokens <= cap
            assert turn.hash_ids is not None
            assert len(turn.hash_ids) == -(-turn.input_tokens // block)
            if before is not None:
                context = before.input_tokens + before.output_tokens
                kept = turn.parent_prefix_tokens
                kept = context if kept is None else kept
                assert kept <= context
                assert turn.input_tokens == kept + (turn.new_input_tokens or 0)
                same = min(kept, before.input_tokens) // block
                assert before.hash_ids is not None
                assert turn.hash_ids[:same] == before.hash_ids[:same]
                assert not set(turn.hash_ids[same:]) & set(before.hash_ids)
            before = turn


def test_sessions_share_the_blocks_of_the_system_prompt_and_no_others() -> None:
    one, other = made(generator="chat", conversations=2, system_tokens=100, hash_block=16)
    assert one[0].hash_ids is not None and other[0].hash_ids is not None
    assert one[0].hash_ids[:6] == other[0].hash_ids[:6] == tuple(range(6))
    mine = {i for turn in one for i in turn.hash_ids or ()}
    assert mine & {i for turn in other for i in turn.hash_ids or ()} == set(range(6))
    assert one[0].input_tokens > 100


def test_prefix_ids_change_nothing_else() -> None:
    plain = made(generator="chat", conversations=30)
    hashed = made(generator="chat", conversations=30, hash_block=16)
    assert plain == [[replace(turn, hash_ids=None) for turn in s] for s in hashed]


def test_static_priorities_have_their_shares_and_stay_with_the_client() -> None:
    generator = replace(
        chat_of(4000, 1.0), arrivals=Clients(1.0, clients=400, skew=0.0, cv_log_deviation=0.1)
    )
    by_session = replace(generator, priorities=Priorities((0.2, 0.8)))
    levels = [session[0].priority for session in sessions_of(by_session)]
    assert np.mean(levels) == pytest.approx(0.8, abs=0.02)
    by_client = replace(generator, priorities=Priorities((0.2, 0.8), "client"))
    seen: dict[str, int] = {}
    for session in sessions_of(by_client):
        for turn in session:
            assert turn.client_id is not None
            assert seen.setdefault(turn.client_id, turn.priority) == turn.priority
    assert len(seen) > 380
    assert np.mean(list(seen.values())) == pytest.approx(0.8, abs=0.06)


def test_the_header_names_arrivals_priorities_and_the_process_meant() -> None:
    spec = build_spec(
        {
            "generator": "chat",
            "conversations": 1,
            "rate": 0.5,
            "arrivals": parse_law("gamma,cv=3"),
            "priority": {"shares": [0.1, 0.9], "by": "client"},
            "priority_process": "markov",
        }
    )
    header = make_generator(spec).workload(Streams(4)).header
    assert header.composed_from[2:] == (
        "arrivals: gamma gaps with CV 3, 0.5 conversations per second on average",
        "priorities: static, shares 0.1/0.9 by client",
    )
    assert (header.priority_process, header.seed) == ("markov", 4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_is_written_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    spec = build_spec(
        {"generator": name, "conversations": 4, "rate": 1.0, "hash_block": 64, "think": "none"}
    )
    workload = make_generator(spec).workload(Streams(2))
    path = tmp_path / "w.jsonl"
    write(workload, path)
    back = read_workload(path)
    assert back.header == workload.header
    assert [turn.hash_ids for turn in back] == [turn.hash_ids for turn in workload]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gamma,cv", "'gamma,cv': must be like"),
        ("gamma", "arrivals: "),
        ("gamma,cv=two", "arrivals.cv: "),
        ("poisson,cv=2", "arrivals: "),
        ("pareto", "arrivals.law: "),
    ],
)
def test_a_law_that_is_none_is_refused(text: str, names: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_spec(
            {"generator": "chat", "conversations": 1, "rate": 1.0, "arrivals": parse_law(text)}
        )
    assert str(refused.value).startswith(names)


# ---------------------------------------------------------------------- fitted ones, in files

FILE = GeneratorFile(
    fitted_on="by hand",
    conversations=7,
    rate=0.5,
    arrivals=ArrivalSpec(law="fitted", of_rate=0.5, gaps=Values(((1.0, 0.5, 0.6),))),
    model=replace(agent.MODEL, name="mine"),
)


def test_a_generator_in_a_file_is_the_generator_that_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    save_generator(FILE, path)
    assert load_generator(path) == FILE
    generator = make_generator(build_spec({"generator": str(path)}))
    assert (generator.conversations, generator.arrivals.rate) == (7, 0.5)
    assert generator.model == FILE.model
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("format: ", "shape: ", "shape: "),
        ("conversations: 7", "conversations: 0", "conversations: "),
        ("alike: 0.28", "alike: 1.5", "alike: 1.5"),
        ("share: 0.028", "share: 2.5", "reset: share"),
        ("hazards:", "hazard:", "model.hazard"),
        ("law: fitted", "law: gamma", "arrivals: "),
    ],
)
def test_a_broken_generator_file_is_refused_by_its_field(
    tmp_path: Path, old: str, new: str, names: str
) -> None:
    path = tmp_path / "mine.yaml"
    save_generator(FILE, path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as refused:
        load_generator(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert names in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert parse_yaml(path.read_text(), "here")
