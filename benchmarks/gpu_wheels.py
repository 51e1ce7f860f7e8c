"""The small packages that a GPU machine lacks, as wheels to carry there: `make gpu-wheels`.

    python -m benchmarks.gpu_wheels --out DIR [--python 3.12]

Of the versions that are installed here, for Linux on x86-64. `make gpu-check GPU_PYTHON=python3` unpacks them
beside the repository. Exits with 1 if they are LIMIT bytes or more together: they travel with the working
tree.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: What there is on a GPU machine, by the names of its modules.
THERE = (
    "torch", "triton", "numpy", "pandas", "pyarrow", "matplotlib", "click", "tqdm", "yaml", "requests", "jinja2",
    "safetensors", "tokenizers", "transformers",
)  # fmt: skip
#: What is carried: module -> its distribution, where it is installed here.
CARRIED = {
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "simpy": "simpy",
    "gguf": "gguf",
    "msgspec": "msgspec",
}
LIMIT = 10_000_000
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned() -> list[str]:
    """Requirements, each of the version that is installed here."""
    found = []
    for name in CARRIED.values():
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # not a dependency of this version of ours
    return found


def command(out: Path, python: str) -> list[str]:
    """What fetches them."""
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms,
        "--dest", str(out), *pinned(),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default="3.12")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for old in chosen.out.glob("*.whl"):
        old.unlink()  # two versions of one package would stop the installation
    subprocess.run(command(chosen.out, chosen.python), check=True)
    return check(chosen.out)


def check(folder: Path) -> int:
    """Say what is there and whether it can be carried; returns the exit code."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 1e6:6.2f} MB  {name}")
    total = sum(sizes.values())
    print(f"{total / 1e6:6.2f} MB in all, less than {LIMIT / 1e6:.0f} MB wanted")
    return 0 if total < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
