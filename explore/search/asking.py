"""Optuna is asked for points and told what they gave; it keeps nothing, the sweep's folder does.

The study lives in memory and is built anew by every run of the search: the same seed asks for the
same points, whose results are already there. Points are asked in batches of a fixed size and told in
the order asked, so neither the number of workers nor who finishes first changes anything.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from explore.search.points import Point
from explore.search.recipes import Objective
from explore.studies.plan import DIGITS
from explore.studies.spec import Range

#: Up to so many points Optuna's TPE learns from all before; beyond, NSGA-II breeds from the best.
TPE_POINTS = 500
VERSION = str(optuna.__version__)
_EXCESS = "excess"


class Asker:
    """A study. `space`: ranges and lists by path; `limits`: how many a point can break."""

    def __init__(
        self,
        space: dict[str, Range | list[Any]],
        objectives: Sequence[Objective],
        budget: int,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._objectives = objectives
        self._distributions = {path: _distribution(one) for path, one in space.items()}
        self._asked: list[Trial] = []
        directions = ["maximize" if one.way == "max" else "minimize" for one in objectives]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts that we use are called experimental
            self._study = optuna.create_study(sampler=_sampler(budget, seed), directions=directions)

    def ask(self, number: int) -> list[dict[str, Any]]:
        """The next points, as values by path."""
        found = []
        for _ in range(number):
            trial = self._study.ask(self._distributions)
            self._asked.append(trial)
            found.append(
                {path: _value(self._space[path], trial.params[path]) for path in self._space}
            )
        return found

    def tell(self, points: Sequence[Point]) -> None:
        """What the points asked last gave, in the order asked. One whose objectives cannot be told
        has failed; one that breaks limits is told with how far it is beyond them."""
        for trial, point in zip(self._asked, points, strict=True):
            if any(values is None for values in point.objectives):
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            excess = [1.0 if value is None else value for value in point.excess.values()]
            trial.set_user_attr(_EXCESS, excess)
            means = [point.estimate(which).value for which in range(len(self._objectives))]
            self._study.tell(trial, [float(mean) for mean in means if mean is not None])
        self._asked.clear()


def _sampler(budget: int, seed: int) -> optuna.samplers.BaseSampler:
    if budget <= TPE_POINTS:
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, constraints_func=_excess
        )
    return optuna.samplers.NSGAIISampler(seed=seed, constraints_func=_excess)


def _excess(trial: FrozenTrial) -> list[float]:
    found: list[float] = trial.user_attrs.get(_EXCESS, [])
    return found


def _distribution(parameter: Range | list[Any]) -> BaseDistribution:
    """Of a list, the place in it; if it is of rising numbers, places next to each other are alike."""
    if isinstance(parameter, list):
        places = len(parameter)
        if _is_rising(parameter):
            return IntDistribution(0, places - 1)
        return CategoricalDistribution(list(range(places)))
    log = parameter.scale == "log"
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        return IntDistribution(parameter.low, parameter.high, log=log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=log)


def _is_rising(values: list[Any]) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return numbers and all(a < b for a, b in itertools.pairwise(values))


def _value(parameter: Range | list[Any], drawn: Any) -> Any:
    """What a scenario gets; fractions keep as many digits as a sweep's."""
    if isinstance(parameter, list):
        return parameter[drawn]
    if isinstance(drawn, int):
        return drawn
    rounded = float(f"{drawn:.{DIGITS}g}")
    return min(max(rounded, float(parameter.low)), float(parameter.high))
