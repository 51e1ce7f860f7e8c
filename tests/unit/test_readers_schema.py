"""The printed JSON Schema allows what reading allows, and written files keep it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fastswitch
from policy.errors import InputError
from tests.helpers.formats import VALID, aids_for
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.schema import schema

SCHEMA = schema()
KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
CHECKS: dict[str, Any] = {
    "type": lambda kind, x: isinstance(x, KINDS[kind]) and (kind == "boolean" or x is not bool(x)),
    "enum": lambda values, x: x in values,
    "minimum": lambda limit, x: x >= limit,
    "maximum": lambda limit, x: x <= limit,
    "minLength": lambda limit, x: len(x) >= limit,
    "maxLength": lambda limit, x: len(x) <= limit,
    "minItems": lambda limit, x: len(x) >= limit,
    "maxItems": lambda limit, x: len(x) <= limit,
    "pattern": lambda pattern, x: re.search(pattern, x) is not None,
    "required": lambda names, x: set(names) <= set(x),
    "anyOf": lambda kinds, x: any(fits(kind, x) for kind in kinds),
    "$ref": lambda ref, x: fits(SCHEMA["$defs"][ref.rpartition("/")[2]], x),
    "items": lambda kind, x: all(fits(kind, item) for item in x),
    "prefixItems": lambda kinds, x: all(map(fits, kinds, x)),
    "properties": lambda kinds, x: all(fits(kinds[k], v) for k, v in x.items() if k in kinds),
}


def fits(kind: dict[str, Any], value: Any) -> bool:
    """Whether a value keeps a schema; only the words that ours uses, any other fails the test."""
    for word, wanted in kind.items():
        if word == "additionalProperties":
            if set(value) - set(kind["properties"]):
                return False
        elif word not in ("$schema", "title", "$defs") and not CHECKS[word](wanted, value):
            return False
    return True


@pytest.mark.parametrize("name", VALID)
def test_what_is_written_of_any_format_keeps_the_schema(tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "source", tmp_path / "w.jsonl"
    source.write_text(VALID[name])
    write(read_workload(source, name, aids_for(name)), out)
    header, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert fits(SCHEMA["$defs"]["header"], header) and fits(SCHEMA, header)
    assert rows and all(fits(SCHEMA["$defs"]["row"], row) and fits(SCHEMA, row) for row in rows)


ROW: dict[str, Any] = {"request_id": "a", "input_tokens": 5, "output_tokens": 6}
BROKEN: list[dict[str, Any]] = [
    {"request_id": ""},
    {"request_id": "x" * 129},
    {"request_id": 5},
    {"input_tokens": -1},
    {"input_tokens": "5"},
    {"input_tokens": True},
    {"input_tokens": 1 << 25},
    {"turn": 0},
    {"arrival_s": -0.5},
    {"arrival_s": "1"},
    {"service_s": 1e300},
    {"priority": 0.5},
    {"priority": 1 << 40},
    {"hash_ids": [-1]},
    {"hash_ids": "1--2"},
    {"hash_ids": ""},
    {"components": [["user", "c"]]},
    {"components": [["user", "c", -1]]},
    {"components": [["user", "c", 1, 2]]},
    {"client_id": ""},
    {"surprise": 1},
]


@pytest.mark.parametrize("values", BROKEN, ids=str)
def test_a_row_that_the_schema_refuses_is_refused_by_reading(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    assert fits(SCHEMA, ROW)
    row = {**ROW, **values}
    assert not fits(SCHEMA, row)
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError):
        list(read_workload(path, "native"))


@pytest.mark.parametrize(
    "values",
    [
        {"timing": "sometimes"},
        {"seed": -1},
        {"block_size": 0},
        {"lost": "all"},
        {"format": "fastswitch-workload/4"},
        {"may_lack_last_block": 1},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_header_that_the_schema_refuses_is_refused_by_reading(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    header = {"format": "fastswitch-workload/2", **values}
    assert not fits(SCHEMA, header)
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError):
        read_workload(path, "native")


def test_the_command_prints_it() -> None:
    found = CliRunner().invoke(fastswitch.main, ["trace", "schema"])
    assert found.exit_code == 0
    assert json.loads(found.stdout) == SCHEMA
