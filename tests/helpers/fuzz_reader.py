"""One reader under atheris: python -m tests.helpers.fuzz_reader READER FOLDER [libFuzzer options].

Whatever bytes a file holds, reading ends with turns or in an InputError; anything else is a crash,
which libFuzzer reports with the bytes that made it. FOLDER holds what to begin from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["traces"]):
    from policy.errors import InputError
    from tests.helpers.formats import aids_for
    from traces.readers.catalog import read_workload

NAME, FOLDER = sys.argv[1], Path(sys.argv[2])
INPUT = FOLDER.parent / "input"
#: A mutated text rarely makes so many turns; a run that does has proved its point.
MOST = 10_000


def read_one(data: bytes) -> None:
    INPUT.write_bytes(data)
    try:
        for number, turn in enumerate(read_workload(INPUT, NAME, aids_for(NAME))):
            assert turn.request_id and turn.input_tokens >= 0
            if number == MOST:
                return
    except InputError as error:
        assert len(str(error).splitlines()) <= 5, "a message too long"


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[3:], str(FOLDER)], read_one)
    atheris.Fuzz()
