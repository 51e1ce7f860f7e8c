"""Machines a plan chooses among: GPU and model, as shipped profiles know them, or why they do not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from calibrate import profile as profiles
from calibrate.profile import Profile
from policy.errors import ConfigError
from traces.strict import quoted

_SHARE = re.compile(r", one of (\d+) shares$")


@dataclass(frozen=True)
class Candidate:
    """`profile`: what `Scenario.profile` is called; None: not known, `because`. `gpus`: of one replica.
    `price`: of one GPU for an hour, in whatever currency, None if none was given."""

    name: str
    profile: str | None
    gpus: int
    price: float | None
    because: str = ""
    assumed: tuple[str, ...] = ()


def candidates(
    machines: tuple[str, ...],
    gpus: tuple[str, ...],
    models: tuple[str, ...],
    prices: dict[str, float],
    context: int,
) -> list[Candidate]:
    """Every profile named, and every GPU with every model, on as few of it as hold the model and one
    context of so many tokens. Raises ConfigError for a profile or a price of nothing."""
    found = [_named(name, context) for name in machines]
    found += [_fewest(gpu, model, context) for model in models for gpu in gpus]
    if not found:
        raise ConfigError("plan: name machines, --machines A,B, or --gpus A,B with --models M,N")
    known = {*machines, *gpus}
    for name in prices:
        if name not in known:
            raise ConfigError(f"--price: {quoted(name)} is not one of {', '.join(sorted(known))}")
    return [_priced(one, prices, gpus) for one in found]


def _named(name: str, context: int) -> Candidate:
    found = profiles.load(name)
    count = gpus_of(found)
    if not _holds(found, context):
        return Candidate(name, None, count, None, _too_small(found, count, context))
    return Candidate(name, name, count, None, assumed=tuple(found.warnings()))


def _fewest(gpu: str, model: str, context: int) -> Candidate:
    base = f"{gpu}-{model}"
    if base not in profiles.names():
        return Candidate(
            base, None, 1, None, f"no profile {base} ships; fastswitch machine build may make one"
        )
    whole = profiles.load(base)
    found = whole
    for name in (base, *(f"{base}@tp{count}" for count in sorted(map(int, whole.shares or {})))):
        found = profiles.load(name)
        if _holds(found, context):
            return Candidate(name, name, gpus_of(found), None, assumed=tuple(found.warnings()))
    count = gpus_of(found)
    return Candidate(base, None, count, None, _too_small(found, count, context))


def gpus_of(profile: Profile) -> int:
    """Over how many GPUs its model is spread, as the model's name says of a share."""
    share = _SHARE.search(profile.model.name)
    return 1 if share is None else int(share[1])


def _holds(profile: Profile, context: int) -> bool:
    return profile.device_blocks(16) * 16 >= context


def _too_small(profile: Profile, gpus: int, context: int) -> str:
    room = profile.device_blocks(16) * 16
    return (
        f"{gpus} of it have room for {room:,} tokens of KV, less than a context of {context:,}, and how"
        " long a step takes on more of them nobody has measured"
    )


def _priced(one: Candidate, prices: dict[str, float], gpus: tuple[str, ...]) -> Candidate:
    by = next((gpu for gpu in gpus if one.name.startswith(f"{gpu}-")), one.name)
    price = prices.get(one.name, prices.get(by))
    return Candidate(one.name, one.profile, one.gpus, price, one.because, one.assumed)
