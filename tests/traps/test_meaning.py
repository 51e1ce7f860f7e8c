"""Traps of thrash, starvation and what a policy means (docs/traps.md, T1 to T20): whoever the order
puts first is served first, nobody is moved to and fro for nothing, and everybody's turn ends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from policy.engines.draft import PrefillShape
from policy.engines.ranked import RankedEngine
from policy.engines.swaps import Swaps
from policy.engines.target import Bounds, Target, choose_target
from policy.errors import InvariantError
from policy.integrity import check_integrity
from policy.memory.context import Context, HostRole
from policy.memory.ledger import Ledger
from policy.orders.base import Key, Order
from policy.orders.catalog import ORDERS
from policy.orders.vtc import VirtualTokenCounter
from policy.plan import Copy, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS, System
from policy.views import RequestView
from runs.recording import Recording
from runs.scenario import build, merge
from sim.simulate import simulate
from tests.helpers.inside import memory_of
from tests.helpers.shadow import ShadowMachine, Turn, serve
from tests.helpers.small import draw, scheduler, variant

SYNC = variant("+groups", between_turns="drop")
ASYNC = variant("fastswitch", overlap="async", between_turns="drop")
KEEPING = variant("+reuse", between_turns="keep_host")


class Told(ShadowMachine):
    """Remembers what every plan did to whom, by the number of the step."""

    def __init__(
        self, made: Scheduler, seed: int = 0, fail: Callable[[Copy], bool] = lambda _copy: False
    ) -> None:
        super().__init__(made, random.Random(seed), fail)
        self.parked: list[tuple[int, str]] = []
        self.parkings: list[int] = []  # of each one parked, since its last token quantum
        self.back: list[tuple[int, str]] = []
        self.started: list[str] = []  # requests in the order of their first prefill
        self.prefilled: list[tuple[str, int]] = []
        self.requests: dict[str, Request] = {}
        self.plans: list[Plan] = []

    def arrive(self, turn: Turn) -> None:
        super().arrive(turn)
        if turn.request_id in self.scheduler.desk.live:
            self.requests[turn.request_id] = self.scheduler.request(turn.request_id)

    def execute(self, plan: Plan) -> Outcome:
        step = self.scheduler.step
        self.plans.append(plan)
        self.parked += [(step, name) for name, _ in plan.preempt]
        self.parkings += [self.requests[name].parkings for name, _ in plan.preempt]
        comes = [copy.request_id for copy in plan.copies if copy.direction is Direction.TO_DEVICE]
        comes += [name for name, _ in plan.prefill]
        self.back += [(step, name) for name in comes]
        self.prefilled += plan.prefill
        self.started += [name for name, _ in plan.prefill if name not in self.started]
        return super().execute(plan)

    def step(self) -> Plan:
        """One plan by hand, with every law checked around it."""
        plan = self.scheduler.schedule(self.now_ns)
        check_integrity(self.scheduler)
        self.scheduler.update(self.execute(plan))
        check_integrity(self.scheduler)
        return plan


def run(made: Scheduler, turns: list[Turn], **how: Any) -> Told:
    """Serve all turns to their ends, with every law checked around every plan."""
    machine = Told(made, **how)
    serve(machine, turns, check=check_integrity, max_plans=20_000)
    assert sorted(machine.finished) == sorted(turn.request_id for turn in turns)
    return machine


def crowd(seed: int, count: int = 40) -> list[Turn]:
    """Three clients ask for about twice what twenty blocks of four tokens hold."""
    rng = random.Random(seed)
    turns, at = [], 0
    for index in range(count):
        at += rng.randrange(12)
        turns.append(
            Turn(
                f"r{index:02}",
                at,
                rng.randrange(1, 41),
                rng.randrange(1, 31),
                client_id=f"k{index % 3}",
                priority=rng.randrange(3),
            )
        )
    return turns


PRESSED: dict[str, Any] = {
    "workload": {
        "generator": "chat",
        "conversations": 80,
        "rate": 5.0,
        "context_cap": 2048,
        "think": "none",
    },
    "pool": {"device_blocks": 500, "host_blocks": 4000},
    "profile": "a10-llama-3-8b",
    "last_turn_known": True,
    "order": "fcfs",
    "limits": {"max_model_len": 8192},
}


def pressed(system: str | dict[str, Any], **values: Any) -> Recording:
    """An A10 with room for about ten conversations, and eighty that come at once."""
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return simulate(build(merge({**PRESSED, "system": system}, dotted), "pressed"), check="off")


# ------------------------------------------------------------------ T1, T2: to and fro


AT_ONCE = 3  # steps


def thrash(machine: Told) -> float:
    """The share of parkings that are undone at once."""
    since: dict[str, int] = {}
    undone = 0
    events = [(*event, 0) for event in machine.parked] + [(*event, 1) for event in machine.back]
    for step, name, comes_back in sorted(events, key=lambda event: (event[0], event[2])):
        if comes_back:
            undone += step - since.pop(name, -AT_ONCE - 1) <= AT_ONCE
        else:
            since[name] = step
    return undone / len(machine.parked)


RULES = [name for name, system in SYSTEMS.items() if system.engine == "ranked"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("system", ["+groups", "fastswitch"])
@pytest.mark.parametrize("host_blocks", [0, 64])
def test_t1_whoever_is_parked_stays_parked_for_a_while_under_every_order(
    order: str, system: str, host_blocks: int
) -> None:
    update_every = 4 if order == "vtc" else 25
    made = scheduler(
        system, order, device_blocks=20, host_blocks=host_blocks, update_every=update_every
    )
    machine = run(made, crowd(1))
    assert len(machine.parked) >= 8
    assert thrash(machine) < 0.4
    assert max(request.num_preemptions for request in machine.requests.values()) <= 5


def test_t1_the_releases_own_recompute_parks_and_resumes_at_once() -> None:
    """Without the rules the same measure finds the trap."""
    machine = run(scheduler("vllm-0.3.3-recompute", "fcfs", device_blocks=20), crowd(1))
    assert thrash(machine) > 0.5


def test_t1_fairness_by_the_token_needs_a_head_start_of_a_context_switch() -> None:
    parkings = Counter[int]()
    for head_start in (0, 60):
        for seed in range(3):
            order = VirtualTokenCounter(head_start=head_start)
            made = scheduler("+groups", order, device_blocks=20, update_every=4)
            parkings[head_start] += len(run(made, crowd(seed)).parked)
    assert parkings[0] > 1.6 * parkings[60]


def worst_parkings(max_parkings: int) -> int:
    """Most parkings of one request without a token quantum between them, under an order that draws
    everybody's place anew in every step."""
    worst = 0
    for seed in range(3):
        made = scheduler(
            "fastswitch",
            "random",
            device_blocks=20,
            update_every=1,
            max_parkings=max_parkings,
            token_quantum=4,
        )
        worst = max(worst, *run(made, crowd(seed), seed=seed).parkings)
    return worst


