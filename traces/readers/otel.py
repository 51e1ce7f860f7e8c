"""OpenTelemetry GenAI spans as JSON: OTLP batches, flat spans, or documents that hold them in `spans`.

Source: the semantic conventions for generative client AI spans,
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans. A request is a span that says how
many tokens went in; of `gen_ai.usage.*` both the present and the former names are read. A span of
another operation (a tool, an agent, an embedding) or without token counts is left out and counted.
Turns of one `gen_ai.conversation.id` are a session. A span that ended in an error, with no output
tokens, has 0. Exporters write spans when they end, so rows are brought in order of their start.
Documents follow one another, on a line each or indented; a time without a zone is UTC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.json_list import documents
from traces.readers.base import (
    Aids,
    from_the_first,
    in_time_order,
    numbered,
    optional_text,
    session_of,
    unique,
)
from traces.strict import MAX_DIGITS, MAX_STAMP, Place, count_of, moment_of, quoted, text_of
from traces.workload import Header, Turn

#: Operations that are requests to a model that generates.
OPERATIONS = ("chat", "text_completion", "generate_content")
#: Most bytes of a line, which may hold a batch of spans, and spans held back to be put in order.
_MAX_BATCH = 1 << 24
_WINDOW = 1 << 16
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_ERROR = ("STATUS_CODE_ERROR", "ERROR", 2)


@dataclass(frozen=True)
class OtelReader:
    """Arrivals count from the first request."""

    name: str = "otel"
    left_out: Counter[str] = field(default_factory=Counter)

    def aided(self, _: Aids) -> OtelReader:
        """With a count of its own of what is left out."""
        return OtelReader()

    def claims(self, head: str) -> bool:
        """A batch of spans, or a span."""
        spans = ('"resourceSpans"', '"resource_spans"', '"spanId"', '"span_id"', '"gen_ai.')
        return head.lstrip().startswith(("{", "[")) and any(word in head for word in spans)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        self.left_out.clear()
        header = Header(
            source="OpenTelemetry GenAI spans",
            timing="open",
            lost=("the messages", "what a turn repeats of the one before it (not recorded)"),
        )
        place = Place(path)
        turns = in_time_order(unique(self._turns(place), place), place, _WINDOW)
        return header, from_the_first(numbered(turns), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        for row in documents(place.path, place, _MAX_BATCH, inside_lists=True):
            for span in _spans(row, place):
                made = _turn_of(span, place)
                if isinstance(made, Turn):
                    yield made
                else:
                    self.left_out[made] += 1


def _spans(row: dict[str, Any], place: Place) -> Iterator[dict[str, Any]]:
    """Spans of a document: those of an OTLP batch, those in `spans`, or the document itself."""
    batches = row.get("resourceSpans", row.get("resource_spans"))
    if batches is None:
        yield from _objects(row["spans"], "spans", place) if "spans" in row else [row]
        return
    for resource in _objects(batches, "resourceSpans", place):
        scopes = resource.get("scopeSpans", resource.get("scope_spans", []))
        for scope in _objects(scopes, "scopeSpans", place):
            yield from _objects(scope.get("spans", []), "spans", place)


def _objects(value: Any, name: str, place: Place) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        place.fail("not a list of objects", name)
    return value


def _turn_of(span: dict[str, Any], place: Place) -> Turn | str:
    """A request, or why the span is none."""
    attributes = _attributes(span.get("attributes", {}), place)
    operation = attributes.get("gen_ai.operation.name", "chat")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        return "span of another operation than a reply"
    given, got = (_first(attributes, names) for names in (_INPUT, _OUTPUT))
    if given is None:
        return "span without token counts"
    if got is None and not _has_failed(span):
        return "span without output tokens that did not fail"
    context = span.get("context")
    inside = context if isinstance(context, dict) else span
    name = text_of(inside.get("spanId", inside.get("span_id")), "spanId", place)
    begin = _stamp(span, ("startTimeUnixNano", "start_time_unix_nano", "start_time"), place)
    end = _stamp(span, ("endTimeUnixNano", "end_time_unix_nano", "end_time"), place)
    if end < begin:
        place.fail("before the start", "endTimeUnixNano")
    session = attributes.get("gen_ai.conversation.id")
    return Turn(
        name,
        name if session is None else session_of(session, "gen_ai.conversation.id", place),
        1,
        count_of(given, _INPUT[0], place),
        count_of(0 if got is None else got, _OUTPUT[0], place),
        arrival_ns=begin,
        service_ns=end - begin,
        model=_word(attributes, ("gen_ai.request.model", "gen_ai.response.model"), place),
        kind=operation,
        stop=_word(attributes, ("gen_ai.response.finish_reasons",), place),
    )


def _first(attributes: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def _word(attributes: dict[str, Any], names: tuple[str, ...], place: Place) -> str | None:
    """The first of these attributes; of a list, its first entry."""
    value = _first(attributes, names)
    if isinstance(value, list):
        value = value[0] if value else None
    return optional_text(value, names[0], place)


def _has_failed(span: dict[str, Any]) -> bool:
    status = span.get("status")
    if not isinstance(status, dict):
        return False
    code = status.get("code", status.get("status_code"))
    return isinstance(code, (str, int)) and code in _ERROR


def _attributes(value: Any, place: Place) -> dict[str, Any]:
    """Attributes as an object, or as OTLP's list of {key, value: {stringValue: ...}}."""
    if isinstance(value, dict):
        return value
    found = {}
    for item in _objects(value, "attributes", place):
        key = item.get("key")
        if not isinstance(key, str) or key in found:
            place.fail(f"{quoted(key)} is no key, or was given", "attributes")
        found[key] = _value(item.get("value"))
        if found[key] is None and key in (*_INPUT, *_OUTPUT):
            place.fail("a value of no kind that is known", key)
    return found


def _value(value: Any) -> Any:
    """The value in OTLP's wrapping; None for kinds that no request needs."""
    if not isinstance(value, dict):
        return None
    for kind in ("stringValue", "intValue", "doubleValue", "boolValue"):
        if kind in value:
            return value[kind]
    inner = value.get("arrayValue")
    if isinstance(inner, dict) and isinstance(inner.get("values"), list):
        return [_value(item) for item in inner["values"] if not _is_nested(item)]
    return None


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) and "arrayValue" in value


def _stamp(span: dict[str, Any], names: tuple[str, ...], place: Place) -> int:
    """Nanoseconds since 1970, from a number, its digits, or a date and time. Raises InputError."""
    name = next((name for name in names if span.get(name) is not None), None)
    if name is None:
        place.fail("missing", names[0])
    value = span[name]
    if isinstance(value, str) and not (value.isdigit() and len(value) <= MAX_DIGITS):
        return moment_of(value, name, place)
    return count_of(value, name, place, MAX_STAMP)
