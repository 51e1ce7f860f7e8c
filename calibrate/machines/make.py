"""`fastswitch machine build`: from what there is to a profile."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibrate.machines import (
    aiconfigurator,
    build,
    gpus,
    llmservingsim,
    points,
    roofline,
    scale,
    shapes,
)
from calibrate.machines.columns import found_in
from calibrate.machines.gpus import Gpu
from calibrate.machines.shapes import Shape
from calibrate.machines.tables import OpTables
from calibrate.profile import KindError, Origin, Profile, TokenCost
from policy.errors import ConfigError, InputError
from traces.strict import shown_path

#: Steps of a derived machine are worked out up to so many KV tokens at least.
MOST_ROOM = 1 << 17


class Asked(NamedTuple):
    """What `machine build` was told. `tables`: a folder; `{tp}` in it stands for the number of GPUs.
    `reduce_from`: a folder with an all-reduce table."""

    gpu: str
    model: str
    date: str
    tables: str | None = None
    points: Path | None = None
    reduce_from: Path | None = None
    shards: tuple[int, ...] = (1,)

    def command(self, name: str) -> str:
        """That builds it again, without where its data lay."""
        words = [
            "fastswitch",
            "machine",
            "build",
            "--gpu",
            self.gpu,
            "--model",
            Path(self.model).name,
        ]
        if self.tables is not None:
            words += ["--tables", Path(self.tables).name]
        if self.points is not None:
            words += ["--points", self.points.name]
        if self.reduce_from is not None:
            words += ["--all-reduce", self.reduce_from.name]
        words += [word for shards in self.shards for word in ("--tp", str(shards))]
        return shlex.join([*words, "--out", f"{name}.json"])


class _Part(NamedTuple):
    shape: Shape
    cost: TokenCost
    assumed: tuple[str, ...]
    errors: tuple[KindError, ...]
    judged: str
    source: str
    licence: str


def profile(asked: Asked, name: str) -> Profile:
    """Raises ConfigError or InputError."""
    gpu, whole = gpus.find(asked.gpu), shapes.find(asked.model)
    shares = {shards: whole.split(shards) for shards in asked.shards}
    for shards, shape in shares.items():
        if build.room_of(gpu, shape) < 1:
            raise ConfigError(
                f"{whole.name} does not fit {gpu.name} on {shards} GPU{'s' * (shards > 1)}: weights of"
                f" {shape.weight_bytes / 1e9:.1f} GB each; share it by --tp"
            )
    parts = {shards: _part(asked, gpu, shape) for shards, shape in shares.items()}
    first = parts[min(parts)]
    kind = "published" if asked.tables is not None else "derived"
    return build.profile_of(
        name,
        gpu,
        kind,
        asked.date,
        {shards: (part.shape, part.cost, part.assumed) for shards, part in parts.items()},
        Origin(
            source=first.source,
            licence=first.licence,
            rebuild=asked.command(name),
            assumed=first.assumed,
            judged=first.judged,
            errors=first.errors,
        ),
    )


def _part(asked: Asked, gpu: Gpu, shape: Shape) -> _Part:
    if asked.tables is None:
        return _derived(asked, gpu, shape)
    tables = _tables(asked, asked.tables, gpu, shape)
    room = build.room_of(gpu, shape)
    known = build.usable(tables, room)
    if not known:
        raise InputError(f"{shown_path(Path(asked.tables))}: no measured step fits {gpu.name}")
    cost = build.step_cost(tables, room, gpu)
    told = scale.form_of(cost).predict([point.step for point in known])
    off = told / np.array([point.ns for point in known]) - 1
    return _Part(
        shape,
        cost,
        tables.assumed,
        build.errors_of([point.step.kind for point in known], off.tolist()),
        f"{len(known)} rows of the tables it was fitted to; for rows left out see"
        " docs/results/2026-12-01-machines.md",
        tables.source,
        tables.licence,
    )


def _tables(asked: Asked, where: str, gpu: Gpu, shape: Shape) -> OpTables:
    folder = Path(where.replace("{tp}", str(shape.shards)))
    if (folder / "gemm_perf.parquet").is_file():
        return aiconfigurator.read(folder, shape, gpu.name, asked.reduce_from)
    if found_in(folder, "dense.csv") is not None:
        tables = llmservingsim.read(folder, shape, gpu.name)
        if shape.shards == 1:
            return tables
        if asked.reduce_from is None:
            raise InputError(
                f"{shown_path(folder)}: holds no all-reduce; name a folder that has one by --all-reduce"
            )
        reduce = aiconfigurator.all_reduce(asked.reduce_from, shape)
        text = f"all-reduce from {asked.reduce_from.name} of aiconfigurator, not this machine's own"
        return tables._replace(reduce=reduce, assumed=(*tables.assumed[:-1], text))
    raise InputError(
        f"{shown_path(folder)}: neither gemm_perf.parquet (aiconfigurator) nor dense.csv (LLMServingSim)"
    )


def _derived(asked: Asked, gpu: Gpu, shape: Shape) -> _Part:
    """Of a machine that is known by its data sheet, and by a few steps if there are any."""
    constants, errors = roofline.fitted()
    told = errors["consumer" if gpu.consumer else "gpu"]
    tables = roofline.tables_of(gpu, shape, constants)
    room = max(MOST_ROOM, build.room_of(gpu, shape))
    cost = _with_error(build.step_cost(tables, room, gpu), told)
    if asked.points is None:
        return _Part(
            shape,
            cost,
            tables.assumed,
            _kind_errors(told),
            "an RTX 4090 foretold by six other cards"
            if gpu.consumer
            else "every measured card left out in turn (benchmarks/derived_machines.py)",
            tables.source,
            tables.licence,
        )
    found = scale.correct(cost, points.read(asked.points), asked.points.name)
    return _Part(
        shape,
        found.cost,
        tables.assumed[1:],
        found.errors,
        found.judged,
        f"{tables.source}; corrected by {asked.points.name}",
        tables.licence,
    )


def _with_error(cost: TokenCost, told: Mapping[str, tuple[float, float]]) -> TokenCost:
    """The range of everything derived: the P95 of prompts for the table, of decode steps for KV."""
    by_prompts, by_decode = told["prefill"][1], told["decode"][1]
    scale_of = cost.scale.model_copy(
        update={"kind": "derived", "low": max(0.3, 1 - by_prompts), "high": 1 + by_prompts}
    )
    update: dict[str, object] = {"scale": scale_of}
    for name in scale.KV:
        quantity = getattr(cost, name)
        if quantity is not None:
            update[name] = quantity.model_copy(
                update={
                    "kind": "derived",
                    "low": quantity.value * max(0.3, 1 - by_decode),
                    "high": max(quantity.high or 0.0, quantity.value * (1 + by_decode)),
                }
            )
    return cost.model_copy(update=update)


def _kind_errors(told: Mapping[str, tuple[float, float]]) -> tuple[KindError, ...]:
    return tuple(
        KindError(kind=kind, mean=mean, p95=p95)  # type: ignore[arg-type]
        for kind, (mean, p95) in told.items()
    )
