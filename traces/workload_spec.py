"""The `workload` section of a scenario: a file, or a generator and what it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from policy.errors import ConfigError, did_you_mean
from traces.generators.arrivals import MAX_CV, MIN_CV
from traces.generators.laws import Values
from traces.readers.base import Aids
from traces.strict import MAX_BLOCK_SIZE, MAX_SECONDS, quoted, shown
from traces.workload import MAX_TOKENS

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
#: Per second. Beyond these, times are beyond all clocks.
Rate = Annotated[float, Field(ge=1e-9, le=1e9)]
Tokens = Annotated[int, Field(ge=0, lt=MAX_TOKENS)]
#: Most sessions of a generated workload.
MAX_CONVERSATIONS = 100_000_000

ThinkLaw = Literal["human", "agent", "exponential", "none"]
#: Of the section, what a file in place of a generator leaves as it was, and a generator of a file's.
OF_EITHER = frozenset({"concurrency", "priority", "priority_process"})
#: Generators that are there without a file.
GENERATORS = ("chat", "agent", "code")
Process = Literal["fcfs", "priority", "random", "markov", "vtc"]


class Section(BaseModel):
    """A mapping of a file: strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


#: Law of arrivals -> keys it takes beside `law`; those in capitals it cannot do without.
_KEYS: dict[str, tuple[str, ...]] = {
    "poisson": (),
    "gamma": ("CV",),
    "weibull": ("CV",),
    "modulated": ("swing", "memory_s"),
    "clients": ("clients", "skew", "client_law", "cv_log_mean", "cv_log_deviation"),
    "fitted": ("OF_RATE", "GAPS"),
}


class ArrivalSpec(Section):
    """When sessions begin; the rate stands beside it. See `traces.generators.arrivals`."""

    law: Literal["poisson", "gamma", "weibull", "modulated", "clients", "fitted"] = "poisson"
    cv: Annotated[float, Field(ge=MIN_CV, le=MAX_CV)] | None = None
    swing: Annotated[float, Field(ge=0.01, le=10)] | None = None
    memory_s: Annotated[float, Field(ge=1e-3, le=1e7)] | None = None
    clients: Annotated[int, Field(ge=1, le=100_000)] | None = None
    skew: Annotated[float, Field(ge=0, le=5)] | None = None
    client_law: Literal["gamma", "weibull"] | None = None
    cv_log_mean: Annotated[float, Field(ge=-4, le=4)] | None = None
    cv_log_deviation: Annotated[float, Field(ge=0, le=4)] | None = None
    of_rate: Rate | None = None
    gaps: Values | None = None

    @model_validator(mode="after")
    def _keys_are_the_laws(self) -> ArrivalSpec:
        takes = [key.lower() for key in _KEYS[self.law]]
        given = [key for key, value in self if key != "law" and value is not None]
        for key in given:
            if key not in takes:
                known = f"takes {', '.join(takes)}" if takes else "takes nothing else"
                raise ValueError(f"{key}: law {self.law} {known}")
        for key in _KEYS[self.law]:
            if key.isupper() and key.lower() not in given:
                raise ValueError(f"{key.lower()}: law {self.law} needs it")
        return self


class PriorityShares(Section):
    """Static priorities given at generation: level 0, the most urgent, has the first share."""

    # a list is one here too: inside a scenario this is no longer JSON (`Scenario._file_alone`)
    shares: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, strict=False)
    ]
    by: Literal["session", "client"] = "session"


