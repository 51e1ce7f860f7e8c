"""Where a run comes from, and how to make it again: the last section of its report."""

from __future__ import annotations

import shlex

from explore.report import document
from runs.recording import Recording


def origin(recording: Recording) -> str:
    """Provenance, and commands."""
    facts = recording.summary
    made_by = facts.get("provenance") or {}
    libraries = made_by.get("libraries") or {}
    workload = facts.get("workload") or {}
    profile = [str(facts[name]) for name in ("profile_kind", "profile") if facts.get(name)]
    pairs = [
        ("machine", facts.get("machine")),
        ("profile", " ".join(profile) or None),
        ("model", facts.get("model")),
        ("device", facts.get("device")),
        ("planner", facts.get("planner")),
        ("blocks", f"{facts.get('device_blocks')} device, {facts.get('host_blocks')} host"),
        ("workload", "; ".join(workload.get("composed_from") or ()) or workload.get("source")),
        ("seed, run", f"{made_by.get('seed')}, {made_by.get('run')}"),
        *((f"{name} hash", made_by.get(f"{name}_hash")) for name in _HASHED),
        ("commit", made_by.get("commit")),
        ("Python", made_by.get("python")),
        ("libraries", ", ".join(f"{name} {v}" for name, v in libraries.items()) or None),
        ("assumed numbers", ", ".join(facts.get("assumptions") or ()) or None),
    ]
    return (
        document.facts(pairs)
        + document.paragraph("The same run again, its timeline, and this page:")
        + document.commands(_commands(recording))
    )


_HASHED = ("scenario", "workload", "profile")


def _commands(recording: Recording) -> list[str]:
    facts = recording.summary
    folder = "run" if recording.folder is None else str(recording.folder)
    again = ["fastswitch", "simulate", f"{folder}/scenario.yaml"]
    if facts.get("machine") == "real":
        again[1] = "realrun"
        again += ["--device", "cpu" if facts.get("device") == "cpu" else "cuda"]
        again += ["--model", str(facts.get("model"))]
        again += ["--deterministic"] if facts.get("deterministic") else []
    own = (facts.get("provenance") or {}).get("order")
    again += ["--order", str(own["name"])] if own else []
    export = ["fastswitch", "export", folder, "--format", "perfetto", "--out", "run.json.gz"]
    lines = [[*again, "--out", "again"], export, ["fastswitch", "report", folder]]
    return [shlex.join(line) for line in lines]
