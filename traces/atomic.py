"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policy.errors import ConfigError
from traces.strict import reason, shown_path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path`, with its suffix, to write to. It becomes `path` when the block ends, and is
    gone if the block breaks off; what `path` held before stays until then.

    Raises ConfigError where it cannot be written, and what the block raises.
    """
    part = path.with_name(f".part.{path.name}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None
    finally:
        with suppress(OSError):  # it is there only if something broke, and not if its name did
            part.unlink()
