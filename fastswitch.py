"""The front door: `import fastswitch` in Python, `fastswitch` on the command line.

Everything heavy is imported by the command that needs it, so that `fastswitch --help` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from cli.main import VERSION, main

__all__ = ["main"]
__version__ = VERSION

_API = {
    "Scenario": ("runs.scenario", "Scenario"),
    "compare": ("explore.studies.compare", "compare"),
    "describe": ("traces.describing.describe", "describe"),
    "in_words": ("explore.words", "in_words"),
    "load_scenario": ("runs.scenario", "load"),
    "mean_of_runs": ("explore.studies.answers", "mean_of_runs"),
    "ratio_of_runs": ("explore.studies.answers", "ratio_of_runs"),
    "read_workload": ("traces.readers.catalog", "read_workload"),
    "replay": ("explore.validation.validate", "replay"),
    "search": ("explore.search.run", "search"),
    "serve": ("realrun.serve", "serve"),
    "simulate": ("sim.simulate", "simulate"),
    "style_of": ("explore.report.looks", "style_of"),
    "simulate_fleet": ("sim.fleet.simulate", "simulate_fleet"),
    "sweep": ("explore.studies.sweep", "sweep"),
}


def __getattr__(name: str) -> Any:
    """The public Python API, loaded when it is first asked for."""
    if name in _API:
        module, attribute = _API[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'fastswitch' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion shows."""
    return sorted([*__all__, *_API, "__version__"])


if __name__ == "__main__":
    main()
