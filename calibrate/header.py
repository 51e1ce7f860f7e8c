"""What the first line of a points file says about the machine, the model and the pools."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calibrate.points import Points
from calibrate.profile import Model
from policy.errors import InputError

_Count = Annotated[int, Field(gt=0)]


class Pools(BaseModel):
    """KV blocks that the real machine held beside this model. Taken from a run that allocated them,
    never from a share of the memory: a capacity a third off moves TTFT by a fifth."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    block_size: _Count
    device_blocks: _Count
    host_blocks: _Count


class Header(BaseModel):
    """What a fit needs to know. Other keys may stand beside these. `model`: as in a profile.
    `date`: of the measurement, YYYY-MM-DD. `provenance`: versions, clocks, driver, link."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    machine: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    model: Model
    device: str
    dtype: str
    pools: Pools
    provenance: dict[str, str] = {}


def header_of(points: Points) -> Header:
    """The header, checked. Raises InputError naming the field."""
    try:
        return Header.model_validate(points.header)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"header of the points: {field}: {first['msg']}") from None
