"""Real recordings as timelines, and in the words of other tools; a user's order on the real machine."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from explore.exports import aiperf as export_aiperf
from explore.exports import llm_d as export_llm_d
from explore.exports import perfetto as timeline
from explore.exports import vllm as export_vllm
from policy.errors import ConfigError
from policy.orders.base import Order
from realrun.serve import Options, serve
from runs.metrics.summary import summarise
from runs.user_order import user_order
from tests.helpers.real import run, scenario, tiny, write_workload
from tests.helpers.tracks import parsed, problems, slices_of


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch"])
def test_a_real_run_has_a_timeline_without_overlaps_and_exports_that_agree(
    system: str, tmp_path: Path
) -> None:
    found = run(scenario(write_workload(tmp_path / "w.jsonl"), system=system)).recording
    events = parsed("".join(timeline.pieces(found)))
    assert problems(events) == []
    rows = found.table("requests").to_pylist()
    for row in rows:
        life = slices_of(events, row["request_id"])
        assert (life[0][0], life[-1][1]) == (row["arrival_ns"], row["finish_ns"])
        assert all(a[1] == b[0] for a, b in pairwise(life))
    states = {event["name"] for event in events if event["ph"] == "X"}
    assert states >= {"queued", "prefill", "decode", "swap-out", "swap-in", "copy"}
    found.summary["metrics"] = metrics = summarise(found)
    vllm = json.loads("".join(export_vllm.pieces(found)))
    report = json.loads("".join(export_llm_d.pieces(found)))
    records = [json.loads(line) for line in "".join(export_aiperf.pieces(found)).splitlines()]
    latency = report["results"]["request_performance"]["aggregate"]["latency"]
    assert vllm["median_ttft_ms"] == pytest.approx(1000 * metrics["ttft_p50_s"], abs=1e-6)
    assert latency["time_to_first_token"]["p50"] == pytest.approx(metrics["ttft_p50_s"])
    assert len(records) == vllm["completed"] == len(rows)


def test_the_real_machine_serves_by_a_users_order_and_says_so(tmp_path: Path) -> None:
    class Longest(Order):
        refreshes = True

        def key(self, request: Any, now_ns: int) -> tuple[int]:
            return (-request.num_tokens,)

    loaded = scenario(write_workload(tmp_path / "w.jsonl"))
    options = Options(model="random:tiny")
    found = serve(loaded, options, out=tmp_path / "run", order=Longest, model=tiny())
    own = user_order(Longest)
    assert found.summary["order"] == own.name
    assert found.summary["provenance"]["order"] == own.facts
    assert found.summary["metrics"]["finished"] == found.summary["metrics"]["rows"]

    class Broken(Order):
        def key(self, request: Any, now_ns: int) -> Any:
            return None

    with pytest.raises(ConfigError, match="which is not a tuple of numbers"):
        serve(loaded, options, out=tmp_path / "other", order=Broken, model=tiny())
    assert not (tmp_path / "other").exists()
