"""Every error this project raises on purpose, as one tree.

FastSwitchError
├── ConfigError       the user's configuration or command line            exit 2
├── InputError        the user's data: names file, line, field            exit 3
├── InvariantError    a conservation law is broken: our bug               exit 4
│   ├── OutOfBlocks   an allocation nobody made sure of
│   └── IllegalMove   a request state transition outside the table
├── ProgressError     work exists and nothing can ever run: our bug       exit 4
├── FaultError        the machine broke in a way it cannot continue from  exit 5
└── ReleaseVerdict    what vLLM 0.3.3 itself would do here: abort, stall  exit 5
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` after a name that is nearly one of these, and nothing after others."""
    near = get_close_matches(name[:80], list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class FastSwitchError(Exception):
    """Root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(FastSwitchError):
    """A scenario, a flag or a user's policy that cannot be used."""

    exit_code = 2


class InputError(FastSwitchError):
    """A data file that cannot be read as what it claims to be."""

    exit_code = 3


class InvariantError(FastSwitchError):
    """A conservation law does not hold."""

    exit_code = 4


class OutOfBlocks(InvariantError):
    """A pool was asked for more blocks than it can hand out."""


class IllegalMove(InvariantError):
    """A request was asked to make a transition that its state does not allow."""


class ProgressError(FastSwitchError):
    """Requests exist, no copy is in flight, and no plan will ever run one of them."""

    exit_code = 4


class FaultError(FastSwitchError):
    """The machine cannot continue."""

    exit_code = 5


class ReleaseVerdict(FastSwitchError):
    """vLLM 0.3.3 would abort its engine, or wait for ever, at this point."""

    exit_code = 5
