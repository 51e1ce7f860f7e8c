"""How terms are chosen, seen with a model that would cheat if it could."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from calibrate.inference import centre, choose_terms, find_wild, split
from calibrate.nnls import Floats
from calibrate.residual import Left


class Rote:
    """Knows every point it was fitted to by heart (`memory`), and the true time of all (`law`)."""

    names: tuple[str, ...] = ("base", "law", "memory")
    optional: tuple[str, ...] = ("law", "memory")

    def __init__(self, true: Floats) -> None:
        self.true = true
        self.left = Left([None] * len(true), np.ones(len(true)))

    def solve(
        self, times: Floats, weights: Floats, terms: Collection[str], start: Floats | None = None
    ) -> Floats:
        guess = self.true if "law" in terms else np.full(len(times), times.mean())
        return np.where((weights > 0) & ("memory" in terms), times, guess)

    def predict(self, coefficients: Floats) -> Floats:
        return coefficients


def noisy(count: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(5)
    true = rng.uniform(1e3, 1e6, count)
    return true, true * rng.normal(1, 0.02, count)


def test_a_term_earns_its_place_on_points_that_were_left_out_and_not_by_heart() -> None:
    true, times = noisy(40)
    rng = np.random.default_rng(0)
    assert choose_terms(Rote(true), times, np.ones(40), rng) == {"base", "law"}


def test_a_point_is_judged_by_a_fit_that_does_not_know_it() -> None:
    true, times = noisy(40)
    times[11] *= 4
    assert find_wild(Rote(true), times) == ([11], [])


def test_a_seed_holds_out_the_same_points_and_always_the_corners() -> None:
    first, again, other = (split(50, [0, 49], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    for held_out in (first, other):
        assert held_out[0] and held_out[49]
        assert 15 <= held_out.sum() <= 17


def test_the_centre_of_a_machine_with_two_speeds_lies_between_them_and_no_outlier_moves_it() -> (
    None
):
    """A median would be one or the other, by chance."""
    rng = np.random.default_rng(3)
    centres = [centre(rng.choice([38.0, 54.0], 21)) for _ in range(200)]
    assert abs(np.mean(centres) - 46.0) < 0.5
    assert np.std(centres) < 2.5
    calm = np.full(20, 10.0)
    wild = np.append(calm[2:], [1e9, 1e-3])
    assert centre(wild) == centre(calm) == 10.0
    assert centre(np.array([1.0, 2.0, 99.0])) == 2.0
    assert centre(np.array([1.0, 3.0])) == 2.0
