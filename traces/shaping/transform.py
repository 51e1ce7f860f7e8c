"""Change a workload: faster, longer, shorter, fewer, other order, several as one.

As in `traces.shaping.compose`: sessions stay whole, rows stream unless the docstring says otherwise, and the
header's `composed_from` names what was done.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from policy.errors import ConfigError
from traces.randomness import Streams
from traces.shaping.compose import begins, noted, sources_of
from traces.strict import MAX_BLOCK_ID, MAX_SECONDS, shown
from traces.workload import MAX_ID, MAX_TOKENS, Header, Turn, Workload

NS = 1_000_000_000


def scale_rate(workload: Workload, factor: float) -> Workload:
    """Arrivals `factor` times as often. Think times and gaps inside a session stay; the turns of an
    open workload all move."""
    if not 1e-6 <= factor <= 1e6:
        raise ConfigError(f"--scale-rate: {factor} is not in 1e-06 to 1e+06")

    def turns() -> Iterator[Turn]:
        for turn in workload:
            if turn.arrival_ns is None:
                yield turn
                continue
            arrival = round(turn.arrival_ns / factor)
            if arrival > MAX_SECONDS * NS:
                raise ConfigError(
                    f"--scale-rate: {turn.request_id} would arrive after {MAX_SECONDS} seconds"
                )
            yield replace(turn, arrival_ns=arrival)

    return Workload(noted(workload, f"arrivals: {factor:g} times as often"), turns)


def scale_tokens(workload: Workload, factor: float) -> Workload:
    """New prompt tokens and replies `factor` times as long, at least 1 where they were; histories
    add up again. Block ids and components no longer fit and are dropped. Holds two numbers a
    session of an open workload."""
    if not 1e-3 <= factor <= 1e3:
        raise ConfigError(f"--scale-tokens: {factor} is not in 0.001 to 1000")

    def scaled(tokens: int) -> int:
        return max(min(tokens, 1), round(tokens * factor))

    def turns() -> Iterator[Turn]:
        #: session, and request of the present one -> its context before and after
        contexts: dict[str, tuple[int, int]] = {}
        for turn in workload:
            if turn.turn == 1 and workload.header.timing != "open":
                contexts.clear()
            whose = turn.parent_id if turn.parent_id in contexts else turn.session_id
            before, after = contexts.get(whose or "", (0, 0))
            kept, prefix = 0, turn.parent_prefix_tokens
            if turn.turn > 1:
                whole = prefix is None
                if prefix is None:
                    kept = after if turn.input_tokens >= before else 0
                else:
                    kept = after if prefix == before else min(round(prefix * factor), after)
                lost = whole and turn.input_tokens < before
                new = turn.input_tokens - (before if whole else min(prefix or 0, before))
                new = turn.input_tokens if lost else max(0, new)
            else:
                new = turn.input_tokens
            made = scaled(new)
            reply = scaled(turn.output_tokens)
            if kept + made > MAX_TOKENS or reply > MAX_TOKENS:
                raise ConfigError(
                    f"--scale-tokens: {turn.request_id} would have more than {MAX_TOKENS} tokens"
                )
            sizes = (turn.input_tokens + turn.output_tokens, kept + made + reply)
            contexts[turn.session_id] = sizes
            if workload.header.timing != "open":
                contexts[turn.request_id] = sizes
            yield replace(
                turn,
                input_tokens=kept + made,
                output_tokens=reply,
                new_input_tokens=None if turn.new_input_tokens is None else made,
                parent_prefix_tokens=None if prefix is None else kept,
                hash_ids=None,
                components=None,
            )

    header = noted(
        workload,
        f"lengths: {factor:g} times as long",
        block_size=None,
        hash_scope=None,
        lost=_with(workload.header.lost, "hash_ids", "components"),
    )
    return Workload(header, turns)


def _with(lost: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return (*lost, *(name for name in names if name not in lost))


def cut_window(workload: Workload, begin_s: float, end_s: float) -> Workload:
    """Sessions that begin in begin_s <= t < end_s, whole, the window's begin as time zero."""
    if not 0 <= begin_s < end_s <= MAX_SECONDS:
        raise ConfigError(f"--window: {begin_s:g}:{end_s:g} is not a span of time")
    begin, end = round(begin_s * NS), round(end_s * NS)

    def is_in(turn: Turn) -> bool:
        if turn.arrival_ns is None:
            raise ConfigError(f"--window: {turn.request_id} has no arrival time; give --arrivals")
        return begin <= turn.arrival_ns < end

    def turns() -> Iterator[Turn]:
        for turn in _chosen(workload, is_in):
            yield (
                turn
                if turn.arrival_ns is None
                else replace(turn, arrival_ns=turn.arrival_ns - begin)
            )

    return Workload(noted(workload, f"sessions that begin in {begin_s:g} to {end_s:g} s"), turns)


