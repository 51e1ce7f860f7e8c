"""Fit a generator to a workload, and say how far from the data it is.

The distance is taken where the generator has not looked: it is fitted on one random half of the
sessions and compared with the other; beside it stands the distance between the two halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from policy.errors import InputError
from traces.describing.columns import NONE, NS, Columns, Floats, Ints, collect
from traces.describing.describe import dispersion, is_close
from traces.generators.arrivals import MAX_CV, MIN_CV, Arrivals
from traces.generators.catalog import arrivals_of
from traces.generators.files import GeneratorFile
from traces.generators.fit_laws import fit_values, normal_scores, two_sample_ks
from traces.generators.laws import Values, seconds_to_ns
from traces.generators.sessions import Generator, Reset, SessionModel, Wait
from traces.randomness import Streams
from traces.strict import shown
from traces.workload_spec import ArrivalSpec

#: Fewest sessions for a fit, which is done on halves too.
MIN_SESSIONS = 20
#: A prompt that repeats less than this share of its parent's was reset.
_RESET = 0.5
#: Inter-arrivals of two laws are compared over so many draws.
_DRAWS = 20_000
#: Sessions that a generator draws to be compared: so many that their own scatter is no part of its distance.
_GENERATED = 20_000
_MINUTE = 60
_CV_FACTORS = (1.0, 0.8, 0.9, 1.12, 1.25)


def fit(columns: Columns, name: str) -> GeneratorFile:
    """The generator of a workload. Raises InputError for one with too few sessions."""
    sessions = columns.turns.size
    if sessions < MIN_SESSIONS:
        raise InputError(
            f"{shown(columns.header.source or name)}: {sessions} sessions; a fit needs"
            f" {MIN_SESSIONS} or more"
        )
    rate, arrivals, notes = fit_arrivals(columns)
    model, more = fit_model(columns, name)
    return GeneratorFile(
        fitted_on=columns.header.source or name,
        notes=(*notes, *more),
        conversations=int(sessions),
        rate=rate,
        arrivals=arrivals,
        model=model,
    )


# ---------------------------------------------------------------------- sessions


def fit_model(columns: Columns, name: str) -> tuple[SessionModel, list[str]]:
    """Laws of turns, lengths and waits, and what of the data they leave out."""
    notes = []
    later = columns.children
    repeats = _repeats_reply(columns, later)
    reset, is_reset = _resets(columns, later)
    first = fit_values(_floats(columns.inputs[columns.first]), grid=1)
    added = columns.added[later[~is_reset]]
    waits = _waits(columns)
    if later.size and not columns.gaps[0].size:
        notes.append("the data has no gaps: later turns follow at once; give --think")
    if later.size and columns.gap_kind == "start" and columns.gaps[0].size:
        notes.append("gaps run from a request's start to the next one's: serving time is in them")
    block = columns.header.block_size or 1  # what is lost of one block is how ids are cut
    lost = columns.inputs[columns.parent[later]] - columns.kept[later] > block
    short = float(lost.mean()) if later.size else 0.0
    if short > (reset.share if reset else 0) + 0.005:
        notes.append(
            f"{short:.1%} of later prompts lose some of their parent's; only those that lose more"
            " than half are drawn"
        )
    turns = columns.turns
    source = columns.header.source or name
    model = SessionModel(
        name=name,
        lengths=f"laws fitted on {source}",
        times=f"fitted on {source}" if columns.gaps[0].size else "none, the data has no gaps",
        hazards=hazards(turns),
        max_turns=int(turns.max()),
        first=first,
        later=fit_values(_floats(added), grid=1) if added.size else first,
        reply=fit_values(_floats(columns.outputs), grid=1),
        alike=_alike(columns),
        waits=waits,
        waits_from="start" if columns.gap_kind == "start" and columns.gaps[0].size else "reply",
        repeats_reply=repeats,
        reset=reset,
        tokenizer=columns.header.tokenizer,
    )
    return model, notes


def _floats(values: Ints) -> Floats:
    return values.astype(np.float64)


def hazards(turns: Ints) -> tuple[float, ...]:
    """Chance of another turn after 1, 2, ...: one by one up to 10, then over ever wider spans of
    about a tenth of their place, so that few sessions do not make a ragged law."""
    longest = int(turns.max())
    found: list[float] = []
    k = 1
    while k < longest:
        span = max(1, k // 10) if k < longest // 2 else max(1, k // 5)
        ends = min(k + span, longest)
        at_risk = sum(int((turns >= j).sum()) for j in range(k, ends))
        on = sum(int((turns > j).sum()) for j in range(k, ends))
        found += [round(on / at_risk, 4)] * (ends - k)
        k = ends
    return tuple(found) or (0.0,)


def _repeats_reply(columns: Columns, later: Ints) -> bool:
    """Whether prompts repeat the reply before them: none that says what it repeats goes beyond its
    parent's prompt if not."""
    if not later.size:
        return True
    prompts = columns.inputs[columns.parent[later]]
    return bool((columns.kept[later] > prompts).any())


