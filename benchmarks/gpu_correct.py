"""Whether a machine computes and copies what it should: kernels against double precision on poisoned
memory, graphs against eager steps, checksums of every way of submitting, and texts under forced swapping.

Every check raises Wrong with what was off; what it returns are figures worth keeping.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.gpu_bench import BLOCK, Bench
from calibrate.timers import drain
from policy.plan import Copy, Direction
from policy.pools.runs import contiguous_runs
from realrun.attention import attend, kernels_for, splits_for
from realrun.config import PRESETS, ModelConfig
from realrun.heads import Heads
from realrun.kvstore import LAYOUTS, KVStore, Tier
from realrun.model import LoadedModel, load_model, ops_for
from realrun.rope import angles, inverse_frequencies
from realrun.runner import Runner, Work
from realrun.serve import Options, serve
from realrun.swap import SwapManager
from realrun.transfer import MOVERS
from runs.scenario import build

Values = dict[str, Any]
#: ‖found - expected‖ / ‖expected‖ that rounding explains, of a result in this type.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
#: Heads of Llama-3-8B in one layer.
SHAPE = {"layers": 1, "heads": 32, "kv_heads": 8, "head_dim": 128}
OUT, IN = Direction.TO_HOST, Direction.TO_DEVICE


class Wrong(AssertionError):
    """Something is not as it should be."""


def must(right: object, what: str) -> None:
    """Raise Wrong if it is not so."""
    if not right:
        raise Wrong(what)


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error, NaN if anything in it is."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm())


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> float:
    """The error. Raises Wrong if rounding does not explain it; NaN never passes."""
    error = off_by(found, expected)
    must(error < TOLERANCES[found.dtype], f"{what}: relative error {error:.3g} in {found.dtype}")
    return error


def _config(**changes: Any) -> ModelConfig:
    return replace(PRESETS["tiny"], **changes)


# ---------------------------------------------------------------------- kernels


def decode_attention(bench: Bench, layout: str, dtype: torch.dtype) -> Values:
    """Attention of one new token, for several batches and lengths; what is not a valid slot is NaN."""
    worst = 0.0
    kernels = kernels_for(bench.device.type)
    longest = bench.sizes.context
    for batch in bench.sizes.batches:
        rng = random.Random(batch)
        lengths = [longest, *(rng.randrange(1, longest) for _ in range(batch - 1))]
        tier, tables = _poisoned(bench, _config(**SHAPE), layout, lengths, dtype, rng)
        keys, values = tier.keys(0), tier.values(0)
        q_BHD = torch.randn(batch, 32, 128, device=bench.device).to(dtype)
        width = max(map(len, tables))
        padded = [[*table, *[tier.num_blocks] * (width - len(table))] for table in tables]
        table_BN = torch.tensor(padded, device=bench.device)
        at = torch.tensor(lengths, device=bench.device)
        for splits in sorted({1, splits_for(batch, 8, longest), 8}):
            out_BHD = kernels.decode(table_BN, at, BLOCK, splits)(q_BHD, keys, values)
            for row, length in enumerate(lengths):
                used = torch.tensor(tables[row], device=bench.device)
                k, v = (side[used].flatten(0, 1)[:length] for side in (keys, values))
                expected = _attention(q_BHD[row : row + 1], k, v)[0]
                what = f"row {row} of {batch}, {length} tokens, {splits} splits"
                worst = max(worst, close(out_BHD[row], expected, what))
    return {"error": worst}


def _poisoned(
    bench: Bench,
    config: ModelConfig,
    layout: str,
    lengths: list[int],
    dtype: torch.dtype,
    rng: random.Random,
) -> tuple[Tier, list[list[int]]]:
    """Memory in which only the slots of these rows are numbers, in blocks of random order."""
    counts = [-(-length // BLOCK) for length in lengths]
    tier = Tier(config, layout, sum(counts), BLOCK, dtype, bench.device, spare=1)
    ids = list(range(sum(counts)))
    rng.shuffle(ids)
    tables = [[ids.pop() for _ in range(count)] for count in counts]
    tier.poison(list(range(sum(counts) + 1)))
    for table, length in zip(tables, lengths, strict=True):
        slots = torch.arange(length, device=bench.device)
        blocks = torch.tensor(table, device=bench.device)[slots // BLOCK]
        for side in (tier.keys(0), tier.values(0)):
            side[blocks, slots % BLOCK] = torch.randn(
                length, *side.shape[2:], device=bench.device
            ).to(dtype)
    return tier, tables


def _attention(q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor) -> torch.Tensor:
    """Of the tokens at the end of a context, by the formula, in double precision."""
    q, k, v = q_THD.double(), k_SKD.double(), v_SKD.double()
    group = q.shape[1] // k.shape[1]
    k, v = (side.repeat_interleave(group, 1) for side in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    new, length = len(q), len(k)
    unseen = torch.ones(new, length, dtype=torch.bool, device=q.device).triu(length - new + 1)
    return torch.einsum("hts,shd->thd", scores.masked_fill(unseen, -math.inf).softmax(-1), v)


def prompt_attention(bench: Bench, dtype: torch.dtype) -> Values:
    """Whole prompts, prompts behind a prefix, and one token."""
    kernels_for(bench.device.type)  # which back ends are off
    worst = 0.0
    for new, past in ((bench.sizes.prompts[0], 0), (bench.sizes.prompts[1], 37), (1, 99)):
        q, k, v = (
            torch.randn(tokens, heads, 128, device=bench.device).to(dtype)
            for tokens, heads in ((new, 32), (new + past, 8), (new + past, 8))
        )
        error = close(attend(q, k, v), _attention(q, k, v), f"{new} tokens behind {past}")
        worst = max(worst, error)
    return {"error": worst}


def elementwise(bench: Bench, dtype: torch.dtype) -> Values:
    """Norm, gate, and the turn that stores."""
    ops, kernels = ops_for(bench.device), kernels_for(bench.device.type)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=bench.device).to(dtype)

    x, delta, weight, both = normal(5, 4096), normal(5, 4096), normal(4096), normal(5, 2 * 14336)
    normed, total = ops.add_norm(x, delta, weight, 1e-5)
    exact = x.double() + delta.double()
    scale = (total.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    gate, up = both.double().chunk(2, -1)
    errors = [
        close(total, exact, "the sum of add_norm"),
        close(normed, total.double() * scale * weight.double(), "add_norm"),
        close(ops.gate(both), F.silu(gate) * up, "gate"),
    ]
    for layout in LAYOUTS:
        config = _config(**SHAPE)
        tier = Tier(config, layout, 4, BLOCK, dtype, bench.device)
        tier.poison([0, 1, 2, 3])
        at = torch.tensor([5, 70, 900], device=bench.device)
        step = angles(at, inverse_frequencies(config, bench.device), dtype)
        heads = Heads(normal(3, 48, 128), 32, 8, normal(40, 128), 1e-5, step)
        wide = heads._replace(
            all_THD=heads.all_THD.double(),
            weight_ND=heads.weight_ND.double() if heads.weight_ND is not None else None,
            angles=type(step)(step.cos.double(), step.sin.double()),
        )
        q, k, v = wide.turned()
        blocks, offsets = (torch.tensor(row, device=bench.device) for row in ([3, 0], [15, 2]))
        errors.append(
            close(
                kernels.store(tier.keys(0), tier.values(0), blocks, offsets, heads), q, "q, turned"
            )
        )
        errors.append(close(tier.keys(0)[blocks, offsets], k[:2], "k, stored"))
        must(torch.equal(tier.values(0)[blocks, offsets], v[:2].to(dtype)), "v, stored")
        written = sum(int((~piece.isnan()).sum()) for piece in tier.pieces)
        must(written == 2 * 2 * 8 * 128, f"{written} numbers were written")
    return {"error": max(errors)}


# ---------------------------------------------------------------------- whole steps


class Texts:
    """A tiny model in fp32 over blocks of its own, so that texts can be compared."""

    def __init__(self, bench: Bench, layout: str, *, eager: bool) -> None:
        self.model = _tiny(bench)
        self.store = _store(bench, layout, 64, self.model.config, torch.float32)
        self.runner = Runner(self.model.decoder, self.store.device, eager=eager)
        self.tokens = [[name + 1, 7, 9] for name in range(3)]
        self.tables = [list(range(8 * name, 8 * name + 8)) for name in range(3)]

    def step(self, names: list[int]) -> None:
        """A prompt's first step, or one new token."""
        work = []
        for name in names:
            known = self.tokens[name]
            past = 0 if len(known) == 3 else len(known) - 1
            work.append(Work(known[past:], past, self.tables[name]))
        with torch.inference_mode():
            for name, token in zip(names, self.runner.greedy_step(work), strict=True):
                self.tokens[name].append(token)


