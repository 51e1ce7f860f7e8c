"""Hypothesis profiles, what every test may ask for, and how policy/ is covered within `make test`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import coverage
import pytest
from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "ci",
    max_examples=50,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=_SLOW,
)
settings.register_profile(
    "full", max_examples=1000, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever Hypothesis draws is random runs too."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("counted")


#: `make test-full` draws the seeds of tests marked `counted` from here on, and prints the number.
FIRST_SEED = int(os.environ.get("FASTSWITCH_SEED", "0"))


@pytest.fixture(scope="session")
def seeds() -> Callable[[int, int], range]:
    """`seeds(few, many)`: the same few in every `make test`, many fresh ones in `make test-full`."""
    full = os.environ.get("HYPOTHESIS_PROFILE") == "full"
    return lambda few, many: range(FIRST_SEED, FIRST_SEED + many) if full else range(few)


# ---------------------------------------------------------------------- coverage of policy/

#: Tests that are about policy/: what they leave out of it fails `make test`. Others are not traced, since
#: tracing makes them three times as long; nor are these of its traps, which serve whole workloads.
OF_POLICY = ("tests/unit/policy/", "tests/traps/", "tests/unit/test_integrity.py")
NOT_TRACED = ("tests/traps/test_magnitudes.py", "tests/traps/test_simulator.py")


class PolicyCoverage:
    """Traces policy/ while modules are imported and while tests of OF_POLICY run; every process of
    xdist by itself, into a file of its own."""

    def __init__(self) -> None:
        self._coverage = coverage.Coverage(
            data_suffix=True, branch=True, source=["policy"], config_file=False
        )
        self._coverage.start()

    @pytest.hookimpl
    def pytest_collection_finish(self) -> None:
        self._coverage.stop()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if not item.nodeid.startswith(OF_POLICY) or item.nodeid.startswith(NOT_TRACED):
            return (yield)
        self._coverage.start()
        try:
            return (yield)
        finally:
            self._coverage.stop()

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        self._coverage.save()


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands tests out to xdist's runs none."""
    # A session begun in the background ignores Ctrl-C, and so would the commands that it interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if os.environ.get("FASTSWITCH_COVERAGE") == "policy" and not hands_out:
        config.pluginmanager.register(PolicyCoverage())
