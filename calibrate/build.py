"""A measured profile: what was fitted, what the header says, and what nobody measured, marked so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibrate.fit import DRAWS, Estimate, Fitted, Part, fit
from calibrate.header import Header, header_of
from calibrate.inference import centre, interval
from calibrate.models import CopyModel, StepModel, further_name
from calibrate.nnls import Floats
from calibrate.points import Point, Points, read
from calibrate.profile import (
    ONE,
    Corrections,
    Curve,
    Fit,
    MeasuredPoint,
    Memory,
    Profile,
    Quantity,
    StepCost,
    TransferCost,
    ValidRange,
)
from policy.systems import named_system
from traces.atomic import whole

#: Faster than any link: where moving bytes costs nothing that could be measured.
_NO_COST = 1e-6  # ns per byte


def refit(path: Path, *, name: str, seed: int = 0, draws: int = DRAWS) -> Profile:
    """The profile of a points file, without the machine. The same file gives the same profile.

    Raises InputError if the file has no header of ours or too few points.
    """
    return build(read(path), name=name, seed=seed, draws=draws)


def build(points: Points, *, name: str, seed: int = 0, draws: int = DRAWS) -> Profile:
    """Fit the points and put the profile together. Raises InputError as `calibrate.fit.fit`."""
    header = header_of(points)
    fitted = fit(points, seed=seed, draws=draws)
    terms = fitted.steps.result.terms | fitted.copies.result.terms
    return Profile(
        format="fastswitch-profile/1",
        name=name,
        kind="measured",
        machine=header.machine,
        date=header.date,
        model=header.model,
        memory=_memory(header),
        step=_step(fitted),
        transfer=_transfer(fitted),
        valid=_valid(fitted),
        corrections=_corrections(fitted),
        fit=Fit(
            seed=seed,
            draws=draws,
            points=len(fitted.steps.points) + len(fitted.copies.points),
            steps=fitted.steps.errors(),
            copies=fitted.copies.errors(),
            terms=tuple(sorted(terms)),
            dropped=fitted.dropped,
            problems=fitted.problems,
        ),
        points=tuple(_measured(fitted.steps) + _measured(fitted.copies)),
        provenance={**header.provenance, "device": header.device, "dtype": header.dtype},
    )


def save(profile: Profile, path: Path) -> None:
    """Write its file, whole or not at all. Raises ConfigError if it cannot be written."""
    with whole(path) as part:
        part.write_text(_text(profile) + "\n", encoding="utf-8")


def _text(profile: Profile) -> str:
    """Indented, but a list of numbers or a number with its source takes one line."""
    text = json.dumps(profile.as_json(), indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)


def summary(profile: Profile) -> list[str]:
    """What came out, in lines: numbers with intervals, errors, what was left out, warnings."""
    found = []
    for section in (profile.step, profile.transfer):
        for field, quantity in section:
            if quantity is not None and quantity.kind == "measured":
                found.append(
                    f"{field:22} {quantity.value:12.5g} {quantity.unit:9}"
                    f" 95 %: {quantity.low:.4g} to {quantity.high:.4g}"
                )
    for name, curve in profile.corrections or ():
        if curve is not None:
            ends = (min(curve.factors) / ONE, max(curve.factors) / ONE)
            found.append(f"corrected by a curve: {name}, factors {ends[0]:.3g} to {ends[1]:.3g}")
    if profile.fit is not None:
        for what, errors in (("steps", profile.fit.steps), ("copies", profile.fit.copies)):
            found.append(
                f"{what}: error on {errors.points} held-out points: mean {100 * errors.mean:.1f} %,"
                f" P95 {100 * errors.p95:.1f} %, max {100 * errors.max:.1f} %;"
                f" {100 * errors.covered:.0f} % inside their 95 % interval"
            )
        found += [f"left out: {one.point}: {one.reason}" for one in profile.fit.dropped]
        found += profile.fit.problems
    return found + [f"WARNING: {warning}" for warning in profile.warnings()]


# ---------------------------------------------------------------------- numbers


def _memory(header: Header) -> Memory:
    """Such that `Profile.device_blocks` counts the run's own blocks, to the block."""
    pools = header.pools
    block = header.model.token_bytes * pools.block_size
    counted = f"blocks of {pools.block_size} tokens that the real machine held"

    def known(value: float, unit: str, source: str) -> Quantity:
        return Quantity(value=value, unit=unit, kind="derived", source=source)

    return Memory(
        device_bytes=known(
            float(header.model.weight_bytes + pools.device_blocks * block),
            "bytes",
            f"weights and {pools.device_blocks} {counted}",
        ),
        utilisation=known(1.0, "share", "the blocks were counted, not worked out from the memory"),
        activation_bytes=known(0.0, "bytes", "the blocks were counted beside them"),
        host_kv_bytes=known(
            float(pools.host_blocks * block), "bytes", f"{pools.host_blocks} {counted}"
        ),
    )


