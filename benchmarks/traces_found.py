"""The sample traces that the workload benchmarks read, and where they are."""

from __future__ import annotations

import os
from pathlib import Path

from policy.errors import FastSwitchError
from traces.readers.catalog import read_workload
from traces.workload import Workload

#: Public traces by the beginnings of their files' names.
STEMS = (
    "azure_llm_2023_conv",
    "azure_llm_2023_code",
    "mooncake_conversation_trace",
    "mooncake_synthetic_trace",
    "claude_code_agentic",
    "ragpulse_0_trace",
    "sharegpt_turn_lengths",
    "sarathi_sharegpt_8k",
    "vidur_arxiv",
    "vtc_arena_real",
)


def find(stem: str) -> Path | None:
    """A trace's file in FASTSWITCH_TRACES, packed or not."""
    folder = Path(os.environ.get("FASTSWITCH_TRACES", "."))
    found = sorted(folder.glob(f"{stem}*"))
    return found[0] if found else None


def open_trace(stem: str) -> Workload | None:
    """A trace, or None with a printed reason: not there, or no reader knows it."""
    path = find(stem)
    if path is None:
        print(f"{stem}: not in FASTSWITCH_TRACES, skipped")
        return None
    try:
        return read_workload(path)
    except FastSwitchError as error:
        print(f"{stem}: skipped, {str(error).partition(': ')[2][:120]}")
        return None
