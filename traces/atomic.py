"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policy.errors import ConfigError
from traces.strict import reason, shown_path


def tried(path: Path) -> None:
    """Raises ConfigError now where `whole` could not write the file later, after the work for it."""
    if path.is_dir():
        raise ConfigError(f"{shown_path(path)}: cannot be written: is a folder")
    part = path.with_name(f".part.{path.name}")
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None


def tried_folder(folder: Path) -> None:
    """Raises ConfigError now where files could not be put into the folder later; makes none."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tried(there / "file")


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
