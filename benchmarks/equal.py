"""Does this tree decide, record and print what an earlier commit did, to the byte?

    python benchmarks/equal.py COMMIT [--small] [--keep FOLDER]

Both trees, a copy of this one as it stands and COMMIT in a worktree of its own, are asked the same by the public
door (`equal_drive.py`): every named system and a few more combinations of switches under several orders
with four workloads, and then the commands that fit a profile, compare, sweep, search, report, export and
make workloads. Compared are

    recordings    decisions.jsonl and replay.jsonl line by line, every table by its Parquet content,
                  run.json and scenario.yaml value by value, provenance excepted
    files         text line by line, JSON value by value, Parquet by content; pages and figures as text
    stores        by the tables made from them, and by what `sweep status` prints
    old runs      three of the earlier tree's recordings are replayed by this one

Commits, versions and hashes of sources are excepted; names that changed are mapped by the tables below,
which are printed. What real machines do is timed and cannot be compared. `--small` takes a minute of CPU
time for each tree; `--keep` keeps what COMMIT gave, so that only this tree runs the next time. Prints a
table and a JSON line. The exit code is 1 if anything differs, and the first difference is named.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parent.parent
DRIVER = Path(__file__).with_name("equal_drive.py")

#: The named systems of 785d70e.
_NAMES = """
    vllm-0.3.3 vllm-0.3.3-keep vllm-0.3.3-recompute +batched +block-major +groups +reuse +async fastswitch
    fastswitch-no-groups fastswitch-no-reuse fastswitch-no-async fastswitch-block-major +groups-block-major
    +cost fastswitch-cost fastswitch-gap fastswitch-never fastswitch-lru fastswitch-arc
    fastswitch-isolated-lru fastswitch-no-leader fastswitch-no-cap +prefix fastswitch-prefix +chunked
    fastswitch-chunked +write-through fastswitch-write-through +incremental fastswitch-incremental
    +proactive fastswitch-proactive
"""
SYSTEMS = tuple(_NAMES.split())

#: Combinations of switches that no named system has; under Markov priorities.
VARIANTS: dict[str, dict[str, Any]] = {
    "buddy": {"base": "fastswitch", "allocator": "buddy"},
    "tail": {"base": "fastswitch", "contamination": "tail"},
    "keep-device": {"base": "+groups", "between_turns": "keep_device"},
    "drop-recompute": {"base": "+groups", "between_turns": "drop", "preemption": "recompute"},
    "gather": {"base": "fastswitch", "submission": "gather", "overlap": "async"},
    "chunked-prefix": {"base": "+prefix", "shape": "chunked", "overlap": "async"},
    "chunked-cost": {"base": "fastswitch-chunked", "preemption": "cost", "displacement": "gap"},
}

ORDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"order": "fcfs"},
    "markov": {"priority.pattern": "markov", "priority.frequency": 0.2},
    "vtc": {"order": "vtc", "vtc.update_steps": 4},
}
#: Without --small.
MORE_ORDERS: dict[str, dict[str, Any]] = {
    "priority": {"order": "priority"},
    "random": {"priority.pattern": "random", "priority.period_s": 0.4},
}

#: What was renamed since 785d70e: a system under an order, the name that it has there now.
RENAMED_SYSTEMS: dict[tuple[str, str], str] = {}
#: Dotted path in the JSON or YAML of the earlier tree -> the same in this one; None: no longer there.
RENAMED_FIELDS: dict[str, str | None] = {"torn_journal_lines": None}
#: Files of the earlier tree that this one no longer writes, or writes under another name.
RENAMED_FILES: dict[str, str | None] = {}
#: Changed on purpose since 785d70e: the file, and what differs there as `grouped` tells it -> why.
CHANGED: dict[tuple[str, str], str] = {}
#: Stores: what they hold is compared by the tables made of it.
STORES = ("made/sweep/*", "made/search/*")
TABLES_OF_STORES = (".csv", ".txt", "search.json")
#: The runs that a comparison keeps since, and its pictures, drawn since from the page's own description.
LEFT_OUT = tuple(
    f"made/compare*/{name}"
    for name in ("study.sqlite", "lock", "tails.*", "timeline.*", "warm_up.*")
)
#: Values that name the program rather than what it did.
EXCEPTED = {"provenance", "commit", "digest", "key", "uid", "cfg_id", "version"}
#: Commits, hashes of sources and the time of day, in text.
NAMES_OF_PROGRAMS = (
    (re.compile(r'("(?:commit|digest|\w*_hash)": ?")[^"]*'), r"\1-"),
    (re.compile(r"(commit</dt><dd>|, commit )(?:[0-9a-f]{12}|unknown)"), r"\1-"),
    (re.compile(r"((?:plan|results|hash)(?:</dt><dd>|\": \"))[0-9a-f]{16,64}"), r"\1-"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT[\d:.]+(Z|\+00:00)"), "-"),
)


@dataclass
class Found:
    """What was compared, by kind, and what differs."""

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def differs(self, where: str, what: str) -> None:
        """One difference: where, and what it is."""
        self.differences.append(f"{where}: {what}")


# ---------------------------------------------------------------------- running both trees


def asked(*, small: bool) -> dict[str, Any]:
    orders = ORDERS if small else {**ORDERS, **MORE_ORDERS}
    systems: list[tuple[str, str, list[Any]]] = []
    for order, name in itertools.product(orders, SYSTEMS):
        renamed = RENAMED_SYSTEMS.get((name, order))
        systems.append((name, order, [name] if renamed is None else [renamed, name]))
    systems += [(name, "markov", [switches]) for name, switches in VARIANTS.items()]
    return {"size": 1 if small else 6, "orders": orders, "systems": systems}


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


@contextmanager
def copied() -> Iterator[Path]:
    """This tree as it stands, in a temporary folder: it may be worked on meanwhile."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        for name in listed.split("\0"):
            if name and (ROOT / name).is_file():
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, Path(folder, name))
        yield Path(folder)


