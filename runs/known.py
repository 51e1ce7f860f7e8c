"""What there is by name, a sentence each: systems and orders. Metrics are `explore.words`."""

from __future__ import annotations

from typing import Any

from policy.orders.catalog import ORDERS
from policy.systems import RELEASE, SYSTEMS, V1, System

#: What others are told as a difference to.
_BASES: dict[str, tuple[str, ...]] = {
    RELEASE: (RELEASE,),
    V1: (V1, "vllm-v1-offload", "vllm-v1+swap", "vllm-v1+swap-async"),
    "ranked": ("paged-keep", "+groups", "+reuse", "+async", "fastswitch"),
}
_SENTENCES = {
    RELEASE: "vLLM 0.3.3 with swap forced as preemption mode, nothing kept between turns",
    "vllm-v1": "vLLM 0.33.0 (V1): chunked steps, KV found by the names of blocks, recompute",
    "vllm-v1-offload": "V1 with its native offloading connector, which stores prompts on the host",
    "vllm-v1+swap": "V1 with one change: a victim's KV goes to the host and comes back",
    "vllm-v1+swap-async": "vllm-v1+swap, but no step waits for a copy: who needs the room or the KV does",
    "vllm-v1+park": "vllm-v1+swap-async, and victims leave before blocks run out",
    "vllm-v1+least-computed": "V1, but whoever has computed least is preempted (vllm#54644)",
    "vllm-v1+victim-cost": "V1, but whoever costs least to compute again is preempted (vllm#56897)",
    "vllm-v1+displace": "V1, but who waits displaces who runs and is less urgent (vllm#40004)",
    "vllm-v1+groups": "vllm-v1+swap in runs of neighbouring blocks; decides what vllm-v1+swap decides",
    "paged-keep": "vLLM 0.3.3's memory under this project's rules, KV of idle turns kept on the host",
    "+groups": "paged-keep in runs of neighbouring blocks, copied as such",
    "+reuse": "+groups, and host copies outlive the load: only what is new is sent",
    "+async": "+groups, copied by worker threads, which steps wait for only where that pays",
    "fastswitch": "all three of the paper: groups, reuse, asynchronous swapping",
}
_EQUAL = {
    "vllm-0.3.3": "every step of the release's own scheduler: tests/full/test_vllm_release.py",
    "vllm-0.3.3-recompute": "every step of the release's own scheduler: tests/full/test_vllm_release.py",
    "vllm-v1": "every step of the release's own scheduler: tests/full/test_vllm_v1.py",
    "vllm-v1-offload": "every step of the release's own, with copies: tests/full/test_vllm_v1_offload.py",
    "vllm-v1-offload-all": "every step of the release's own, with copies: tests/full/test_vllm_v1_offload.py",
}
_ORDERS = {
    "fcfs": "first come, first served",
    "priority": "the workload's own number, lower is more urgent; it never changes",
    "random": "priorities drawn anew at every update",
    "markov": "a share of conversations is urgent, and who is changes slowly",
    "vtc": "virtual token counter: the client that has received least comes first",
}


def system_told(system: System) -> dict[str, Any]:
    """Name, sentence, engine, switches, and what it is equal to and where that was shown."""
    switches = {k: v for k, v in system.switches().items() if k != "fcfs_planner"}
    sentence = _SENTENCES.get(system.name)
    if sentence is None:
        base, changed = _nearest(system, switches)
        sentence = f"{base} with " + ", ".join(f"{k} {v}" for k, v in changed.items())
        if not changed:
            sentence = f"the same as {base}, under the name that leaves one out"
    return {
        "name": system.name,
        "sentence": sentence,
        "engine": system.engine,
        "equal_to": _EQUAL.get(system.name),
        "switches": switches,
    }


def _nearest(system: System, switches: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The base that it differs from least, and how."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    for name in _BASES[system.engine]:
        base = SYSTEMS[name].switches()
        changed = {k: v for k, v in switches.items() if base.get(k) != v}
        found.append((len(changed), name, changed))
    _, name, changed = min(found, key=lambda one: one[0])
    return name, changed


def systems_told() -> list[dict[str, Any]]:
    """Every named system."""
    return [system_told(system) for system in SYSTEMS.values()]


def orders_told() -> list[dict[str, str]]:
    """Every built-in order."""
    return [{"name": name, "sentence": _ORDERS[name]} for name in ORDERS]
