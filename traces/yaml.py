"""YAML without surprises: safe loader, YAML 1.2 scalars, no aliases, no duplicate keys, at most 1 MiB and 32
levels deep."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from policy.errors import ConfigError
from traces.strict import MAX_DIGITS, quoted, reason, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML without surprises: YAML 1.2 scalars, no aliases, no duplicate keys, bounded depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise _marked("aliases are not allowed", self.peek_event())  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _marked(f"nested deeper than {MAX_DEPTH}", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML's own ways to say that a value is not what its tag says it is.
            kind = node.tag.rpartition(":")[2]
            raise _marked(f"not of type {kind}: {error}", node) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _marked("a key must be a single value", key_node)
            if key in seen:
                raise _marked(f"{quoted(key)} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in _NUMBERS and len(value) > 2 * MAX_DIGITS:
            raise _marked(f"a number of {len(value)} digits, limit {2 * MAX_DIGITS}", node)
        value.encode()  # an escape can spell half a character, which is no text: ValueError
        return value


def _marked(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """An error at a node or an event."""
    return yaml.MarkedYAMLError(None, None, problem, where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would take for something else than a string."""


_SCALARS = (
    ("bool", r"^(?:true|false|True|False|TRUE|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$",
        "-+0123456789.",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ("~", "n", "N", "")),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first)
        )


def parse_yaml(text: str, where: str) -> Any:
    """A YAML document by the rules above. Raises ConfigError with file and line."""
    where = shown(where, 1000)
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{where}: larger than {MAX_BYTES} bytes")
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}:{line}: {shown(error.reason)}: U+{error.character:04X}"
        ) from None
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else loader.line + 1
        raise ConfigError(f"{where}:{line}: {shown(str(error.problem or error), 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}:{loader.line + 1}: {reason(error)}") from None
    finally:
        loader.dispose()


def dump_yaml(data: Any) -> str:
    """Plain data as a YAML document that both YAML 1.1 and 1.2 read back as it was."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False)
    return text
