"""The house: which package may import what, and that ours are the ones in this checkout."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "policy",
    "traces",
    "runs",
    "sim",
    "realrun",
    "calibrate",
    "explore",
    "door",
    "cli",
    "fastswitch",
}
HEAVY = {"torch", "simpy", "numpy", "pandas"}

#: Package -> what it may import of ours and of the heavy libraries (design: section 2).
ARROWS: dict[str, set[str]] = {
    "policy": set(),
    "traces": {"policy", "numpy", "pandas"},
    "runs": {"policy", "traces", "numpy"},
    "sim": {"policy", "traces", "runs", "calibrate.profile", "simpy"},
    "calibrate": {"policy", "traces", "runs", "realrun", "torch", "numpy", "pandas"},
    "realrun": {"policy", "traces", "runs", "torch", "numpy"},
    "explore": {"policy", "traces", "runs", "sim", "calibrate.profile", "numpy", "pandas"},
    "door": {"policy", "traces", "runs", "sim", "realrun"},
    "cli": {"policy", "traces", "runs", "sim", "realrun", "calibrate", "explore", "door"},
}
#: Named one by one: files of calibrate that sim and explore may read.
FILE_ARROWS: dict[str, set[str]] = {
    f"calibrate/{name}.py": {"policy"}
    for name in ("profile", "quantity", "linear_cost", "token_cost", "transfer_cost")
}


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)


def allowed(module: str, package: str, arrows: set[str]) -> bool:
    top = module.split(".", maxsplit=1)[0]
    if top == package or (top not in OURS and top not in HEAVY):
        return True
    return any(module == name or module.startswith(f"{name}.") for name in arrows)


@pytest.mark.parametrize("package", sorted(p for p in ARROWS if (ROOT / p).exists()))
def test_imports_follow_the_arrows(package: str) -> None:
    broken = []
    for path in files_of(package):
        name = path.relative_to(ROOT).as_posix()
        arrows = FILE_ARROWS.get(name, ARROWS[package])
        broken += [
            f"{name}: {module}"
            for module in imports_of(path)
            if not allowed(module, package, arrows)
        ]
    assert not broken


#: Outside the door: nobody.
KNOWN_LOOPS: set[str] = set()
#: What listens, or serves those who listen.
NETWORK = {
    "socket",
    "ssl",
    "asyncio",
    "http",
    "socketserver",
    "starlette",
    "uvicorn",
    "prometheus_client",
}


def test_nothing_but_the_door_listens_and_one_file_of_it_opens_a_socket() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): {m.split(".")[0] for m in imports_of(path)} & NETWORK
        for package in sorted(ARROWS)
        for path in files_of(package)
    }
    listening = {name for name, modules in found.items() if modules - {"http"}}
    assert {name for name in listening if not name.startswith("door/")} <= KNOWN_LOOPS
    assert [name for name, modules in found.items() if "socket" in modules] == ["door/server.py"]


def test_everything_but_the_door_imports_without_its_libraries() -> None:
    code = "import sys\n" + "".join(
        f"sys.modules[{name!r}] = None\n" for name in ("starlette", "uvicorn", "prometheus_client")
    )
    loaded = modules_after(f"{code}import sim.simulate, sim.pace, fastswitch, cli.serve")
    assert "sim.pace" in loaded


def test_policy_imports_the_standard_library_alone() -> None:
    outside = {
        f"{path.name}: {module}"
        for path in files_of("policy")
        for module in imports_of(path)
        if module.split(".")[0] not in {*sys.stdlib_module_names, "policy"}
    }
    assert not outside


#: Files of a room that name each other, one of them for types alone (`if TYPE_CHECKING`).
FOR_TYPES = {
    ("explore.report.figures", "explore.studies.comparison"),
    ("explore.search.recipes", "explore.search.spec"),
    ("explore.studies.comparison", "explore.studies.frames"),
    ("explore.studies.comparison", "explore.studies.latex"),
    ("explore.studies.comparison", "explore.studies.worth"),
    ("explore.studies.comparison", "explore.words"),
    ("policy.engines.v1_holdings", "policy.engines.v1_laws"),
    ("policy.memory.context", "policy.memory.transfers"),
    ("policy.memory.context", "policy.request"),
    ("policy.pools.allocation", "policy.pools.prefix"),
}


def graph() -> dict[str, set[str]]:
    """File of ours -> files of ours that it imports, anywhere in it, if only for its types."""
    files = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for package in sorted(ARROWS)
        for path in files_of(package)
    }
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        wanted = {one if one in files else one.rpartition(".")[0] for one in imports_of(path)}
        found[name] = {one for one in wanted if one in files and one != name}
    return found


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Files that import each other around a circle, and those that need them; empty if there is none."""
    left = dict(imports)
    while left:
        free = [name for name, wanted in left.items() if not wanted & left.keys()]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]
    return []