def start(tree: Path, folder: Path, question: str) -> subprocess.Popen[str]:
    """Ask a tree, in a process that finds nothing of any other one."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(DRIVER)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(question)
    process.stdin.close()
    return process


def ask(trees: dict[Path, Path], question: str) -> None:
    """Ask trees at the same time. Exits if one of them fails."""
    processes = [start(tree, folder, question) for tree, folder in trees.items()]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit("a tree could not answer; see above")


def replay_old_runs(found: Found, tree: Path, old: Path, folder: Path) -> None:
    """This tree decides again what the earlier one recorded."""
    runs = [old / "runs" / name for name in ("chat/markov/+reuse", "open/vtc/fastswitch")]
    runs.append(old / "runs/shared/markov/fastswitch-prefix")
    command = "import fastswitch; fastswitch.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", command, "validate", "--replay", *map(str, runs)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    found.counts["old runs replayed"] += len(runs)
    if done.returncode:
        found.differs("replay of earlier recordings", done.stderr.strip() or done.stdout.strip())


# ---------------------------------------------------------------------- comparing


def files_of(folder: Path) -> dict[str, Path]:
    """Every file to compare, by its name within the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if not _is_in_a_store(name)}


def _is_in_a_store(name: str) -> bool:
    if any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT):
        return True
    return any(fnmatch.fnmatch(name, store) for store in STORES) and not name.endswith(
        TABLES_OF_STORES
    )


def compare(old: Path, new: Path) -> Found:
    """Every file of two folders."""
    found = Found()
    ours = files_of(new)
    for name, path in files_of(old).items():
        renamed = RENAMED_FILES.get(name, name)
        if renamed is None:
            continue
        if renamed not in ours:
            found.differs(name, "is not written any more")
            continue
        compare_file(found, name, path, ours.pop(renamed))
    for name in ours:
        if name not in RENAMED_FILES.values():
            found.differs(name, "was not written before")
    return found


def compare_file(found: Found, name: str, old: Path, new: Path) -> None:
    """Two files, as their kind asks."""
    match new.suffix:
        case ".parquet":
            compare_tables(found, name, pq.read_table(old), pq.read_table(new))
        case ".json" if name != "made/perfetto/out.json":
            values = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
            found.counts["JSON and YAML files"] += 1
            compare_values(found, name, *values)
        case ".yaml" if name.startswith(("runs/", "made/")):
            values = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (old, new))
            found.counts["JSON and YAML files"] += 1
            compare_values(found, name, *values)
        case ".png":
            found.counts["figures"] += 1
            if old.read_bytes() != new.read_bytes():
                found.differs(name, "is another picture")
        case _:
            compare_lines(found, name, old.read_text("utf-8"), new.read_text("utf-8"))


def compare_lines(found: Found, name: str, old: str, new: str) -> None:
    """Two texts; the first line that differs is named."""
    kind = {"decisions.jsonl": "decision lines", "replay.jsonl": "replay lines"}
    found.counts[kind.get(name.rpartition("/")[2], "other lines")] += new.count("\n")
    if old == new:
        return
    lines = [plain(text).splitlines() for text in (old, new)]
    for number, (was, now) in enumerate(itertools.zip_longest(*lines), start=1):
        if was != now:
            at = next(
                (i for i, (a, b) in enumerate(zip(was or "", now or "", strict=False)) if a != b), 0
            )
            cut = slice(max(0, at - 60), at + 100)
            found.differs(
                f"{name}:{number}",
                f"\n  was {(was or 'nothing')[cut]}\n  is  {(now or 'nothing')[cut]}",
            )
            return


def plain(text: str) -> str:
    """Without what names the program or the day."""
    for pattern, instead in NAMES_OF_PROGRAMS:
        text = pattern.sub(instead, text)
    return text


