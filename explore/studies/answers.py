"""What a planner asks of a sweep's results: one number, one against another, how far one can go.

Functions of the frame `Sweep.results`, a row per trial. `at` chooses points by what was swept, as in
`{"workload.rate": 0.2}`; a choice that leaves no trial, or two of one system and run, is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explore.studies.estimates import Estimate, Ratio, estimate_of, ratio_of, speedup_of
from explore.studies.sweep_tables import cell
from policy.errors import ConfigError
from runs.metrics.stats import mean_and_half_width
from traces.strict import shown

if TYPE_CHECKING:
    import pandas as pd

#: The columns of `Sweep.results` before which stand those that were swept.
_FIRST = "system"


def estimate(results: pd.DataFrame, system: str, metric: str, at: Mapping[str, Any]) -> Estimate:
    """Mean over runs of a metric; without a value if some run failed or had too few samples."""
    return estimate_of(list(_runs(results, system, metric, at).values()), metric)


def speedup(
    results: pd.DataFrame,
    system: str,
    baseline: str,
    metric: str,
    at: Mapping[str, Any],
    baseline_at: Mapping[str, Any],
) -> Ratio:
    """How many times better `system` is than `baseline`, paired by run; as `estimate`."""
    ours = _runs(results, system, metric, at)
    theirs = _runs(results, baseline, metric, baseline_at)
    if list(ours) != list(theirs):
        raise ConfigError(
            f"{system} has the runs {_listed(ours)}, {baseline} {_listed(theirs)}: not paired"
        )
    return speedup_of(list(ours.values()), list(theirs.values()), metric)


def highest(
    results: pd.DataFrame, over: str, limits: Mapping[str, float], along: Sequence[str] = ()
) -> pd.DataFrame:
    """How high `over` may go within `limits` (metric: the most it may be), one row per run.

    `along` names what was swept together with `over`. Columns: whatever else was swept, `system`,
    `run`, `highest`, `bound`. Between the last swept value
    up to which all limits are kept and the next, each limit that breaks is crossed on a straight line
    between the logarithms of its metric; the first crossing is `highest`. `bound` is `<` where the
    lowest swept value breaks a limit (`highest` is that value), `>` where even the last keeps all, else
    empty. Raises ConfigError if a trial failed or had too few samples.
    """
    import pandas as pd  # noqa: PLC0415  slow to import

    columns = list(limits)
    _know(results, [over, *columns, *along])
    apart = [name for name in _swept(results) if name not in (over, "point", *along)]
    place = [*apart, _FIRST, "run"]
    rows = []
    for key, group in results.groupby(place, sort=False, dropna=False):
        ladder = group.sort_values(over)
        if ladder[columns].isna().any(axis=None):
            raise ConfigError(f"{_told(place, key)}: a trial failed or had too few samples")
        if ladder[over].duplicated().any():
            raise ConfigError(f"{_told(place, key)}: several trials with one {over}")
        metrics = {name: [float(value) for value in ladder[name]] for name in columns}
        found = _crossing([float(value) for value in ladder[over]], metrics, limits)
        rows.append([*key, *found])
    return pd.DataFrame(rows, columns=[*place, "highest", "bound"])


def mean_of_runs(values: Iterable[float]) -> Estimate:
    """Mean of one value per run, with its interval; without a value if any is missing."""
    numbers = [float(value) for value in values]
    if not numbers or any(math.isnan(value) for value in numbers):
        return Estimate(None)
    return Estimate(*mean_and_half_width(numbers))


def ratio_of_runs(ours: Iterable[float], theirs: Iterable[float]) -> Ratio:
    """Ours over theirs, one positive value per run each, paired in their order."""
    pairs = [(float(one), float(other)) for one, other in zip(ours, theirs, strict=True)]
    if not pairs or not all(one > 0 and other > 0 for one, other in pairs):
        return Ratio(None)
    return ratio_of([one for one, _ in pairs], [other for _, other in pairs])


def _crossing(
    steps: Sequence[float], metrics: Mapping[str, Sequence[float]], limits: Mapping[str, float]
) -> tuple[float, str]:
    """The highest step within limits, and how it is bound."""
    for index, high in enumerate(steps):
        broken = [name for name, most in limits.items() if metrics[name][index] > most]
        if not broken:
            continue
        if index == 0:
            return high, "<"
        low = steps[index - 1]
        shares = [
            _share(metrics[name][index - 1], metrics[name][index], limits[name]) for name in broken
        ]
        return low + min(shares) * (high - low), ""
    return steps[-1], ">"


def _share(low: float, high: float, most: float) -> float:
    """Where between a value within and one beyond the limit the limit is crossed; times and counts
    grow by factors near saturation, so on a logarithmic scale."""
    if low <= 0:
        return (most - low) / (high - low)
    return math.log(most / low) / math.log(high / low)


def _runs(
    results: pd.DataFrame, system: str, metric: str, at: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """Run -> what `estimate_of` takes, in their order."""
    _know(results, [*at, metric])
    chosen = results[results[_FIRST] == system]
    for name, value in at.items():
        chosen = chosen[_is(chosen[name], value)]
    where = _told([_FIRST, *at], [system, *at.values()])
    if chosen.empty:
        raise ConfigError(f"{where}: no such trial in this sweep")
    if chosen["run"].duplicated().any():
        raise ConfigError(f"{where}: several trials of one run; say more with `at`")
    chosen = chosen.sort_values("run")
    rows = chosen.drop(columns="run").astype(object)
    told = rows.where(rows.notna(), None)  # a column may have no number at all
    return {
        int(run): {"metrics": row, "workload": {"drawn": row.get("drawn")}}
        for run, row in zip(chosen["run"], told.to_dict("records"), strict=True)
    }


def _is(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    """Where a swept column has this value, as tables write it."""
    return column.isna() if value is None else column == cell(value)


def _listed(runs: Iterable[int]) -> str:
    return shown(", ".join(map(str, runs)), 60)


def _swept(results: pd.DataFrame) -> list[str]:
    columns = list(results.columns)
    return columns[: columns.index(_FIRST)]


def _know(results: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if name not in results.columns:
            raise ConfigError(f"{shown(name)}: neither swept nor a metric of this sweep")


def _told(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(
        f"{name}={shown(str(value), 60)}" for name, value in zip(names, values, strict=True)
    )