def test_no_files_import_each_other_around_a_circle() -> None:
    imports = graph()
    for pair in sorted(FOR_TYPES):
        for one, other in (pair, pair[::-1]):
            if is_for_types(one, other):
                imports[one].discard(other)
    assert circle_in(imports) == []


def is_for_types(importer: str, imported: str) -> bool:
    """Whether a file imports another one in `if TYPE_CHECKING` alone."""
    tree = ast.parse((ROOT / f"{importer.replace('.', '/')}.py").read_text(encoding="utf-8"))
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    ]
    inside = [ast.unparse(block) for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
    return any(f"from {imported} import" in text for text in inside)


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]
    assert not is_for_types("explore.studies.compare", "runs.scenario")


FORBIDDEN = {"time", "random", "threading", "asyncio", "os", "io", "socket", "pathlib", "secrets"}


def test_policy_asks_for_no_time_and_does_no_io() -> None:
    used = {
        f"{path.name}: {module}"
        for path in files_of("policy")
        for module in imports_of(path)
        if module.split(".")[0] in FORBIDDEN
    }
    assert not used


def test_nothing_unpickles_or_evaluates() -> None:
    words = ("pickle", "joblib", "eval(", "exec(", "yaml.load(", "allow_pickle=True", "torch.load")
    found = [
        f"{path.name}: {word}"
        for package in sorted(ARROWS)
        for path in files_of(package)
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found


@pytest.mark.parametrize("package", sorted(p for p in ARROWS if (ROOT / p).exists()))
def test_packages_come_from_this_checkout(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(chr(10).join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_importing_the_policy_pulls_in_no_library() -> None:
    loaded = modules_after("import policy.scheduler, policy.integrity, policy.orders.catalog")
    assert not loaded & (HEAVY | {"pyarrow", "pydantic", "matplotlib", "yaml", "click"})


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import fastswitch\n"
        "try: fastswitch.main(['--help'], standalone_mode=False)\n"
        "except SystemExit: pass"
    )
    loaded = modules_after(code)
    assert not loaded & (HEAVY | {"pyarrow", "pydantic", "matplotlib", "scipy"})


def test_everything_but_the_executor_imports_without_torch() -> None:
    code = "sys.modules['torch'] = None\nimport sim.simulate, explore.studies.output"
    assert "explore.studies.output" in modules_after(code)


def test_no_machine_class_subclasses_or_patches_the_policy() -> None:
    """A machine drives the scheduler; it never changes a decision."""
    from policy.desk import Desk
    from policy.engines.swapping import SwapEngine
    from policy.engines.swaps import Swaps
    from policy.scheduler import Scheduler

    importlib.import_module("sim.simulate")
    for kind in (Scheduler, Desk, Swaps):
        ours = [c for c in kind.__subclasses__() if c.__module__.split(".")[0] in OURS]
        assert ours == []
    engines = {
        c.__module__ for c in SwapEngine.__subclasses__() if c.__module__.split(".")[0] in OURS
    }
    assert engines == {"policy.engines.ranked", "policy.engines.vllm_033"}
