"""Attention over block tables against its formula: plain torch, and the Triton kernels where they run."""

# ruff: noqa: E402, N803, N806  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given
from hypothesis import strategies as st

from realrun import attention
from realrun.attention import (
    MIN_SPLIT_TOKENS,
    PROGRAMS,
    DecodeAttention,
    Segment,
    StepAttention,
    kernels_for,
    splits_for,
)
from realrun.device_ops import MAX_SPLITS, Kernels
from realrun.ferry import Ferry
from realrun.heads import Heads
from realrun.rope import Angles
from tests.helpers.kernels import (
    IMPLEMENTATIONS,
    TOLERANCES,
    definition,
    device,
    kernels_of,
    memory,
    normal,
    padded,
    shaped,
    skip_unless_runnable,
)

LAYOUTS = ("layer_major", "block_major")
#: (query heads, key heads, head size, block size): usual ones, and none a power of two.
SHAPES = [(4, 2, 16, 16), (6, 2, 24, 5), (9, 3, 64, 16), (4, 4, 32, 1), (16, 1, 128, 7)]
#: One key; the end of a block and one behind it; of a tile; of a split; a padding row.
LENGTHS = [1, 16, 17, 0, 64, 65, 130]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request: Any) -> Kernels:
    skip_unless_runnable(request.param)
    return kernels_of(request.param)


def lengths_tensor(lengths: list[int]) -> Any:
    return torch.tensor(lengths, device=device())


