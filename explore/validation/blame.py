"""Which part of the model an error comes from: the replay, the cost of steps or copies, or queueing.

The simulation is run again with step times, and then copy times, freed of the bias that the step replay
found. An error that goes away with it was the cost model's; one that stays is queueing: small
differences in time that made other decisions, noise of the machine included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.profile import ONE, Corrections, Curve, Profile
from explore.validation.step_replay import CostErrors

#: A part is responsible when without its bias this share of the error is gone, or all that is outside.
MOST = 0.5
PARTS = ("steps", "copies")


@dataclass(frozen=True)
class Cause:
    """One error that is outside its bar. `without`: what it would be with the bias of that part's costs
    taken out. `responsible`: `replay`, `steps`, `copies` or `queueing`."""

    system: str
    metric: str
    error: float
    without: dict[str, float | None]
    responsible: str


def unbiased(profile: Profile, errors: Sequence[CostErrors], part: str) -> Profile:
    """The profile with the mean error of one part's times taken out."""
    biases = {one.kind: one.bias for one in errors}
    if part == "steps":
        return divided(
            profile, decode=biases.get("decode", 0.0), prefill=biases.get("prefill", 0.0)
        )
    return divided(profile, copy_piece=biases.get("copy", 0.0))


def divided(profile: Profile, **biases: float) -> Profile:
    """The profile with the times of some curves (`calibrate.profile.Corrections`) divided by 1 + bias."""
    curves = dict(profile.corrections or Corrections())
    for name, bias in biases.items():
        curves[name] = _divided(curves[name], bias)
    data = profile.as_json() | {"corrections": Corrections(**curves).model_dump(mode="json")}
    return Profile.model_validate(data, strict=False)


def _divided(curve: Curve | None, bias: float) -> Curve:
    if curve is None:
        curve = Curve(knots=(1,), factors=(ONE,))
    factors = tuple(max(1, round(factor / (1 + bias))) for factor in curve.factors)
    return Curve(knots=curve.knots, factors=factors)


def responsible(
    error: float, bar: float, without: dict[str, float | None], *, replay_is_exact: bool | None
) -> str:
    """The part to look at first."""
    if replay_is_exact is False:
        return "replay"
    known = {part: abs(value) for part, value in without.items() if value is not None}
    if known:
        part = min(known, key=lambda name: known[name])
        if known[part] <= max(bar, MOST * abs(error)) and known[part] < abs(error):
            return part
    return "queueing"
