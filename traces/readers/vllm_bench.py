"""What a benchmark sent, from its result: input_lens, output_lens, start_times, ttfts, itls.

Source: `vllm bench serve --save-result --save-detailed` and the same lists of SGLang's
bench_serving: one JSON object with one entry per request in each list; times in seconds,
`start_times` by the client's own clock. Failed requests have an output of 0 and are kept.
Served lengths are replayed, not those asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.readers.base import in_time_order, optional_text, row_name
from traces.strict import (
    Place,
    json_count_of,
    json_nanoseconds_of,
    parse_json,
    quoted,
    read_document,
)
from traces.workload import Header, Turn

_LENGTHS = ("input_lens", "output_lens")


class VllmBenchReader:
    """Every request is a conversation of one turn. Without start times the scenario says when."""

    name = "vllm-bench"

    def claims(self, head: str) -> bool:
        """An object with the lists of a detailed result, or the summary of one without."""
        return head.lstrip().startswith("{") and (
            '"input_lens"' in head or ('"request_throughput"' in head and '"duration"' in head)
        )

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader. The document is read at once."""
        place = Place(path)
        found = parse_json(read_document(path, place), place, _SEVERAL)
        if not isinstance(found, dict):
            place.fail("not a JSON object")
        for key in _LENGTHS:
            if key not in found:
                place.fail("missing; save the result with --save-detailed", key)
        is_timed = "start_times" in found
        model = optional_text(found.get("model_id"), "model_id", place)
        header = Header(
            source="result of a serving benchmark",
            timing="open" if is_timed else "closed",
            lost=("the prompts", "the lengths asked for", *(() if is_timed else _UNTIMED)),
        )
        turns = _turns(found, model, place)
        return header, in_time_order(turns, place) if is_timed else turns


_SEVERAL = (
    "another result begins here, of another run: keep each in a file of its own, as with"
    " head -n 1 FILE > one.json"
)
_UNTIMED = ("when requests were sent",)


def _turns(found: dict[str, Any], model: str | None, place: Place) -> Iterator[Turn]:
    given = _list(found, "input_lens", None, place) or []
    size = len(given)
    got = _list(found, "output_lens", size, place) or []
    starts = _list(found, "start_times", size, place)
    firsts = _list(found, "ttfts", size, place)
    gaps = _list(found, "itls", size, place)
    begins: list[int] | None = None
    if starts is not None:
        begins = [_ns(value, f"start_times[{k}]", place) for k, value in enumerate(starts)]
        first = min(begins, default=0)
        begins = [begin - first for begin in begins]
    for k in range(size):
        reply = json_count_of(got[k], f"output_lens[{k}]", place)
        service = None
        if firsts is not None and gaps is not None and reply:
            service = _ns(firsts[k], f"ttfts[{k}]", place) + _total(gaps[k], f"itls[{k}]", place)
        yield Turn(
            row_name(k),
            row_name(k),
            1,
            json_count_of(given[k], f"input_lens[{k}]", place),
            reply,
            arrival_ns=None if begins is None else begins[k],
            service_ns=service,
            model=model,
        )


def _list(found: dict[str, Any], key: str, size: int | None, place: Place) -> list[Any] | None:
    """A list of that many entries, None if there is none."""
    value = found.get(key)
    if value is None and size is not None:
        return None
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", key)
    if size is not None and len(value) != size:
        place.fail(f"{len(value)} entries, input_lens has {size}", key)
    return value


def _ns(value: Any, field: str, place: Place) -> int:
    return json_nanoseconds_of(value, field, place)


def _total(value: Any, field: str, place: Place) -> int:
    """The sum of a request's gaps. Raises InputError."""
    if not isinstance(value, list):
        place.fail(f"{quoted(value)} is not a list", field)
    total = sum(_ns(gap, field, place) for gap in value)
    return json_nanoseconds_of(total, field, place, 1)