def _step(fitted: Fitted) -> StepCost:
    steps = fitted.steps
    added = {"base": 0, "per_sequence": 1} if fitted.overhead is not None else {}

    def quantity(name: str) -> Quantity:
        value, draws = steps.coefficient(name), steps.draws(name)
        source = _source(steps, name)
        if fitted.overhead is not None and name in added:
            extra, extra_draws = fitted.overhead
            own = value
            value, draws = value + float(extra[added[name]]), draws + extra_draws[:, added[name]]
            source = f"{source}: {own:.6g} ns, and the engine's overhead around it"
        return _measured_quantity(value, draws, "ns", source)

    def optional(name: str) -> Quantity | None:
        return quantity(name) if steps.coefficient(name) > 0 else None

    return StepCost(
        base=quantity("base"),
        per_kv_token=quantity("per_kv_token"),
        per_sequence=quantity("per_sequence"),
        per_sequence_beyond=quantity("per_sequence_beyond"),
        per_prefill_token=quantity("per_prefill_token"),
        per_prefill_square=quantity("per_prefill_square"),
        per_uneven_token=optional("per_uneven_token"),
        per_further_prompt=optional(further_name(_dearest(steps))) if _knots(steps) else None,
    )


def _knots(steps: Part) -> tuple[int, ...]:
    assert isinstance(steps.model, StepModel)
    return steps.model.knots


def _dearest(steps: Part) -> int:
    """The number of prompts at which one more costs most."""
    return max(_knots(steps), key=lambda knot: steps.coefficient(further_name(knot)))


def _corrections(fitted: Fitted) -> Corrections | None:
    curves = {**fitted.steps.result.curves, **fitted.copies.result.curves}
    further = _further_prompts(fitted.steps)
    if further is not None:
        curves["further_prompts"] = further
    return Corrections(**curves) if curves else None


def _further_prompts(steps: Part) -> Curve | None:
    """What a further prompt costs by their number, against where it costs most."""
    costs = [steps.coefficient(further_name(knot)) for knot in _knots(steps)]
    if len(costs) < 2 or not any(costs):
        return None
    factors = tuple(max(1, round(ONE * cost / max(costs))) for cost in costs)
    return Curve(knots=_knots(steps), factors=factors)


def _transfer(fitted: Fitted) -> TransferCost:
    copies = fitted.copies
    python = {} if fitted.python is None else {"per_job": 0, "per_call": 1, "per_descriptor": 1}

    def host(name: str) -> Quantity:
        """The driver's share: what our Python adds is kept apart."""
        value, draws = copies.coefficient(name), copies.draws(name)
        if fitted.python is not None and name in python:
            value = max(0.0, value - float(fitted.python[0][python[name]]))
            draws = np.maximum(0.0, draws - fitted.python[1][:, python[name]])
        return _measured_quantity(value, draws, "ns", _source(copies, name))

    def ours(at: int) -> Quantity | None:
        if fitted.python is None:
            return None
        value, draws = fitted.python
        source = "our Python around the driver's calls"
        return _measured_quantity(float(value[at]), draws[:, at], "ns", source)

    fastest = max(_bandwidth(copies.coefficient(f"per_byte_{way}")) for way in ("h2d", "d2h"))
    return TransferCost(
        per_job=host("per_job"),
        per_call=_per_call(copies, host),
        per_descriptor=_per_descriptor(copies, host),
        lock_growth=_assumed(0.5, 0.0, 1.0, "share per thread"),
        queue_depth=_assumed(1000.0, 100.0, 10000.0, "calls"),
        piece_setup=host("piece_setup"),
        to_device=_rate(copies, "h2d"),
        to_host=_rate(copies, "d2h"),
        to_device_duplex=_duplex(copies, "h2d"),
        to_host_duplex=_duplex(copies, "d2h"),
        gather_launch=_assumed(10000.0, 1000.0, 100000.0, "ns"),
        gather_bandwidth=_assumed(10 * fastest, fastest, 100 * fastest, "bytes/s"),
        interference_to_device=_slower(fitted.interference.get("h2d")),
        interference_to_host=_slower(fitted.interference.get("d2h")),
        python_per_job=ours(0),
        python_per_piece=ours(1),
    )


def _per_call(copies: Part, host: Callable[[str], Quantity]) -> Quantity:
    return _hidden(copies, host("per_call"), "calls")


