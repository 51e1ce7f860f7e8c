"""The element-wise work of a decoder, plain and fused, against its formulas in double precision."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from realrun.device_ops import Ops
from realrun.kvstore import KVStore
from realrun.model import PLAIN, Decoder, load_model, ops_for
from realrun.runner import Runner, Work
from tests.helpers.kernels import (
    IMPLEMENTATIONS,
    TOLERANCES,
    device,
    kernels_of,
    normal,
    skip_unless_runnable,
)

DTYPES = list(TOLERANCES)
#: Plain torch rounds after every operation.
ROUNDINGS = 4


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request: Any) -> Ops:
    skip_unless_runnable(request.param)
    if request.param == "torch":
        return PLAIN
    from realrun.fused import FUSED

    return FUSED


def close(found: Any, expected: Any) -> bool:
    error = (found.double().cpu() - expected).abs().max()
    return bool(error <= ROUNDINGS * TOLERANCES[found.dtype] * (1 + expected.abs().max()))


def normed(x: Any, weight: Any, eps: float) -> Any:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps) ** 0.5 * weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 64), (5, 576), (3, 33)])
def test_a_norm_is_over_the_root_of_the_mean_square(
    ops: Ops, rows: int, size: int, dtype: Any
) -> None:
    x, delta = normal((rows, size), dtype, 1), normal((rows, size), dtype, 2)
    weight = normal((size,), dtype, 3)
    xd, dd, wd = (side.double().cpu() for side in (x, delta, weight))
    assert close(ops.norm(x, weight, 1e-5), normed(xd, wd, 1e-5))
    after, total = ops.add_norm(x, delta, weight, 1e-5)
    assert close(total, xd + dd)
    assert close(after, normed(xd + dd, wd, 1e-5))
    assert torch.equal(x.double().cpu(), xd)  # nothing was done in place


def test_a_norm_of_nothing_is_zero_and_not_a_division_by_it(ops: Ops) -> None:
    x = torch.zeros(2, 16, device=device())
    assert not ops.norm(x, torch.ones(16, device=device()), 1e-6).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 128), (3, 1100)])
def test_a_gate_lets_through_as_much_as_it_is_open(
    ops: Ops, rows: int, size: int, dtype: Any
) -> None:
    both = normal((rows, 2 * size), dtype, 7)
    gate, up = both.double().cpu().split(size, dim=1)
    assert close(ops.gate(both), gate / (1 + (-gate).exp()) * up)


def test_a_small_model_writes_the_same_text_with_kernels_and_without() -> None:
    skip_unless_runnable("triton")
    from realrun.fused import FUSED

    texts = []
    model = load_model("random:tiny", torch.float32, device(), seed=5)
    for ops, kernels in ((PLAIN, "torch"), (FUSED, "triton")):
        store = KVStore(
            model.config,
            layout="layer_major",
            device_blocks=8,
            host_blocks=1,
            block_size=8,
            dtype=torch.float32,
            device=device(),
        )
        store.device.poison(list(range(9)))
        decoder = Decoder(model.config, model.decoder.weights, ops)
        runner = Runner(decoder, store.device, eager=True, kernels=kernels_of(kernels))
        rows = [([1, 2, 3, 4, 5], [5, 1]), ([9, 8], [0])]
        with torch.inference_mode():
            for tokens, table in rows:
                tokens.extend(runner.greedy_step([Work(list(tokens), 0, table)]))
            for _ in range(5):
                work = [Work(tokens[-1:], len(tokens) - 1, table) for tokens, table in rows]
                for (tokens, _), token in zip(rows, runner.greedy_step(work), strict=True):
                    tokens.append(token)
        texts.append([tokens for tokens, _ in rows])
    assert texts[0] == texts[1]


def test_a_cpu_computes_in_plain_torch() -> None:
    assert ops_for(torch.device("cpu")) is PLAIN