@pytest.mark.parametrize("max_parkings", [1, 2, 3])
def test_t2_nobody_is_always_the_victim(max_parkings: int) -> None:
    """Hardly more often than the limit: only growth and the leader overrule a shield."""
    assert max_parkings <= worst_parkings(max_parkings) <= max_parkings + 2


def test_t2_without_the_shield_somebody_is_nearly_always_the_victim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Swaps, "is_shielded", lambda _self, _request: False)
    assert worst_parkings(3) > 7


@pytest.mark.parametrize("system", [SYNC, ASYNC, SYSTEMS["vllm-0.3.3-recompute"]])
def test_t2_a_preempted_request_keeps_its_place_before_one_that_has_not_started(
    system: System,
) -> None:
    turns = [
        Turn("leader", 0, 3, 20, priority=-1),
        Turn("parked", 0, 12, 10, priority=1),
        Turn("urgent", 4, 12, 5, priority=0),
        Turn("newcomer", 5, 12, 5, priority=1),
    ]
    machine = run(scheduler(system, device_blocks=9), turns)
    assert machine.parked[0][1] == "parked"
    back = [name for _, name in machine.back]
    first_after = back[back.index("urgent") + 1]
    assert first_after == "parked"
    assert back.index("newcomer") > len(back) - 1 - back[::-1].index("parked")


# ------------------------------------------------------------------ T3, T4: nobody starves


