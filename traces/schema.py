"""The JSON Schema of a workload file's lines, made of the limits that reading them has.

Rules between rows (`traces.rules`) cannot be said in it.
"""

from __future__ import annotations

from typing import Any

from traces.readers.rows import COUNTS, PRIORITY_LIMIT, REQUIRED, SECONDS, TEXTS
from traces.strict import MAX_BLOCK_ID, MAX_BLOCK_SIZE, MAX_DIGITS, MAX_SECONDS, MAX_STAMP
from traces.workload import FORMAT, MAX_ID, MAX_TOKENS, READABLE

_ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID}
_TOKENS = {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}
_SECONDS = {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}
_WORDS = {"type": "string"}
_LIST = {"type": "array", "items": _WORDS}
_BLOCKS = {
    "anyOf": [
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_BLOCK_ID},
        },
        {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(;[0-9]+(-[0-9]+)?)*$"},
    ]
}
_COMPONENT = {
    "type": "array",
    "prefixItems": [_ID, _ID, _TOKENS],
    "minItems": 3,
    "maxItems": 3,
}


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12: a line is the header or a row."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A line of a {FORMAT} file",
        "anyOf": [{"$ref": "#/$defs/header"}, {"$ref": "#/$defs/row"}],
        "$defs": {"header": _header(), "row": _row()},
    }


def _or_null(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


def _header() -> dict[str, Any]:
    optional: dict[str, Any] = {
        **dict.fromkeys(("source", "licence", "tokenizer", "notes", "priority_process"), _WORDS),
        "timing": {"enum": ["open", "closed", "gap"]},
        "time_resolution_s": _SECONDS,
        "block_size": {"type": "integer", "minimum": 1, "maximum": MAX_BLOCK_SIZE},
        "hash_scope": {"enum": ["global", "session"]},
        "may_lack_last_block": {"type": "boolean"},
        "composed_from": _LIST,
        "seed": {"type": "integer", "minimum": 0, "maximum": 10**MAX_DIGITS - 1},
        "lost": _LIST,
        "assumed": _LIST,
    }
    formats = [f"{FORMAT}/{version}" for version in READABLE]
    return {
        "type": "object",
        "required": ["format"],
        "additionalProperties": False,
        "properties": {
            "format": {"enum": formats},
            **{name: _or_null(kind) for name, kind in optional.items()},
        },
    }


def _row() -> dict[str, Any]:
    priority = {"type": "integer", "minimum": -PRIORITY_LIMIT, "maximum": PRIORITY_LIMIT}
    optional: dict[str, Any] = {
        "session_id": _ID,
        "turn": {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS},
        **dict.fromkeys(SECONDS, _SECONDS),
        "arrival_s": {"type": "number", "minimum": 0, "maximum": MAX_STAMP // 10**9},
        **dict.fromkeys(TEXTS, _ID),
        **dict.fromkeys(COUNTS, _TOKENS),
        "priority": priority,
        "hash_ids": _BLOCKS,
        "components": {"type": "array", "items": _COMPONENT},
    }
    return {
        "type": "object",
        "required": list(REQUIRED),
        "additionalProperties": False,
        "properties": {
            "request_id": _ID,
            "input_tokens": _TOKENS,
            "output_tokens": _TOKENS,
            **{name: _or_null(kind) for name, kind in optional.items()},
        },
    }
