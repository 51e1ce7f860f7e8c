"""Seeded draws: pure, the same everywhere, uniform, independent. All bounds hold at fixed seeds and
are five or more standard deviations wide."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from traces.randomness import Streams

ROOT = Path(__file__).resolve().parents[2]
MANY = 100_000

Key = tuple[int, int, str, str, int]

#: (seed, run, purpose, name, k) -> the 64 bits, written down once and for all.
GOLDEN: dict[Key, int] = {
    (0, 0, "arrival", "", 0): 0x2FF7C711743B421D,
    (0, 0, "arrival", "", 1): 0xF5A38CFAA44E136D,
    (0, 1, "arrival", "", 0): 0x42D371CEEFD96AD4,
    (1, 0, "arrival", "", 0): 0x4899950854ABE515,
    (0, 0, "think", "c000001", 2): 0x7F2C8B5D62DC057D,
    (7, 3, "reply", "c000042", 5): 0x9865D67A3B341EBE,
    (1 << 63, 0, "ключ", "näme", 1 << 40): 0x25E2A88F2B252D55,
    (0, 0, "", "", 0): 0xA0E77BFCB2BB2D26,
}

#: The same keys' uniform (exact), normal and exponential (as far as libm's logarithm is).
FLOATS: dict[Key, tuple[str, float, float]] = {
    (0, 0, "arrival", "", 0): ("0x1.7fbe388ba1da2p-3", -0.8876127877990273, 1.6746457973505326),
    (0, 0, "arrival", "", 1): ("0x1.eb4719f5489c2p-1", 1.7452214505358468, 0.04131499558306983),
    (7, 3, "reply", "c000042", 5): (
        "0x1.30cbacf476684p-1",
        0.24121026310802143,
        0.5186832113281483,
    ),
}

IN_A_FRESH_PROCESS = """
import sys
from traces.randomness import Streams
print([Streams(seed, run)(purpose, name, k) for seed, run, purpose, name, k in eval(sys.argv[1])])
"""


def bits_of(key: Key) -> int:
    seed, run, *rest = key
    return Streams(seed, run)(*rest)


def bits(draw: Callable[[int], int], count: int = MANY) -> npt.NDArray[np.uint64]:
    return np.fromiter((draw(i) for i in range(count)), np.uint64, count)


def chi_square(cells: npt.NDArray[np.int64], num_cells: int) -> float:
    """Standard deviations by which the counts of equally likely cells are off, either way."""
    counts = np.bincount(cells, minlength=num_cells)
    expected = cells.size / num_cells
    statistic = float(((counts - expected) ** 2).sum() / expected)
    return (statistic - (num_cells - 1)) / (2 * (num_cells - 1)) ** 0.5


_STREAMS = Streams(20240517)

#: Every way in which a family of draws can be walked through.
WALKS: dict[str, Callable[[int], int]] = {
    "k of one stream": lambda i: _STREAMS("reply", "c000001", i),
    "names of one purpose": lambda i: _STREAMS("reply", f"c{i:06d}", 0),
    "purposes": lambda i: _STREAMS(f"purpose-{i}", "c000001", 0),
    "runs of one seed": lambda i: Streams(11, i)("reply", "c000001", 0),
    "seeds": lambda i: Streams(i)("reply", "c000001", 0),
}


@pytest.mark.parametrize("key", GOLDEN, ids=str)
def test_a_draw_is_this_very_number(key: Key) -> None:
    assert bits_of(key) == GOLDEN[key]


@pytest.mark.parametrize("key", FLOATS, ids=str)
def test_the_laws_of_a_draw_are_these_very_numbers(key: Key) -> None:
    seed, run, *name = key
    streams = Streams(seed, run)
    uniform, normal, exponential = FLOATS[key]
    assert streams.uniform(*name) == float.fromhex(uniform)
    assert streams.normal(*name) == pytest.approx(normal, rel=1e-13)
    assert streams.exponential(*name) == pytest.approx(exponential, rel=1e-13)


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_a_fresh_process_with_another_hash_seed_draws_the_same(hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, repr(list(GOLDEN))],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout) == list(GOLDEN.values())


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    keys = [("p", f"n{i % 7}", i % 11) for i in range(77)]
    forwards, backwards = Streams(3), Streams(3)
    first = {key: forwards(*key) for key in keys}
    for i in range(70_000):  # more names than are remembered
        forwards("other", str(i), 0)
    assert {key: backwards(*key) for key in reversed(keys)} == first
    assert {key: forwards(*key) for key in keys} == first


def test_each_part_of_the_key_makes_another_draw() -> None:
    keys: list[Key] = [
        (seed, run, purpose, name, k)
        for seed in (0, 1)
        for run in (0, 1)
        for purpose in ("a", "b")
        for name in ("a", "b")
        for k in (0, 1)
    ]
    assert len({bits_of(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("walk", WALKS)
def test_every_byte_of_a_draw_is_uniform(walk: str) -> None:
    drawn = bits(WALKS[walk])
    for shift in range(0, 64, 8):
        cells = ((drawn >> np.uint64(shift)) & np.uint64(0xFF)).astype(np.int64)
        assert abs(chi_square(cells, 256)) < 6, f"bits {shift} to {shift + 7}"


@pytest.mark.parametrize("walk", WALKS)
def test_neighbouring_draws_are_independent(walk: str) -> None:
    drawn = (bits(WALKS[walk]) >> np.uint64(60)).astype(np.int64)
    for apart in (1, 2, 7):
        pairs = drawn[:-apart] * 16 + drawn[apart:]
        assert abs(chi_square(pairs, 256)) < 6, f"{apart} apart"


def test_streams_that_share_all_but_one_part_of_the_key_are_not_correlated() -> None:
    pairs = [
        (Streams(5), "p", "n", Streams(6), "p", "n"),
        (Streams(5, 0), "p", "n", Streams(5, 1), "p", "n"),
        (Streams(5), "p", "n", Streams(5), "q", "n"),
        (Streams(5), "p", "n", Streams(5), "p", "m"),
    ]
    for left, *of_left, right, purpose, name in pairs:
        x = [left.uniform(*of_left, k) for k in range(20_000)]
        y = [right.uniform(purpose, name, k) for k in range(20_000)]
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / 20_000**0.5


@pytest.mark.parametrize(
    ("law", "mean", "variance", "fourth"),
    [("uniform", 1 / 2, 1 / 12, 1 / 80), ("normal", 0.0, 1.0, 3.0), ("exponential", 1.0, 1.0, 9.0)],
)
def test_a_law_has_its_mean_and_variance(
    law: str, mean: float, variance: float, fourth: float
) -> None:
    draw = getattr(Streams(99), law)
    values = np.array([draw("law", "", k) for k in range(MANY)])
    assert abs(values.mean() - mean) < 5 * (variance / MANY) ** 0.5
    assert abs(values.var() - variance) < 5 * ((fourth - variance**2) / MANY) ** 0.5


class _Stuck(Streams):
    """Streams of which every draw is the same 64 bits."""

    def __init__(self, stuck: int) -> None:
        super().__init__(0)
        self.stuck = stuck

    def __call__(self, purpose: str, name: str, k: int, /) -> int:
        return self.stuck


@pytest.mark.parametrize("stuck", [0, 1, 1 << 63, (1 << 64) - (1 << 11) - 1, (1 << 64) - 1])
def test_a_uniform_is_never_zero_nor_one_whatever_its_bits(stuck: int) -> None:
    streams = _Stuck(stuck)
    assert 0 < streams.uniform("p", "n", 0) < 1
    assert abs(streams.normal("p", "n", 0)) < 10
    assert 0 < streams.exponential("p", "n", 0) < 40