def _tiny(bench: Bench) -> LoadedModel:
    return load_model("random:tiny", torch.float32, bench.device, seed=3)


def _store(
    bench: Bench, layout: str, blocks: int, config: ModelConfig, dtype: torch.dtype
) -> KVStore:
    return bench.make_store(
        config,
        layout=layout,
        device_blocks=blocks,
        host_blocks=blocks,
        block_size=BLOCK,
        dtype=dtype,
        device=bench.device,
    )


def graphs_equal_eager(bench: Bench) -> Values:
    """The same texts by graphs and by eager steps, with batches that come and go, in both layouts."""
    orders = [[0], [1], [2], *([n for n in range(3) if (i >> n) & 1] for i in range(1, 8))] * 4
    texts = []
    num_graphs = 0
    for layout in LAYOUTS:
        for eager in (False, True):
            one = Texts(bench, layout, eager=eager)
            for names in orders:
                one.step(names)
            texts.append(one.tokens)
            if one.runner.graphs is not None:
                num_graphs += one.runner.graphs.num_graphs
            one.store.close()
    must(all(text == texts[0] for text in texts), "graphs write other texts than eager steps")
    must(not bench.on_gpu or num_graphs >= 4, "no graph was recorded")
    return {"graphs": num_graphs, "tokens": sum(map(len, texts[0]))}


