"""Latency against throughput: who is not beaten in both, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from explore import words
from explore.report import chart, document
from explore.report.chart import Axis, Curve, Picture, Point
from explore.report.looks import Look
from explore.studies.estimates import Estimate

#: The first that all have is taken: of the steady window before the whole run, the far tail before a nearer.
THROUGHPUTS = ("throughput_tok_s", "throughput_live_tok_s")
LATENCIES = (("ttft_p99_s", "ttft_p95_s", "ttft_p50_s"), ("tbt_p999_s", "tbt_p99_s"))
METRICS = (*THROUGHPUTS, *(name for names in LATENCIES for name in names))

#: Most points in one picture; those on the frontier come first.
MAX_POINTS = 1000


@dataclass(frozen=True)
class Candidate:
    """A system, or a system at a point of a sweep. `attributes` are ours."""

    label: str
    system: str
    estimates: Mapping[str, Estimate]
    attributes: str = ""


def frontier(candidates: Sequence[Candidate], latency: str) -> list[bool]:
    """Which are beaten by nobody: nobody has at least as much throughput and at most as much latency,
    and is not equal. One without both numbers is never on it. By means; intervals are in the picture."""
    rate = common(candidates, THROUGHPUTS)
    places = [_place(one, rate, latency) for one in candidates]
    found = set()
    best = float("inf")
    for place in sorted({place for place in places if place is not None}):
        if (
            place[1] < best
        ):  # throughput falls from one to the next: only less latency is not beaten
            found.add(place)
            best = place[1]
    return [place in found for place in places]


def common(candidates: Sequence[Candidate], names: Sequence[str]) -> str:
    """The first of these metrics that no candidate lacks, else the last."""
    for name in names:
        if all(one.estimates[name].value is not None for one in candidates):
            return name
    return names[-1]


def _place(one: Candidate, rate: str, latency: str) -> tuple[float, float] | None:
    x, y = one.estimates[rate].value, one.estimates[latency].value
    return None if x is None or y is None else (-x, y)


def figures(candidates: Sequence[Candidate], systems: Sequence[str]) -> str:
    """A picture for every latency."""
    made = [
        document.figure(chart.svg(picture), caption)
        for picture, caption in pictures(candidates, systems)
    ]
    return f'<div class="pair">{"".join(made)}</div>' if made else ""


def pictures(
    candidates: Sequence[Candidate], systems: Sequence[str]
) -> Iterator[tuple[Picture, str]]:
    """Latency against throughput, and its caption, for every latency that somebody has."""
    for names in LATENCIES:
        latency = common(candidates, names)
        found = _picture(candidates, systems, latency)
        if found is not None:
            yield found


def _picture(
    candidates: Sequence[Candidate], systems: Sequence[str], latency: str
) -> tuple[Picture, str] | None:
    rate, on_it = common(candidates, THROUGHPUTS), frontier(candidates, latency)
    known = [i for i, one in enumerate(candidates) if _place(one, rate, latency) is not None]
    if not known:
        return None
    drawn = sorted(known, key=lambda i: not on_it[i])[:MAX_POINTS]
    points = [_point(candidates[i], rate, latency, is_faded=not on_it[i]) for i in drawn]
    x = _around(words.heading(rate), [value for point in points for value in point.x])
    y = chart.log(
        words.heading(latency), [value for point in points for value in (point.y[0], point.y[2])]
    )
    left_out = len(candidates) - len(drawn)
    caption = (
        f"{words.HEADINGS[latency][0]} against throughput; to the right and below is better. Line: the"
        " frontier, whom nobody beats in both means; pale: who is beaten. Crosses: 95 % intervals."
        + (f" {left_out} not drawn: too few samples, or too many points." if left_out else "")
    )
    title = f"{words.HEADINGS[latency][0]} against throughput"
    stairs = _stairs([point for point in points if not point.is_faded])
    curves = [Curve("", stairs, look=Look(7, 2))] if len(stairs) > 1 else []
    return Picture(title, x, y, curves, points, systems), caption


#: A user's own pace: tokens of one reply a second, by the median turn.
PACE = "tpot_p50_s"


def paces(candidates: Sequence[Candidate], systems: Sequence[str]) -> tuple[Picture, str] | None:
    """Tokens a second of one user against those of the whole machine, and its caption: the axes by which
    capacity is planned. None if nobody has both."""
    rate = common(candidates, THROUGHPUTS)
    turned = [(one, _turned(one.estimates[PACE])) for one in candidates]
    known = [
        (one, pace)
        for one, pace in turned
        if pace.value is not None and one.estimates[rate].value is not None
    ]
    if not known:
        return None
    places = {
        one.label: (pace.value or 0.0, one.estimates[rate].value or 0.0) for one, pace in known
    }
    points = []
    for one, pace in known:
        x, y = places[one.label]
        is_beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in places.values())
        told = words.scaled(pace, 1), words.estimate(one.estimates[rate], rate)
        label = f"{one.label}: {told[0]} tok/s of a user, {told[1]} tok/s of the machine"
        span = _span(one.estimates[rate])
        points.append(Point(label, one.system, _span(pace), span, is_beaten, one.attributes))
    stairs = _stairs([point for point in points if not point.is_faded])
    curves = [Curve("", stairs, look=Look(7, 2))] if len(stairs) > 1 else []
    x_axis = _around("tokens/s of one user (1 / TPOT P50)", [v for p in points for v in p.x])
    y_axis = _around("tokens/s of the machine", [v for p in points for v in p.y])
    title = "Pace of a user against pace of the machine"
    caption = f"{title}; to the right and above is better. Line: the frontier; pale: who is beaten in both means."
    return Picture(title, x_axis, y_axis, curves, points, systems), caption


def _turned(found: Estimate) -> Estimate:
    """One over it; its interval is the same factor up and down."""
    if not found.value:
        return Estimate(None)
    half = None if found.half is None else found.half / found.value**2
    return Estimate(1 / found.value, half)


def _stairs(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Along the frontier: the best height that anybody has at least so far to the right."""
    found: list[tuple[float, float]] = []
    for x, y in sorted({(point.x[0], point.y[0]) for point in points}):
        if found:
            found.append((found[-1][0], y))
        found.append((x, y))
    return found


def _around(title: str, values: Sequence[float]) -> Axis:
    """From a little below the least to a little above the most."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(title, max(0.0, low - room), high + room)


def _point(one: Candidate, rate: str, latency: str, *, is_faded: bool) -> Point:
    x, y = (_span(one.estimates[name]) for name in (rate, latency))
    told = ", ".join(
        f"{words.heading(name)} {words.estimate(one.estimates[name], name)}"
        for name in (rate, latency)
    )
    return Point(f"{one.label}: {told}", one.system, x, y, is_faded, one.attributes)


def _span(found: Estimate) -> tuple[float, float, float]:
    assert found.value is not None
    low, high = found.interval or (found.value, found.value)
    return found.value, low, high