def _hidden(copies: Part, found: Quantity, what: str) -> Quantity:
    """Where every job waits for its bytes and none for its calls or descriptors, one may cost anything
    up to what its piece takes on the link."""
    assert isinstance(copies.model, CopyModel)
    told = any(point.kind == "submit" for point in copies.points)
    bound = copies.model.bound_by_calls(copies.result.coefficients)
    is_batched = [
        named_system(point["system"]).transport.submission == "batched" for point in copies.points
    ]
    if told or any(
        waits and batched == (what == "descriptors")
        for waits, batched in zip(bound, is_batched, strict=True)
    ):
        return found
    return Quantity(
        value=found.value,
        unit="ns",
        kind="measured",
        source=f"no job waited for its {what}: at most piece_setup",
        low=0.0,
        high=max(found.high or 0.0, copies.coefficient("piece_setup")),
    )


def _per_descriptor(copies: Part, host: Callable[[str], Quantity]) -> Quantity:
    if any(
        named_system(point["system"]).transport.submission == "batched" for point in copies.points
    ):
        return _hidden(copies, host("per_descriptor"), "descriptors")
    return _assumed(500.0, 50.0, 5000.0, "ns")


def _rate(copies: Part, way: str) -> Quantity:
    name = f"per_byte_{way}"
    rate = _bandwidth(copies.coefficient(name))
    low, high = interval(copies.draws(name), rate, _bandwidth)
    return Quantity(
        value=rate,
        unit="bytes/s",
        kind="measured",
        source=_source(copies, name),
        low=low,
        high=high,
    )


def _duplex(copies: Part, way: str) -> Quantity:
    """While both directions are busy."""
    rate = _bandwidth(copies.coefficient(f"per_byte_{way}"))
    if not any(point["duplex"] and point["way"] == way for point in copies.points):
        return _assumed(rate, rate / 4, rate, "bytes/s")
    stretch = f"stretch_{way}"
    value = rate / copies.coefficient(stretch)
    per_byte = np.maximum(copies.draws(f"per_byte_{way}"), _NO_COST)
    draws = 1e9 / (per_byte * np.maximum(copies.draws(stretch), 1.0))
    return _measured_quantity(value, draws, "bytes/s", _source(copies, stretch))


def _slower(found: Estimate | None) -> Quantity:
    if found is None:
        return _assumed(0.0, 0.0, 0.5, "share")
    return Quantity(
        value=found.value,
        unit="share",
        kind="measured",
        source=f"decode steps beside copies over the same steps alone, {found.points} points",
        low=found.low,
        high=found.high,
    )


def _bandwidth(per_byte_ns: float) -> float:
    return 1e9 / max(per_byte_ns, _NO_COST)


def _measured_quantity(value: float, draws: Floats, unit: str, source: str) -> Quantity:
    low, high = interval(draws, value)
    return Quantity(value=value, unit=unit, kind="measured", source=source, low=low, high=high)


def _assumed(value: float, low: float, high: float, unit: str) -> Quantity:
    source = "not measured by this calibration"
    return Quantity(value=value, unit=unit, kind="assumed", source=source, low=low, high=high)


def _source(part: Part, name: str) -> str:
    if name not in part.result.terms:
        trained = int((~part.result.held_out).sum())
        return f"left out: does not lower the cross-validated error of {trained} points"
    return f"relative least squares on {len(part.points)} points"


# ---------------------------------------------------------------------- points


def _valid(fitted: Fitted) -> ValidRange:
    """As far as there are points."""
    decodes = [point for point in fitted.steps.points if point.kind == "decode"]
    prefills = [point for point in fitted.steps.points if point.kind == "prefill"]
    return ValidRange(
        max_batch=max(point["batch"] for point in decodes),
        max_kv_tokens=max(point["kv_tokens"] for point in decodes),
        max_prefill_tokens=max(point["tokens"] for point in prefills),
    )


def _measured(part: Part) -> list[MeasuredPoint]:
    result = part.result
    return [
        _point(
            point,
            values,
            float(result.predicted[i]),
            (float(result.low[i]), float(result.high[i])),
            held_out=bool(result.held_out[i]),
        )
        for i, (point, values) in enumerate(zip(part.points, part.samples, strict=True))
    ]


def _point(
    point: Point, values: Floats, predicted: float, ends: tuple[float, float], *, held_out: bool
) -> MeasuredPoint:
    row = point.as_json()
    quarter, three = (float(value) for value in np.percentile(values, (25, 75)))
    return MeasuredPoint(
        kind=row.pop("kind"),
        features=row,
        samples=len(values),
        centre_ns=round(centre(values), 1),
        quartiles_ns=(quarter, three),
        predicted_ns=round(predicted, 1),
        interval_ns=(round(ends[0], 1), round(ends[1], 1)),
        held_out=held_out,
    )