def worn_then_urgent(quantum: int) -> Told:
    """Two blocks of 64 tokens hold two requests. `worn` was parked as often as the limit and runs
    again, beside `leader`; now `urgent` comes and wants its place."""
    made = scheduler(SYNC, block_size=64, device_blocks=2, max_parkings=1, token_quantum=quantum)
    machine = Told(made)
    machine.arrive(Turn("leader", 0, 3, 40, priority=-1))
    machine.arrive(Turn("worn", 0, 12, 40, priority=1))
    machine.step()
    machine.arrive(Turn("first", 0, 12, 1))
    while "worn" not in [name for _, name in machine.parked]:
        machine.step()
    while not machine.requests["worn"].is_decoding:
        machine.step()
    machine.arrive(Turn("urgent", 0, 12, 2))
    return machine


@pytest.mark.parametrize("quantum", [2, 5, 8])
def test_t3_a_shield_ends_with_the_token_quantum_and_the_newcomer_gets_its_place(
    quantum: int,
) -> None:
    machine = worn_then_urgent(quantum)
    worn, urgent = machine.requests["worn"], machine.requests["urgent"]
    kept = worn.parked_tokens
    while not urgent.is_resident:
        machine.step()
        assert machine.scheduler.step < 100
    assert worn.parked_tokens - kept == quantum  # neither fewer nor more


def test_t3_a_shield_that_does_not_end_starves_the_newcomer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Swaps, "is_shielded", lambda self, request: request.parkings >= self.settings.max_parkings
    )
    machine = worn_then_urgent(2)
    for _ in range(12):
        machine.step()
    assert not machine.requests["urgent"].is_resident


