"""What code and documents point to is there: pages, anchors, decisions, traps, rules, files and names of modules."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("policy", "traces", "runs", "sim", "realrun", "calibrate", "explore", "cli", "benchmarks")
#: Pages that commands write, or that another project has.
ELSEWHERE = {"claims.md", "docs/tutorials/working-with-profile-exports.md"}
ELSEWHERE |= {"notebooks/output/NAME.md", "PAGE.md"}
#: Made up in tests.
ELSEWHERE |= {"02_x.md", "formats.md", "tests/x.py"}
PAGE = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w.-]+\.md)\b(?:#([\w.-]+))?")
CODE_FILE = re.compile(rf"(?<![\w/.-])((?:{'|'.join((*ROOMS, 'tests'))})/[\w/-]+\.py)\b")
MODULE = re.compile(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)")
RULES = re.compile(r"\b[Rr]ules? (\d+(?:(?:, | and | or |, and )\d+)*)")
TRAP = re.compile(r"docs/traps\.md,? (?:trap )?([A-Z]\d+)")
DECISION = re.compile(r"\b(?:ADR|decision) (00\d\d)\b")


@cache
def texts() -> dict[str, str]:
    """Every text file of the checkout, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    kinds = (".py", ".md", ".yaml", ".toml", ".css", ".js", "Makefile")
    paths = [ROOT / name for name in listed if name.endswith(kinds)]
    found = {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in paths
        if path.exists()
    }
    found.pop("tests/test_citations.py", None)
    return found


@cache
def anchors(path: str) -> frozenset[str]:
    """What a page can be entered by: its headings, and anchors that were put there."""
    text = texts()[path]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return frozenset([*slugs, *re.findall(r'<a id="([\w.-]+)"></a>', text)])


def missing(cited_in: str, page: str, anchor: str | None) -> str | None:
    """What is wrong with a citation: of a page beside the one it is in, or by its path in the checkout."""
    is_page = cited_in.endswith(".md")
    # a script that writes a page of results cites from there
    beside = (ROOT / cited_in).parent if is_page else ROOT / "docs/results"
    candidates = (
        [ROOT / page, beside / page] if is_page or page.startswith("../") else [ROOT / page]
    )
    for path in candidates:
        if path.exists():
            name = path.resolve().relative_to(ROOT).as_posix()
            if anchor is None or anchor in anchors(name):
                return None
            return f"{cited_in}: {page} has no {anchor}"
    return f"{cited_in}: {page} is not here"


def test_every_page_and_anchor_that_is_cited_is_there() -> None:
    wrong = [
        missing(name, page, anchor or None)
        for name, text in texts().items()
        for page, anchor in PAGE.findall(re.sub(r"https?://\S+", "", text))
        if page not in ELSEWHERE
    ]
    assert [problem for problem in wrong if problem is not None] == []


def test_a_page_or_an_anchor_that_is_not_there_is_caught() -> None:
    assert missing("policy/plan.py", "docs/glossary.md", None) is None
    assert missing("policy/plan.py", "docs/sources.md", "fastswitch") is None
    assert missing("policy/plan.py", "docs/sources.md", "nobody") is not None
    assert missing("policy/plan.py", "glossary.md", None) is not None
    assert missing("docs/traps.md", "glossary.md", None) is None


def test_traps_and_decisions_are_cited_by_ids_that_exist() -> None:
    traps = set(re.findall(r"^\| ([A-Z]\d+)", texts()["docs/traps.md"], re.MULTILINE))
    decisions = {path.name[:4] for path in (ROOT / "docs/decisions").glob("0*.md")}
    cited = [(name, trap) for name, text in texts().items() for trap in TRAP.findall(text)]
    assert [one for one in cited if one[1] not in traps] == []
    cited = [(name, number) for name, text in texts().items() for number in DECISION.findall(text)]
    assert [one for one in cited if one[1] not in decisions] == []


def test_every_file_of_ours_that_is_named_is_there() -> None:
    named = {
        (name, path)
        for name, text in texts().items()
        if not name.startswith(("docs/decisions/", "docs/results/", "notebooks/"))  # of their day
        for path in CODE_FILE.findall(text)
        if path not in ELSEWHERE
    }
    assert sorted(one for one in named if not (ROOT / one[1]).exists()) == []


def defined(tree: ast.Module) -> Iterator[str]:
    """Names of a module's top level."""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module.exists():
            rest = parts[length:]
            return not rest or rest[0] in defined(ast.parse(module.read_text("utf-8")))
    return False


def test_every_module_and_name_in_backticks_is_there() -> None:
    named = {
        (name, dotted)
        for name, text in texts().items()
        if name.endswith(".py")
        or name in ("README.md", "CONTRIBUTING.md")
        or (name.startswith("docs/") and not name.startswith(("docs/results/", "docs/decisions/")))
        for dotted in MODULE.findall(text)
        if not dotted.endswith((".py", ".md", ".json", ".jsonl", ".csv"))
    }
    assert sorted(one for one in named if not is_there(one[1])) == []


def test_rules_are_cited_by_numbers_that_stand_at_the_top_of_the_planner() -> None:
    ranked = texts()["policy/engines/ranked.py"]
    listed = {
        int(number) for number in re.findall(r"^ ?(\d+)\. ", ranked.split('"""')[1], re.MULTILINE)
    }
    assert listed == set(range(1, 14))
    cited = {
        (name, int(number))
        for name, text in texts().items()
        if name.startswith(("policy/", "runs/", "docs/")) and not name.startswith("docs/results/")
        for numbers in RULES.findall(text)
        for number in re.findall(r"\d+", numbers)
    }
    assert len(cited) > 20
    assert sorted(one for one in cited if one[1] not in listed) == []
