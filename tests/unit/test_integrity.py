"""Every conservation law catches the bug it is there for: one healthy run, one thing broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from policy.engines.swaps import Swaps
from policy.errors import InvariantError
from policy.integrity import check_counts, check_integrity
from policy.memory.context import Context, HostRole
from policy.memory.transfers import Fate, Transfer
from policy.request import Request, RequestState
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.shadow import ShadowMachine, Turn
from tests.helpers.small import scheduler, variant

SYSTEM = variant("fastswitch", overlap="async")
TURNS = [Turn(f"r{i}", 0, 9 + i % 4, 30, client_id=f"k{i % 3}") for i in range(8)]

Chosen = Callable[[Request], bool]


def moments(seed: int) -> Iterator[Scheduler]:
    """A scheduler short of room at every moment of a run in which copies start, end and fail."""
    rng = random.Random(seed)
    made = scheduler(SYSTEM, "random", device_blocks=20, host_blocks=40)
    machine = ShadowMachine(made, rng, fail=lambda _copy: rng.random() < 0.1)
    for turn in TURNS:
        machine.arrive(turn)
    for _ in range(60):
        plan = made.schedule(machine.now_ns)
        yield made
        made.update(machine.execute(plan))
        yield made


def healthy(*wanted: Chosen) -> tuple[Scheduler, list[Request]]:
    """The first moment at which there is a request of every wanted kind, and those requests."""
    for seed in range(20):
        for made in moments(seed):
            live = made.desk.live.values()
            found = [next((r for r in live if choose(r)), None) for choose in wanted]
            requests = [request for request in found if request is not None]
            if len(requests) == len(wanted):
                check_integrity(made)
                return made, requests
    raise AssertionError("no run has such a moment")


def loading(request: Request) -> bool:
    return request.state is RequestState.LOADING


def leaving(request: Request) -> bool:
    return request.context.outgoing is not None


def parked(request: Request) -> bool:
    return request.state is RequestState.SWAPPED and not leaving(request)


def fresh(request: Request) -> bool:
    context = request.context
    return request.state is RequestState.WAITING and context.device is context.host is None


def doubled(request: Request) -> bool:
    return request.context.role is HostRole.DUPLICATE


def decoding(request: Request) -> bool:
    return request.is_decoding


def outgoing_of(request: Request) -> Transfer:
    flight = request.context.outgoing
    assert flight is not None
    return flight


def incoming_of(request: Request) -> Transfer:
    flight = request.context.incoming
    assert flight is not None
    return flight


# ---------------------------------------------------------------------- what is broken


def lose_a_block(_swaps: Swaps, request: Request) -> None:
    assert request.context.device is not None
    request.context.device.blocks.pop()


def run_too_many(swaps: Swaps, request: Request) -> None:
    swaps.desk.running += [request] * swaps.settings.max_num_seqs


def share_a_device_block(swaps: Swaps, request: Request) -> None:
    device = request.context.device
    assert device is not None and device.runs is not None
    other = next(r for r in swaps.residents if r is not request).context.device
    assert other is not None and other.runs is not None
    device.blocks[-1:] = other.blocks[:1]
    device.runs[-1][1] -= 1
    device.runs.append([other.blocks[0], 1])
    device.reserved = 0


def shorten_a_host_table(_swaps: Swaps, request: Request) -> None:
    host = request.context.host
    assert host is not None
    host.blocks.pop()


def share_a_context(_swaps: Swaps, request: Request, other: Request) -> None:
    request.context = other.context


def keep_the_context_of_the_living(swaps: Swaps, request: Request) -> None:
    swaps.memory.ledger.kept[request.request_id] = request.context


def keep_a_context_under_another_name(swaps: Swaps, _request: Request) -> None:
    gone = Request("gone", arrival_ns=0, input_tokens=1)
    gone.state = RequestState.FINISHED
    swaps.memory.ledger.kept["other"] = Context(gone)


def promise_device_tokens(_swaps: Swaps, request: Request) -> None:
    request.context.device_tokens = 1000


def promise_host_tokens(_swaps: Swaps, request: Request) -> None:
    request.context.host_tokens = 1000


def forget_a_copy(_swaps: Swaps, request: Request) -> None:
    request.context.transfer = None


def disown_a_copy(_swaps: Swaps, request: Request) -> None:
    outgoing_of(request).context = None


def exchange_two_copies(_swaps: Swaps, request: Request, other: Request) -> None:
    request.context.transfer = incoming_of(other)


def settle_a_copy(_swaps: Swaps, request: Request) -> None:
    incoming_of(request).fate = Fate.WAITED


def cancel_a_copy(_swaps: Swaps, request: Request) -> None:
    outgoing_of(request).fate = Fate.UNWANTED


def call_it_idle(_swaps: Swaps, request: Request) -> None:
    request.context.role = HostRole.IDLE


def call_the_only_copy_spare(_swaps: Swaps, request: Request) -> None:
    request.context.role = HostRole.DUPLICATE


def reside_without_blocks(swaps: Swaps, request: Request) -> None:
    swaps.residents[request] = None


def say(state: RequestState) -> Callable[[Swaps, Request], None]:
    """A request claims another state than its own."""

    def broken(_swaps: Swaps, request: Request) -> None:
        request.state = state

    return broken


def hold_too_much(swaps: Swaps, request: Request) -> None:
    device = request.context.device
    assert device is not None
    swaps.memory.device.allocate(device, 2)


def forget_a_token(_swaps: Swaps, request: Request) -> None:
    request.context.host_tokens -= 1


def rank_nobody(swaps: Swaps, _request: Request) -> None:
    swaps.desk.ranked.pop()


def rank_backwards(swaps: Swaps, _request: Request) -> None:
    swaps.desk.ranked.reverse()


def drop_from_the_batch(swaps: Swaps, request: Request) -> None:
    swaps.desk.running.remove(request)


def bucket_of(swaps: Swaps, request: Request) -> dict[Request, None]:
    return next(bucket for bucket in swaps.desk._growth if request in bucket)


def forget_to_grow(swaps: Swaps, request: Request) -> None:
    del bucket_of(swaps, request)[request]


def grow_a_step_early(swaps: Swaps, request: Request) -> None:
    index = swaps.desk._growth.index(bucket_of(swaps, request))
    del swaps.desk._growth[index][request]
    swaps.desk._growth[index - 1][request] = None


def miscount_offsets(swaps: Swaps, _request: Request) -> None:
    swaps.desk._offset_sum += 1


class Bug(NamedTuple):
    """What breaks, the kinds of request it takes, and what the law says of it."""

    broken: Callable[..., None]
    says: str
    wanted: tuple[Chosen, ...] = (decoding,)


BUGS = {
    "a block is lost": Bug(lose_a_block, r"device: \d+ free .* is not 20"),
    "a batch beyond its seats": Bug(run_too_many, r"\d+ requests run, limit 256"),
    "a device block with two owners": Bug(share_a_device_block, r"device: block \d+ is both"),
    "a host table that lies": Bug(shorten_a_host_table, r"host: runs .* are not", (parked,)),
    "one context, two requests": Bug(
        share_a_context, r"shares its context with another request", (fresh, decoding)
    ),
    "kept while its owner lives": Bug(
        keep_the_context_of_the_living, r"kept context of r\d belongs to <r\d", (parked,)
    ),
    "kept under another's name": Bug(
        keep_a_context_under_another_name, r"kept context of other belongs to <gone"
    ),
    "more tokens than device blocks": Bug(promise_device_tokens, r"device blocks hold not 1000"),
    "more tokens than host blocks": Bug(
        promise_host_tokens, r"host blocks hold not 1000", (parked,)
    ),
    "a copy that its context forgot": Bug(
        forget_a_copy, r"copy \d+: its context does not know of it", (leaving,)
    ),
    "a copy that is not its own": Bug(disown_a_copy, r"copy \d+ is not in flight for", (leaving,)),
    "another's copy": Bug(
        exchange_two_copies, r"copy \d+ is not in flight for", (leaving, loading)
    ),
    "a copy waited for and still under way": Bug(
        settle_a_copy, r"copy \d+ is settled already", (loading,)
    ),
    "a copy cancelled and still wanted": Bug(cancel_a_copy, r"copy \d+: holds", (leaving,)),
    "a duplicate called idle": Bug(call_it_idle, r"host role IDLE, not DUPLICATE", (doubled,)),
    "the only copy called spare": Bug(
        call_the_only_copy_spare, r"host role DUPLICATE, not NONE", (parked,)
    ),
    "a resident without blocks": Bug(
        reside_without_blocks, r"on device is False, resident is not", (parked,)
    ),
    "in the batch but waiting": Bug(say(RequestState.WAITING), r"<r\d WAITING .* decodes"),
    "a table too long": Bug(hold_too_much, r"runs on \d+ blocks"),
    "runs while its KV arrives": Bug(
        say(RequestState.RUNNING), r"runs while it is copied", (loading,)
    ),
    "loads and nothing moves": Bug(say(RequestState.LOADING), r"loads without a copy", (fresh,)),
    "swapped out and on the device": Bug(
        say(RequestState.SWAPPED), r"holds device blocks", (loading,)
    ),
    "swapped out with a token missing": Bug(
        forget_a_token, r"\d+ of \d+ tokens on host", (parked,)
    ),
    "waits while its KV arrives": Bug(
        say(RequestState.WAITING), r"waits while it is loaded", (loading,)
    ),
    "finished and among the live": Bug(
        say(RequestState.FINISHED), r"FINISHED .* is among the live", (fresh,)
    ),
    "somebody has no rank": Bug(rank_nobody, r"\d ranked, \d live"),
    "ranks out of order": Bug(rank_backwards, r"does not rank before"),
    "a decoder outside the batch": Bug(drop_from_the_batch, r"the batch is not the requests"),
    "a decoder that will not grow": Bug(forget_to_grow, r"growth buckets do not hold the batch"),
    "a decoder that grows too early": Bug(grow_a_step_early, r"is in the wrong growth bucket"),
    "a wrong sum of offsets": Bug(miscount_offsets, r"the sum of offsets is not the batch's"),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_seeded_bug_is_named_by_the_law_it_breaks(bug: Bug) -> None:
    made, requests = healthy(*bug.wanted)
    bug.broken(swaps_of(made), *requests)
    with pytest.raises(InvariantError, match=bug.says):
        check_integrity(made)


@pytest.mark.parametrize("broken", [lose_a_block, run_too_many])
def test_the_cheap_check_finds_lost_blocks_and_seats_by_itself(
    broken: Callable[[Swaps, Request], None],
) -> None:
    made, (request,) = healthy(decoding)
    check_counts(made)
    broken(swaps_of(made), request)
    with pytest.raises(InvariantError):
        check_counts(made)


@pytest.mark.parametrize("between_turns", ["keep_host", "keep_device"])
def test_blocks_that_a_next_turn_took_over_are_counted_once(between_turns: str) -> None:
    """It arrives between the end of its parent and the plan that would take the KV away."""
    made = scheduler(variant("fastswitch", between_turns=between_turns))
    machine = ShadowMachine(made, random.Random(1))
    machine.arrive(Turn("parent", 0, 8, 1))
    made.update(machine.execute(made.schedule(0)))
    check_integrity(made)
    machine.arrive(Turn("child", 0, 12, 1, parent_id="parent"))
    check_integrity(made)
    child = made.request("child")
    assert child.is_resident
    held = memory_of(made).device.num_blocks - memory_of(made).device.num_available
    assert held == child.device_blocks == 2


def test_the_copy_of_an_idle_conversation_must_be_free_to_go() -> None:
    made = scheduler(variant("fastswitch", overlap="sync"))
    machine = ShadowMachine(made, random.Random(1))
    machine.arrive(Turn("turn", 0, 8, 1))
    for _ in range(3):
        made.update(machine.execute(made.schedule(machine.now_ns)))
        check_integrity(made)
    memory_of(made).ledger.kept["turn"].role = HostRole.NONE
    with pytest.raises(InvariantError, match=r"host role NONE, not IDLE"):
        check_integrity(made)


# ---------------------------------------------------------------------- shared prefixes


def sharing_moments(overlap: str = "async") -> Iterator[Scheduler]:
    """Requests that begin alike, on a device too small for all of them."""
    rng = random.Random(3)
    system = variant("fastswitch-prefix", overlap=overlap)
    made = scheduler(system, "random", device_blocks=20, host_blocks=40)
    machine = ShadowMachine(made, rng)
    for index in range(8):
        machine.arrive(Turn(f"r{index}", 0, 18 + index % 4, 30, opening=("o", 16)))
    for _ in range(80):
        plan = made.schedule(machine.now_ns)
        yield made
        made.update(machine.execute(plan))
        yield made


def sharers(*, leaving: bool) -> tuple[Scheduler, list[Request]]:
    """Two that hold a block together, or somebody whose copy in flight holds one."""
    for made in sharing_moments():
        check_integrity(made)
        live = made.desk.live.values()
        found = [r for r in live if r.context.device is not None and r.context.device.num_shared]
        if leaving:
            found = [r for r in live if (f := r.context.outgoing) and f.device and f.device.shared]
        if len(found) > 1 - leaving:
            return made, found
    raise AssertionError("nobody shares")


def test_a_shared_block_is_never_written() -> None:
    made, (request, *_) = sharers(leaving=False)
    device = request.context.device
    assert device is not None
    request.context.device_tokens = device.num_shared * 4 - 1
    with pytest.raises(InvariantError, match=r"the next token goes into \d+ shared tokens"):
        check_integrity(made)


def test_a_shared_block_knows_the_copies_that_hold_it() -> None:
    made, (request, *_) = sharers(leaving=True)
    flight = outgoing_of(request)
    assert flight.device is not None
    shared = flight.device.shared[0]
    shared.leaving -= 1
    memory_of(made).device._num_leaving = sum(  # type: ignore[attr-defined]
        bool(s.leaving) and s.leaving == s.users
        for s in memory_of(made).device  # type: ignore[attr-defined]
    )
    with pytest.raises(InvariantError, match=r"is in \d copies in flight"):
        check_integrity(made)


def test_the_cheap_check_counts_shared_blocks_once() -> None:
    made, (first, second, *_) = sharers(leaving=False)
    check_counts(made)
    assert first.context.device is not None
    assert second.context.device is not None
    common = set(first.context.device.blocks) & set(second.context.device.blocks)
    assert len(common) == 4
    memory_of(made).device._num_held -= 1  # type: ignore[attr-defined]
    with pytest.raises(InvariantError, match=r"device: \d+ free .* is not 20"):
        check_counts(made)


# ---------------------------------------------------------------------- chunks of prompts


def chunking() -> tuple[Scheduler, Request]:
    """A step in which one prompt is prefilled in part beside decodes."""
    made = scheduler(
        "fastswitch-chunked", device_blocks=40, max_num_batched_tokens=8, max_num_seqs=7
    )
    machine = ShadowMachine(made, random.Random(3))
    for index in range(4):
        machine.arrive(Turn(f"r{index}", 0, 9 + index, 30))
    for _ in range(20):
        plan = made.schedule(machine.now_ns)
        check_integrity(made)
        for request, computed in made.desk.prefilling.items():
            if computed < request.num_tokens and made.desk.running:
                return made, request
        made.update(machine.execute(plan))
    raise AssertionError("no step has a chunk")


def compute_too_much(swaps: Swaps, request: Request) -> None:
    swaps.desk.prefilling[request] = request.num_tokens + 1


def compute_nothing(swaps: Swaps, request: Request) -> None:
    swaps.desk.prefilling[request] = request.context.device_tokens


def hold_a_chunks_blocks_only(swaps: Swaps, request: Request) -> None:
    device = request.context.device
    assert device is not None
    swaps.memory.device.truncate(device, swaps.memory.blocks_for(swaps.desk.prefilling[request]))


def run_without_computing(swaps: Swaps, request: Request) -> None:
    del swaps.desk.prefilling[request]


def chunk_where_prompts_go_whole(swaps: Swaps, _request: Request) -> None:
    swaps.options = variant("fastswitch", shape="prefill_only").options


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (compute_too_much, r"is prefilled from \d+ to \d+"),
        (compute_nothing, r"is prefilled from \d+ to \d+"),
        (hold_a_chunks_blocks_only, r"is prefilled on \d+ blocks"),
        (run_without_computing, r"runs and computes nothing"),
        (chunk_where_prompts_go_whole, r"is prefilled in part, to \d+"),
    ],
)
def test_a_seeded_bug_of_chunks_is_named(broken: Callable[..., None], says: str) -> None:
    made, request = chunking()
    broken(swaps_of(made), request)
    with pytest.raises(InvariantError, match=says):
        check_integrity(made)


def test_a_step_keeps_to_the_token_budget() -> None:
    made, _ = chunking()
    swaps_of(made).settings = replace(made.settings, max_num_batched_tokens=7)
    with pytest.raises(InvariantError, match="a step of 8 tokens, max_num_batched_tokens is 7"):
        check_integrity(made)