class WorkloadSpec(Section):
    """A file (`file`, `format`) or a generator: `chat`, `agent`, `code` or a fitted one's file.

    What a file alone does not say: `columns` (which column is what, for a file of no known format, as
    `arrival=ts:ms,input=prompt,output=reply` or a mapping), `turns` (whether later prompts count only
    what is new), `block_size` (tokens of a block of its ids), `companions` (the publisher's files
    beside it).

    For a file, `rate`, `arrivals` and `think` fill in session arrivals and think times that it
    lacks, and `priority` gives priorities. `priority_process` names the order that the workload is
    meant for. `concurrency`: most turns in flight, the others wait at the client; a file's sessions that
    have no arrival then begin as places get free, and need no `rate`. `users`: so many people, each in one
    conversation at a time, who begin the next one `think_mean_s` after its end: sessions need no `rate`. `resample`: a file's sessions
    are drawn anew for every run (`traces.shaping.resample`). `context_cap` is the generator's own when
    not given; `uncapped` takes it away.
    """

    file: str | None = None
    format: str | None = None
    columns: str | dict[str, str] | None = None
    turns: Literal["increments", "whole"] | None = None
    block_size: Annotated[int, Field(ge=1, le=MAX_BLOCK_SIZE)] | None = None
    companions: Annotated[tuple[str, ...], Field(strict=False)] = ()
    generator: str | None = None
    conversations: Annotated[int, Field(ge=1, le=MAX_CONVERSATIONS)] | None = None
    rate: Rate | None = None
    arrivals: ArrivalSpec | None = None
    context_cap: Annotated[int, Field(ge=2)] | None = None
    uncapped: bool = False
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    users: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    think: ThinkLaw | None = None
    think_mean_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 10.0
    system_tokens: Tokens | None = None
    hash_block: Annotated[int, Field(ge=1, le=MAX_BLOCK_SIZE)] | None = None
    priority: PriorityShares | None = None
    priority_process: Process | None = None
    resample: bool = False

    @field_validator("generator")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is None or name in GENERATORS or is_generator_file(name):
            return name
        known = ", ".join(GENERATORS)
        raise ValueError(f"{shown(name)!r} is not one of {known}, and no .yaml file")

    @property
    def path(self) -> Path:
        """The file; of a recording's folder, the rows that were served."""
        path = Path(str(self.file))
        return path / "workload.parquet" if path.is_dir() else path

    def aids(self) -> Aids:
        """What the scenario says of its file that the file does not."""
        columns = self.columns
        if isinstance(columns, dict):
            columns = ",".join(f"{field}={column}" for field, column in columns.items())
        companions = tuple(Path(path) for path in self.companions)
        return Aids(None, companions, columns, self.turns, self.block_size)

    def problem(self) -> str | None:
        """What is wrong with the keys together, or None."""
        if (self.file is None) == (self.generator is None):
            return "give a file or a generator, one of the two"
        if self.users is not None:
            told = ("rate", "arrivals", "concurrency")
            given = [name for name in told if getattr(self, name) is not None]
            if given:
                return f"users begin their conversations themselves, and {given[0]} says otherwise"
        if self.file is not None:
            own = ("conversations", "context_cap", "system_tokens", "hash_block")
            given = [name for name in own if getattr(self, name) is not None]
            if given or self.uncapped:
                return f"{(given or ['uncapped'])[0]} is a generator's; a file has its own"
            if self.arrivals is not None and self.rate is None:
                return "arrivals needs rate, in sessions per second"
            return None
        if self.resample:
            return "resample draws a file's sessions anew; a generator makes new ones in every run"
        files = ("format", "columns", "turns", "block_size")
        given = [name for name in files if getattr(self, name) is not None]
        if given or self.companions:
            return f"{(given or ['companions'])[0]} is a file's; a generator needs none"
        if not is_generator_file(self.generator) and None in (
            self.conversations,
            self.users or self.rate,
        ):
            return f"generator {self.generator} needs conversations, and rate or users"
        if self.uncapped and self.context_cap is not None:
            return "give context_cap or uncapped, not both"
        return None


def first_problem(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first thing wrong, on one line: its field and its limit. `model`: what was read; a field
    that it does not have is told with its nearest name."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    told = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        *parents, last = first["loc"]
        told = "there is no such field" + did_you_mean(str(last), _fields_of(model, parents))
    elif first["type"].endswith(("_type", "_parsing")):
        told = f"{told}, not {quoted(first['input'])}"
    return (f"{shown(field)}: " if field else "") + shown(told, 300)


def _fields_of(model: type[BaseModel] | None, path: Sequence[int | str]) -> list[str]:
    """Names of fields in the section of a model at a path; none where that is not one section."""
    for name in path:
        field = None if model is None else model.model_fields.get(str(name))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        sections = [
            kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        model = sections[0] if len(sections) == 1 else None
    return [] if model is None else list(model.model_fields)


def build_spec(values: Mapping[str, Any]) -> WorkloadSpec:
    """A workload from what a command line gave; None: not given. Raises ConfigError."""
    given = {key: value for key, value in values.items() if value is not None}
    try:
        spec = WorkloadSpec.model_validate_json(json.dumps(given))
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
    problem = spec.problem()
    if problem is not None:
        raise ConfigError(problem)
    return spec


def parse_law(text: str) -> dict[str, Any]:
    """`gamma,cv=3` as a mapping with `law`. Raises ConfigError."""
    law, *pairs = text.split(",")
    values: dict[str, Any] = {"law": law}
    for pair in pairs:
        key, equals, number = pair.partition("=")
        try:
            values[key] = json.loads(number)
        except ValueError:
            values[key] = number
        if not equals or not key:
            raise ConfigError(f"{shown(text, 60)!r}: must be like gamma,cv=3")
    return values


def is_generator_file(name: Any) -> bool:
    """Whether a generator's name is that of a file."""
    return isinstance(name, str) and name.endswith((".yaml", ".yml"))
