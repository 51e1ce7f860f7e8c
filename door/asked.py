"""What a client may ask for, field by field: strict, bounded, and nothing ignored that would matter."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from door.errors import Refused
from traces.workload import MAX_TOKENS

Text = Annotated[str, Field(max_length=1 << 24)]
Short = Annotated[str, Field(max_length=512)]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Positive = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]

#: Fields that change what is said, and that are not served: (field, values that ask for nothing).
_NOT_SERVED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("n", (1,)),
    ("best_of", (1,)),
    ("logprobs", (False,)),
    ("top_logprobs", (0,)),
    ("prompt_logprobs", ()),
    ("echo", (False,)),
    ("suffix", ("",)),
    ("tools", ([],)),
    ("tool_choice", ("none", "auto")),
    ("functions", ([],)),
    ("response_format", ({"type": "text"},)),
    ("structured_outputs", ()),
    ("logit_bias", ({},)),
    ("presence_penalty", (0,)),
    ("frequency_penalty", (0,)),
    ("repetition_penalty", (1,)),
    ("min_p", (0,)),
    ("use_beam_search", (False,)),
    ("truncate_prompt_tokens", ()),
    ("chat_template", ()),
    ("chat_template_kwargs", ({},)),
    ("continue_final_message", (False,)),
    ("add_generation_prompt", (True,)),
    ("stream_interval", (1,)),
)


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(_Asked):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generation(_Asked):
    """What both kinds of completion have."""

    model: Short | None = None
    max_tokens: Positive | None = None
    min_tokens: Count = 0
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Short | Annotated[list[Short], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool = False
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    user: Short | None = None
    priority: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0
    request_id: Short | None = None
    session_id: Short | None = None
    cache_salt: Short | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in found if one)

    @property
    def length(self) -> int | None:
        """Most tokens of the reply."""
        return self.max_tokens


class CompletionAsked(Generation):
    """`/v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    )


class Part(_Asked):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class MessageAsked(_Asked):
    """A message."""

    role: Literal["system", "user", "assistant", "developer"]
    content: Text | Annotated[list[Part], Field(max_length=1024)]

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatAsked(Generation):
    """`/v1/chat/completions`."""

    messages: Annotated[list[MessageAsked], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Positive | None = None

    @property
    def length(self) -> int | None:
        """Most tokens of the reply."""
        return self.max_completion_tokens or self.max_tokens


class TokenizeAsked(_Asked):
    """`/tokenize`."""

    model: Short | None = None
    prompt: Text | None = None
    messages: Annotated[list[MessageAsked], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeAsked(_Asked):
    """`/detokenize`."""

    model: Short | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]


A = TypeVar("A", bound=_Asked)


def read(body: bytes, kind: type[A], ignored: Counter[str]) -> A:
    """The request in a body; fields nobody knows are counted. Raises Refused naming the first field
    that is wrong or not served."""
    try:
        data = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise Refused(400, "The body is not a JSON object")
    for name, harmless in _NOT_SERVED:
        value = data.get(name)
        if value is not None and not any(value == one for one in harmless):
            raise Refused(400, f"{name} is not served here", name)
    known = {*kind.model_fields, *(name for name, _ in _NOT_SERVED)}
    try:
        found = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(400, f"{where}: {first['msg']}", where[:200]) from None
    for name in data:
        if name not in known and len(ignored) < 100:
            ignored[name[:60].encode("ascii", "replace").decode()] += 1
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")
