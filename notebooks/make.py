"""Runs notebooks and writes what they say as Markdown: `python -m notebooks.make [NAME ...]`.

notebooks/02_what_if.py becomes notebooks/output/02_what_if.md and its figures. The first line names what
it was made from, so that a test can tell an output that no longer belongs to its source.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrate.profile import PROFILES
from explore.studies.semantics import SEMANTICS
from runs.scenario import SCENARIOS

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "output"
#: Those with committed output: what they say is the same on every machine.
NAMES = ("02_what_if", "03_fairness", "04_capacity")


def first_line(name: str) -> str:
    """What an output is made from: the notebook, every scenario and profile it names, and the
    semantics of simulations."""
    source = (HERE / f"{name}.py").read_bytes()
    content = hashlib.sha256(source + str(SEMANTICS).encode())
    texts = [source]
    for folder, suffix in ((SCENARIOS, ".yaml"), (PROFILES, ".json")):
        for path in sorted(folder.glob(f"*{suffix}")):
            if any(path.stem.encode() in text for text in texts):
                texts.append(path.read_bytes())
                content.update(texts[-1])
    return (
        f"<!-- notebooks/{name}.py {content.hexdigest()[:16]}: python -m notebooks.make {name} -->"
    )


def run(name: str) -> Any:
    """A notebook with its outputs, run from the repository's root. Raises CellExecutionError."""
    import jupytext  # noqa: PLC0415  of the extra [notebooks]
    import nbclient  # noqa: PLC0415

    book = jupytext.read(HERE / f"{name}.py")
    made_from = first_line(name)  # before it runs: somebody may go on editing
    where = {"metadata": {"path": str(HERE.parent)}}
    nbclient.NotebookClient(book, timeout=1800, resources=where).execute()
    book.metadata["made_from"] = made_from
    return book


def write(name: str, book: Any, folder: Path = OUTPUT) -> Path:
    """The Markdown and the figures of a notebook that was run, whole, in place of the last ones."""
    made = folder / f".{name}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    figures: list[Path] = []
    parts = [book.metadata["made_from"]]
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            source = cell.source.strip("\n")
            parts.append(f"```python\n{source}\n```")
            parts += _outputs(cell.outputs, made / f"{name}-", figures)
    (made / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for old in folder.glob(f"{name}-*.png"):
        old.unlink()
    for path in [*figures, made / f"{name}.md"]:
        path.replace(folder / path.name)
    made.rmdir()
    return folder / f"{name}.md"


def _outputs(outputs: list[Any], stem: Path, figures: list[Path]) -> Iterator[str]:
    """Each output in the plainest form it has."""
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            figures.append(stem.with_name(f"{stem.name}{len(figures) + 1}.png"))
            figures[-1].write_bytes(base64.b64decode(data["image/png"]))
            yield f"![figure {len(figures)}]({figures[-1].name})"
        elif "text/markdown" in data:
            yield data["text/markdown"]
        elif output.get("name") != "stderr":
            yield f"```\n{(output.get('text') or data['text/plain']).rstrip()}\n```"


def main(names: list[str]) -> None:
    """Make the outputs named, or all."""
    for name in names or NAMES:
        began, used = time.perf_counter(), os.times()
        print(write(name, run(name)).relative_to(HERE.parent), end="", flush=True)
        now = os.times()
        cpu = now.children_user + now.children_system - used.children_user - used.children_system
        print(f": {time.perf_counter() - began:.0f} s, {cpu:.0f} s of CPU")


if __name__ == "__main__":
    main(sys.argv[1:])