def sample(workload: Workload, share: float, streams: Streams) -> Workload:
    """Each session with this chance, whole, with what it launched."""
    if not 0 < share <= 1:
        raise ConfigError(f"--sample: {share} is not above 0 and up to 1")

    def is_in(turn: Turn) -> bool:
        return streams.uniform("sample", turn.session_id, 0) < share

    words = f"a random {share:g} of the sessions"
    return Workload(noted(workload, words, seed=streams.seed), lambda: _chosen(workload, is_in))


def _chosen(workload: Workload, is_in: object) -> Iterator[Turn]:
    """Turns of the sessions whose first turn passes, and of those that they launched. Holds the
    names of the kept sessions of an open workload, and of the requests that launch others."""
    launchers = _launchers(workload)
    kept: set[str] = set()
    active: set[str] = set()  # launching requests that were kept
    closed = workload.header.timing != "open"
    for turn in workload:
        if turn.turn == 1:
            if begins(turn):
                chosen = bool(is_in(turn))  # type: ignore[operator]
            else:
                chosen = turn.parent_id in active
            if closed:
                kept.clear()
            if chosen:
                kept.add(turn.session_id)
        if turn.session_id in kept:
            if turn.request_id in launchers:
                active.add(turn.request_id)
            yield turn


def _launchers(workload: Workload) -> set[str]:
    """Requests that launch sessions: one pass more."""
    return {turn.parent_id for turn in workload if turn.turn == 1 and turn.parent_id is not None}


def cap_context(workload: Workload, tokens: int) -> Workload:
    """A session stops before the turn whose prompt and reply would pass the cap, with all that would
    follow from it; a first turn is cut to fit. Holds the ids of the requests left out."""
    if tokens < 2:
        raise ConfigError(f"--cap: {tokens} is below 2")
    size = workload.header.block_size

    def turns() -> Iterator[Turn]:
        stopped: set[str] = set()  # sessions
        gone: set[str] = set()  # requests
        closed = workload.header.timing != "open"
        for turn in workload:
            if turn.turn == 1 and closed:
                stopped.clear()
            is_long = turn.input_tokens + turn.output_tokens > tokens
            orphan = turn.parent_id in gone
            if turn.session_id in stopped or orphan or (is_long and turn.turn > 1):
                stopped.add(turn.session_id)
                gone.add(turn.request_id)
                continue
            yield _cut(turn, tokens, size) if is_long else turn

    return Workload(noted(workload, f"context cap: {tokens} tokens"), turns)