class Aging(Order):
    """What a user would write against starvation: each update of waiting is worth a class."""

    name = "aging"
    refreshes = True

    def __init__(self, updates_per_class: int) -> None:
        self.updates_per_class = updates_per_class
        self.index = 0
        self.came: dict[str, int] = {}

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self.came[request.request_id] = self.index

    def update(self, index: int, now_ns: int) -> None:
        self.index = index

    def key(self, request: RequestView, now_ns: int) -> Key:
        waited = self.index - self.came[request.request_id]
        return (request.priority - waited // self.updates_per_class,)


def endless_urgency() -> list[Turn]:
    """One low request, and urgent ones that fill the device for 400 steps."""
    turns = [Turn(f"u{index:02}", 4 * index, 20, 12, priority=0) for index in range(60)]
    return [*turns, Turn("low", 3, 24, 4, priority=2)]


def place_of_low(order: Order | str, **values: Any) -> int:
    """How many had finished before it."""
    machine = run(scheduler(SYNC, order, device_blocks=14, **values), endless_urgency())
    return sorted(machine.finished, key=machine.finished.__getitem__).index("low")


def test_t4_strict_priority_starves_the_low_for_as_long_as_the_urgent_come() -> None:
    """That is its meaning; last of sixty, whatever its deadline."""
    assert place_of_low("priority") >= 58


@pytest.mark.parametrize(
    "order", [Aging(4), "fcfs", "vtc", "random"], ids=lambda order: getattr(order, "name", order)
)
def test_t4_an_order_that_ages_or_shares_lets_the_low_finish_among_the_urgent(
    order: Order | str,
) -> None:
    assert place_of_low(order) <= 30


# ------------------------------------------------------------------ T5, T6: keys and classes


class Restless(Order):
    """A key that is another one whenever it is asked for."""

    name = "restless"
    refreshes = True

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.asked_idle: Counter[tuple[str, int]] = Counter()  # of whom, before which update
        self.updates = 0
        self.expected: Counter[str] = Counter()
        self.live: set[str] = set()
        self.calls = 0

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self.live.add(request.request_id)
        self.expected[request.request_id] += 1

    def left(self, request: RequestView, now_ns: int) -> None:
        self.live.remove(request.request_id)

    def update(self, index: int, now_ns: int) -> None:
        self.expected.update(self.live)
        self.updates += 1

    def key(self, request: RequestView, now_ns: int) -> Key:
        if request.request_id in self.live:
            self.asked[request.request_id] += 1
        else:
            self.asked_idle[request.request_id, self.updates] += 1
        self.calls += 1
        return (draw("restless", request.request_id, self.calls),)


def test_t5_each_key_is_computed_once_when_it_comes_and_once_per_update() -> None:
    """Of idle conversations too, and only where somebody wants to know."""
    order = Restless()
    machine = run(scheduler("fastswitch", order, device_blocks=20), crowd(2))
    assert order.asked == order.expected
    assert max(order.asked_idle.values()) == 1
    assert max(order.asked.values()) > 3
    assert len(machine.parked) > 8


def test_t5_sorting_by_a_key_read_at_every_comparison_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = Restless()
    monkeypatch.setattr(
        "policy.desk.rank_of",
        lambda request: (order.key(request, 0), request.arrival_ns, request.request_id),
    )
    with pytest.raises(InvariantError, match=r"rank"):
        run(scheduler("fastswitch", order, device_blocks=20), crowd(2))


class AgesTheClass(Aging):
    """The trap: the class itself is rewritten, and is lost for good."""

    def key(self, request: RequestView, now_ns: int) -> Key:
        key = super().key(request, now_ns)
        request.priority = int(key[0])  # type: ignore[misc]
        return key


def classes_after(order: Order | str) -> dict[str, int]:
    machine = run(scheduler("fastswitch", order, device_blocks=20, update_every=4), crowd(3))
    return {name: request.priority for name, request in machine.requests.items()}


@pytest.mark.parametrize("order", [*ORDERS, "aging"])
def test_t6_an_order_moves_requests_and_never_their_class(order: str) -> None:
    given = {turn.request_id: turn.priority for turn in crowd(3)}
    assert classes_after(Aging(4) if order == "aging" else order) == given


def test_t6_an_order_that_rewrites_the_class_is_seen_to() -> None:
    assert classes_after(AgesTheClass(4)) != {turn.request_id: turn.priority for turn in crowd(3)}


# ------------------------------------------------------------------ T7, T9: admission


def test_t7_headroom_saves_preemptions_and_where_they_recompute_throughput() -> None:
    tight = pressed("vllm-0.3.3-recompute", pool__watermark=0.0).summary["metrics"]
    roomy = pressed("vllm-0.3.3-recompute", pool__watermark=0.05).summary["metrics"]
    assert tight["preemptions"] > 4 * roomy["preemptions"]
    assert roomy["throughput_tok_s"] > 1.05 * tight["throughput_tok_s"]


def test_t7_headroom_costs_waiting_where_preemption_is_cheap() -> None:
    tight = pressed("vllm-0.3.3-keep", pool__watermark=0.0).summary["metrics"]
    roomy = pressed("vllm-0.3.3-keep", pool__watermark=0.1).summary["metrics"]
    assert tight["preemptions"] > 4 * roomy["preemptions"]
    assert roomy["ttft_p50_s"] > 1.03 * tight["ttft_p50_s"]


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+groups", "fastswitch"])
def test_t9_admission_does_not_decay_into_storms_of_preemptions(system: str) -> None:
    steps = pressed(system, pool__watermark=0.0).table("preemptions").column("step").to_pylist()
    per_thousand = Counter(step // 1000 for step in steps)
    assert len(steps) > 50
    assert max(per_thousand.values()) < 150


# ------------------------------------------------------------------ T8: the release's queue rule


def in_ten_blocks(*named: Any) -> Scheduler:
    """Of a system, and an order if one is named."""
    return scheduler(*named, device_blocks=10, host_blocks=64)


def low_is_swapped_when_urgent_comes(made: Scheduler) -> Told:
    """Both decode until growth takes `low` off the device; then a small `urgent` one fits beside
    `first`, which `low` does not."""
    machine = Told(made)
    machine.arrive(Turn("first", 0, 15, 20, priority=-1))
    machine.arrive(Turn("low", 1, 15, 20, priority=1))
    while not machine.parked:
        machine.step()
    assert machine.parked[0][1] == "low"
    machine.arrive(Turn("urgent", 2, 4, 1, priority=0))
    for _ in range(3):
        machine.step()
    return machine


def test_t8_under_fcfs_the_release_lets_a_swapped_request_bar_an_urgent_one_that_fits() -> None:
    machine = low_is_swapped_when_urgent_comes(in_ten_blocks("vllm-0.3.3", "fcfs"))
    assert "urgent" not in machine.started
    assert "low" not in [name for _, name in machine.back[2:]]


def test_t8_under_a_priority_order_the_same_system_serves_the_urgent_one_at_once() -> None:
    assert (
        "urgent"
        in low_is_swapped_when_urgent_comes(in_ten_blocks("vllm-0.3.3", "priority")).finished
    )


# ------------------------------------------------------------------ T10: who has to go


def five_and_an_urgent_one(need: int, system: System, *, behind: bool = False) -> list[str]:
    """A leader of one block and five of three blocks fill the device. Who is parked for an urgent
    one of `need` blocks; `behind` it waits one that needs the whole device."""
    made = scheduler(system, device_blocks=16, initial_group=1, growth_group=1)
    machine = Told(made)
    machine.arrive(Turn("leader", 0, 1, 30, priority=-1))
    for index in range(5):
        machine.arrive(Turn(f"low{index}", index, 9, 30, priority=index + 1))
    machine.step()
    assert memory_of(made).device.num_available == 0
    machine.arrive(Turn("urgent", 9, 4 * need - 1, 1))
    if behind:
        machine.arrive(Turn("whole", 10, 60, 1))
    machine.step()
    return [name for _, name in machine.parked]


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "before a big one"])
@pytest.mark.parametrize("system", [SYNC, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("need", range(1, 16))
def test_t10_no_more_are_parked_than_the_room_takes_and_the_last_in_order_go(
    need: int, system: System, behind: bool
) -> None:
    parked = five_and_an_urgent_one(need, system, behind=behind)
    assert parked == [f"low{4 - index}" for index in range(-(-need // 3))]


def test_t10_parking_everybody_though_one_would_do_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def everybody(residents: Collection[Request], inside: set[Request], *_: Any) -> list[Request]:
        return [request for request in residents if request not in inside]

    monkeypatch.setattr("policy.engines.target._choose_victims", everybody)
    assert len(five_and_an_urgent_one(3, SYNC, behind=True)) == 5


# ------------------------------------------------------------------ T12: what a resume brings back


def parked_while_decoding(system: System) -> Told:
    turns = [
        Turn("leader", 0, 3, 20, priority=-1),
        Turn("parked", 0, 10, 12, priority=1),
        Turn("urgent", 6, 12, 5, priority=0),
    ]
    return run(scheduler(system, device_blocks=9), turns)


def test_t12_a_resume_brings_back_generated_tokens_too() -> None:
    machine = parked_while_decoding(SYSTEMS["vllm-0.3.3-recompute"])
    again = [tokens for name, tokens in machine.prefilled if name == "parked"]
    assert again[0] == 10 and again[1] > 11
    machine = parked_while_decoding(SYNC)
    assert [name for name, _ in machine.prefilled].count("parked") == 1
    moved = [copy for plan in machine.plans for copy in plan.copies]
    blocks = [copy.num_blocks for copy in moved if copy.request_id == "parked"]
    assert blocks[:2] == [-(-(again[1] - 1) // 4)] * 2


# ------------------------------------------------------------------ T13 to T15: fairness


class Unlifted(VirtualTokenCounter):
    """The trap: who comes back keeps the credit of its absence."""

    def arrived(self, request: RequestView, now_ns: int) -> None:
        credit = self.service.get(request.client_id, 0)
        super().arrived(request, now_ns)
        self.service[request.client_id] = credit


def tokens_while_both_wait(order: VirtualTokenCounter) -> Counter[str]:
    """`steady` is served alone; `idle` comes back with ten requests. Output tokens of each in the
    time in which both have work."""
    made = scheduler(SYNC, order, device_blocks=6, update_every=4)
    turns = [Turn("idle00", 0, 4, 4, client_id="idle")]
    turns += [Turn(f"steady{i:02}", 1, 8, 10, client_id="steady") for i in range(40)]
    turns += [Turn(f"idle{i:02}", 150, 8, 10, client_id="idle") for i in range(1, 11)]
    machine = Told(made)
    tokens: Counter[str] = Counter()
    seen: dict[str, int] = {}

    def note(made: Scheduler) -> None:
        live = {request.client_id for request in made.desk.live.values()}
        for name, request in machine.requests.items():
            gained = request.num_generated - seen.get(name, 0)
            seen[name] = request.num_generated
            if len(live) == 2 and machine.now_ns > 150:
                tokens[request.client_id] += gained

    serve(machine, turns, check=note)
    return tokens


def test_t13_a_client_that_returns_from_idle_shares_from_then_on() -> None:
    tokens = tokens_while_both_wait(VirtualTokenCounter(head_start=8))
    assert 0.5 < tokens["steady"] / tokens["idle"] < 2


def test_t13_without_the_lift_it_takes_everything() -> None:
    tokens = tokens_while_both_wait(Unlifted(head_start=8))
    assert tokens["steady"] < 0.3 * tokens["idle"]


def test_t13_who_comes_when_all_are_idle_is_lifted_to_who_left_last() -> None:
    order = VirtualTokenCounter()
    made = scheduler(SYNC, order, device_blocks=6)
    turns = [
        Turn("a0", 0, 8, 10, client_id="a"),
        Turn("b0", 1, 8, 5, client_id="b"),
        Turn("c0", 200, 8, 1, client_id="c"),
    ]
    machine = run(made, turns)
    last = max(("a0", "b0"), key=machine.finished.__getitem__)[0]
    assert order.service["c"] == order.service[last] + 8 + 2


class ChargesRecomputation(VirtualTokenCounter):
    """The trap: what the engine must compute again is on the client's bill."""

    def __init__(self) -> None:
        super().__init__(head_start=0)
        self.parked: Counter[str] = Counter()

    def _charge(self, request: RequestView) -> None:
        super()._charge(request)
        times = request.num_preemptions - self.parked[request.request_id]
        self.parked[request.request_id] += times
        self.service[request.client_id] += times * request.num_tokens


def bill_of(order: VirtualTokenCounter, system: System) -> tuple[dict[str, int], int]:
    """Service of each client, all of whom come at once, and the tokens that were recomputed."""
    turns = [Turn(f"{who}{i}", 0, 20, 16, client_id=who) for i in range(4) for who in "abc"]
    machine = run(scheduler(system, order, device_blocks=20, update_every=4), turns)
    again = sum(tokens for _, tokens in machine.prefilled) - 20 * len(turns)
    return order.service, again


RECOMPUTE = variant("+groups", preemption="recompute", between_turns="drop")


def test_t14_recomputed_tokens_are_on_nobodys_bill() -> None:
    bill, again = bill_of(VirtualTokenCounter(head_start=0), RECOMPUTE)
    assert again > 100
    assert bill == dict.fromkeys("abc", 4 * (20 + 2 * 16))
    assert bill == bill_of(VirtualTokenCounter(head_start=0), SYNC)[0]


def test_t14_charging_them_makes_preempted_clients_look_over_served() -> None:
    fair = dict.fromkeys("abc", 4 * (20 + 2 * 16))
    bill, again = bill_of(ChargesRecomputation(), RECOMPUTE)
    assert again > 100
    assert all(bill[who] > fair[who] for who in fair)


def passes_over(
    order: Sequence[Request],
    residents: Collection[Request],
    shielded: Sequence[Request],
    bounds: Bounds,
) -> Target:
    """The trap: whoever does not fit is skipped, and the next one takes the room."""
    target = choose_target(order, residents, shielded, bounds)
    while target.head_of_line is not None:
        order = [request for request in order if request is not target.head_of_line]
        target = choose_target(order, residents, shielded, bounds)
    return target


def long_head() -> Told:
    """`big` belongs to the least served client and needs nearly the whole device; `many` sends
    small ones all the time."""
    made = scheduler(
        SYNC, VirtualTokenCounter(head_start=0), device_blocks=14, update_every=4, host_blocks=0
    )
    turns = [Turn(f"many{i:02}", 4 * i, 8, 12, client_id="many") for i in range(40)]
    return run(made, [*turns, Turn("big", 20, 48, 4, client_id="few")])


def test_t15_nobody_passes_a_head_that_does_not_fit_and_so_the_bound_holds() -> None:
    machine = long_head()
    before = machine.started.index("big")
    came = sum(1 for name in machine.started if name != "big" and int(name[4:]) * 4 <= 20)
    assert before <= came
    # 2 U with U = max(prompt weight x longest prompt, output weight x tokens that fit)
    served = before * (8 + 2 * 12)
    assert served <= 2 * max(1 * 48, 2 * 14 * 4)


def test_t15_passing_over_it_breaks_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.engines.ranked.choose_target", passes_over)
    assert long_head().started.index("big") > 10


# ------------------------------------------------------------------ T16, T17: accounts and ends


def conversations() -> list[Turn]:
    """Next turns find a part of their prompts kept, so a step's charges differ from its prompts."""
    turns = []
    for index in range(12):
        name = f"c{index:02}"
        turns.append(Turn(name, 3 * index, 9 + index, 6, session_id=name))
        prompt = 9 + index + 6 + 7
        turns.append(Turn(f"{name}+", 40, prompt, 5, session_id=name, parent_id=name))
    return turns


def charges(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """(what the step budget was charged, what ran), prompt by prompt."""
    charged: list[int] = []
    admits = PrefillShape.admits

    def spy(self: PrefillShape, tokens: int, **how: bool) -> bool:
        fits = admits(self, tokens, **how)
        charged.extend([tokens] if fits else [])
        return fits

    monkeypatch.setattr(PrefillShape, "admits", spy)
    made = scheduler(KEEPING, device_blocks=30, max_num_batched_tokens=64, max_paddings=16)
    machine = run(made, conversations())
    for plan in machine.plans:
        longest = max((tokens for _, tokens in plan.prefill), default=0)
        padded = longest * len(plan.prefill)
        assert padded <= 64 and padded - sum(tokens for _, tokens in plan.prefill) <= 16
    return charged, [tokens for _, tokens in machine.prefilled]


def test_t16_the_budget_is_charged_for_what_runs_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    charged, ran = charges(monkeypatch)
    assert charged == ran
    assert len(set(ran)) > 3  # not all alike, or nothing could be mixed up


def test_t16_charging_the_one_before_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = RankedEngine._prefill_tokens
    before: list[Request] = []

    def of_the_one_before(planner: RankedEngine, request: Request) -> int:
        before.append(request)
        return proper(planner, before[max(0, len(before) - 2)])

    monkeypatch.setattr(RankedEngine, "_prefill_tokens", of_the_one_before)
    with pytest.raises(AssertionError):
        test_t16_the_budget_is_charged_for_what_runs_and_for_nothing_else(monkeypatch)


@pytest.mark.parametrize("host_blocks", [0, 1, 8, 64])
@pytest.mark.parametrize("system", [SYNC, ASYNC, RECOMPUTE], ids=["sync", "async", "recompute"])
def test_t17_who_outgrows_the_step_budget_while_away_still_ends(
    system: System, host_blocks: int
) -> None:
    """Contexts grow to 36 tokens and a step prefills 20: whoever recomputes does so alone."""
    turns = [Turn(f"r{i}", i, 16, 20, priority=3 - i % 3) for i in range(9)]
    made = scheduler(
        system, device_blocks=14, host_blocks=host_blocks, max_num_batched_tokens=20, max_paddings=0
    )
    machine = run(made, turns)
    assert len(machine.parked) > 2


def test_t17_every_request_of_a_run_ends_with_a_status_and_those_not_served_with_a_reason() -> None:
    recording = pressed(
        "fastswitch",
        priority={"pattern": "random", "frequency": 0.04},
        order=None,
        pool__device_blocks=90,
        pool__host_blocks=200,
    )
    rows = recording.table("requests").to_pylist()
    turns = {row["request_id"]: row for row in recording.table("workload").to_pylist()}
    assert len(rows) == len(turns)
    statuses = Counter(row["status"] for row in rows)
    assert set(statuses) == {"finished", "rejected"}
    for row in rows:
        asked = turns[row["request_id"]]["output_tokens"]
        served = row["status"] == "finished" and row["output_tokens"] == asked
        assert served == (row["reason"] == "")


# ------------------------------------------------------------------ T18 to T20: what the host keeps


def idle_conversations(system: System, order: str = "priority") -> Scheduler:
    """Four conversations between turns, six blocks of 23 tokens each, on a host of 24."""
    made = scheduler(system, order, host_blocks=24, host_increment=0)
    run(made, [Turn(f"c{i}", 40 * i, 16, 8, session_id=f"c{i}") for i in range(4)])
    assert memory_of(made).host.num_available == 0
    return made


def a_newcomer(made: Scheduler) -> Context:
    context = Context(Request("new", arrival_ns=1000, input_tokens=16, priority=-1))
    context.owner.rank = ((-1,), 1000, "new")
    return context


def still_kept(made: Scheduler) -> list[str]:
    kept = memory_of(made).ledger.kept.items()
    return [name for name, context in kept if context.host is not None]


def given_up(made: Scheduler, count: int) -> list[str]:
    before = still_kept(made)
    assert memory_of(made).ledger.make_room(count, a_newcomer(made), at_any_cost=True)
    check_integrity(made)
    after = still_kept(made)
    return [name for name in before if name not in after]


@pytest.mark.parametrize("eviction", ["priority", "lru", "arc"])
def test_t18_proposing_without_evicting_changes_no_later_answer(eviction: str) -> None:
    system = variant("fastswitch", host_eviction=eviction)
    asked, fresh = idle_conversations(system), idle_conversations(system)
    for count in (25, 60, 25):
        ledger = memory_of(asked).ledger
        assert not ledger.make_room(count, a_newcomer(asked), at_any_cost=True)
    for _ in range(4):
        wanted = memory_of(asked).host.num_available + 6
        assert given_up(asked, wanted) == given_up(fresh, wanted) != []


def test_t18_forgetting_what_was_only_proposed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Ledger._candidates

    def forgetful(self: Ledger, wanted_by: Context, *, at_any_cost: bool) -> Any:
        for context in proper(self, wanted_by, at_any_cost=at_any_cost):
            assert self._idle_order is not None
            self._idle_order = [entry for entry in self._idle_order if entry[2] is not context]
            yield context

    monkeypatch.setattr(Ledger, "_candidates", forgetful)
    made = idle_conversations(variant("fastswitch", host_eviction="lru"))
    assert not memory_of(made).ledger.make_room(60, a_newcomer(made), at_any_cost=True)
    assert not memory_of(made).ledger.make_room(6, a_newcomer(made), at_any_cost=True)


@pytest.mark.parametrize("taken", range(1, 7))
def test_t19_what_eviction_leaves_of_a_copy_is_a_prefix_that_the_next_turn_uses(taken: int) -> None:
    made = idle_conversations(variant("+reuse", contamination="tail", host_eviction="lru"))
    assert given_up(made, taken) == (["c0"] if taken == 6 else [])
    made.add(Request("next", arrival_ns=1000, input_tokens=40, parent_id="c0"), 1000)
    plan = made.schedule(1000)
    cached = 0 if taken == 6 else min(23, 4 * (6 - taken))
    assert plan.prefill == (("next", 40 - cached),)
    assert sum(copy.num_blocks for copy in plan.copies) == 6 - taken


def test_t19_the_copy_idle_for_longest_goes_and_the_one_just_stored_stays() -> None:
    made = idle_conversations(variant("fastswitch", host_eviction="lru"))
    assert given_up(made, 6) == ["c0"]
    assert given_up(made, 12) == ["c1"]
    assert still_kept(made) == ["c2", "c3"]


def found_then_filled(system: System) -> tuple[int, list[str]]:
    """The next turn comes while the device is full; others fill the host before it can be loaded.
    How many tokens it found at last, and what was stored in the meantime."""
    made = scheduler(system, device_blocks=14, host_blocks=14, host_increment=0)
    turns = [
        Turn("first", 0, 16, 8, session_id="c"),
        *(Turn(f"x{i}", 60, 12, 12, priority=-i) for i in range(4)),
        Turn("next", 61, 40, 3, session_id="c", parent_id="first", priority=1),
        *(Turn(f"y{i}", 64 + i, 16, 8, priority=-9) for i in range(3)),
    ]
    machine = Told(made)
    serve(machine, turns)
    copies = [copy for plan in machine.plans for copy in plan.copies]
    stored = [copy.request_id for copy in copies if copy.direction is Direction.TO_HOST]
    return machine.requests["next"].cached_tokens, stored


@pytest.mark.parametrize("system", [KEEPING, variant("fastswitch", overlap="async")])
def test_t20_a_copy_that_a_turn_has_found_is_there_when_it_is_loaded(system: System) -> None:
    found, stored = found_then_filled(system)
    assert any(name.startswith("x") for name in stored)
    assert found == 16 + 8 - 1


def test_t20_letting_the_found_copy_be_evicted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Ledger._role_of

    def evictable(self: Ledger, context: Context) -> HostRole:
        role = proper(self, context)
        found = context.owner.request_id == "next" and context.host is not None
        return HostRole.IDLE if found and role is HostRole.NONE and not context.is_busy else role

    monkeypatch.setattr(Ledger, "_role_of", evictable)
    found, _ = found_then_filled(KEEPING)
    assert found == 0
