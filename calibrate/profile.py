"""The cost profile: a JSON file of numbers, each with unit, kind, source and range.

`published` profiles are put together from figures other people measured; what nobody has published
is an *assumption* and says so, with the range it may lie in. `measured` profiles come from this
project's own microbenchmarks. Only the standard library and pydantic are imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from calibrate.linear_cost import ONE, Corrections, Curve, StepCost
from calibrate.quantity import NonNegative, Positive, Quantity, Strict
from calibrate.token_cost import TokenCost
from calibrate.transfer_cost import TransferCost
from policy.errors import ConfigError

__all__ = [
    "ONE",
    "Corrections",
    "Curve",
    "Profile",
    "Quantity",
    "StepCost",
    "TokenCost",
    "TransferCost",
    "load",
    "names",
]

FORMAT = "fastswitch-profile/1"
PROFILES = Path(__file__).parent / "profiles"


class Model(Strict):
    """The shape that decides KV bytes. `kv_heads * head_dim * dtype_bytes` per token and side."""

    name: str
    layers: Annotated[int, Field(gt=0)]
    kv_heads: Annotated[int, Field(gt=0)]
    head_dim: Annotated[int, Field(gt=0)]
    dtype_bytes: Annotated[int, Field(gt=0)]
    weight_bytes: Annotated[int, Field(gt=0)]
    max_model_len: Annotated[int, Field(gt=0)]

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token over all layers, K and V."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


class Memory(Strict):
    """What the device has, and what the host has for KV."""

    device_bytes: Quantity
    utilisation: Quantity
    activation_bytes: Quantity
    host_kv_bytes: Quantity

    @model_validator(mode="after")
    def _is_a_share(self) -> Memory:
        if not 0 < self.utilisation.value <= 1:
            raise ValueError(
                f"utilisation: {self.utilisation.value:g} is not a share, above 0 and up to 1"
            )
        return self

    def kv_bytes(self, weight_bytes: int) -> float:
        """Of the device, for KV beside weights and activations; below 0 if not even those fit."""
        usable = self.device_bytes.value * self.utilisation.value
        return usable - weight_bytes - self.activation_bytes.value


class ValidRange(Strict):
    """Outside this the step model is an extrapolation, and a run that goes there says so."""

    max_batch: Annotated[int, Field(gt=0)]
    max_kv_tokens: Annotated[int, Field(gt=0)]
    max_prefill_tokens: Annotated[int, Field(gt=0)]


class HeldOut(Strict):
    """How far predictions were off on `points` points that the fit never saw: mean, 95th percentile
    and maximum of |predicted / measured - 1|. `covered`: the share of these points that lay in their
    95 % prediction interval."""

    points: Annotated[int, Field(ge=0)]
    mean: NonNegative
    p95: NonNegative
    max: NonNegative
    covered: Annotated[float, Field(ge=0, le=1)]


class Dropped(Strict):
    """A point that was measured and not used."""

    point: str
    reason: str


class Fit(Strict):
    """How a measured profile came out of its points. `terms`: those that earned their place.
    `problems`: what else a reader should know, in words."""

    seed: int
    draws: Annotated[int, Field(ge=0)]
    points: Annotated[int, Field(gt=0)]
    steps: HeldOut
    copies: HeldOut
    terms: tuple[str, ...]
    dropped: tuple[Dropped, ...] = ()
    problems: tuple[str, ...] = ()


class MeasuredPoint(Strict):
    """What was timed, trimmed mean and quartiles of its `samples` repeats, and what the fit says, with its
    95 % prediction interval, where it says something. All times in nanoseconds."""

    kind: str
    features: dict[str, int | str]
    samples: Annotated[int, Field(gt=0)]
    centre_ns: Positive
    quartiles_ns: tuple[Positive, Positive]
    predicted_ns: NonNegative | None = None
    interval_ns: tuple[NonNegative, NonNegative] | None = None
    held_out: bool = False


#: A profile that is further off than this at P95 says so whenever it is used.
WORST_P95 = 0.10
#: Parts that profiles may lack; one without them has the hash it always had.
_OPTIONAL = ("corrections", "fit", "points", "provenance", "origin", "shares")
_PYTHON = ("python_per_job", "python_per_piece")


class KindError(Strict):
    """How far steps of one kind are off, by the rule named: mean and P95 of |predicted / measured - 1|."""

    kind: Literal["decode", "prefill", "mixed", "all"]
    mean: NonNegative
    p95: NonNegative


class Origin(Strict):
    """Where a profile that nobody here measured comes from. `rebuild`: the command that makes it again.
    `assumed`: what its tables lack, in words. `errors`: of steps, judged as `judged` says."""

    source: str
    licence: str
    rebuild: str
    assumed: tuple[str, ...] = ()
    judged: str
    errors: tuple[KindError, ...]


def _form(step: Any) -> str:
    has_form = isinstance(step, TokenCost) or (isinstance(step, dict) and "form" in step)
    return "tokens" if has_form else "linear"


AnyStepCost = Annotated[
    Annotated[StepCost, Tag("linear")] | Annotated[TokenCost, Tag("tokens")], Discriminator(_form)
]


class Share(Strict):
    """What differs where several GPUs share a model: each holds its part of weights and KV."""

    model: Model
    step: AnyStepCost
    valid: ValidRange
    assumed: tuple[str, ...] = ()


class Profile(Strict):
    """One machine with one model. `corrections`, `fit`, `points` and `provenance` are of measured profiles:
    what formulas leave over, how the fit went, what it was made from, and versions, clocks, driver and link
    in free words. `origin`: of the others. `shares`: by number of GPUs, `load("NAME@tp2")`."""

    format: Literal["fastswitch-profile/1"]
    name: str
    kind: Literal["published", "measured", "derived"]
    machine: str
    date: str
    notes: str = ""
    model: Model
    memory: Memory
    step: AnyStepCost
    transfer: TransferCost
    valid: ValidRange
    corrections: Corrections | None = None
    fit: Fit | None = None
    points: tuple[MeasuredPoint, ...] | None = None
    provenance: dict[str, str] | None = None
    origin: Origin | None = None
    shares: dict[Annotated[str, Field(pattern="^[1-9][0-9]?$")], Share] | None = None

    def as_json(self) -> dict[str, Any]:
        """What its file holds: parts that it lacks are not named."""
        data = self.model_dump(mode="json")
        for name in _OPTIONAL:
            if data[name] is None:
                del data[name]
        for part in (data, *(data.get("shares") or {}).values()):
            step = part["step"]
            part["step"] = {name: value for name, value in step.items() if value is not None}
        transfer = data["transfer"]
        data["transfer"] = {name: value for name, value in transfer.items() if value is not None}
        return data

    def share(self, gpus: int) -> Profile:
        """That of each of so many GPUs. Raises ConfigError naming those there are."""
        found = (self.shares or {}).get(str(gpus))
        if found is None:
            known = ", ".join(f"@tp{gpus}" for gpus in self.shares or {}) or "none"
            raise ConfigError(f"profile {self.name}: no @tp{gpus}; it has {known}")
        origin = self.origin
        if origin is not None:
            origin = origin.model_copy(update={"assumed": (*origin.assumed, *found.assumed)})
        return self.model_copy(
            update={
                "name": f"{self.name}@tp{gpus}",
                "model": found.model,
                "step": found.step,
                "valid": found.valid,
                "origin": origin,
                "shares": None,
            }
        )

    def with_python(self) -> Profile:
        """With what our own executor's Python adds to a copy job put on top of what the driver takes: for
        runs of that executor. Systems are compared without it."""
        transfer = self.transfer
        if transfer.python_per_job is None or transfer.python_per_piece is None:
            return self
        data = self.as_json()
        for name, added in (
            ("per_job", transfer.python_per_job),
            ("per_call", transfer.python_per_piece),
            ("per_descriptor", transfer.python_per_piece),
        ):
            data["transfer"][name] = getattr(transfer, name).plus(added).model_dump(mode="json")
        for name in _PYTHON:
            del data["transfer"][name]
        return Profile.model_validate(data, strict=False)

    @cached_property
    def hash(self) -> str:
        """Identity of the numbers, for provenance."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one block over all layers."""
        return self.model.token_bytes * block_size

    def device_blocks(self, block_size: int) -> int:
        """KV blocks that fit beside weights and activations, as vLLM 0.3.3 counts them."""
        room = self.memory.kv_bytes(self.model.weight_bytes)
        return max(0, int(room // self.block_bytes(block_size)))

    def host_blocks(self, block_size: int) -> int:
        """KV blocks of the host pool."""
        return int(self.memory.host_kv_bytes.value // self.block_bytes(block_size))

    def warnings(self) -> list[str]:
        """What whoever uses it should be told: where it predicts its own held-out points badly."""
        if self.origin is not None and self.kind == "derived":
            errors = ", ".join(f"{one.kind} {100 * one.p95:.3g} %" for one in self.origin.errors)
            return [
                f"profile {self.name}: derived, nobody measured this machine with this model; steps may be"
                f" off at P95 by {errors} ({self.origin.judged})"
            ]
        if self.fit is None:
            return []
        return [
            f"profile {self.name}: {what} of its own calibration are predicted with an error of"
            f" {100 * errors.p95:.3g} % at P95, more than {100 * WORST_P95:g} %"
            for what, errors in (("steps", self.fit.steps), ("copies", self.fit.copies))
            if errors.p95 > WORST_P95
        ]

    def assumptions(self) -> dict[str, Quantity]:
        """Every number nobody has published, by name."""
        found = {}
        for section in ("memory", "step", "transfer"):
            for name, quantity in getattr(self, section):
                if isinstance(quantity, Quantity) and quantity.kind == "assumed":
                    found[f"{section}.{name}"] = quantity
        return found

    def with_values(self, values: dict[str, float]) -> Profile:
        """A copy with some numbers replaced, `transfer.per_call` style; their kind is `assumed`.

        Raises ConfigError for a name that is not a number of the profile.
        """
        data = self.as_json()
        for path, value in values.items():
            section, _, name = path.partition(".")
            known = data[section] if section in ("memory", "step", "transfer") else {}
            if not isinstance(known.get(name), dict):
                raise ConfigError(f"profile_values.{path}: no such number in a profile")
            if not 0 <= value < math.inf:
                raise ConfigError(f"profile_values.{path}: {value!r} is not a number >= 0")
            entry = data[section][name]
            entry.update(value=float(value), kind="assumed", source="set by the scenario")
            for end, widen in (("low", min), ("high", max)):
                edge = entry[end]
                entry[end] = float(value) if edge is None else widen(float(value), edge)
        try:
            return Profile.model_validate_json(json.dumps(data))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"][:1])
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"profile_values.{where}.{problem}") from None

    def ranged(self) -> dict[str, Quantity]:
        """Numbers of steps and copies that may be others, by name."""
        return {
            f"{section}.{name}": quantity
            for section in ("step", "transfer")
            for name, quantity in getattr(self, section)
            if isinstance(quantity, Quantity)
            and quantity.low is not None
            and quantity.high is not None
            and quantity.low < quantity.high
        }

    def drawn(self, draw: int) -> Profile:
        """A machine that this one may be as well: every number that has a range somewhere in it, evenly
        by its logarithm where it is above 0. The same draw moves every machine alike, so that systems
        are compared on the same ones. Draw 0 is the profile itself."""
        if not draw:
            return self
        moved = {name: _within(one, f"{draw} {name}") for name, one in self.ranged().items()}
        return self.with_values(moved).model_copy(update={"name": f"{self.name} draw {draw}"})


def _within(quantity: Quantity, key: str) -> float:
    low, high = quantity.low or 0.0, quantity.high or 0.0
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / (1 << 48)
    return float(low * (high / low) ** share if low > 0 else low + (high - low) * share)


def names() -> list[str]:
    """Profiles that ship."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def load(name_or_path: str) -> Profile:
    """A profile that ships, by name, or a file; `@tp2` behind either is its share on each of two GPUs.
    Raises ConfigError naming file and field."""
    base, _, gpus = name_or_path.rpartition("@tp")
    if base and gpus.isdecimal():
        return _read(base).share(int(gpus))
    return _read(name_or_path)


def _read(name_or_path: str) -> Profile:
    path = PROFILES / f"{name_or_path}.json"
    if not path.exists():
        path = Path(name_or_path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"profile: {name_or_path!r} is neither a file that can be read ({error.strerror})"
            f" nor one of {', '.join(names())}"
        ) from None
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = list(first["loc"])
        if where[:1] == ["step"]:
            del where[1:2]  # which of the two forms: nothing that the file says
        field = ".".join(map(str, where))
        raise ConfigError(f"{path}: {field}: {first['msg']}") from None
