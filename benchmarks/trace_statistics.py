"""The statistics of sample traces beside those published of the whole sources.

    FASTSWITCH_TRACES=FOLDER python benchmarks/trace_statistics.py [TRACE ...]

The whole sources' figures were computed from the sources once and are typed in here, each with the
table of the research page (data.md) that it stands in. A sample is a cut, so the two differ; a ratio
far from 1 has a reason, which the page on results names. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.traces_found import STEMS, open_trace
from policy.errors import FastSwitchError
from traces.describing.describe import describe

#: Trace -> (section, path in `describe`'s answer, figure of the whole source).
WHOLE: dict[str, tuple[tuple[str, str, float], ...]] = {
    "azure_llm_2023_conv": (
        ("2.2", "input_tokens.mean", 1155), ("2.2", "input_tokens.p50", 1020),
        ("2.2", "input_tokens.p99", 4142), ("2.2", "output_tokens.mean", 211),
        ("2.2", "output_tokens.p50", 129), ("2.2", "output_tokens.p99", 601),
        ("2.3", "arrivals.rate_per_s", 5.53), ("2.3", "arrivals.cv", 1.09),
        ("2.3", "arrivals.idc_1s", 1.4), ("2.3", "arrivals.idc_10s", 4.0),
        ("2.3", "arrivals.idc_60s", 20.6),
    ),
    "azure_llm_2023_code": (
        ("2.2", "input_tokens.mean", 2048), ("2.2", "input_tokens.p50", 1469),
        ("2.2", "input_tokens.p99", 7436), ("2.2", "output_tokens.mean", 28),
        ("2.2", "output_tokens.p50", 13), ("2.2", "output_tokens.p99", 251),
        ("2.3", "arrivals.rate_per_s", 2.57), ("2.3", "arrivals.cv", 13.2),
        ("2.3", "arrivals.cv_per_minute_p50", 3.1), ("2.3", "arrivals.idc_1s", 13),
        ("2.3", "arrivals.idc_10s", 71), ("2.3", "arrivals.idc_60s", 161),
    ),
    "mooncake_conversation_trace": (
        ("2.2", "input_tokens.mean", 12035), ("2.2", "input_tokens.p50", 6909),
        ("2.2", "output_tokens.mean", 343), ("2.2", "output_tokens.p50", 350),
        ("2.3", "arrivals.rate_per_s", 3.40), ("2.3", "arrivals.cv", 3.0),
        ("2.3", "arrivals.idc_10s", 2.1), ("2.3", "arrivals.idc_60s", 2.9),
        ("2.4", "prefix_cache.unlimited_share", 0.366),
        ("2.4", "prefix_cache.lru_1000_share", 0.045),
        ("2.4", "prefix_cache.lru_5000_share", 0.110),
        ("2.4", "prefix_cache.lru_10000_share", 0.211),
        ("2.4", "prefix_cache.lru_30000_share", 0.326),
        ("2.4", "prefix_cache.lru_50000_share", 0.355),
    ),
    "mooncake_synthetic_trace": (
        ("2.2", "input_tokens.mean", 15325), ("2.2", "input_tokens.p50", 11587),
        ("2.2", "output_tokens.mean", 149), ("2.2", "output_tokens.p50", 69),
        ("2.3", "arrivals.rate_per_s", 3.91), ("2.3", "arrivals.cv", 1.01),
        ("2.3", "arrivals.idc_60s", 13),
    ),
    "claude_code_agentic": (
        ("2.2", "input_tokens.mean", 119380), ("2.2", "input_tokens.p50", 101495),
        ("2.2", "input_tokens.p99", 507925), ("2.2", "output_tokens.mean", 439),
        ("2.2", "output_tokens.p50", 217), ("2.2", "output_tokens.p99", 3678),
        ("2.2", "later_new_tokens.mean", 3155), ("2.2", "later_new_tokens.p50", 713),
        ("2.2", "later_new_tokens.p95", 8200), ("2.2", "later_new_tokens.p99", 58063),
        ("2.4", "turns_per_session.mean", 65.8), ("2.4", "turns_per_session.p50", 44),
        ("2.4", "turns_per_session.p99", 331), ("2.4", "multi_turn_sessions", 1.0),
        ("2.4", "gap_s.p50", 10), ("2.4", "gap_s.p90", 171),
        ("2.4", "gap_s_by_stop.tool_use.p50", 9), ("2.4", "gap_s_by_stop.tool_use.p90", 74),
        ("2.4", "gap_s_by_stop.end_turn.p50", 186), ("2.4", "gap_s_by_stop.end_turn.p90", 2557),
        ("1", "prefix_cache.unlimited_share", 0.96),
    ),
    "ragpulse_0_trace": (
        ("2.2", "input_tokens.mean", 2944), ("2.2", "input_tokens.p50", 3140),
        ("2.2", "output_tokens.mean", 283), ("2.2", "output_tokens.p50", 234),
        ("2.3", "arrivals.rate_per_s", 0.0118), ("2.3", "arrivals.cv", 3.06),
        ("2.3", "arrivals.idc_60s", 1.7), ("2.4", "turns_per_session.mean", 1.78),
        ("2.4", "multi_turn_sessions", 0.41), ("2.4", "multi_turn_requests", 0.67),
        ("2.4", "gap_s.p50", 39), ("2.4", "gaps_over_1h", 0.026),
    ),
    "sharegpt_turn_lengths": (
        ("2.2", "later_new_tokens.p50", 18), ("2.2", "new_input_tokens.mean", 96),
        ("2.2", "new_input_tokens.p50", 19), ("2.2", "new_input_tokens.p95", 377),
        ("2.2", "output_tokens.mean", 357), ("2.2", "output_tokens.p50", 281),
        ("2.2", "output_tokens.p99", 1684), ("2.2", "first_input_tokens.p50", 26),
        ("2.4", "turns_per_session.mean", 6.49), ("2.4", "turns_per_session.p50", 3),
        ("2.4", "turns_per_session.p99", 56), ("2.4", "multi_turn_sessions", 0.69),
        ("2.4", "multi_turn_requests", 0.95), ("2.4", "neighbouring_replies", 0.54),
        ("2.4", "continuation.0", 0.69), ("2.4", "continuation.1", 0.78),
        ("2.4", "continuation.4", 0.84), ("2.4", "continuation.8", 0.89),
    ),
    "sarathi_sharegpt_8k": (
        ("2.2", "input_tokens.mean", 2340), ("2.2", "input_tokens.p50", 1730),
        ("2.2", "output_tokens.mean", 439), ("2.2", "output_tokens.p50", 415),
    ),
    "vidur_arxiv": (
        ("2.2", "input_tokens.mean", 2588), ("2.2", "input_tokens.p50", 2730),
        ("2.2", "output_tokens.mean", 291), ("2.2", "output_tokens.p50", 167),
    ),
    "vtc_arena_real": (
        ("2.2", "input_tokens.mean", 136), ("2.2", "input_tokens.p50", 40),
        ("2.2", "output_tokens.mean", 256), ("2.2", "output_tokens.p50", 211),
        ("2.3", "arrivals.rate_per_s", 2.50), ("2.3", "arrivals.cv", 1.10),
        ("2.3", "clients.top_1_share", 0.20), ("2.3", "clients.rank_rate_slope", -1.04),
    ),
}  # fmt: skip

#: Cache sizes are tried on the trace for which they were published.
CACHES = {"mooncake_conversation_trace": (1000, 5000, 10_000, 30_000, 50_000)}


def look_up(found: Any, path: str) -> float | None:
    """A value by its dotted path."""
    for key in path.split("."):
        if found is None:
            return None
        found = found[int(key)] if isinstance(found, list) else found.get(key)
    return None if found is None else float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("traces", nargs="*", metavar="TRACE", help=f"of {', '.join(STEMS)}")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {}
    for stem in options.traces or STEMS:
        workload = open_trace(stem)
        if workload is None:
            continue
        try:
            found = describe(workload, CACHES.get(stem, ()))
        except FastSwitchError as error:
            print(f"{stem}: {error}")
            continue
        print(f"\n{stem}: {found['requests']} requests in {found['sessions']} sessions")
        print("| statistic | sample | whole source | ratio | section |")
        print("| --- | --- | --- | --- | --- |")
        result[stem] = {}
        for section, path, whole in WHOLE[stem]:
            value = look_up(found, path)
            ratio = "-" if value is None else f"{value / whole:.2f}"
            shown = "-" if value is None else f"{value:.6g}"
            print(f"| {path} | {shown} | {whole:g} | {ratio} | {section} |")
            result[stem][path] = value
        if found["prefix_cache"] is not None:
            cache = found["prefix_cache"]
            print(f"{cache['unlimited_hits']} hits of {cache['references']} block references")
            result[stem]["hits"] = [cache["unlimited_hits"], cache["references"]]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
