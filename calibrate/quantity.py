"""A number of a profile with unit, kind, source and range. Standard library and pydantic only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A mapping of a profile: strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Quantity(Strict):
    """One number. `low` and `high`: the range it may lie in where it is not measured here."""

    value: NonNegative
    unit: str
    kind: Literal["measured", "published", "derived", "assumed"]
    source: str = Field(min_length=1)
    low: NonNegative | None = None
    high: NonNegative | None = None

    @model_validator(mode="after")
    def _range_holds_value(self) -> Quantity:
        if self.kind == "assumed" and (self.low is None or self.high is None):
            raise ValueError("an assumed number needs its range (low, high)")
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if not low <= self.value <= high:
            raise ValueError(f"{self.value} is outside its range {low} to {high}")
        return self

    def plus(self, other: Quantity) -> Quantity:
        """Both together; ranges add up."""
        low = (self.value if self.low is None else self.low) + (other.low or 0.0)
        high = (self.value if self.high is None else self.high) + (other.high or other.value)
        value = self.value + other.value
        return self.model_copy(
            update={
                "value": value,
                "low": min(low, value),
                "high": max(high, value),
                "source": f"{self.source}, and {other.value:.6g} {other.unit}: {other.source}",
            }
        )