# ---------------------------------------------------------------------- copies


def checksums(bench: Bench, layout: str, submission: str, threads: int) -> Values:
    """Out, poisoned, and in again to other blocks, several jobs at once, bit for bit."""
    store = _store(bench, layout, 96, _config(**{**SHAPE, "layers": 4}), torch.bfloat16)
    swap = SwapManager(
        store, bench.runtime, submission=submission, threads=threads, clock=time.perf_counter_ns
    )
    try:
        must(
            not bench.on_gpu or all(piece.is_pinned() for piece in store.host.pieces), "not pinned"
        )
        must(swap.fallback is None, str(swap.fallback))
        with torch.inference_mode():
            for piece in store.device.pieces:
                piece.normal_()
            old = [list(range(10, 22)), list(range(60, 40, -1)), [5, 3, 4, 90, 91, 92]]
            host = [list(range(30, 42)), list(range(70, 90)), [1, 2, 95, 3, 4, 5]]
            new = [list(range(70, 82)), list(range(20)), [33, 95, 50, 51, 52, 40]]
            sums = [[store.device.checksum(block) for block in job] for job in old]
            _copy_all(swap, OUT, old, host)
            found = [[store.host.checksum(block) for block in job] for job in host]
            must(found == sums, "other bits came to the host")
            store.device.poison(list(range(96)))
            _copy_all(swap, IN, new, host)
            found = [[store.device.checksum(block) for block in job] for job in new]
            must(found == sums, "other bits came back")
    finally:
        swap.close()
        store.close()
    return {"blocks": sum(map(len, old))}


def _copy_all(
    swap: SwapManager, way: Direction, device: list[list[int]], host: list[list[int]]
) -> None:
    swap.set_barrier()
    for number, pair in enumerate(zip(device, host, strict=True)):
        runs = tuple(contiguous_runs(*pair))
        swap.submit(Copy(number, way, "r", runs, len(pair[0])))
    drain(swap)


