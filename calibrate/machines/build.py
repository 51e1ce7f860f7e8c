"""A profile from op tables: the step-cost form's numbers with their ranges, memory, and the host link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.machines import aiconfigurator, links
from calibrate.machines.fit import MIXED, TERMS, Form, features
from calibrate.machines.gpus import Gpu
from calibrate.machines.shapes import Shape
from calibrate.machines.steps import Timed
from calibrate.machines.tables import OpTables
from calibrate.nnls import nnls
from calibrate.profile import (
    KindError,
    Memory,
    Model,
    Origin,
    Profile,
    Quantity,
    Share,
    TokenCost,
    ValidRange,
)

#: Rows of attention that coefficients are fitted to, at most; more change nothing.
MOST_ROWS = 3000
#: Parts of the rows that are fitted again for the range of a coefficient.
PARTS = 5
MAX_BATCH = 256
#: First token beyond the engine (docs/machines.md): HTTP, tokenizer and first chunk of vLLM 0.23.
FIRST_TOKEN = Quantity(
    value=7e6,
    unit="ns",
    kind="published",
    source="real vLLM 0.23 runs on an H100, median beyond the engine with asynchronous scheduling: 7.1 ms",
    low=4e6,
    high=13e6,
)


def step_cost(tables: OpTables, room: int, gpu: Gpu) -> TokenCost:
    """The form's numbers from one GPU's tables. `room`: KV tokens that fit."""
    points = usable(tables, room)
    form = form_of(tables, points)
    ranges = _ranges(tables, points, form)
    source = f"fitted to {len(points)} rows of attention"

    def found(name: str) -> Quantity | None:
        value = form.terms.get(name, 0.0)
        if not tables.attention.has_mixed and name in MIXED:
            like = name.replace("mixed", "decode")
            value = form.terms.get(like, 0.0)
            return (
                _assumed(value, value, 2 * value, "as beside no prompt; no table has both")
                if value
                else None
            )
        low, high = ranges[name]
        return _known(value, source, low, high) if value or high else None

    def needed(name: str) -> Quantity:
        return found(name) or _known(0.0, source)

    table_source = f"{len(tables.tokens.at)} rows of matrix products; cards taken to differ by 3 %"
    host = _host(tables, gpu)
    return TokenCost(
        form="tokens/1",
        tokens=form.tokens,
        ns=tuple(max(1, round(ns)) for ns in form.ns),
        scale=Quantity(
            value=1.0, unit="share", kind="published", source=table_source, low=0.97, high=1.03
        ),
        **{name: found(name) for name in TERMS if name not in ("kv_decode", "kv_mixed", "square")},
        kv_decode=needed("kv_decode"),
        kv_mixed=needed("kv_mixed"),
        square=needed("square"),
        host_base=host[0],
        host_per_token=host[1],
        first_token=FIRST_TOKEN,
    )


def usable(tables: OpTables, room: int) -> list[Timed]:
    """Measured steps that fit the card, evenly thinned where there are very many."""
    most = tables.tokens.at[-1]
    points = sorted(
        point
        for point in tables.points()
        if point.step.tokens <= most and point.step.all_kv <= room and point.step.batch <= MAX_BATCH
    )
    step = -(-len(points) // MOST_ROWS)
    return points[::step] if len(points) > MOST_ROWS else points


def form_of(tables: OpTables, points: Sequence[Timed]) -> Form:
    """The table at the rows of the matrix products, everything else fitted to the rows of attention,
    each seen against the whole step it is part of."""
    base, each = _head(tables)
    measured = tables.tokens.at
    at = (*measured, 2 * measured[-1])  # beyond its rows the table goes on as its upper half does
    ns = [tables.tokens(one) + tables.reduce(one) + base for one in at]
    steps = [point.step for point in points]
    whole = np.array([point.ns for point in points])
    attention = whole - np.array([tables.linear_ns(step) for step in steps])
    terms = [name for name in TERMS if name != "per_output"]
    chosen = [TERMS.index(name) for name in terms]
    rows = features(steps)[:, chosen] / whole[:, None]
    found = nnls(rows, attention / whole)
    return Form(
        at, _rising(ns), {"per_output": each, **dict(zip(terms, map(float, found), strict=True))}
    )


def _head(tables: OpTables) -> tuple[float, float]:
    """The output head as so much, and so much a row: least squares up to the largest batch."""
    at = [one for one in tables.head.at if one <= MAX_BATCH]
    ns = np.array([tables.head(one) for one in at])
    rows = np.array([(1.0, one) for one in at])
    base, each = nnls(rows / ns[:, None], np.ones(len(at)))
    return float(base), float(each)


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest that never falls: neighbours in the wrong order share their mean."""
    groups: list[tuple[float, int]] = []
    for value in values:
        groups.append((value, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (high, many), (low, few) = groups[-2:]
            groups[-2:] = [((high * many + low * few) / (many + few), many + few)]
    return tuple(value for value, count in groups for _ in range(count))


def _ranges(
    tables: OpTables, points: Sequence[Timed], form: Form
) -> Mapping[str, tuple[float, float]]:
    """Of each coefficient over fits to halves of the rows, and the fit to all."""
    rng = np.random.default_rng(0)
    forms = [form]
    for _ in range(PARTS):
        half = sorted(rng.permutation(len(points))[: max(1, len(points) // 2)])
        forms.append(form_of(tables, [points[i] for i in half]))
    return {
        name: (
            min(one.terms.get(name, 0.0) for one in forms),
            max(one.terms.get(name, 0.0) for one in forms),
        )
        for name in TERMS
    }


def _host(tables: OpTables, gpu: Gpu) -> tuple[Quantity, Quantity]:
    """Host time of a step and of a token: tables taken inside the engine hold every operation."""
    whole = tables.attention.has_mixed
    base = 0.0 if whole else 0.4e6
    source = (
        "the tables hold every operation of a step; real runs need 0 to about 1 ms more"
        if whole
        else "vLLM 0.23 on an H100: 0.41 to 0.57 ms a step beyond its matrix products and attention"
    )
    moved = 0 if whole else aiconfigurator.elementwise_bytes(tables.shape)
    each = moved / (0.8 * gpu.memory_rate) * 1e9
    text = "norms, rotary embedding and activations over 0.8 of the data sheet's memory rate"
    return (
        _assumed(base, 0.0, 1e6, source),
        Quantity(
            value=each,
            unit="ns",
            kind="derived",
            source=text if moved else "nothing: the tables hold it",
            low=0.7 * each,
            high=1.6 * each,
        ),
    )


def model_of(shape: Shape) -> Model:
    """What of a shape decides KV bytes."""
    return Model(
        name=shape.name if shape.shards == 1 else f"{shape.name}, one of {shape.shards} shares",
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype_bytes=shape.dtype_bytes,
        weight_bytes=shape.weight_bytes,
        max_model_len=shape.max_model_len,
    )


def memory_of(gpu: Gpu) -> Memory:
    """The card's memory, and what vLLM leaves of it."""
    return Memory(
        device_bytes=Quantity(
            value=float(gpu.memory_bytes), unit="bytes", kind="published", source=gpu.memory_source
        ),
        utilisation=Quantity(
            value=0.9,
            unit="share",
            kind="published",
            source="vLLM default gpu_memory_utilization",
        ),
        activation_bytes=_assumed(
            1.2376e9,
            0.5e9,
            4e9,
            "what vLLM 0.19 kept beside the KV of Llama-3.1-8B on an RTX 4090: 2,588 blocks were left",
            "bytes",
        ),
        host_kv_bytes=_assumed(
            float(60 << 30),
            float(4 << 30),
            float(500 << 30),
            "60 GiB of CPU memory per GPU",
            "bytes",
        ),
    )


def room_of(gpu: Gpu, shape: Shape) -> int:
    """KV tokens beside the weights; 0 if not even those fit."""
    return max(0, int(memory_of(gpu).kv_bytes(shape.weight_bytes) // shape.token_bytes))


def valid_of(step: TokenCost, room: int) -> ValidRange:
    """As far as the tables go; the last entry of a step's table lies as far beyond them."""
    return ValidRange(
        max_batch=MAX_BATCH, max_kv_tokens=max(1, room), max_prefill_tokens=step.tokens[-1] // 2
    )


def profile_of(
    name: str,
    gpu: Gpu,
    kind: str,
    date: str,
    parts: Mapping[int, tuple[Shape, TokenCost, tuple[str, ...]]],
    origin: Origin,
) -> Profile:
    """One file of a GPU and a model. `parts`: by number of GPUs; the least is the profile itself."""
    first = min(parts)
    shape, step, _ = parts[first]
    shares = {
        str(gpus): Share(
            model=model_of(share),
            step=cost,
            valid=valid_of(cost, room_of(gpu, share)),
            assumed=assumed,
        )
        for gpus, (share, cost, assumed) in sorted(parts.items())
        if gpus != first
    }
    return Profile(
        format="fastswitch-profile/1",
        name=name,
        kind="derived" if kind == "derived" else "published",
        machine=gpu.name if first == 1 else f"{gpu.name}, one of {first}",
        date=date,
        notes=f"Built by: {origin.rebuild}",
        model=model_of(shape),
        memory=memory_of(gpu),
        step=step,
        transfer=links.transfer_of(gpu),
        valid=valid_of(step, room_of(gpu, shape)),
        origin=origin,
        shares=shares or None,
    )


def errors_of(kinds: Sequence[str], off: Sequence[float]) -> tuple[KindError, ...]:
    """Mean and P95 of |error| by kind of step."""
    found = []
    for kind in ("decode", "prefill", "mixed"):
        mine = np.abs([one for one, name in zip(off, kinds, strict=True) if name == kind])
        if mine.size:
            found.append(
                KindError(
                    kind=kind,
                    mean=round(float(mine.mean()), 4),
                    p95=round(float(np.percentile(mine, 95)), 4),
                )
            )
    return tuple(found)


def _known(
    value: float, source: str, low: float | None = None, high: float | None = None
) -> Quantity:
    return Quantity(
        value=_short(value),
        unit="ns",
        kind="published",
        source=source,
        low=None if low is None else _short(min(low, _short(value))),
        high=None if high is None else _short(max(high, _short(value))),
    )


def _assumed(value: float, low: float, high: float, source: str, unit: str = "ns") -> Quantity:
    value = _short(value)
    return Quantity(
        value=value,
        unit=unit,
        kind="assumed",
        source=source,
        low=min(value, _short(low)),
        high=max(value, _short(high)),
    )


def _short(value: float) -> float:
    """Six digits: no measurement has more."""
    return float(f"{value:.6g}")
