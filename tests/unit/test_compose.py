"""Composing: sessions stay whole, the schema's order holds, and the header says all that was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import fastswitch
from policy.errors import ConfigError, InputError
from runs.scenario import build
from runs.turns import TurnDriver
from sim.simulate import simulate
from tests.helpers.chats import chat_of
from traces.generators.arrivals import Clients, Poisson
from traces.generators.catalog import make_generator, think_of
from traces.generators.sessions import Priorities
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.shaping import compose, transform
from traces.workload import Header, Turn, Workload
from traces.workload_spec import build_spec

S = 1_000_000_000


def chats(count: int = 20, seed: int = 1, rate: float = 0.5) -> Workload:
    return chat_of(count, rate).workload(Streams(seed))


def agents(count: int = 4, seed: int = 1) -> Workload:
    spec = {"generator": "agent", "conversations": count, "rate": 0.1, "hash_block": 64}
    return make_generator(build_spec(spec)).workload(Streams(seed))


def opened(count: int = 20, seed: int = 1) -> Workload:
    """Sessions that overlap, every turn with an arrival of its own."""
    rows = []
    for turns in sessions(chats(count, seed)):
        at = turns[0].arrival_ns or 0
        for turn in turns:
            at += turn.think_ns or 0
            rows.append(replace(turn, arrival_ns=at, think_ns=None))
    rows.sort(key=lambda turn: turn.arrival_ns or 0)
    return Workload.of(rows, Header(source="opened", timing="open"))


def launched() -> Workload:
    """A session whose first request launches a sub-agent, and one that launches nothing."""
    rows = [
        Turn("a/1", "a", 1, 100, 10, arrival_ns=0),
        Turn("a/2", "a", 2, 120, 10, think_ns=S),
        Turn("s/1", "s", 1, 50, 5, think_ns=S, parent_id="a/1", parent_prefix_tokens=0),
        Turn("s/2", "s", 2, 60, 5, think_ns=S),
        Turn("b/1", "b", 1, 30, 3, arrival_ns=4 * S),
    ]
    return Workload.of(rows, Header(source="launched", timing="closed"))


def sessions(workload: Workload) -> list[list[Turn]]:
    return [list(rows) for _, rows in groupby(workload, key=lambda turn: turn.session_id)]


def lengths(workload: Workload) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for turn in workload:
        found.setdefault(turn.session_id, []).append((turn.input_tokens, turn.output_tokens))
    return found


def check_order(workload: Workload) -> None:
    """The rules of the schema, and that an engine could drive it."""
    rows = list(workload)
    assert len({turn.request_id for turn in rows}) == len(rows)
    if workload.header.timing == "open":
        arrivals = [turn.arrival_ns or 0 for turn in rows]
    else:
        arrivals = [turn.arrival_ns or 0 for turn in rows if compose.begins(turn)]
        names = [name for name, _ in groupby(turn.session_id for turn in rows)]
        assert len(names) == len(set(names))
    assert arrivals == sorted(arrivals)
    last: dict[str, int] = {}
    for turn in rows:
        assert turn.turn == last.get(turn.session_id, 0) + 1
        last[turn.session_id] = turn.turn
        if turn.hash_ids is not None and workload.header.block_size:
            tokens, size = turn.input_tokens, workload.header.block_size
            assert tokens // size <= len(turn.hash_ids) <= -(-tokens // size)
    driver = TurnDriver(workload)
    due = driver.due(1 << 61)
    assert len(due) >= sum(compose.begins(turn) for turn in rows)


Change = Callable[[Workload], Workload]
CHANGES: dict[str, Change] = {
    "gaps law": lambda w: compose.with_gaps(w, Streams(3), think_of("agent")),
    "gaps donor": lambda w: compose.with_gaps_of(w, Streams(3), agents()),
    "gaps open donor": lambda w: compose.with_gaps_of(w, Streams(3), opened()),
    "arrivals law": lambda w: compose.with_arrivals(w, Streams(3), Clients(2.0, clients=4)),
    "arrivals donor": lambda w: compose.with_arrivals_of(w, Streams(3), chats(400, 9, 3.0)),
    "priorities": lambda w: compose.with_priorities(w, Streams(3), Priorities((0.5, 0.5))),
    "rate": lambda w: transform.scale_rate(w, 2.5),
    "sample": lambda w: transform.sample(w, 0.5, Streams(3)),
    "window": lambda w: transform.cut_window(w, 5.0, 30.0),
}
LONGER: dict[str, Change] = {
    "tokens": lambda w: transform.scale_tokens(w, 0.3),
    "cap": lambda w: transform.cap_context(w, 700),
    "merge": lambda w: transform.merge([w, w], ["a", "b"]),
}
SOURCES: dict[str, Callable[[], Workload]] = {
    "chats": chats,
    "agents": agents,
    "opened": opened,
    "launched": launched,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("change", [*CHANGES.values(), *LONGER.values()], ids=[*CHANGES, *LONGER])
def test_order_holds_and_the_header_names_the_change(
    source: Callable[[], Workload], change: Change
) -> None:
    before = source()
    after = change(before)
    check_order(after)
    assert list(after) == list(after)
    said = " | ".join(after.header.composed_from)
    for part in compose.sources_of(before):
        assert part in said
    assert len(after.header.composed_from) > len(compose.sources_of(before))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_sessions_stay_whole_with_all_their_tokens(
    source: Callable[[], Workload], change: Change
) -> None:
    before = source()
    here, there = lengths(before), lengths(change(before))
    assert all(there[name] == here[name] for name in there)


def test_sampling_keeps_about_its_share_and_those_that_were_launched() -> None:
    kept = lengths(transform.sample(chats(2000), 0.3, Streams(4)))
    assert len(kept) / 2000 == pytest.approx(0.3, abs=0.03)
    assert lengths(transform.sample(chats(50), 1.0, Streams(4))) == lengths(chats(50))
    for seed in range(20):
        names = set(lengths(transform.sample(launched(), 0.5, Streams(seed))))
        assert ("s" in names) == ("a" in names)


def test_a_window_keeps_what_begins_in_it_and_begins_at_zero() -> None:
    rows = list(transform.cut_window(launched(), 4.0, 10.0))
    assert [(turn.request_id, turn.arrival_ns) for turn in rows] == [("b/1", 0)]
    rows = list(transform.cut_window(launched(), 0.0, 4.0))
    assert [turn.request_id for turn in rows] == ["a/1", "a/2", "s/1", "s/2"]


@given(st.floats(0.01, 50), st.sampled_from(sorted(SOURCES)))
def test_scaled_histories_add_up(factor: float, source: str) -> None:
    scaled = transform.scale_tokens(SOURCES[source](), factor)
    before: dict[str, Turn] = {}
    for turn in scaled:
        assert turn.output_tokens >= 1 and turn.hash_ids is None
        parent = before.get(turn.session_id)
        if parent is not None:
            context = parent.input_tokens + parent.output_tokens
            kept = context if turn.parent_prefix_tokens is None else turn.parent_prefix_tokens
            assert kept <= context
            if turn.new_input_tokens is not None:
                assert turn.input_tokens == kept + turn.new_input_tokens
        before[turn.session_id] = turn
    assert {"hash_ids", "components"} <= set(scaled.header.lost)


def test_a_prompt_that_said_it_repeats_everything_still_does_when_scaled() -> None:
    rows = [
        Turn("a/1", "a", 1, 11, 11, arrival_ns=0),
        Turn("a/2", "a", 2, 30, 11, think_ns=S, parent_prefix_tokens=22, new_input_tokens=8),
    ]
    scaled = transform.scale_tokens(Workload.of(rows, Header(timing="closed")), 0.5)
    first, second = scaled
    assert second.parent_prefix_tokens == first.input_tokens + first.output_tokens == 12
    assert second.input_tokens == 16


def test_scaling_by_one_changes_no_length() -> None:
    for source in (chats, agents, opened, launched):
        assert lengths(transform.scale_tokens(source(), 1.0)) == lengths(source())


@given(st.integers(2, 4000))
def test_a_cap_is_never_passed_and_takes_only_the_end(cap: int) -> None:
    here, there = lengths(chats()), lengths(transform.cap_context(chats(), cap))
    assert set(here) == set(there)
    for name, rows in there.items():
        assert all(prompt + reply <= cap for prompt, reply in rows)
        assert rows[1:] == here[name][1 : len(rows)]


def test_what_a_capped_request_launched_goes_with_it() -> None:
    rows = [turn.request_id for turn in transform.cap_context(launched(), 125)]
    assert rows == ["a/1", "s/1", "s/2", "b/1"]
    second = [replace(t, parent_id="a/2") if t.request_id == "s/1" else t for t in launched()]
    capped = transform.cap_context(Workload.of(second, launched().header), 125)
    assert [turn.request_id for turn in capped] == ["a/1", "b/1"]


def test_shuffling_deals_the_same_sessions_to_the_same_starts() -> None:
    before, after = chats(60), transform.shuffle(chats(60), Streams(2))
    assert sorted(lengths(before).items()) == sorted(lengths(after).items())
    assert list(lengths(before)) != list(lengths(after))
    starts = [[t.arrival_ns for t in w if t.turn == 1] for w in (before, after)]
    assert starts[0] == starts[1]
    check_order(after)
    check_order(transform.shuffle(launched(), Streams(2)))


def test_tenants_keep_their_own_blocks_and_names() -> None:
    merged = list(transform.merge([agents(), agents(seed=2)], ["one", "two"]))
    assert {turn.client_id for turn in merged} == {"one", "two"}
    blocks = {
        name: {i for turn in merged if turn.client_id == name for i in turn.hash_ids or ()}
        for name in ("one", "two")
    }
    assert blocks["one"] and not blocks["one"] & blocks["two"]
    alone = {turn.request_id: turn.input_tokens for turn in agents()}
    assert alone == {
        turn.request_id.removeprefix("one:"): turn.input_tokens
        for turn in merged
        if turn.client_id == "one"
    }


def test_gaps_are_taken_from_those_after_a_reply_that_ended_alike() -> None:
    donor = [
        Turn("d/1", "d", 1, 9, 9, arrival_ns=0, stop="tool_use"),
        Turn("d/2", "d", 2, 30, 9, think_ns=2 * S, stop="end_turn"),
        Turn("d/3", "d", 3, 60, 9, think_ns=90 * S),
    ]
    given_to = compose.with_gaps_of(
        agents(), Streams(1), Workload.of(donor, Header(source="d", timing="closed"))
    )
    for turns in sessions(given_to):
        for before, after in pairwise(turns):
            # After a reply of which nobody says why it ended, either.
            alike = {"tool_use": [2 * S], "end_turn": [90 * S], None: [2 * S, 90 * S]}
            assert after.think_ns in alike[before.stop]


def test_an_open_donors_gaps_run_from_request_to_request() -> None:
    donor = [
        Turn(f"d/{k}", "d", k, 9 * k, 9, arrival_ns=arrival * S)
        for k, arrival in enumerate((5, 7, 20), start=1)
    ]
    taken = compose.with_gaps_of(
        chats(), Streams(1), Workload.of(donor, Header(source="d", timing="open"))
    )
    assert {turn.think_ns for turn in taken if turn.turn > 1} == {2 * S, 13 * S}
    assert taken.header.composed_from[-1].endswith(
        "the gaps of d, measured from request to request"
    )


def test_a_donor_without_gaps_or_with_too_few_starts_is_refused() -> None:
    single = Workload.of([Turn("x", "x", 1, 1, 1, arrival_ns=0)], Header(source="one row"))
    with pytest.raises(InputError, match="one row: has no gaps"):
        compose.with_gaps_of(chats(), Streams(1), single)
    with pytest.raises(InputError, match="one row: 1 arrivals, and there are more sessions"):
        list(compose.with_arrivals_of(chats(), Streams(1), single))


def test_an_open_workload_under_new_starts_keeps_its_own_gaps() -> None:
    before = sessions(compose.together(opened()))
    after = sessions(compose.with_arrivals(opened(), Streams(1), Poisson(1.0)))
    for old, new in zip(before, after, strict=True):
        for left, right, made in zip(old, old[1:], new[1:], strict=False):
            assert made.gap_ns == (right.arrival_ns or 0) - (left.arrival_ns or 0)


# ---------------------------------------------------------------------- the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, ["trace", "compose", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, workload in {"talk": chats(), "agent": agents(), "open": opened(40)}.items():
        found[name] = tmp_path / f"{name}.jsonl"
        write(workload, found[name])
    return found


EVERYTHING: tuple[Any, ...] = (
    *("--sample", 0.9, "--gaps", "exponential,mean=5", "--arrivals", "gamma,cv=2", "--rate", 0.7),
    *("--shuffle", "--scale-rate", 2, "--window", "0:100", "--scale-tokens", 0.5, "--cap", 900),
    *("--priority", "0.3,0.7", "--priority-process", "markov"),
)
SAID = [
    "a random 0.9 of the sessions",
    "think time: exponential, mean 5 s",
    "arrivals: gamma gaps with CV 2, 0.7 conversations per second on average",
    "sessions shuffled",
    "arrivals: 2 times as often",
    "sessions that begin in 0 to 100 s",
    "lengths: 0.5 times as long",
    "context cap: 900 tokens",
    "priorities: static, shares 0.3/0.7 by session",
]


def test_every_change_is_in_the_header_in_the_order_of_its_doing(
    files: dict[str, Path], tmp_path: Path
) -> None:
    out = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for path in out:
        result = run(files["talk"], *EVERYTHING, "--merge", files["agent"], "--out", path)
        assert result.exit_code == 0, result.output
    assert out[0].read_bytes() == out[1].read_bytes()
    made = read_workload(out[0])
    check_order(made)
    mine = [part for part in made.header.composed_from if part.startswith("talk: ")]
    assert mine[3:] == [f"talk: {part}" for part in SAID]
    assert made.header.priority_process == "markov"
    assert mine[-1] in result.output


def test_a_run_of_a_composed_file_says_what_it_was_composed_from(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "made.jsonl"
    assert run(files["talk"], *EVERYTHING, "--out", path).exit_code == 0
    scenario = build(
        {
            "workload": str(path),
            "profile": "a10-llama-3-8b",
            "pool": {"device_blocks": 80, "host_blocks": 400, "aging": "none"},
            "limits": {"max_model_len": 900},
        },
        "here",
    )
    summary = simulate(scenario).summary
    assert summary["workload"]["composed_from"][3:] == SAID
    assert summary["metrics"]["finished"] == summary["metrics"]["rows"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--arrivals", "gamma,cv=2"), 2, "a law needs --rate"),
        (("--arrivals", "open", "--rate", "1"), 2, "have their own"),
        (("--window", "5"), 2, "--window"),
        (("--window", "9:5"), 2, "--window"),
        (("--sample", "0"), 2, "--sample"),
        (("--scale-rate", "nan"), 2, "--scale-rate"),
        (("--scale-tokens", "0"), 2, "--scale-tokens"),
        (("--cap", "1"), 2, "--cap"),
        (("--gaps", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("--gaps", "exponential,mean=x"), 2, "--gaps"),
        (("--priority", "0.3,0.3"), 2, "sum to 1"),
        (("--priority", "a"), 2, "--priority"),
        (("--priority-process", "luck"), 2, "priority_process"),
        (("--merge", "open"), 2, "one workload is open"),
        (("--merge", "talk"), 2, "different names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_composed_is_refused_and_nothing_is_written(
    files: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    out = tmp_path / "out.jsonl"
    named = [str(files.get(argument, argument)) for argument in arguments]
    result = run(files["talk"], *named, "--out", out)
    assert (result.exit_code, word in result.output) == (code, True), result.output
    assert len(result.output.strip().splitlines()) <= 5
    assert not out.exists()


def test_changes_in_python_raise_config_errors() -> None:
    with pytest.raises(ConfigError, match="--shuffle"):
        transform.shuffle(opened(), Streams(1))
