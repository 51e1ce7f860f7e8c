"""Every reader under atheris, which looks for bytes that reach new lines of the readers.

Each runs for 20 seconds, or FASTSWITCH_FUZZ_S. A crash is anything but turns or an InputError.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.formats import VALID
from traces.readers.catalog import read_workload
from traces.readers.native import write

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason="atheris is not installed"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FASTSWITCH_FUZZ_S", "20"))


def fuzz(name: str, folder: Path) -> str:
    """What libFuzzer says of a run; it must end by its time."""
    limits = (f"-max_total_time={SECONDS}", "-rss_limit_mb=2048", "-timeout=20", "-max_len=4096")
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.fuzz_reader", name, str(folder), *limits],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def num_runs(text: str) -> int:
    found = re.search(r"Done (\d+) runs", text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("name", VALID)
def test_no_bytes_make_a_reader_end_in_anything_but_turns_or_an_input_error(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "valid").write_text(VALID[name])
    assert num_runs(fuzz(name, folder)) > 100


def test_no_bytes_make_the_parquet_reader_end_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    source = tmp_path / "w.jsonl"
    source.write_text(VALID["native"])
    write(read_workload(source), folder / "valid.parquet")
    assert num_runs(fuzz("native", folder)) > 100