def close(found: Any, expected: Any) -> bool:
    error = (found.double().cpu() - expected).abs().max()
    return bool(error <= TOLERANCES[found.dtype] * (1 + expected.abs().max()))


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "splits"), list(zip(SHAPES, [1, 2, 3, 8, 5], strict=True)))
def test_decoding_computes_attention(
    kernels: Kernels, shape: tuple[int, int, int, int], splits: int, layout: str, dtype: Any
) -> None:
    heads, kv_heads, dim, size = shape
    config = shaped(heads, kv_heads, dim)
    held = memory(config, layout, LENGTHS, size, dtype)
    keys, values = held.tier.keys(1), held.tier.values(1)
    decode = kernels.decode(padded(held.tables), lengths_tensor(LENGTHS), size, splits)
    wide_BTD = normal((len(LENGTHS), heads + 3, dim), dtype, 1)
    q_BHD = wide_BTD[:, 2 : 2 + heads]  # a view, as the model hands in
    out_BHD = decode(q_BHD, keys, values)
    assert out_BHD.dtype == dtype
    for row, length in enumerate(LENGTHS):
        if length:
            expected = definition(q_BHD[row], *held.context(1, row, length))
            assert close(out_BHD[row], expected), (row, length)
        else:
            assert not out_BHD[row].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_behind_a_length_never_shows(kernels: Kernels, layout: str) -> None:
    config = shaped(4, 2, 16)
    clean = memory(config, layout, LENGTHS, 16, torch.float32)
    dirty = memory(config, layout, LENGTHS, 16, torch.float32)
    used = {(clean.tables[row][i // 16], i % 16) for row, n in enumerate(LENGTHS) for i in range(n)}
    for layer in range(config.layers):
        for side in (dirty.tier.keys(layer), dirty.tier.values(layer)):
            for block in range(side.shape[0]):
                for offset in range(16):
                    if (block, offset) not in used:
                        side[block, offset] = float("nan")
    q_BHD = normal((len(LENGTHS), 4, 16), torch.float32, 2)
    outs = [
        kernels.decode(padded(held.tables, filler), lengths_tensor(LENGTHS), 16, 3)(
            q_BHD, held.tier.keys(0), held.tier.values(0)
        )
        for held, filler in ((clean, 0), (dirty, dirty.tier.num_blocks))
    ]
    assert not outs[1].isnan().any()
    assert torch.equal(*outs)


@pytest.mark.parametrize("side", ["keys", "values"])
def test_a_key_that_should_not_be_there_does_show(kernels: Kernels, side: str) -> None:
    """Poison has teeth: a NaN among the valid slots reaches its own row, and no other."""
    lengths = [40, 70, 1]
    held = memory(shaped(4, 2, 16), "layer_major", lengths, 16, torch.float32)
    tier = held.tier
    poisoned = tier.keys(0) if side == "keys" else tier.values(0)
    poisoned[held.tables[1][3], :] = float("nan")
    decode = kernels.decode(padded(held.tables), lengths_tensor(lengths), 16, 4)
    out_BHD = decode(normal((3, 4, 16), torch.float32, 3), tier.keys(0), tier.values(0))
    assert [bool(row.isnan().all()) for row in out_BHD] == [False, True, False]
    assert not out_BHD[0].isnan().any()
    assert not out_BHD[2].isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_keys_and_values_go_to_their_slots_alone(kernels: Kernels, layout: str) -> None:
    held = memory(shaped(4, 2, 24), layout, [20], 5, torch.float32)
    tier = held.tier
    before = [piece.clone() for piece in tier.pieces]
    wide_TKD = normal((4, 10, 24), torch.float32, 4)  # the last row is padding
    blocks, offsets = lengths_tensor([4, 0, 2]), lengths_tensor([1, 4, 0])
    heads = unturned(wide_TKD[:, 1:9], 4, 2)  # a view, as the model hands in
    q_THD = kernels.store(tier.keys(1), tier.values(1), blocks, offsets, heads)
    assert torch.equal(q_THD, wide_TKD[:, 1:5])
    for row, (block, offset) in enumerate([(4, 1), (0, 4), (2, 0)]):
        assert torch.equal(tier.keys(1)[block, offset], wide_TKD[row, 5:7])
        assert torch.equal(tier.values(1)[block, offset], wide_TKD[row, 7:9])
    changed = sum(int((now != then).sum()) for now, then in zip(tier.pieces, before, strict=True))
    assert changed == 2 * 3 * 2 * 24


def unturned(all_THD: Any, num_query: int, num_key: int) -> Heads:
    """Heads that no norm and no turn changes."""
    shape = (len(all_THD), 1, all_THD.shape[-1])
    still = Angles(torch.ones(shape, device=device()), torch.zeros(shape, device=device()))
    return Heads(all_THD, num_query, num_key, None, 1e-5, still)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("num_query", "num_key", "dim"), [(4, 2, 16), (3, 1, 24), (5, 5, 64)])
def test_query_and_key_heads_are_normed_then_pairs_are_turned_and_values_are_left(
    kernels: Kernels, num_query: int, num_key: int, dim: int, norms: bool, dtype: Any
) -> None:
    config = shaped(num_query, num_key, dim)
    held = memory(config, "block_major", [9], 4, dtype)
    count = num_query + 2 * num_key
    all_THD = normal((4, count + 2, dim), dtype, 4)[:, 1 : count + 1]
    weight_ND = normal((num_query + num_key, dim), dtype, 5) if norms else None
    half_TD = normal((4, 1, dim // 2), torch.float32, 6)
    full = torch.cat((half_TD, half_TD), dim=-1)
    step = Angles(full.cos().to(dtype), full.sin().to(dtype))
    blocks, offsets = lengths_tensor([2, 0, 1, 2]), lengths_tensor([1, 3, 2, 0])
    tier = held.tier
    q_THD = kernels.store(
        tier.keys(1),
        tier.values(1),
        blocks,
        offsets,
        Heads(all_THD, num_query, num_key, weight_ND, 1e-5, step),
    )
    x = all_THD[:, : num_query + num_key].double().cpu()
    if weight_ND is not None:
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5) ** 0.5 * weight_ND.double().cpu()
    turned = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * torch.complex(
        step.cos.double().cpu()[..., : dim // 2], step.sin.double().cpu()[..., : dim // 2]
    )
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    k_TKD = tier.keys(1)[blocks, offsets]
    for found, wanted in ((q_THD, expected[:, :num_query]), (k_TKD, expected[:, num_query:])):
        error = (found.double().cpu() - wanted).abs().max()
        # plain torch rounds after every operation
        assert bool(error <= 4 * TOLERANCES[dtype] * (1 + wanted.abs().max()))
    assert torch.equal(tier.values(1)[blocks, offsets], all_THD[:, num_query + num_key :])


def test_memory_moves_as_it_is(kernels: Kernels) -> None:
    source = torch.arange(2500, dtype=torch.int64, device=device()).view(50, 50)
    target = torch.full_like(source, -1)
    kernels.move(source, target)
    assert torch.equal(source, target)
    kernels.move(source[:0], target[:0])


def sequence(config: Any, length: int, seed: int) -> tuple[Any, Any, Any]:
    heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
    qkv = normal((length, heads + 2 * kv_heads, dim), torch.float32, seed)
    return qkv.split([heads, kv_heads, kv_heads], dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alone", [False, True])
def test_a_text_in_pieces_attends_to_all_of_itself(
    kernels: Kernels, layout: str, alone: bool
) -> None:
    """Two requests, prefilled in chunks beside decoding ones; old blocks are poisoned."""
    config = shaped(4, 2, 16)
    held = memory(config, layout, [37, 20], 8, torch.float32)
    held.tier.poison(list(range(held.tier.num_blocks)))
    texts = [sequence(config, 37, 5), sequence(config, 20, 6)]
    at = [0, 0]
    found: list[list[Any]] = [[], []]
    for sizes in ((10, 0), (17, 3), (4, 1), (1, 1), (1, 14), (1, 0), (3, 1)):
        rows = sorted((row for row in (0, 1) if sizes[row]), key=lambda row: -sizes[row])
        segments = [Segment(at[row], sizes[row], held.tables[row]) for row in rows]
        attend = StepAttention(held.tier, segments, alone=alone, kernels=kernels)
        step = [
            torch.cat([texts[row][side][at[row] : at[row] + sizes[row]] for row in rows])
            for side in range(3)
        ]
        padding = [torch.ones(2, *side.shape[1:], device=device()) for side in step]
        together = torch.cat([torch.cat(pair) for pair in zip(step, padding, strict=True)], dim=1)
        out_THD = attend(1, unturned(together, 4, 2))
        assert not out_THD[-2:].any()
        outs = out_THD[:-2].split([sizes[row] for row in rows])
        for row, out in zip(rows, outs, strict=True):
            found[row].append(out)
            at[row] += sizes[row]
    assert at == [37, 20]
    for (q, k, v), pieces in zip(texts, found, strict=True):
        out = torch.cat(pieces)
        for i in range(len(q)):
            expected = definition(q[i], k[: i + 1].double().cpu(), v[: i + 1].double().cpu())
            assert close(out[i], expected)


def test_alone_a_row_depends_on_nothing_but_itself(kernels: Kernels) -> None:
    config = shaped(4, 2, 128)  # of which a split has several tiles
    lengths = [3, 300, 64, 7, 200]
    held = memory(config, "block_major", lengths, 16, torch.float32)
    rows = [sequence(config, 1, 10 + row) for row in range(len(lengths))]

    def outs(chosen: list[int]) -> list[Any]:
        segments = [Segment(lengths[row] - 1, 1, held.tables[row]) for row in chosen]
        attend = StepAttention(held.tier, segments, alone=True, kernels=kernels)
        sides = [torch.cat([rows[row][side] for row in chosen]) for side in range(3)]
        return list(attend(0, unturned(torch.cat(sides, dim=1), 4, 2)))

    together = outs([0, 1, 2, 3, 4])
    for chosen in ([0], [4, 3, 2, 1, 0], [2, 4], [4], [1]):
        for row, out in zip(chosen, outs(chosen), strict=True):
            assert torch.equal(out, together[row])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_padding_row_writes_to_its_own_block_alone(kernels: Kernels, layout: str) -> None:
    config = shaped(4, 2, 16)
    held = memory(config, layout, [21, 16], 16, torch.float32)
    tier = held.tier
    assert tier.scratch == tier.num_blocks
    spare = tier.scratch
    table_BN = padded([[spare], held.tables[0], held.tables[1], [spare]], filler=spare)
    positions_B = lengths_tensor([-1, 20, 15, -1])
    before = [piece.clone() for piece in tier.pieces]
    attend = DecodeAttention(tier, positions_B, table_BN, 2, kernels=kernels)
    q, k, v = sequence(config, 4, 20)
    k[0] = float("nan")  # of no interest to anybody
    out_BHD = attend(0, unturned(torch.cat((q, k, v), dim=1), 4, 2))
    assert not out_BHD[[0, 3]].any()
    for row, length in ((1, 21), (2, 16)):
        expected = definition(q[row], *held.context(0, row - 1, length))
        assert close(out_BHD[row], expected)
    written = {(held.tables[0][1], 4), (held.tables[1][0], 15), (spare, 0)}
    for now, then in zip(tier.pieces, before, strict=True):
        same = (now == then).flatten(1 + now.dim() - 3).all(-1)  # [blocks, (layers, 2,) slots]
        same = same.reshape(same.shape[0], -1, 16).all(1)
        assert {(int(b), int(o)) for b, o in (~same).nonzero()} <= written
    assert torch.equal(tier.keys(0)[held.tables[0][1], 4], k[1])
    assert torch.equal(tier.values(0)[held.tables[1][0], 15], v[2])


def test_splits_keep_a_gpu_busy_and_are_not_too_short() -> None:
    for batch in (1, 3, 8, 64, 500):
        for kv_heads in (1, 8):
            for context in (1, 100, 2048, 8192, 100_000):
                splits = splits_for(batch, kv_heads, context)
                assert 1 <= splits <= MAX_SPLITS
                assert splits == 1 or context > (splits - 1) * MIN_SPLIT_TOKENS
                assert splits == 1 or batch * kv_heads * splits <= PROGRAMS
    assert splits_for(1, 8, 2048) == 32
    assert splits_for(8, 8, 2048) == 10
    assert splits_for(64, 8, 2048) == 1  # the rows alone fill the device


# ---------------------------------------------------------------------- how prompts attend


def test_no_prompt_hands_a_mask_over_as_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes none beside grouped heads; what takes its place plans for every shape."""
    asked: list[tuple[str, bool]] = []
    proper = torch.nn.functional.scaled_dot_product_attention

    def look(*args: Any, attn_mask: Any = None, is_causal: bool = False, **rest: Any) -> Any:
        asked.append((type(attn_mask).__name__, is_causal))
        return proper(*args, attn_mask=attn_mask, is_causal=is_causal, **rest)

    monkeypatch.setattr(attention, "F", SimpleNamespace(scaled_dot_product_attention=look))
    held = memory(shaped(4, 2, 16), "layer_major", [40, 30], 8, torch.float32)
    for past, new in ((0, 10), (10, 7), (17, 1)):
        segments = [Segment(past, new, table) for table in held.tables]
        step = StepAttention(held.tier, segments, alone=True, kernels=attention.PLAIN)
        step(0, unturned(normal((2 * new, 8, 16), torch.float32, new), 4, 2))
    assert asked == [("NoneType", True)] * 2 + [("CausalBias", False)] * 4


@given(lists=st.lists(st.lists(st.integers(0, 1 << 40), max_size=7), min_size=1, max_size=6))
def test_small_numbers_come_over_as_they_are_each_list_where_kernels_want_it(
    lists: list[list[int]],
) -> None:
    ferry = Ferry(torch.device("cpu"), attention.move)
    found = ferry.to_device(*lists)
    assert [tensor.tolist() for tensor in found] == lists
    begin = found[0].data_ptr()
    assert all((tensor.data_ptr() - begin) % 16 == 0 for tensor in found if len(tensor))
    assert ferry.to_host(found[0]) == lists[0]


def test_on_a_gpu_no_prompt_goes_through_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="kernels of a GPU need triton")
    said: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", said.append)
    kernels_for.cache_clear()
    assert kernels_for("cuda").has_splits
    assert said == [False]
    kernels_for.cache_clear()


def test_a_cpu_computes_in_plain_torch() -> None:
    assert kernels_for("cpu") is kernels_of("torch")