def compare_tables(found: Found, name: str, old: pa.Table, new: pa.Table) -> None:
    """Two tables: columns, types, rows in their order."""
    found.counts["table rows"] += new.num_rows
    if old.schema == new.schema and old.equals(new):
        return
    columns = [[f"{f.name} {f.type}" for f in table.schema] for table in (old, new)]
    for word, those, others in (("lost", *columns), ("new", *columns[::-1])):
        if missing := [column for column in those if column not in others]:
            found.differs(name, f"has {word} columns: {', '.join(missing)}")
    for column in [one for one in old.schema.names if one in new.schema.names]:
        was, now = old[column].to_pylist(), new[column].to_pylist()
        for row, (before, after) in enumerate(itertools.zip_longest(was, now)):
            if before != after and not (before != before and after != after):  # noqa: PLR0124  NaN
                found.differs(f"{name}: {column}[{row}]", f"was {before!r}, is {after!r}")
                break


def compare_values(found: Found, name: str, old: Any, new: Any, path: str = "") -> bool:
    """Two JSON values; the first difference is named. Returns whether they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        return compare_mappings(found, name, old, new, path)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(
            compare_values(found, name, was, now, f"{path}[{index}]")
            for index, (was, now) in enumerate(zip(old, new, strict=True))
        )
    if type(old) is type(new) and (old == new or old != old):  # noqa: PLR0124  NaN
        return True
    if isinstance(old, str) and isinstance(new, str) and plain(old) == plain(new):
        return True
    if isinstance(old, str) and new in [
        to for (was, _), to in RENAMED_SYSTEMS.items() if was == old
    ]:
        return True
    found.differs(f"{name}: {path}", f"was {str(old)[:200]}, is {str(new)[:200]}")
    return False


def compare_mappings(
    found: Found, name: str, old: dict[str, Any], new: dict[str, Any], path: str
) -> bool:
    """Two JSON objects, with names mapped; keys in their order."""
    ours = {key: value for key, value in new.items() if key not in EXCEPTED}
    for key, value in old.items():
        if key in EXCEPTED:
            continue
        inside = f"{path}.{key}".removeprefix(".")
        renamed = RENAMED_FIELDS.get(inside, inside)
        if renamed is None:
            continue
        last = key if renamed == inside else renamed.rpartition(".")[2]
        if last not in ours:
            found.differs(f"{name}: {inside}", "is gone")
            return False
        if not compare_values(found, name, value, ours.pop(last), inside):
            return False
    if ours:
        found.differs(f"{name}: {path}", f"has new keys: {', '.join(ours)}")
    return not ours


# ---------------------------------------------------------------------- the command


def earlier(commit: str, folder: Path, question: str, keep: Path | None) -> tuple[Path, bool]:
    """Where the answers of a commit are or will be, and whether they are there."""
    name = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", f"{commit}^{{commit}}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if keep is None:
        return folder / "old", False
    what = hashlib.sha256(f"{name}{question}".encode() + DRIVER.read_bytes()).hexdigest()
    kept = keep.resolve() / f"{name[:12]}-{what[:12]}"
    return kept, kept.exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--small", action="store_true", help="a minute of CPU time for each tree")
    parser.add_argument("--keep", type=Path, help="keep what COMMIT gave here, and use it again")
    options = parser.parse_args()
    question = json.dumps(asked(small=options.small))
    with (
        tempfile.TemporaryDirectory() as folder,
        worktree(options.commit) as before,
        copied() as now,
    ):
        old, is_kept = earlier(options.commit, Path(folder), question, options.keep)
        new = Path(folder, "new")
        unfinished = old.with_name(f"{old.name}.{os.getpid()}")
        ask({now: new} if is_kept else {before: unfinished, now: new}, question)
        if not is_kept:
            unfinished.rename(old)
        found = compare(old, new)
        replay_old_runs(found, now, old, new)
    report(found, options.commit)
    sys.exit(1 if set(grouped(found.differences)) - CHANGED.keys() else 0)


def grouped(differences: list[str]) -> dict[tuple[str, str], list[str]]:
    """Differences by the name of the file within its folder, and by what differs there: field or column,
    or the line itself of other files."""
    found: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        where, _, what = difference.partition(": ")
        file = where.rpartition("/")[2].partition(":")[0]
        kind = re.sub(r"\[\d+\].*|was .*", "", what, flags=re.DOTALL).strip(" :\n")
        found.setdefault((file, kind), []).append(difference)
    return found


def report(found: Found, commit: str) -> None:
    """Print what was compared, what was mapped, what differs."""
    for kind, count in sorted(found.counts.items()):
        print(f"{kind:24} {count:10,}")
    for (system, order), now in RENAMED_SYSTEMS.items():
        print(f"renamed: {system} under {order} -> {now}")
    for was, name in (*RENAMED_FIELDS.items(), *RENAMED_FILES.items()):
        print(f"renamed: {was} -> {name or 'gone'}")
    for (file, kind), differences in grouped(found.differences).items():
        if (file, kind) in CHANGED:
            print(f"changed: {file}: {kind}: {CHANGED[file, kind]}")
            continue
        others = f" (and {len(differences) - 1} more such)" if len(differences) > 1 else ""
        print(f"DIFFERS {file}{others}: {differences[0]}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "commit": commit,
                **found.counts,
                "differences": len(found.differences),
                "cpu_s": round(spent.ru_utime + spent.ru_stime, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
