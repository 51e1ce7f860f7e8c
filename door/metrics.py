"""/metrics: vLLM's names and labels, what gateways still read of earlier releases, and our own.

Everything is counted where a reply is told, so counters equal the recording, and times include queueing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Histogram:
    """Counts in buckets: a third of a microsecond an observation."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus wants them."""
        total, found = 0, []
        for bound, count in zip(
            (*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True
        ):
            total += count
            found.append((bound, float(total)))
        return found


_HISTOGRAMS = {
    "time_to_first_token_seconds": (_SECONDS, "From a request's coming to its first token, queueing included."),
    "inter_token_latency_seconds": (_SECONDS, "Between tokens of one reply."),
    "request_time_per_output_token_seconds": (_SECONDS, "Mean of a reply's."),
    "e2e_request_latency_seconds": (_SECONDS, "From a request's coming to its end."),
    "request_prompt_tokens": (_TOKENS, "Tokens of prompts."),
    "request_generation_tokens": (_TOKENS, "Tokens of replies."),
    "request_params_max_tokens": (_TOKENS, "What was asked for at most."),
    "iteration_tokens_total": (_TOKENS, "Tokens told at once."),
    "request_num_preemptions": ((0, 1, 2, 5, 10, 20, 50, 100), "Preemptions of a request."),
}  # fmt: skip


class Metrics:
    """What has been counted; `live()` tells the engine's state when somebody asks, by the names of
    `_GAUGES`."""

    def __init__(self, model: str, live: Callable[[], dict[str, float]]) -> None:
        self._labels = (model, "0")
        self._live = live
        self.histograms = {name: Histogram(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.cached_tokens = 0
        self.finished: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type,unused-ignore]

    def text(self) -> bytes:
        """The page."""
        found: bytes = generate_latest(self._registry)
        return found

    def collect(self) -> Iterable[Any]:
        """For prometheus_client."""
        names = ("model_name", "engine")
        counters = {
            "prompt_tokens": (self.prompt_tokens, "Tokens of prompts that were served."),
            "generation_tokens": (self.generation_tokens, "Tokens told."),
            "num_preemptions": (self.preemptions, "Preemptions of requests that have ended."),
            "prefix_cache_queries": (self.prompt_tokens, "Tokens of prompts that were looked up."),
            "prefix_cache_hits": (self.cached_tokens, "Of these, tokens whose KV was there."),
        }
        for name, (value, words) in counters.items():
            family = CounterMetricFamily(f"vllm:{name}", words, labels=names)
            family.add_metric(self._labels, value)
            yield family
        yield from self._by(
            "vllm:request_success", "Requests by how they ended.", "finished_reason", self.finished
        )
        yield from self._by(
            "fastswitch:ignored_fields", "Fields nobody knows.", "field", self.ignored
        )
        yield from self._by(
            "fastswitch:refused_requests", "Refused requests by status.", "status", self.refused
        )
        for name, level in self._live().items():
            prefix = "" if ":" in name else "vllm:"
            gauge = GaugeMetricFamily(prefix + name, name.replace("_", " "), labels=names)
            gauge.add_metric(self._labels, level)
            yield gauge
        for name, histogram in self.histograms.items():
            shown = HistogramMetricFamily(f"vllm:{name}", _HISTOGRAMS[name][1], labels=names)
            shown.add_metric(self._labels, histogram.buckets(), histogram.sum)
            yield shown

    def _by(self, name: str, words: str, label: str, counts: Counter[str]) -> Iterable[Any]:
        family = CounterMetricFamily(name, words, labels=("model_name", "engine", label))
        for value, count in sorted(counts.items()):
            family.add_metric((*self._labels, value), count)
        yield family
