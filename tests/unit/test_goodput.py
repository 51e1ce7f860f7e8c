"""Goodput and steady windows, on turns written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from policy.errors import ConfigError
from runs.metrics.columns import columns_of
from runs.metrics.goodput import Slo, summarise
from runs.metrics.stats import percentile
from runs.metrics.summary import summarise as metrics_of
from runs.metrics.throughput import steady_window
from runs.recording import Recording
from runs.scenario import build
from sim.simulate import simulate
from tests.helpers.sweeps import SCENARIO

S = 1_000_000_000

#: Arrival, first token, end, tokens, status, client.
TURNS = [
    (0, 1, 3, 3, "finished", "a"),  # TTFT 1, TPOT 1, E2E 3
    (0, 4, 5, 2, "finished", "a"),  # TTFT 4, TPOT 1, E2E 5
    (2, 3, 3, 1, "finished", "b"),  # TTFT 1, one token, E2E 1
    (2, 3, 9, 3, "finished", None),  # TTFT 1, TPOT 3, E2E 7
    (3, None, None, 1, "rejected", "b"),
]


def requests() -> dict[str, Any]:
    def ns(index: int) -> Any:
        return np.array([-S if t[index] is None else t[index] * S for t in TURNS], dtype=np.int64)

    return {
        "arrival_ns": ns(0),
        "first_token_ns": ns(1),
        "finish_ns": ns(2),
        "output_tokens": np.array([t[3] for t in TURNS]),
        "status": [t[4] for t in TURNS],
        "client_id": [t[5] for t in TURNS],
        "session_id": [f"s{i}" for i in range(len(TURNS))],
    }


@pytest.mark.parametrize(
    ("slo", "kept", "worst"),
    [
        (Slo(ttft_s=1.0), 3, 0.5),
        (Slo(tpot_s=1.0), 3, 0.0),
        (Slo(e2e_s=3.0), 2, 0.0),
        (Slo(ttft_s=1.0, tpot_s=1.0), 2, 0.0),
        (Slo(ttft_s=0.5), 0, 0.0),
    ],
    ids=str,
)
def test_a_turn_counts_if_it_kept_every_limit(slo: Slo, kept: int, worst: float) -> None:
    found = summarise(requests(), slo, 10 * S)
    assert found["goodput_per_s"] == kept / 10
    assert found["slo_attainment"] == kept / 5
    assert found["slo_attainment_min"] == worst


def test_nothing_has_no_goodput() -> None:
    nobody = {name: column[:0] for name, column in requests().items()}
    assert set(summarise(nobody, Slo(e2e_s=1.0), 0).values()) == {None}


def test_an_slo_limits_something() -> None:
    with pytest.raises(ValidationError, match="at least one of"):
        Slo()
    with pytest.raises(ValidationError):
        Slo(ttft_s=0.0)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return simulate(build({**SCENARIO, "workload": {**SCENARIO["workload"], "rate": 1.0}}, "t"))


def test_without_a_warm_up_metrics_are_those_of_the_run(recording: Recording) -> None:
    assert metrics_of(recording) == recording.summary["metrics"]
    asked = metrics_of(recording, Slo(ttft_s=1.0))
    assert {**asked, **recording.summary["metrics"]} == asked
    assert asked["goodput_per_s"] == pytest.approx(
        asked["slo_attainment"] * asked["rows"] / asked["makespan_s"], rel=1e-4
    )


def test_the_steady_state_is_that_of_turns_after_the_warm_up(recording: Recording) -> None:
    requests = columns_of(recording, "requests")
    begin, end = steady_window(requests, 4.0)
    assert begin == requests["arrival_ns"].min() + 4 * S
    assert end == requests["arrival_ns"][requests["turn"] == 1].max()
    inside = (requests["arrival_ns"] > begin) & (requests["arrival_ns"] <= end)
    assert 0 < inside.sum() < inside.size
    found = metrics_of(recording, Slo(ttft_s=1e5), 4.0)
    ttft = (requests["first_token_ns"] - requests["arrival_ns"])[inside]
    assert found["ttft_samples"] == inside.sum()
    assert found["ttft_p50_s"] == pytest.approx(percentile(ttft, 50.0) / S)  # type: ignore[operator]
    assert found["tbt_samples"] == (requests["output_tokens"][inside] - 1).sum()
    assert found["window_s"] == pytest.approx((end - begin) / S)
    assert found["goodput_per_s"] == pytest.approx(inside.sum() * S / (end - begin), rel=1e-5)
    assert found["rows"] == recording.summary["metrics"]["rows"]


def test_a_warm_up_longer_than_the_arrivals_is_told(recording: Recording) -> None:
    with pytest.raises(ConfigError, match=r"warm_up_s: 1e.06 s is not before the last session's"):
        metrics_of(recording, warm_up_s=1e6)
