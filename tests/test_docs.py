"""What the documents promise: links lead somewhere, commands exist, formats are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import fastswitch
from explore.words import HEADINGS
from policy.orders.catalog import ORDERS
from policy.systems import SYSTEMS
from runs.recording import SCHEMAS
from runs.scenario import Scenario

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
PAPERED_OVER = re.compile(r"(?<![\w/])/(?:work|home|root|tmp)/")


def commands() -> list[str]:
    """Command lines in the documents' code blocks that stand for themselves."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if line.startswith("fastswitch ") and not re.search(r"[\[|A-Z]{2}|\.\.\.", line):
                    found.append(line.partition("#")[0].strip())
    return found


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command that does something, by its words."""
    if not isinstance(command, click.Group):
        return {" ".join(words): command}
    found = {}
    for name, child in command.commands.items():
        found.update(leaves(child, (*words, name)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_documents_lead_to_files(page: Path) -> None:
    text = page.read_text()
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), target
    assert not PAPERED_OVER.search(text)


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs/decisions/README.md").read_text()
    pages = sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
    assert pages
    assert [name for name in pages if f"({name})" not in listed] == []


def test_the_commands_in_the_documents_can_be_typed() -> None:
    assert commands()
    for line in commands():
        words = shlex.split(line)[1:]
        command: click.Command = fastswitch.main
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(str(command.name), words)


@pytest.mark.parametrize(("words", "command"), leaves(fastswitch.main).items())
def test_every_command_is_documented_and_its_help_has_an_example(
    words: str, command: click.Command
) -> None:
    text = (ROOT / "docs/cli.md").read_text()
    for word in words.split():
        assert re.search(rf"\b{word}\b", text)
    for option in command.params:
        if isinstance(option, click.Option) and words in ("compare", "simulate"):
            assert max(option.opts, key=len) in text
    assert f"fastswitch {words}" in str(command.help)


def test_every_table_of_a_recording_and_section_of_a_scenario_is_documented() -> None:
    text = (ROOT / "docs/formats.md").read_text()
    assert [name for name in SCHEMAS if f"`{name}.parquet`" not in text] == []
    identity = {"name", "description"}
    fields = [name for name in Scenario.model_fields if name not in identity]
    assert [name for name in fields if f"`{name}`" not in text] == []


def test_every_name_that_a_page_can_show_is_in_the_glossary() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    named = [f"`{name}`" for name in (*SYSTEMS, *ORDERS, *HEADINGS)]
    assert [name for name in named if name not in text] == []
    headings = [title for title, _, _ in HEADINGS.values()]
    assert [title for title in headings if title not in text] == []