def _resets(columns: Columns, later: Ints) -> tuple[Reset | None, Any]:
    """The law of prompts that lose most of their parent's, and which they are."""
    prompts = columns.inputs[columns.parent[later]]
    kept = columns.kept[later]
    is_reset = (kept < _RESET * prompts) & (prompts > 0)
    if not is_reset.any():
        return None, is_reset
    factors = columns.inputs[later][is_reset] / prompts[is_reset]
    sizes = np.quantile(factors, np.linspace(0, 1, 9))
    return (
        Reset(
            round(float(is_reset.mean()), 5),
            int(np.median(kept[is_reset])),
            tuple(round(min(float(size), 1e4), 4) for size in sizes),
        ),
        is_reset,
    )


def _waits(columns: Columns) -> tuple[Wait, ...]:
    """A law of waits for each way a reply ends, the most frequent first."""
    parts = columns.gaps_by_stop()
    if not parts:
        return (Wait(1.0, Values(zero=1.0)),)
    total = sum(part.size for part in parts.values())
    found = [
        Wait(round(part.size / total, 5), fit_values(part / NS), stop)
        for stop, part in parts.items()
    ]
    found.sort(key=lambda wait: (-wait.share, wait.stop or ""))
    return tuple(found)


def _alike(columns: Columns) -> float:
    """Correlation of neighbouring replies on the scale of normal scores, where the copula is."""
    rows = columns.children
    if rows.size < 10:
        return 0.0
    before = normal_scores(_floats(columns.outputs[columns.parent[rows]]))
    after = normal_scores(_floats(columns.outputs[rows]))
    return round(min(max(float(np.corrcoef(before, after)[0, 1]), 0.0), 0.99), 4)


# ---------------------------------------------------------------------- arrivals


def fit_arrivals(columns: Columns) -> tuple[float | None, ArrivalSpec, list[str]]:
    """Sessions per second (None: not known), the law that is nearest, and remarks.

    Clients if there are three or more; a moving rate if gaps are like Poisson's within minutes and
    counts are not over minutes; else that of Poisson, gamma, Weibull and a mixture whose gaps are
    nearest to the data's.
    """
    times = columns.starts
    if times.size < MIN_SESSIONS or times[-1] == times[0]:
        return None, ArrivalSpec(), ["the data has no arrivals: give --rate"]
    gaps = np.diff(times) / NS
    rate = _rounded(1 / float(gaps.mean()))
    by_client = _client_law(columns)
    if by_client is not None:
        return rate, by_client, []
    cv = float(gaps.std() / gaps.mean())
    wide = dispersion(times, _MINUTE)
    swing = _swing(rate, cv, wide)
    if swing is not None:
        return (
            rate,
            ArrivalSpec(law="modulated", swing=swing, memory_s=600.0),
            ["the memory of the moving rate is assumed, 600 s"],
        )
    return rate, _nearest(gaps, rate, cv), []


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _swing(rate: float, cv: float, wide: float | None) -> float | None:
    """The CV of a moving rate: dispersion over a minute is 1 + 60 rate CV²."""
    if wide is None or not 0.85 < cv < 1.3 or wide < 3:
        return None
    return round(min(max(math.sqrt((wide - 1) / (_MINUTE * rate)), 0.01), 10.0), 4)


def _nearest(gaps: Floats, rate: float, cv: float) -> ArrivalSpec:
    """Of the laws of independent gaps, the one whose draws are nearest; a simpler one is kept unless
    another is nearer by .02. The CV of a heavy-tailed sample says little: others near it are tried.
    """
    cvs = [round(min(max(cv * factor, MIN_CV), MAX_CV), 4) for factor in _CV_FACTORS]
    laws = [ArrivalSpec()]
    laws += [ArrivalSpec(law="gamma", cv=kept) for kept in cvs]
    laws += [ArrivalSpec(law="weibull", cv=kept) for kept in cvs]
    laws.append(ArrivalSpec(law="fitted", of_rate=rate, gaps=fit_values(gaps)))
    best, least = laws[0], math.inf
    for law in laws:
        drawn = _draws(arrivals_of(law, rate), min(_DRAWS, max(2000, gaps.size)))
        distance = two_sample_ks(gaps, drawn)
        margin = 0.0 if law.law == best.law else 0.02
        if distance < least - margin:
            best, least = law, distance
    return best


