"""The cost model of a profile as functions of its coefficients, for many points at once.

The same formulas as `sim/costs.py` and `sim/link.py`, for one step or one copy job alone
(a test holds them together). Times in nanoseconds. Coefficients minimise the weighted sum of squared
*relative* errors: a step of 1 ms and one of 100 ms count alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from calibrate.nnls import Floats, Mask, nnls
from calibrate.points import Point
from calibrate.residual import Left
from policy.systems import System, named_system

#: `sim.costs.StepCosts.KNEE`: sequences beyond so many cost more each.
KNEE = 64
DIRECTIONS = ("h2d", "d2h")
#: So many shapes of a number of prompts give it a cost of its own.
_ENOUGH = 3
#: Which of the two bounds of a copy holds is settled long before so many rounds.
_ROUNDS = 25


class Model(Protocol):
    """Points of one sort, and how coefficients become times of them."""

    names: tuple[str, ...]
    #: Terms that must earn their place.
    optional: tuple[str, ...]
    #: By which quantity each point may be off from the formulas as its neighbours are.
    left: Left

    def solve(
        self,
        times: Floats,
        weights: Floats,
        terms: Collection[str],
        start: Floats | None = None,
    ) -> Floats:
        """Coefficients, 0 for those not in `terms`. A point of weight 0 is not looked at."""

    def predict(self, coefficients: Floats) -> Floats:
        """Time of every point, ns."""


class _Linear:
    """Times are sums of coefficients times quantities."""

    names: tuple[str, ...]
    matrix: Floats

    def solve(
        self,
        times: Floats,
        weights: Floats,
        terms: Collection[str],
        start: Floats | None = None,  # noqa: ARG002  # one minimum only
    ) -> Floats:
        """See Model."""
        return _relative(self.matrix, times, weights, _columns(self.names, terms))

    def predict(self, coefficients: Floats) -> Floats:
        """See Model."""
        predicted: Floats = self.matrix @ coefficients
        return predicted


class StepModel(_Linear):
    """`calibrate.profile.StepCost`."""

    names: tuple[str, ...] = (
        "base",
        "per_kv_token",
        "per_sequence",
        "per_sequence_beyond",
        "per_uneven_token",
        "per_prefill_token",
        "per_prefill_square",
    )
    #: The others every machine has: KV is read and prompts are computed, however few points tell.
    optional: tuple[str, ...] = (
        "per_sequence",
        "per_sequence_beyond",
        "per_uneven_token",
        "per_prefill_square",
    )

    def __init__(self, points: Sequence[Point]) -> None:
        #: Numbers of prompts at which one more has a cost of its own, straight lines in between.
        self.knots = _prompt_knots(points)
        self.names = StepModel.names + tuple(further_name(knot) for knot in self.knots)
        rows = [_step_row(point) + self._further(point) for point in points]
        self.matrix = np.array(rows, dtype=np.float64)
        places = [_step_place(point) for point in points]
        at = np.array([place for _, place in places], dtype=np.float64)
        self.left = Left([sort for sort, _ in places], at)

    def _further(self, point: Point) -> tuple[float, ...]:
        """Prompts but one, shared out over the knots around their number."""
        if point.kind != "prompts":
            return (0.0,) * len(self.knots)
        prompts = point["prompts"]
        shares = (np.interp(prompts, self.knots, row) for row in np.eye(len(self.knots)))
        return tuple(float(share) * (prompts - 1) for share in shares)


def further_name(knot: int) -> str:
    """The coefficient of a further prompt in a step of `knot` of them."""
    return f"per_further_prompt_at_{knot}"


def _prompt_knots(points: Sequence[Point]) -> tuple[int, ...]:
    """Numbers of prompts with points enough to tell, or the largest there is."""
    counts = Counter(int(point["prompts"]) for point in points if point.kind == "prompts")
    told = sorted(number for number, count in counts.items() if count >= _ENOUGH and number > 1)
    return tuple(told or sorted(counts)[-1:])


def _step_place(point: Point) -> tuple[str | None, int]:
    if point.kind == "decode":
        return "decode", point["batch"]
    if point.kind == "prefill":
        return "prefill", point["tokens"]
    return ("prefill", point["prompts"] * point["tokens"]) if point.kind == "prompts" else (None, 1)


def _step_row(point: Point) -> tuple[float, ...]:
    batch = kv_tokens = uneven = new = square = 0
    if point.kind in ("decode", "mixed"):
        batch, kv_tokens = point["batch"], point["kv_tokens"]
    if point.kind == "decode":
        uneven = max(0, point["longest"] * batch - kv_tokens)
    if point.kind in ("prefill", "mixed"):
        new = point["tokens"]
        square = new * (2 * point["past"] + new)
    if point.kind == "prompts":
        new = point["prompts"] * point["tokens"]
        square = new * (2 * point["past"] + point["tokens"])
    return (1, kv_tokens, batch, max(0, batch - KNEE), uneven, new, square / 2)


class LineModel(_Linear):
    """Engine time around a decode step: so much, and so much per sequence."""

    names: tuple[str, ...] = ("base", "per_sequence")
    optional: tuple[str, ...] = ()

    def __init__(self, points: Sequence[Point]) -> None:
        self.matrix = np.array([(1, point["batch"]) for point in points], dtype=np.float64)
        self.left = Left([None] * len(points), np.ones(len(points)))


class PythonModel(_Linear):
    """What our Python adds to a copy job on the host: so much, and so much for each piece."""

    names: tuple[str, ...] = ("per_job", "per_piece")
    optional: tuple[str, ...] = ()

    def __init__(self, points: Sequence[Point], layers: int) -> None:
        counts = [_pieces(point, named_system(point["system"]), layers) for point in points]
        self.matrix = np.array([(1, count) for count in counts], dtype=np.float64)
        self.left = Left([None] * len(points), np.ones(len(points)))


class CopyModel:
    """`calibrate.profile.TransferCost` as `sim/link.py` plays it for a job that meets an idle link.

    It ends when its bytes have moved after the first call was in, or when its last call is in and
    the last piece has moved, whichever is later. While the other direction is busy, moving takes
    `stretch` times as long. Kind `submit` is the time until the last call is in.
    """

    names: tuple[str, ...] = (
        "per_job",
        "per_call",
        "per_descriptor",
        "piece_setup",
        "per_byte_h2d",
        "per_byte_d2h",
        "stretch_h2d",
        "stretch_d2h",
    )
    optional: tuple[str, ...] = ("per_call", "per_descriptor", "piece_setup")
    _HOST = 3  # the columns of the host's time come first
    _LINEAR = 6

    def __init__(self, points: Sequence[Point], layers: int) -> None:
        rows = [_copy_rows(point, layers) for point in points]
        self.link = np.array([link for link, _ in rows], dtype=np.float64)
        self.calls = np.array([calls for _, calls in rows], dtype=np.float64)
        ways = [DIRECTIONS.index(point["way"]) for point in points]
        duplex = [bool(point["duplex"]) for point in points]
        self._group = np.where(duplex, ways, -1)
        sizes = [_piece_bytes(point, layers) for point in points]
        self.left = Left(["copy_piece"] * len(points), np.array(sizes, dtype=np.float64))

    def solve(
        self,
        times: Floats,
        weights: Floats,
        terms: Collection[str],
        start: Floats | None = None,
    ) -> Floats:
        """See Model. Jobs alone give everything but the stretch; the others give that."""
        alone = np.where(self._group < 0, weights, 0.0)
        columns = _columns(self.names[: self._LINEAR], terms)
        starts: list[Mask] = [np.zeros(len(times), dtype=np.bool_), np.any(self.calls != 0, axis=1)]
        if start is not None:
            starts = [self.bound_by_calls(start)]
        found = [self._alternate(times, alone, columns, begin) for begin in starts]
        _, linear = min(found, key=lambda pair: pair[0])
        stretch = [self._stretch(linear, times, weights * (self._group == way)) for way in (0, 1)]
        return np.concatenate([linear, stretch])

    def predict(self, coefficients: Floats) -> Floats:
        """See Model."""
        linear = coefficients[: self._LINEAR]
        factor = np.append(coefficients[self._LINEAR :], 1.0)[self._group]
        host = self.link[:, : self._HOST] @ linear[: self._HOST]
        moving = self.link[:, self._HOST :] @ linear[self._HOST :]
        predicted: Floats = np.maximum(host + factor * moving, self.calls @ linear)
        return predicted

    def bound_by_calls(self, coefficients: Floats) -> Mask:
        """Jobs that end when their last call is in and its piece has moved, no sooner."""
        linear = coefficients[: self._LINEAR]
        return np.greater(self.calls @ linear, self.link @ linear)

    def _alternate(
        self, times: Floats, weights: Floats, columns: list[int], bound_by_calls: Mask
    ) -> tuple[float, Floats]:
        """Solve for the bound that holds at each point, look again which holds, until none changes;
        the best of all rounds and its loss."""
        best = (np.inf, np.zeros(self._LINEAR))
        for _ in range(_ROUNDS):
            matrix = np.where(bound_by_calls[:, None], self.calls, self.link)
            linear = _relative(matrix, times, weights, columns)
            by_link, by_calls = self.link @ linear, self.calls @ linear
            loss = float(weights @ (np.maximum(by_link, by_calls) / times - 1) ** 2)
            if loss < best[0]:
                best = (loss, linear)
            if ((by_calls > by_link) == bound_by_calls).all():
                break
            bound_by_calls = np.greater(by_calls, by_link)
        return best

    def _stretch(self, linear: Floats, times: Floats, weights: Floats) -> float:
        """How many times as long moving takes, from jobs that met the other direction busy."""
        host = self.link[:, : self._HOST] @ linear[: self._HOST]
        moving = self.link[:, self._HOST :] @ linear[self._HOST :]
        calls = self.calls @ linear
        stretch = 1.0
        for _ in range(_ROUNDS):
            share = np.where(host + stretch * moving >= calls, moving / times, 0.0)
            weight = float(weights @ share**2)
            if not weight:
                break
            last, stretch = stretch, float(weights @ (share * (1 - host / times))) / weight
            stretch = max(1.0, stretch)
            if stretch == last:
                break
        return stretch


def _copy_rows(point: Point, layers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both bounds of a job: by the link, by the calls. One that cannot hold is all zeros."""
    system = named_system(point["system"])
    pieces = _pieces(point, system, layers)
    batched = system.transport.submission == "batched"
    size = [point["bytes"] * (point["way"] == way) for way in DIRECTIONS]
    nothing = (0.0,) * 6
    host = (1, pieces, 0) if not batched else (1, 1, pieces)
    if point.kind == "submit":
        return (*host, 0, 0, 0), nothing
    calls = (*host, 1, *(part / pieces for part in size))
    return (1, 1, 1 if batched else 0, pieces, *size), calls


def _pieces(point: Point, system: System, layers: int) -> int:
    """As `sim.costs.CopyCosts` counts them."""
    per_run = 2 * layers if system.transport.layout == "layer_major" else 1
    count = point["blocks"] if system.transport.submission == "per_block" else point["runs"]
    return int(count) * per_run


def _piece_bytes(point: Point, layers: int) -> int:
    return int(point["bytes"]) // _pieces(point, named_system(point["system"]), layers)


def describe(point: Point) -> str:
    """A point in words, for reports."""
    row = point.as_json()
    return f"{row.pop('kind')} " + ", ".join(f"{name} {value}" for name, value in row.items())


def _columns(names: Sequence[str], terms: Collection[str]) -> list[int]:
    return [index for index, name in enumerate(names) if name in terms]


def _relative(matrix: Floats, times: Floats, weights: Floats, columns: list[int]) -> Floats:
    """Non-negative coefficients of some columns that make relative errors small."""
    found = np.zeros(matrix.shape[1])
    chosen = matrix[:, columns] / times[:, None]
    found[columns] = nnls(chosen, np.ones(len(times)), weights)
    return found
