"""The tables beside the claims: load and volume of the baselines, what each mechanism and each newer
engine is worth, and what swapping costs against recompute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from explore.reproduce import crossover
from explore.reproduce.study import Found, Place, Result
from explore.studies.estimates import NOTABLE, Ratio, estimate_of, speedup_of
from explore.studies.worth import MECHANISMS, METRICS
from explore.words import HEADINGS, TOO_SMALL, estimate, heading, ratio, significant
from policy.systems import BASELINES

DROP, KEEP = BASELINES
#: Pairs that the paper's study tells besides those that every comparison does.
_MORE = (
    ("asynchronous swapping", "+async", "+groups"),
    ("all three", "fastswitch", KEEP),
    ("block groups on a block-major layout", "+groups-block-major", "+block-major"),
    ("all three instead of a block-major layout", "fastswitch", "+block-major"),
    ("block-major layout beside all three", "fastswitch-block-major", "fastswitch"),
)


_BOLD = f"in bold where the interval leaves out 1 and the difference is at least {NOTABLE - 1:.0%}"


@dataclass(frozen=True)
class Table:
    """A heading, what to know before reading it, and cells of text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(found: Found, *, full: bool) -> Iterator[Table]:
    """Tables that have rows."""
    candidates = [loads(found), mechanisms(found, "turns")]
    if full:
        candidates += [elsewhere(found), engines(found, "modern"), costs()]
        candidates += [engines(found, group) for group in ("choices", "orders", "tight host")]
    yield from (table for table in candidates if table.rows)


def loads(found: Found) -> Table:
    """How hard the baselines work at every operating point, and how much they swap."""
    rows = []
    for group in ("turns", "conversations", "no think time", "load", "modern"):
        for place in found.places(group):
            for name in (DROP, KEEP):
                runs = found.of(place, name)
                if runs is not None:
                    rows.append((place.label, name, *_load(runs)))
    return Table(
        "Load and swap volume of the baselines",
        "Offered load against what the same system makes of a backlog; below capacity: in some run too"
        " little queued to say. Shares of load are of a capacity measured beforehand. Means over runs."
        " Turns and gaps: samples of one run behind its TTFT and TBT percentiles.",
        (
            "point",
            "system",
            "load",
            "preemptions",
            "k blocks out",
            "k blocks in",
            "stall %",
            "stall at TBT P99 %",
            "stall at step P99 %",
            "turns",
            "M gaps",
        ),
        tuple(rows),
    )


def _load(runs: Sequence[Result]) -> Iterator[str]:
    metrics = [run["metrics"] for run in runs]
    offered = [m["offered_tok_s"] for m in metrics]
    reached = [m["capacity_tok_s"] for m in metrics]
    if all(offered) and all(reached):
        yield f"{sum(o / r for o, r in zip(offered, reached, strict=True)) / len(runs):.0%}"
    else:
        yield "below capacity"
    for name in (
        "preemptions",
        "blocks_out",
        "blocks_in",
        "stall_share",
        "stall_share_p99_gaps",
        "stall_share_p99_steps",
    ):
        yield estimate(estimate_of(runs, name), name).partition(" ")[0]
    yield from _samples(runs)


def _samples(runs: Sequence[Result]) -> tuple[str, str]:
    """Turns and millions of gaps of the thinnest run."""
    metrics = [run["metrics"] for run in runs]
    turns = min(m["ttft_samples"] for m in metrics)
    return str(turns), f"{min(m['tbt_samples'] for m in metrics) / 1e6:.2f}"


def mechanisms(found: Found, group: str) -> Table:
    """Every pair of which both were run, at every set-up."""
    rows = []
    for words, system, against in (*MECHANISMS, *_MORE):
        for place in found.places(group):
            ours, theirs = found.of(place, system), found.of(place, against)
            if ours is not None and theirs is not None:
                rows.append(
                    (
                        f"{words}: `{system}` against `{against}`",
                        place.setup,
                        *_ratios(ours, theirs),
                    )
                )
    return Table(
        "What each mechanism is worth",
        f"Times better, paired by run, with 95 % interval; {_BOLD}.",
        ("mechanism", "set-up", *(HEADINGS[m][0] for m in METRICS)),
        tuple(rows),
    )


def elsewhere(found: Found) -> Table:
    """Groups alone, and all three mechanisms, at other readings, loads and prices of a call."""
    rows = []
    for group in ("conversations", "no think time", "think time", "clock", "load", "dispatch"):
        for place in found.places(group):
            theirs = found.of(place, KEEP)
            for system in ("+groups", "fastswitch"):
                ours = found.of(place, system)
                if ours is not None and theirs is not None:
                    rows.append((place.label, system, *_ratios(ours, theirs), *_samples(ours)))
    return Table(
        "The same at other readings, loads and prices of a copy call",
        f"Times better than {KEEP}, with 95 % interval; {_BOLD}; turns and gaps of one run.",
        ("point", "system", *(HEADINGS[m][0] for m in METRICS), "turns", "M gaps"),
        tuple(rows),
    )


def _ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> Iterator[str]:
    for metric in METRICS:
        yield marked(speedup_of(ours, theirs, metric))


def marked(found: Ratio) -> str:
    """A ratio, bold where it shows a difference."""
    text = ratio(found)
    return f"**{text}**" if found.is_better or found.is_worse else text


def engines(found: Found, group: str) -> Table:
    """Systems of a group in numbers, and in times better than the baseline that keeps KV."""
    rows = []
    for place in found.places(group):
        theirs = found.of(place, KEEP)
        for name, runs in found.results[place].items():
            cells = [estimate(estimate_of(runs, m), m) for m in METRICS]
            cells.append(estimate(estimate_of(runs, "stall_share"), "stall_share"))
            against = [
                TOO_SMALL if theirs is None else marked(speedup_of(runs, theirs, m))
                for m in ("ttft_p95_s", "tbt_p999_s")
            ]
            times = ("" if name == KEEP else one for one in against)
            rows.append((_where(place), name, *cells, *times, *_samples(runs)))
    return Table(
        {
            "modern": "Engines that could be built today, at the baseline's capacity",
            "choices": "Choices inside the mechanisms",
            "orders": "Other rules of preemption, and static priority",
            "tight host": "An eighth of the host memory: which copies go first",
        }[group],
        f"Means over runs, ± half of the 95 % interval; then times better than {KEEP}; turns and gaps of"
        " one run.",
        (
            "set-up",
            "system",
            *map(heading, METRICS),
            heading("stall_share"),
            "TTFT P95, times",
            "TBT P99.9, times",
            "turns",
            "M gaps",
        ),
        tuple(rows),
    )


def _where(place: Place) -> str:
    return place.setup if place.group in ("modern", "choices", "tight host") else place.label


def costs() -> Table:
    """At which price of a call swapping block by block would be as slow as recompute."""
    rows = []
    for machine in crossover.MACHINES:
        cells = [significant(crossover.break_even_us(machine, n)) for n in (256, 2048, 8192)]
        rows.append((machine, *cells))
    return Table(
        "Swap against recompute: the price of a call at which both take as long",
        "Microseconds for one copy call of one block, layer and side, layer-major, one preemption alone;"
        " below it swapping is faster. From the cost model; published are 2.3 and 5.5, another simulator takes 10.",
        ("machine", "256 tokens", "2,048 tokens", "8,192 tokens"),
        tuple(rows),
    )
