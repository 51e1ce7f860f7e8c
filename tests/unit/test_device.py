"""The device alone knows output lengths: who is done when, what a step costs, what it has seen."""

from __future__ import annotations

import random
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from calibrate.profile import load
from policy.plan import Batch, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from sim.costs import step_costs
from sim.device import Device, Served
from traces.workload import Turn

PROFILE = load("a10-llama-3-8b").with_values(
    {
        "step.base": 1000.0,
        "step.per_kv_token": 1.0,
        "step.per_sequence": 10.0,
        "step.per_sequence_beyond": 0.0,
        "step.per_prefill_token": 5.0,
        "step.per_prefill_square": 2.0,
    }
)
COSTS = step_costs(PROFILE)
THREE = PROFILE.step.base.model_copy(update={"value": 3.0})
STEP = PROFILE.step.model_copy(update={"per_uneven_token": THREE})
UNEVEN = step_costs(PROFILE.model_copy(update={"step": STEP}))


class Lengths:
    """As much of a scheduler as a device reads: how long each context is."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.computed: dict[str, int] = {}

    def num_tokens(self, request_id: str) -> int:
        return self.tokens.get(request_id, 8)

    def num_computed(self, request_id: str) -> int:
        return self.computed.get(request_id, 0)


class Bench:
    """A device and the requests it serves, given as output lengths."""

    def __init__(self, **outputs: int) -> None:
        self.lengths = Lengths()
        self.device = Device(COSTS, cast(Scheduler, self.lengths))
        for name, output in outputs.items():
            turn = Turn(name, name, 1, 8, output)
            request = Request(name, arrival_ns=0, input_tokens=8)
            self.device.served[name] = Served(turn, 0, request, output)
        self.standing: tuple[str, ...] = ()

    def prefill(self, *names: str, end_ns: int = 0, lost: tuple[str, ...] = ()) -> tuple[str, ...]:
        plan = Plan(prefill=tuple((name, 8) for name in names))
        return self.device.end_prefill(plan, set(lost), end_ns)

    def batch(self, *names: str, kv_tokens: int = 0, again: tuple[str, ...] = ()) -> Batch:
        """The batch of these, joined and left worked out; `again` left and came back."""
        joined = tuple(n for n in names if n not in self.standing or n in again)
        left = tuple(n for n in self.standing if n not in names or n in again)
        self.standing = names
        return Batch(names, kv_tokens, joined, left)

    def decode(self, batch: Batch, steps: int = 1) -> list[tuple[str, ...]]:
        """Who is done with each of some steps of one batch."""
        done = []
        for _ in range(steps):
            self.device.decode_ns(batch)
            done.append(self.device.end_decode())
        return done

    def output(self, name: str) -> int:
        return self.device.produced(self.device.served[name])


# ---------------------------------------------------------------------- who is done


def test_a_request_is_done_with_the_step_that_gives_its_last_token() -> None:
    bench = Bench(a=3)
    assert bench.prefill("a") == ()
    assert bench.decode(bench.batch("a"), 3) == [(), ("a",), ()]


def test_a_request_of_one_token_is_done_with_its_prefill() -> None:
    bench = Bench(a=1, b=2)
    assert bench.prefill("a", "b") == ("a",)


def test_each_of_a_batch_is_done_in_its_own_step_and_those_of_one_step_in_id_order() -> None:
    bench = Bench(d=3, b=3, c=5, a=2)
    bench.prefill("d", "b", "c", "a")
    batch = bench.batch("d", "b", "c", "a")
    assert bench.decode(batch, 4) == [("a",), ("b", "d"), (), ("c",)]


def test_prefills_of_one_step_are_done_in_id_order() -> None:
    assert Bench(b=1, a=1).prefill("b", "a") == ("a", "b")


def test_time_off_the_device_does_not_count_towards_completion() -> None:
    bench = Bench(a=5, b=100)
    bench.prefill("a", "b")
    assert bench.decode(bench.batch("a", "b"), 2) == [(), ()]
    assert bench.decode(bench.batch("b"), 10) == [()] * 10
    assert bench.output("a") == 3
    assert bench.decode(bench.batch("b", "a"), 3) == [(), ("a",), ()]


def test_a_request_that_left_and_came_back_between_two_steps_goes_on_where_it_was() -> None:
    bench = Bench(a=5, b=100)
    bench.prefill("a", "b")
    bench.decode(bench.batch("a", "b"), 2)
    assert bench.decode(bench.batch("a", "b", again=("a",)), 2) == [(), ("a",)]


def test_a_request_that_recomputed_gets_its_next_token_from_the_prefill() -> None:
    bench = Bench(a=5, b=100)
    bench.prefill("a", "b")
    bench.decode(bench.batch("a", "b"), 2)
    bench.decode(bench.batch("b"))
    assert bench.prefill("a") == ()
    assert bench.output("a") == 4
    assert bench.decode(bench.batch("b", "a")) == [("a",)]


def test_a_request_preempted_and_prefilled_before_the_next_decode_step_counts_right() -> None:
    """Nobody decodes in between, so no batch without it has told the device that it left."""
    bench = Bench(a=5)
    bench.prefill("a")
    bench.decode(bench.batch("a"), 2)
    assert bench.prefill("a") == ()
    assert bench.output("a") == 4
    assert bench.decode(bench.batch("a", again=("a",))) == [("a",)]


def test_a_prefill_whose_load_failed_gives_no_token_and_no_first_token_time() -> None:
    bench = Bench(a=1, b=1)
    assert bench.prefill("a", "b", end_ns=500, lost=("a",)) == ("b",)
    assert (bench.output("a"), bench.output("b")) == (0, 1)
    served = bench.device.served
    assert (served["a"].first_token_ns, served["b"].first_token_ns) == (None, 500)


def test_the_first_tokens_time_is_the_first_prefills_end_and_stays() -> None:
    bench = Bench(a=9)
    bench.prefill("a", end_ns=700)
    bench.prefill("a", end_ns=900)
    assert bench.device.served["a"].first_token_ns == 700


def test_a_token_withheld_has_to_be_made_again() -> None:
    bench = Bench(a=4, b=100)
    bench.prefill("a", "b")
    bench.decode(bench.batch("a", "b"))
    bench.device.withhold("a")
    assert bench.output("a") == 1
    bench.decode(bench.batch("b"))
    assert bench.decode(bench.batch("b", "a"), 3) == [(), (), ("a",)]


def test_a_request_that_is_gone_is_not_done_any_more() -> None:
    bench = Bench(a=3, b=3)
    bench.prefill("a", "b")
    batch = bench.batch("a", "b")
    bench.decode(batch)
    bench.device.leave(bench.device.served.pop("a"))
    assert bench.decode(batch) == [("b",)]


@given(st.integers(0, 1 << 32))
def test_however_requests_come_and_go_each_is_done_with_exactly_its_last_token(seed: int) -> None:
    """Against a plain count of tokens, one by one."""
    rng = random.Random(seed)
    outputs = {name: rng.randrange(1, 12) for name in "abcdef"}
    bench = Bench(**outputs)
    left = {name: tokens - 1 for name, tokens in outputs.items()}
    bench.prefill(*outputs)
    for _ in range(60):
        live = [name for name in left if left[name]]
        rng.shuffle(live)
        chosen = tuple(live[: rng.randrange(0, len(live) + 1)])
        again = tuple(n for n in chosen if n in bench.standing and rng.random() < 0.3)
        if not chosen:
            continue
        batch = bench.batch(*chosen, again=again)
        for _ in range(rng.randrange(1, 4)):
            for name in chosen:
                left[name] -= 1
            expected = tuple(sorted(name for name in chosen if left[name] == 0))
            assert bench.decode(batch) == [expected]
            if expected:
                break
    assert {name: bench.output(name) for name in outputs} == {
        name: outputs[name] - left[name] for name in outputs
    }


# ---------------------------------------------------------------------- what steps cost


def test_a_standing_batch_reads_one_more_token_of_each_member_in_every_step() -> None:
    bench = Bench(a=99, b=99)
    bench.prefill("a", "b")
    batch = bench.batch("a", "b", kv_tokens=300)
    costs = []
    for _ in range(3):
        costs.append(bench.device.decode_ns(batch))
        bench.device.end_decode()
    assert costs == [1000 + 20 + 300, 1000 + 20 + 302, 1000 + 20 + 304]
    other = bench.batch("b", kv_tokens=150)
    assert bench.device.decode_ns(other) == 1000 + 10 + 150


def test_a_prefill_costs_its_new_tokens_on_top_of_those_already_there() -> None:
    bench = Bench(a=1, b=1)
    bench.lengths.tokens = {"a": 30, "b": 10}
    bench.lengths.computed = {"a": 20}
    plan = Plan(prefill=(("a", 10), ("b", 10)))
    assert bench.device.prefill_ns(plan) == 1000 + 5 * 20 + 2 * (10 * 25 + 10 * 5)


# ---------------------------------------------------------------------- what it has seen


def largest(device: Device) -> dict[str, Any]:
    return {
        "batch": device.largest_batch,
        "kv": device.largest_kv_tokens,
        "prefill": device.largest_prefill,
    }


def test_the_largest_batch_and_prefill_are_remembered() -> None:
    bench = Bench(a=99, b=99, c=99)
    bench.lengths.tokens = dict.fromkeys("abc", 8)
    bench.device.prefill_ns(Plan(prefill=(("a", 8), ("b", 8))))
    bench.device.prefill_ns(Plan(prefill=(("c", 8),)))
    bench.prefill("a", "b", "c")
    bench.decode(bench.batch("a", "b", "c", kv_tokens=27))
    bench.decode(bench.batch("a", kv_tokens=10))
    assert largest(bench.device) == {"batch": 3, "kv": 27, "prefill": 16}


def test_the_largest_kv_tokens_are_those_of_the_largest_step_also_where_a_batch_only_grew() -> None:
    bench = Bench(a=99, b=99)
    bench.prefill("a", "b")
    bench.decode(bench.batch("a", "b", kv_tokens=18), 11)
    bench.decode(bench.batch("a", kv_tokens=20))
    assert largest(bench.device)["kv"] == 18 + 2 * 10


def test_uneven_lengths_cost_by_how_far_they_fall_short_and_no_more_as_all_grow() -> None:
    """longest * batch - sum: 2 * 200 - 300, the same in every step of a standing batch."""
    bench = Bench(a=99, b=99)
    bench.device = Device(UNEVEN, cast(Scheduler, bench.lengths))
    for name in "ab":
        turn = Turn(name, name, 1, 8, 99)
        request = Request(name, arrival_ns=0, input_tokens=8)
        bench.device.served[name] = Served(turn, 0, request, 99)
    bench.lengths.tokens = {"a": 100, "b": 200}
    batch = bench.batch("a", "b", kv_tokens=300)
    costs = []
    for _ in range(2):
        costs.append(bench.device.decode_ns(batch))
        bench.device.end_decode()
        bench.lengths.tokens = {name: n + 1 for name, n in bench.lengths.tokens.items()}
    assert costs == [1000 + 20 + 300 + 3 * 100, 1000 + 20 + 302 + 3 * 100]
    alone = bench.batch("b", kv_tokens=202)
    assert bench.device.decode_ns(alone) == 1000 + 10 + 202


# ---------------------------------------------------------------------- chunks beside decodes


def test_a_chunk_yields_no_token_and_the_last_one_does() -> None:
    bench = Bench(a=1)
    bench.lengths.tokens = {"a": 8}
    for computed, done in ((0, ()), (5, ("a",))):
        bench.lengths.computed = {"a": computed}
        plan = Plan(prefill=(("a", 5 if not computed else 3),))
        assert bench.device.end_prefill(plan, set(), 0) == done
    assert bench.output("a") == 1


def test_a_mixed_step_pays_its_base_once_and_both_kinds_of_work() -> None:
    bench = Bench(a=9, b=9, c=1)
    bench.lengths.tokens = {"a": 10, "b": 20, "c": 50}
    bench.lengths.computed = {"c": 30}
    plan = Plan(batch=bench.batch("a", "b", kv_tokens=30), prefill=(("c", 10),))
    assert plan.batch is not None
    decodes, prompts = 10 * 2 + 30, 5 * 10 + 2 * 10 * 35
    assert bench.device.mixed_ns(plan, plan.batch) == 1000 + decodes + prompts
    assert bench.device.end_prefill(plan, set(), 0) == ()
    assert bench.device.end_decode() == ()
    assert bench.device.mixed_ns(plan, plan.batch) == 1000 + decodes + 2 + prompts


def test_a_mixed_step_pays_for_uneven_contexts_as_a_decode_step_does() -> None:
    bench = Bench(a=9, b=9, c=1)
    bench.device = Device(UNEVEN, cast(Scheduler, bench.lengths))
    bench.lengths.tokens = {"a": 10, "b": 20, "c": 8}
    bench.device.served = Bench(a=9, b=9, c=1).device.served
    plan = Plan(batch=bench.batch("a", "b", kv_tokens=30), prefill=(("c", 8),))
    assert plan.batch is not None
    prompts = 5 * 8 + 2 * 8 * 4
    assert bench.device.mixed_ns(plan, plan.batch) == 1000 + 50 + 3 * (2 * 20 - 30) + prompts