def stores_wait_for_kernels(bench: Bench) -> Values:
    """Long work on the compute stream writes what a copy moves; the copy is submitted at once."""
    store = _store(bench, "block_major", 32, _config(**SHAPE), torch.float32)
    large = torch.randn(4096 if bench.on_gpu else 64, 64, device=bench.device)
    blocks = [list(range(32))]
    try:
        for submission in ("merged", "batched"):
            swap = SwapManager(
                store, bench.runtime, submission=submission, threads=1, clock=time.perf_counter_ns
            )
            with torch.inference_mode():
                for value in range(1, 5):
                    for _ in range(20):
                        (large @ large.T).sum()
                    store.device.pieces[0].fill_(float(value))
                    _copy_all(swap, OUT, blocks, blocks)
                    must(
                        bool((store.host.pieces[0] == value).all()), f"{submission}: an early copy"
                    )
            swap.close()
    finally:
        store.close()
    return {}


def swapping_disturbs_no_step(bench: Bench) -> Values:
    """Texts with other blocks going out and in the whole time equal those of a quiet machine."""
    quiet, busy = (Texts(bench, "layer_major", eager=False) for _ in range(2))
    moved = ((40, 40, 16),)
    swap = SwapManager(
        busy.store, bench.runtime, submission="merged", threads=2, clock=time.perf_counter_ns
    )
    for _ in range(30):
        for way in Direction:
            swap.set_barrier()
            swap.submit(Copy(1, way, "r", moved, 16))
            for texts in (quiet, busy):
                texts.step([0, 1, 2])
            drain(swap)
    swap.close()
    for texts in (quiet, busy):
        texts.store.close()
    must(quiet.tokens == busy.tokens, "steps were disturbed")
    return {"tokens": sum(map(len, busy.tokens))}


def forced_swapping_changes_no_text(bench: Bench, system: str) -> Values:
    """A tight memory against a roomy one, deterministically."""
    folder = bench.work / "texts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"format": "fastswitch-workload/1", "timing": "open"}]
    rows += [
        {
            "request_id": f"r{i}", "session_id": f"r{i}", "turn": 1, "input_tokens": 20 + i,
            "output_tokens": 12, "arrival_s": 0.001 * i,
        }
        for i in range(8)
    ]  # fmt: skip
    path = folder / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replies, preemptions = [], []
    for blocks in (200, 24):
        values = {
            "name": "texts", "workload": str(path), "system": system, "profile": "a10-llama-3-8b",
            "priority": {"pattern": "markov", "frequency": 0.5},
            "pool": {
                "device_blocks": blocks, "host_blocks": 200, "block_size": 4, "aging": "shuffle",
            },
            "limits": {"max_model_len": 64},
        }  # fmt: skip
        options = Options(bench.device.type, "random:tiny", "float32", deterministic=True)
        out = folder / str(blocks)
        found = serve(build(values, "texts"), options, out=out, model=_tiny(bench))
        preemptions.append(found.summary["metrics"]["preemptions"])
        lines = (out / "replies.jsonl").read_text().splitlines()
        replies.append({(row := json.loads(line))["request_id"]: row["tokens"] for line in lines})
    must(replies[0] == replies[1], "swapping changed a text")
    must(preemptions[0] == 0 < preemptions[1], f"preemptions: {preemptions}")
    return {"preemptions": preemptions[1]}


def points(bench: Bench) -> list[tuple[str, Callable[[Bench], Values]]]:
    """Every check by name."""
    kinds = (torch.bfloat16, torch.float32) if bench.on_gpu else (torch.float32,)
    found: list[tuple[str, Callable[[Bench], Values]]] = []
    for kind in kinds:
        name = str(kind).removeprefix("torch.")
        for layout in LAYOUTS:
            found.append(
                (f"decode {layout} {name}", partial(decode_attention, layout=layout, dtype=kind))
            )
        found.append((f"prompts {name}", partial(prompt_attention, dtype=kind)))
        found.append((f"element-wise {name}", partial(elementwise, dtype=kind)))
    found.append(("graphs equal eager", graphs_equal_eager))
    for layout, submission, threads in itertools.product(LAYOUTS, MOVERS, (0, 2)):
        run = partial(checksums, layout=layout, submission=submission, threads=threads)
        found.append((f"checksums {layout} {submission} {threads} threads", run))
    found.append(("stores wait for kernels", stores_wait_for_kernels))
    found.append(("swapping disturbs no step", swapping_disturbs_no_step))
    for system in ("vllm-0.3.3-keep", "fastswitch"):
        run = partial(forced_swapping_changes_no_text, system=system)
        found.append((f"texts {system}", run))
    return found
