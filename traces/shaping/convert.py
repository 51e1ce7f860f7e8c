"""From any known format to this project's own, row by row: nothing dropped, what is lost is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from policy.errors import ConfigError
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.strict import shown_path
from traces.workload import Header, Turn, Workload


@dataclass
class Converted:
    """What went in and what came out. `unserveable`: rows without a prompt or without a reply,
    which are kept (a run records them as rejected). `left_out`: records that are no requests."""

    header: Header
    rows: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    sessions: int = 0
    unserveable: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def count(self, turn: Turn) -> None:
        """Count a row."""
        self.rows += 1
        self.input_tokens += turn.input_tokens
        self.output_tokens += turn.output_tokens
        self.sessions += turn.turn == 1
        self.unserveable += not (turn.input_tokens and turn.output_tokens)

    def as_text(self, out: Path) -> str:
        """What is told of it, line by line."""
        header = self.header
        num_left_out = sum(self.left_out.values())
        lines = [
            f"{header.source or 'workload'}: {self.rows + num_left_out} records in, {self.rows} rows"
            f" out, in {self.sessions} sessions, {header.timing} loop: {out}",
            f"  tokens: {self.input_tokens} in, {self.output_tokens} out",
        ]
        if self.unserveable:
            lines.append(f"  kept, though no engine can serve them: {self.unserveable} rows")
        lines += [f"  left out: {n} x {why}" for why, n in sorted(self.left_out.items())]
        lines += [f"  lost: {what}" for what in header.lost]
        lines += [f"  assumed: {what}" for what in header.assumed]
        return "\n".join(lines)


def convert(
    paths: Sequence[Path],
    out: Path,
    *,
    name: str | None = None,
    aids: Aids | None = None,
    tokenizer_name: str = "",
    progress: Callable[[], object] = lambda: None,
) -> Converted:
    """Read `paths` and write them as one workload.

    Several files become one only if sessions have no arrivals of their own (closed or gap timing):
    open traces have a clock each. Raises ConfigError for that, and what reading and writing raise;
    then `out` is as it was.
    """
    workloads = [read_workload(path, name, aids) for path in paths]
    header = _common_header(paths, workloads)
    if tokenizer_name and not header.tokenizer:
        header = replace(header, tokenizer=tokenizer_name)
    found = Converted(header)

    def turns() -> Iterator[Turn]:
        for workload in workloads:
            for turn in workload:
                found.count(turn)
                progress()
                yield turn
            found.left_out.update(workload.left_out)

    write(Workload(header, turns), out)
    return found


def _common_header(paths: Sequence[Path], workloads: Sequence[Workload]) -> Header:
    """The header of all. Raises ConfigError where they are of different kinds."""
    header = workloads[0].header
    if len(workloads) > 1 and header.timing == "open":
        raise ConfigError(
            f"{shown_path(paths[1])}: a second file with arrivals: each has its own clock"
        )
    for path, workload in zip(paths, workloads, strict=True):
        if workload.header != header:
            raise ConfigError(f"{shown_path(path)}: its header is not that of {paths[0]}")
    return header
