"""`fastswitch trace clients`: from ServeGen's files to requests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import fastswitch
from traces.readers.catalog import read_workload

HISTOGRAMS = {
    "0": {
        "input_tokens": "{100: 0.25, 300: 0.75}",
        "output_tokens": "{7: 1.0}",
        "reason_ratio": "{}",
    }
}


HALF = {"0": {"input_tokens": "{}", "output_tokens": "{7: 1.0}", "reason_ratio": "{}"}}


def folder_of(path: Path, rates: dict[int, float]) -> Path:
    """Clients with one rate each for an hour; number 9 has no lengths, number 8 none of prompts."""
    for client, rate in rates.items():
        text = "".join(f"{600 * k},{rate},1,Gamma,1,{1 / rate}\n" for k in range(6))
        (path / f"chunk-{client}-trace.csv").write_text(text)
        known = {9: {}, 8: HALF}.get(client, HISTOGRAMS)
        (path / f"chunk-{client}-dataset.json").write_text(json.dumps(known))
    return path


def test_clients_send_at_their_rates_what_their_histograms_say(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {3: 0.5, 5: 0.1, 9: 1.0, 8: 1.0})
    out = tmp_path / "out.jsonl"
    arguments = ["trace", "clients", str(folder), "--window", "600:3600", "--scale", "2"]
    result = CliRunner().invoke(fastswitch.main, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "of 2 clients written" in result.output
    assert "left out: 2 clients without rates or lengths: 8, 9\n" in result.output
    made = read_workload(out)
    turns = list(made)
    counts = Counter(turn.client_id for turn in turns)
    assert counts["3"] == pytest.approx(3000, rel=0.1)
    assert counts["5"] == pytest.approx(600, rel=0.2)
    assert {turn.output_tokens for turn in turns} == {7}
    prompts = Counter(turn.input_tokens for turn in turns)
    assert prompts[300] / len(turns) == pytest.approx(0.75, abs=0.03)
    assert set(prompts) == {100, 300}
    assert (turns[0].arrival_ns or 0) >= 0 and (turns[-1].arrival_ns or 0) < 3000 * 10**9
    assert any("2 times as many" in part for part in made.header.composed_from)
    again = tmp_path / "again.jsonl"
    CliRunner().invoke(fastswitch.main, [*arguments, "--out", str(again)])
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--window", "5"], "--window: '5' must be like 600:1200"),
        (["--window", "9:3"], "9 to 3 s is no span of time"),
        (["--scale", "0"], "scale 0 is not above 0"),
        (["a", "b"], "3 sources; give a folder, or rates and lengths"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    extra: list[str], says: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, {3: 0.5})
    out = tmp_path / "out.jsonl"
    arguments = ["trace", "clients", str(folder), *extra, "--out", str(out)]
    result = CliRunner().invoke(fastswitch.main, arguments)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert not out.exists()
