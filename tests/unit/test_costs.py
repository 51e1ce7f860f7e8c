"""Step and copy costs are integers, follow their formulas, and never fall when work is added."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.profile import Profile, load
from policy.plan import Copy, Direction
from policy.systems import custom_system
from sim.costs import CopyCost, CopyCosts, StepCosts
from sim.costs import step_costs as step_costs_of

A10 = load("a10-llama-3-8b")
BLOCK = 2 * 1024 * 1024  # bytes of 16 tokens of Llama-3-8B
MICROSECOND_A_BLOCK = BLOCK * 1e6  # bytes per second that move one block in 1,000 ns
TO_HOST, TO_DEVICE = Direction.TO_HOST, Direction.TO_DEVICE
SUBMISSIONS = ("per_block", "merged", "batched", "gather")
LAYOUTS = ("layer_major", "block_major")

#: Whole nanoseconds everywhere, so that sums can be done in the head.
PLAIN = {
    "step.base": 1000.0,
    "step.per_kv_token": 3.0,
    "step.per_sequence": 20.0,
    "step.per_sequence_beyond": 7.0,
    "step.per_prefill_token": 50.0,
    "step.per_prefill_square": 4.0,
    "transfer.per_job": 300.0,
    "transfer.per_call": 10.0,
    "transfer.per_descriptor": 2.0,
    "transfer.lock_growth": 0.5,
    "transfer.queue_depth": 1000.0,
    "transfer.piece_setup": 5.0,
    "transfer.to_device": MICROSECOND_A_BLOCK,
    "transfer.to_host": MICROSECOND_A_BLOCK / 2,
    "transfer.to_device_duplex": MICROSECOND_A_BLOCK / 4,
    "transfer.to_host_duplex": MICROSECOND_A_BLOCK / 2,
    "transfer.gather_launch": 70.0,
    "transfer.gather_bandwidth": MICROSECOND_A_BLOCK * 10,
}


def profile(**values: float) -> Profile:
    return A10.with_values({**PLAIN, **{k.replace("__", "."): v for k, v in values.items()}})


def step_costs(**values: float) -> StepCosts:
    return step_costs_of(profile(**values))


def copy_costs(submission: str, layout: str, *, threads: int = 1, **values: float) -> CopyCosts:
    switches: dict[str, Any] = {"submission": submission, "layout": layout, "threads": threads}
    return CopyCosts(profile(**values), custom_system(switches), 16)


def copy_of(*lengths: int, way: Direction = TO_DEVICE) -> Copy:
    """A copy of runs of these lengths."""
    runs = tuple((1000 * i, 1000 * i, length) for i, length in enumerate(lengths))
    return Copy(0, way, "r", runs, sum(lengths))


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("batch", "kv_tokens", "expected"),
    [
        (1, 0, 1020),
        (1, 100, 1320),
        (64, 0, 2280),
        (65, 0, 2307),  # the knot: 20 + 7 from the 65th sequence on
        (100, 5000, 1000 + 3 * 5000 + 20 * 100 + 7 * 36),
    ],
)
def test_a_decode_step_costs_base_tokens_and_sequences(
    batch: int, kv_tokens: int, expected: int
) -> None:
    assert step_costs().decode_ns(batch, kv_tokens) == expected


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([(10, 0)], 1000 + 50 * 10 + 4 * 50),
        ([(10, 30)], 1000 + 50 * 10 + 4 * 10 * 35),
        ([(1, 0)], 1000 + 50 + 2),  # Q is half a token squared
        ([(10, 0), (10, 30)], 1000 + 50 * 20 + 4 * (50 + 350)),
        ([], 1000),
    ],
)
def test_a_prefill_step_costs_base_tokens_and_each_prompts_attention(
    lengths: list[tuple[int, int]], expected: int
) -> None:
    assert step_costs().prefill_ns(lengths) == expected


def test_a_step_is_rounded_down_once_and_not_per_term() -> None:
    costs = step_costs(step__base=0.5, step__per_kv_token=0.25, step__per_sequence=0.25)
    assert [costs.decode_ns(1, tokens) for tokens in range(6)] == [0, 1, 1, 1, 1, 2]


def test_one_step_of_two_prompts_costs_no_second_base() -> None:
    costs = step_costs()
    apart = costs.prefill_ns([(100, 0)]) + costs.prefill_ns([(60, 20)])
    assert apart - costs.prefill_ns([(100, 0), (60, 20)]) == 1000


TOKENS = st.integers(0, 1 << 24)
COEFFICIENT = st.floats(0, 1e6, allow_nan=False)


@given(TOKENS, st.integers(1, 512), COEFFICIENT, COEFFICIENT)
def test_a_decode_step_is_a_whole_number_that_grows_with_batch_and_tokens(
    tokens: int, batch: int, per_token: float, per_sequence: float
) -> None:
    costs = step_costs(
        step__base=0.3, step__per_kv_token=per_token, step__per_sequence=per_sequence
    )
    here = costs.decode_ns(batch, tokens)
    assert type(here) is int
    assert 0 <= here <= costs.decode_ns(batch + 1, tokens)
    assert here <= costs.decode_ns(batch, tokens + 1)


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20), COEFFICIENT, COEFFICIENT)
def test_a_prefill_step_is_a_whole_number_that_grows_with_every_length(
    new: int, past: int, per_token: float, square: float
) -> None:
    costs = step_costs(step__per_prefill_token=per_token, step__per_prefill_square=square)
    here = costs.prefill_ns([(new, past)])
    assert type(here) is int
    assert 0 <= here <= costs.prefill_ns([(new + 1, past)])
    assert here <= costs.prefill_ns([(new, past + 1)])
    assert here <= costs.prefill_ns([(new, past), (1, 0)])


@given(TOKENS, st.integers(1, 400), COEFFICIENT)
def test_decode_time_is_linear_in_kv_tokens_within_the_one_rounding(
    tokens: int, batch: int, per_token: float
) -> None:
    costs = step_costs(step__per_kv_token=per_token)
    fixed = Fraction(round(per_token * 1024), 1024)
    exact = costs.decode_ns(batch, 0) + fixed * tokens
    assert costs.decode_ns(batch, tokens) == int(exact)


@given(
    st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 8192)), max_size=4),
    st.integers(0, 40_000),
)
def test_a_prefill_step_follows_its_formula_within_the_one_rounding(
    lengths: list[tuple[int, int]], square: int
) -> None:
    """Any coefficient in 1/1024 ns, odd ones too: the half of L * L / 2 is not lost."""
    costs = step_costs(step__per_prefill_square=square / 1024)
    pairs = sum(new * (past + Fraction(new, 2)) for new, past in lengths)
    tokens = sum(new for new, _ in lengths)
    assert costs.prefill_ns(lengths) == int(1000 + 50 * tokens + Fraction(square, 1024) * pairs)


# ---------------------------------------------------------------------- pieces and calls


def test_a_block_of_llama_3_8b_is_64_pieces_of_32_kib_or_one_of_2_mib() -> None:
    by_layer, by_block = (copy_costs("merged", layout) for layout in LAYOUTS)
    assert by_layer.block_bytes == by_block.block_bytes == BLOCK
    assert by_layer.pieces_per_run == 64
    assert by_layer.block_bytes // by_layer.pieces_per_run == 32 * 1024
    assert by_block.pieces_per_run == 1


@pytest.mark.parametrize(
    ("submission", "layout", "calls"),
    [
        ("per_block", "layer_major", 640),
        ("merged", "layer_major", 192),
        ("batched", "layer_major", 1),
        ("gather", "layer_major", 2),
        ("per_block", "block_major", 10),
        ("merged", "block_major", 3),
        ("batched", "block_major", 1),
        ("gather", "block_major", 2),
    ],
)
def test_ten_blocks_in_three_runs_take_as_many_calls_as_the_submission_says(
    submission: str, layout: str, calls: int
) -> None:
    cost = copy_costs(submission, layout).cost(copy_of(5, 4, 1))
    assert (cost.calls, cost.bytes) == (calls, 10 * BLOCK)


@pytest.mark.parametrize("way", [TO_HOST, TO_DEVICE])
@pytest.mark.parametrize(
    ("submission", "layout", "expected"),
    [
        # submit, first call, link, last piece; wire is 10,000 ns to the device, 20,000 to the host
        ("per_block", "layer_major", (300 + 6400, 310, 3200, 640)),
        ("merged", "layer_major", (300 + 1920, 310, 960, 192)),
        ("batched", "layer_major", (300 + 10 + 384, 312, 960, 192)),
        ("gather", "layer_major", (300 + 70 + 10, 380, 70 + 1000 + 5, 1)),
        ("per_block", "block_major", (300 + 100, 310, 50, 10)),
        ("merged", "block_major", (300 + 30, 310, 15, 3)),
        ("batched", "block_major", (300 + 10 + 6, 312, 15, 3)),
        ("gather", "block_major", (300 + 70 + 10, 380, 70 + 1000 + 5, 1)),
    ],
)
def test_the_whole_cost_of_ten_blocks_in_three_runs(
    submission: str, layout: str, expected: tuple[int, int, int, int], way: Direction
) -> None:
    submit, first, setup, pieces = expected
    wire = 10_000 if way is TO_DEVICE else 20_000
    cost = copy_costs(submission, layout).cost(copy_of(5, 4, 1, way=way))
    # The last piece is the link's share of one call or descriptor; what is gathered moves as one.
    last = wire if submission == "gather" else (setup + wire) // pieces
    assert cost == CopyCost(submit, first, setup + wire, last, cost.calls, 10 * BLOCK)


def test_only_per_block_submission_ignores_that_blocks_are_neighbours() -> None:
    whole, scattered = copy_of(8), copy_of(*[1] * 8)
    for submission in SUBMISSIONS:
        costs = copy_costs(submission, "layer_major")
        same = costs.cost(whole) == costs.cost(scattered)
        assert same == (submission in ("per_block", "gather"))


def test_small_pieces_to_the_device_take_the_other_way_and_no_others_do() -> None:
    small = {"small_piece": 40_000.0, "small_setup": 7.0, "small_rate": MICROSECOND_A_BLOCK / 100}
    base = profile()
    told = {
        name: base.transfer.piece_setup.model_copy(update={"value": value})
        for name, value in small.items()
    }
    changed = base.model_copy(update={"transfer": base.transfer.model_copy(update=told)})
    pieces = custom_system({"submission": "batched", "layout": "layer_major"})
    costs = CopyCosts(changed, pieces, 16)
    assert costs.cost(copy_of(1)).link_ns == 64 * 7 + 100_000  # pieces of 32 KiB
    assert costs.cost(copy_of(2)).link_ns == 64 * 5 + 2_000  # of 64 KiB
    assert costs.cost(copy_of(1, way=TO_HOST)).link_ns == 64 * 5 + 2_000


def test_a_merged_job_of_lone_blocks_costs_what_per_block_costs() -> None:
    scattered = copy_of(*[1] * 8)
    merged, per_block = (copy_costs(s, "layer_major").cost(scattered) for s in SUBMISSIONS[1::-1])
    assert merged == per_block


# ---------------------------------------------------------------------- threads, queues, duplex


@pytest.mark.parametrize(("threads", "per_call"), [(1, 10), (2, 15), (3, 20)])
def test_calls_get_slower_with_every_further_thread_by_the_lock(
    threads: int, per_call: int
) -> None:
    cost = copy_costs("merged", "block_major", threads=threads).cost(copy_of(1, 1, 1))
    assert (cost.submit_ns, cost.first_call_ns) == (300 + 3 * per_call, 300 + per_call)


def test_descriptors_get_slower_with_every_further_thread_too() -> None:
    """A job takes `per_job`, and each descriptor its time, longer by a share for every further thread."""
    cost = copy_costs("batched", "block_major", threads=3).cost(copy_of(1, 1, 1))
    assert cost.submit_ns == 300 + 2 * (10 + 3 * 2)


def test_a_job_holds_its_submitter_only_when_it_has_more_calls_than_the_queue_takes() -> None:
    costs = copy_costs("per_block", "block_major", transfer__queue_depth=4.0)
    four, five = costs.cost(copy_of(4)), costs.cost(copy_of(5))
    assert costs.stalls_after(four) == 0
    assert costs.stalls_after(five) == 4 * five.last_piece_ns == 4 * 1005


def test_duplex_rates_are_shares_of_1024_and_never_stand_still() -> None:
    costs = copy_costs("merged", "block_major")
    assert costs.duplex_rate == {TO_DEVICE: 256, TO_HOST: 1024}
    dead = copy_costs("merged", "block_major", transfer__to_host_duplex=1e6)
    assert dead.duplex_rate[TO_HOST] == 1


def test_interference_is_kept_per_direction() -> None:
    costs = copy_costs(
        "merged",
        "block_major",
        transfer__interference_to_device=0.5,
        transfer__interference_to_host=0.25,
    )
    assert costs.interference == {TO_DEVICE: 512, TO_HOST: 256}


# ---------------------------------------------------------------------- laws of every copy

BANDWIDTH = st.floats(1e8, 1e12, allow_nan=False)
RUNS = st.lists(st.integers(1, 50), min_size=1, max_size=12)
KINDS = st.sampled_from(SUBMISSIONS)
SHAPES = st.sampled_from(LAYOUTS)


@given(KINDS, SHAPES, RUNS, BANDWIDTH, COEFFICIENT, st.sampled_from([TO_HOST, TO_DEVICE]))
def test_every_number_of_a_copy_is_a_whole_number_and_the_first_call_is_not_after_the_last(
    submission: str, layout: str, runs: list[int], rate: float, call: float, way: Direction
) -> None:
    costs = copy_costs(
        submission,
        layout,
        transfer__to_device=rate,
        transfer__to_host=rate,
        transfer__per_call=call,
    )
    cost = costs.cost(copy_of(*runs, way=way))
    assert all(type(number) is int and number >= 0 for number in cost)
    assert cost.first_call_ns <= cost.submit_ns
    assert cost.last_piece_ns <= cost.link_ns


@given(KINDS, SHAPES, RUNS, BANDWIDTH, COEFFICIENT)
def test_one_more_block_makes_no_part_of_a_copy_cheaper(
    submission: str, layout: str, runs: list[int], rate: float, call: float
) -> None:
    costs = copy_costs(submission, layout, transfer__to_device=rate, transfer__per_call=call)
    longer = [*runs[:-1], runs[-1] + 1]
    for more in (longer, [*runs, 1]):
        before, after = costs.cost(copy_of(*runs)), costs.cost(copy_of(*more))
        assert before.submit_ns <= after.submit_ns
        assert before.first_call_ns <= after.first_call_ns
        assert before.link_ns <= after.link_ns
        assert before.calls <= after.calls
        assert before.bytes + BLOCK == after.bytes


@given(KINDS, SHAPES, RUNS, COEFFICIENT)
def test_breaking_a_run_in_two_makes_no_part_of_a_copy_cheaper(
    submission: str, layout: str, runs: list[int], setup: float
) -> None:
    costs = copy_costs(submission, layout, transfer__piece_setup=setup)
    broken = [*runs, 2, 3]
    whole, pieces = costs.cost(copy_of(*runs, 5)), costs.cost(copy_of(*broken))
    assert whole.bytes == pieces.bytes
    assert whole.submit_ns <= pieces.submit_ns
    assert whole.link_ns <= pieces.link_ns
    assert whole.calls <= pieces.calls


@given(RUNS, BANDWIDTH)
def test_time_on_the_wire_is_bytes_over_bandwidth(runs: list[int], rate: float) -> None:
    costs = copy_costs(
        "batched", "block_major", transfer__to_device=rate, transfer__piece_setup=0.0
    )
    cost = costs.cost(copy_of(*runs))
    exact = Fraction(cost.bytes) * 10**9 / Fraction(rate)
    assert abs(cost.link_ns - exact) <= 1 + exact / 10**9


@given(RUNS, st.sampled_from(SUBMISSIONS[:3]), SHAPES)
def test_link_time_is_linear_set_up_per_piece_plus_bytes(
    runs: list[int], submission: str, layout: str
) -> None:
    costs = copy_costs(submission, layout)
    pieces = (sum(runs) if submission == "per_block" else len(runs)) * costs.pieces_per_run
    assert costs.cost(copy_of(*runs)).link_ns == 5 * pieces + 1000 * sum(runs)