def _cut(turn: Turn, tokens: int, size: int | None) -> Turn:
    prompt = min(turn.input_tokens, tokens - 1)
    ids = turn.hash_ids
    if ids is not None and prompt < turn.input_tokens:
        ids = None if size is None else ids[: prompt // size]
    new = turn.new_input_tokens
    prefix = turn.parent_prefix_tokens
    return replace(
        turn,
        input_tokens=prompt,
        output_tokens=min(turn.output_tokens, tokens - prompt),
        new_input_tokens=None if new is None else min(new, prompt),
        parent_prefix_tokens=None if prefix is None else min(prefix, prompt),
        hash_ids=ids,
        components=turn.components if prompt == turn.input_tokens else None,
    )


def shuffle(workload: Workload, streams: Streams) -> Workload:
    """The same sessions and the same starts, dealt out anew: what is known of arrivals stays, and
    that long sessions came together does not. Holds the rows."""
    if workload.header.timing == "open":
        raise ConfigError("--shuffle: an open workload's turns have arrivals of their own")

    def turns() -> Iterator[Turn]:
        groups = list(_groups(workload))
        arrivals = [group[0].arrival_ns for group in groups]
        order = sorted(range(len(groups)), key=lambda k: (streams("shuffle", "", k), k))
        for arrival, index in zip(arrivals, order, strict=True):
            first, *rest = groups[index]
            yield replace(first, arrival_ns=arrival)
            yield from rest

    return Workload(noted(workload, "sessions shuffled", seed=streams.seed), turns)


def _groups(workload: Workload) -> Iterator[list[Turn]]:
    """Sessions of a closed workload, each with those it launched, which follow it."""
    group: list[Turn] = []
    for turn in workload:
        if begins(turn) and group:
            yield group
            group = []
        group.append(turn)
    if group:
        yield group


def merge(workloads: Sequence[Workload], names: Sequence[str]) -> Workload:
    """Tenants side by side: ids and clients get the tenant's name before theirs, prefix ids are kept
    apart. Raises ConfigError if one is open and another is not, or an id becomes too long."""
    timings = {workload.header.timing for workload in workloads}
    if "open" in timings and len(timings) > 1:
        raise ConfigError("--merge: one workload is open, another closed; give one of them --gaps")
    if len(set(names)) < len(names):
        raise ConfigError(f"--merge: tenants must have different names: {', '.join(names)}")
    sizes = {workload.header.block_size for workload in workloads}
    scopes = {workload.header.hash_scope for workload in workloads}
    has_ids = len(sizes) == len(scopes) == 1
    header = Header(
        source=f"{', '.join(workload.header.source for workload in workloads)}",
        licence="; ".join(dict.fromkeys(w.header.licence for w in workloads if w.header.licence)),
        timing=next(iter(timings)) if len(timings) == 1 else "closed",
        block_size=workloads[0].header.block_size if has_ids else None,
        hash_scope=workloads[0].header.hash_scope if has_ids else None,
        composed_from=tuple(
            f"{name}: {part}"
            for workload, name in zip(workloads, names, strict=True)
            for part in sources_of(workload)
        ),
        seed=workloads[0].header.seed,
        lost=() if has_ids else ("hash_ids",),
    )

    def tenant(index: int) -> Iterator[tuple[int, int, list[Turn]]]:
        workload, name = workloads[index], names[index]
        together = ([turn] for turn in workload) if header.timing == "open" else _groups(workload)
        for group in together:
            at = group[0].arrival_ns
            if at is None:
                raise ConfigError(
                    f"--merge: {shown(name)}: {group[0].request_id} has no arrival time"
                )
            renamed = [_of_tenant(t, name, index, len(workloads), has_ids=has_ids) for t in group]
            yield at, index, renamed

    def turns() -> Iterator[Turn]:
        tenants = [tenant(index) for index in range(len(workloads))]
        for _, _, group in heapq.merge(*tenants, key=lambda item: item[:2]):
            yield from group

    return Workload(header, turns)


def _of_tenant(turn: Turn, name: str, index: int, tenants: int, *, has_ids: bool) -> Turn:
    request = f"{name}:{turn.request_id}"
    session = f"{name}:{turn.session_id}"
    client = name if turn.client_id is None else f"{name}:{turn.client_id}"
    if max(len(request), len(session), len(client)) > MAX_ID:
        raise ConfigError(f"--merge: {shown(request)} is longer than {MAX_ID} characters")
    ids = turn.hash_ids
    if ids is not None:
        # the remainder tells tenants apart, wherever their ids begin
        apart = tuple(block * tenants + index for block in ids)
        ids = apart if has_ids and max(apart, default=0) <= MAX_BLOCK_ID else None
    return replace(
        turn,
        request_id=request,
        session_id=session,
        parent_id=None if turn.parent_id is None else f"{name}:{turn.parent_id}",
        client_id=client,
        hash_ids=ids,
    )
