"""A model's own chat format: the template that comes with it, run in jinja2's sandbox.

As transformers runs it: blocks trimmed, `raise_exception` and `tojson` given, `{% generation %}` blocks
let through. Not given is `strftime_now`: a prompt that holds today's date is another one tomorrow, and
templates that ask whether it is there have a fixed date in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from policy.errors import ConfigError
from realrun.config import gguf_path
from traces.strict import Place, parse_json, quoted, read_document, shown, shown_path

if TYPE_CHECKING:
    from gguf import GGUFReader

_MAX_BYTES = 1 << 20
#: Stands for the last reply, whose tokens are there already, so that what follows it can be found.
_REPLY = "[[the-reply]]"


class Message(NamedTuple):
    """One message of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: for training; here its content alone."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 reads it of the class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatFormat:
    """A template and the special tokens that it may name."""

    def __init__(self, template: str, special: Mapping[str, str], where: str) -> None:
        """`where`: file and field, for errors. Raises ConfigError if it is no template."""
        self._where = where
        self._special = dict(special)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            self._fail(error)

    def whole(self, messages: Sequence[Message]) -> str:
        """A conversation up to where the assistant answers. Raises ConfigError if the template refuses it."""
        return self._render(messages)

    def opening(self, text: str) -> str:
        """What is said up to where the assistant answers a first message."""
        return self._render([Message("user", text)])

    def following(self, earlier: Sequence[str], text: str) -> str:
        """What comes behind the last reply, its closing included, when the user speaks again. `earlier`:
        what the user said before. Raises ConfigError if the template leaves the reply out."""
        messages = [
            Message(role, said)
            for before in earlier
            for role, said in (("user", before), ("assistant", _REPLY))
        ]
        whole = self._render([*messages, Message("user", text)])
        _, found, rest = whole.rpartition(_REPLY)
        if not found:
            raise ConfigError(f"{self._where}: does not repeat what was answered before")
        return rest

    def _render(self, messages: Sequence[Message]) -> str:
        said = [message._asdict() for message in messages]
        try:
            return self._template.render(messages=said, add_generation_prompt=True, **self._special)
        except Exception as error:  # noqa: BLE001  # a template may fail in any way
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        raise ConfigError(f"{self._where}: {shown(str(error), 300)}") from None


def _refuse(why: object) -> NoReturn:
    raise TemplateError(str(why))


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def from_folder(folder: Path) -> ChatFormat | None:
    """Of a Hugging Face folder: chat_template.jinja, or `chat_template` of tokenizer_config.json, of which
    there may be several by name; None if there is none. Raises ConfigError, InputError."""
    path = folder / "tokenizer_config.json"
    fields: Any = {}
    if path.exists():
        place = Place(path)
        fields = parse_json(read_document(path, place, _MAX_BYTES), place)
        if not isinstance(fields, dict):
            place.fail(f"{quoted(fields)} where an object must be")
    special = {
        name: token
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (token := _text_of(fields.get(name))) is not None
    }
    own = folder / "chat_template.jinja"
    if own.exists():
        template = read_document(own, Place(own), _MAX_BYTES)
        return ChatFormat(template, special, shown_path(own))
    named = fields.get("chat_template")
    where = f"{shown_path(path)}: chat_template"
    if isinstance(named, list):
        named = next((one.get("template") for one in named if one.get("name") == "default"), None)
    if named is None:
        return None
    if not isinstance(named, str):
        raise ConfigError(f"{where}: {quoted(named)} is not text")
    return ChatFormat(named, special, where)


def _text_of(token: Any) -> str | None:
    """A special token is its text, or an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def template_of_gguf(reader: GGUFReader) -> tuple[str | None, dict[str, str]]:
    """The template in a GGUF file, None if there is none, and the special tokens it may name."""
    fields = {name: field for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    if "tokenizer.chat_template" not in fields:
        return None, {}
    tokens = fields["tokenizer.ggml.tokens"].contents()
    special = {
        name: tokens[fields[f"tokenizer.ggml.{name}_id"].contents()]
        for name in ("bos_token", "eos_token")
        if f"tokenizer.ggml.{name}_id" in fields
    }
    return fields["tokenizer.chat_template"].contents(), special


def from_gguf(reader: GGUFReader) -> ChatFormat | None:
    """The template in a GGUF file, if there is one. Raises ConfigError."""
    template, special = template_of_gguf(reader)
    if template is None:
        return None
    where = f"{shown_path(gguf_path(reader))}: tokenizer.chat_template"
    return ChatFormat(template, special, where)
