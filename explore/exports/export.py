"""Write a recording in another tool's format: one file, streamed, there as a whole or not at all."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from explore.exports import aiperf as export_aiperf
from explore.exports import llm_d as export_llm_d
from explore.exports import perfetto as timeline
from explore.exports import vllm as export_vllm
from policy.errors import ConfigError
from runs.recording import Recording
from traces.atomic import whole
from traces.strict import shown_path

#: Format -> the pieces of its file's text, given the recording and whether YAML is wanted.
WRITERS: dict[str, Callable[[Recording], Iterator[str]]] = {
    "perfetto": timeline.pieces,
    "vllm": export_vllm.pieces,
    "aiperf": export_aiperf.pieces,
    "llm-d": export_llm_d.pieces,
}
_YAML = {".yaml", ".yml"}


def export(recording: Recording, name: str, out: Path) -> None:
    """Write `recording` to the file `out`, gzip if its name ends in .gz.

    Raises ConfigError for an unknown format, a run that was killed or a file that cannot be written,
    InputError for a recording that cannot be read.
    """
    if name not in WRITERS:
        raise ConfigError(f"--format: {name!r} is not one of {', '.join(WRITERS)}")
    if not recording.summary.get("is_complete", True):
        where = "" if recording.folder is None else f"{shown_path(recording.folder)}: "
        raise ConfigError(f"{where}the run was killed; what it recorded of its steps is not whole")
    suffixes = [suffix for suffix in out.suffixes if suffix != ".gz"]
    write = WRITERS[name]
    if name == "llm-d" and suffixes[-1:] and suffixes[-1] in _YAML:
        write = export_llm_d.yaml_pieces
    with whole(out) as part, _opened(part, packed=out.suffix == ".gz") as file:
        for piece in write(recording):
            file.write(piece)


@contextmanager
def _opened(path: Path, *, packed: bool) -> Iterator[TextIO]:
    with path.open("wb") as raw:
        if not packed:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text:
                yield text
            return
        # No name and no time inside: the same run gives the same bytes.
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as zipped,
            io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as text,
        ):
            yield text