def _draws(law: Arrivals, count: int) -> Floats:
    starts = law.starts(Streams(0))
    times = [seconds_to_ns(next(starts).at_s) for _ in range(count + 1)]
    return np.diff(np.array(times)) / NS


def _client_law(columns: Columns) -> ArrivalSpec | None:
    """Zipf shares and the spread of the clients' own CVs; None for fewer than three clients."""
    first = columns.first & (columns.arrays["arrival"] != NONE)
    codes = columns.arrays["client"][first]
    if (codes == NONE).any():
        return None
    counts = np.sort(np.unique(codes, return_counts=True)[1])[::-1]
    if counts.size < 3:
        return None
    slope = np.polyfit(np.log(np.arange(1, counts.size + 1)), np.log(counts), 1, w=np.sqrt(counts))
    times = columns.arrays["arrival"][first]
    logs = []
    for code in np.unique(codes).tolist():
        gaps = np.diff(np.sort(times[codes == code]))
        if gaps.size >= 10 and gaps.any():
            logs.append(math.log(max(float(gaps.std() / gaps.mean()), 0.02)))
    mean = float(np.mean(logs)) if logs else 0.0
    spread = float(np.std(logs)) if logs else 0.0
    return ArrivalSpec(
        law="clients",
        clients=int(counts.size),
        skew=round(min(max(-float(slope[0]), 0.0), 5.0), 4),
        cv_log_mean=round(min(max(mean, -4.0), 4.0), 4),
        cv_log_deviation=round(min(spread, 4.0), 4),
    )


# ---------------------------------------------------------------------- distance


def halves(columns: Columns, streams: Streams) -> tuple[Columns, Columns]:
    """Two random halves, sessions whole."""
    sessions = np.unique(columns.arrays["session"])
    ranks = [streams("half", "", k) for k in range(sessions.size)]
    order = np.argsort(np.array(ranks, dtype=np.uint64), kind="stable")
    middle = sessions.size // 2
    return columns.select(sessions[order[:middle]]), columns.select(sessions[order[middle:]])


def generated(fitted: GeneratorFile, sessions: int, seed: int) -> Columns:
    """What a fitted generator makes."""
    arrivals = arrivals_of(fitted.arrivals, fitted.rate or 1.0)
    generator = Generator(fitted.model, sessions, arrivals)
    return collect(generator.workload(Streams(seed)))


def held_out_distances(
    columns: Columns, name: str, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> dict[str, dict[str, Any]]:
    """For each quantity: `generator`, the distance of a generator fitted on one half to the other;
    `halves`, that between the halves; `close`, whether the first is at most .05 or twice the second.

    Inter-arrivals are not in the halves, which would thin them: those of the generator fitted on all
    are compared with the data's, `halves` with its two halves in time, and nothing is promised.
    """
    one, other = halves(columns, Streams(seed))
    fitted = fit(one, name)
    advance()
    made = generated(fitted, _GENERATED, seed)
    advance()
    found: dict[str, dict[str, Any]] = {}
    data, left, drawn = other.quantities(), one.quantities(), made.quantities()
    for quantity, values in data.items():
        if quantity == "inter-arrivals s" or quantity not in drawn:
            continue
        if quantity == "gaps s" and not columns.gaps[0].size:
            continue
        apart = two_sample_ks(left[quantity], values)
        distance = two_sample_ks(drawn[quantity], values)
        found[quantity] = _row(distance, apart, values.size, promised=True)
    times = columns.starts
    if fitted.rate is not None and times.size > 2 * MIN_SESSIONS:
        whole = fit(columns, name)
        gaps = np.diff(times) / NS
        law = arrivals_of(whole.arrivals, whole.rate or 1.0)
        middle = gaps.size // 2
        found["inter-arrivals s"] = _row(
            two_sample_ks(_draws(law, min(_DRAWS, max(2000, gaps.size))), gaps),
            two_sample_ks(gaps[:middle], gaps[middle:]),
            gaps.size,
            promised=False,
        )
    return found


def _row(distance: float, apart: float, size: int, *, promised: bool) -> dict[str, Any]:
    return {
        "generator": round(distance, 4),
        "halves": round(apart, 4),
        "values": size,
        "close": is_close(distance, apart),
        "promised": promised,
    }


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """The distances as a table."""
    lines = [f"{'Kolmogorov-Smirnov distance':<28} {'generator':>9} {'two halves':>10}"]
    for name, row in found.items():
        verdict = "near" if row["close"] else "NOT NEAR"
        remark = "" if row["promised"] else " (law of all; halves in time)"
        lines.append(
            f"  {name:<26} {row['generator']:>9.3f} {row['halves']:>10.3f}  {verdict}{remark}"
        )
    return "\n".join(lines)
