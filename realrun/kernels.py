"""The Triton kernels, and nothing else: `realrun.splitkv` and `realrun.fused` launch them.

Importing this needs triton, which machines without a GPU need not have. Every load is masked to what
is valid and every sum is in fp32. Strides are in elements; the last dimension is contiguous. Sizes in
capitals are compiled in; PADDED_ ones are the next power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_row"])
def decode_partial(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    lengths_ptr,
    acc_ptr,
    max_ptr,
    sum_ptr,
    scale,
    q_row,
    q_head,
    kv_block,
    kv_slot,
    kv_head,
    table_row,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One split of one row's keys against the query heads of one key head; the grid is (rows, key
    heads, splits).

    The same number of tiles for each split of a row, so that a row's sums depend on its length and on
    the number of splits, never on its neighbours. `scale` holds log2(e). A split without keys stores
    a sum of 0 and no values. WIDE: products in fp32, not in the tensors' type.
    """
    row = tl.program_id(0)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    tokens = tl.cdiv(tl.cdiv(length, TILE), splits) * TILE
    begin = split * tokens
    end = tl.minimum(begin + tokens, length)

    members = tl.arange(0, PADDED_GROUP)
    heads = kv * GROUP + members
    is_head = members < GROUP
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < DIM
    q = tl.load(
        q_ptr + row * q_row + heads[:, None] * q_head + dims[None, :],
        mask=is_head[:, None] & is_dim[None, :],
        other=0.0,
    )
    if WIDE:
        q = q.to(tl.float32)
    best = tl.full([PADDED_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([PADDED_GROUP], tl.float32)
    acc = tl.zeros([PADDED_GROUP, PADDED_DIM], tl.float32)
    for start in range(begin, end, TILE):
        slots = start + tl.arange(0, TILE)
        valid = slots < end
        block = tl.load(table_ptr + row * table_row + slots // BLOCK_SIZE, mask=valid, other=0).to(
            tl.int64
        )
        at = block * kv_block + (slots % BLOCK_SIZE) * kv_slot + kv * kv_head
        k = tl.load(
            k_ptr + at[None, :] + dims[:, None],
            mask=is_dim[:, None] & valid[None, :],
            other=0.0,
        )
        v = tl.load(
            v_ptr + at[:, None] + dims[None, :],
            mask=valid[:, None] & is_dim[None, :],
            other=0.0,
        )
        if WIDE:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        larger = tl.maximum(best, tl.max(scores, 1))
        shares = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(best - larger)
        total = total * shrink + tl.sum(shares, 1)
        acc = acc * shrink[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        best = larger
    part = (row * (tl.num_programs(1) * GROUP) + heads) * splits + split
    tl.store(max_ptr + part, best, mask=is_head)
    tl.store(sum_ptr + part, total, mask=is_head)
    tl.store(
        acc_ptr + part[:, None] * DIM + dims[None, :],
        acc,
        mask=(is_head & (total != 0.0))[:, None] & is_dim[None, :],
    )


@triton.jit
def decode_combine(
    acc_ptr,
    max_ptr,
    sum_ptr,
    out_ptr,
    splits,
    PADDED_SPLITS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """The splits of one row and head put together; the grid is (rows, heads). A row without any key
    gets zeros."""
    at = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    parts = tl.arange(0, PADDED_SPLITS)
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < DIM
    sums = tl.load(sum_ptr + at * splits + parts, mask=parts < splits, other=0.0)
    has_keys = sums != 0.0  # NaN is not 0: what is wrong with a valid key must show
    best = tl.load(max_ptr + at * splits + parts, mask=has_keys, other=float("-inf"))
    top = tl.max(best, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.where(has_keys, tl.exp2(best - top), 0.0)
    total = tl.sum(weights * sums, 0)
    acc = tl.load(
        acc_ptr + (at * splits + parts)[:, None] * DIM + dims[None, :],
        mask=has_keys[:, None] & is_dim[None, :],
        other=0.0,
    )
    out = tl.sum(acc * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + at * DIM + dims, out.to(out_ptr.dtype.element_ty), mask=is_dim)


@triton.jit
def store_kv(
    k_ptr,
    v_ptr,
    keys_ptr,
    values_ptr,
    blocks_ptr,
    offsets_ptr,
    k_row,
    k_head,
    v_row,
    v_head,
    kv_block,
    kv_slot,
    kv_head,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    DIM: tl.constexpr,
):
    """K and V of one new token, all its heads, into its slot; the grid is (tokens,)."""
    row = tl.program_id(0)
    elements = tl.arange(0, PADDED_SIZE)
    inside = elements < SIZE
    head = elements // DIM
    dim = elements % DIM
    block = tl.load(blocks_ptr + row).to(tl.int64)
    slot = block * kv_block + tl.load(offsets_ptr + row) * kv_slot + head * kv_head + dim
    k = tl.load(k_ptr + row.to(tl.int64) * k_row + head * k_head + dim, mask=inside)
    v = tl.load(v_ptr + row.to(tl.int64) * v_row + head * v_head + dim, mask=inside)
    tl.store(keys_ptr + slot, k, mask=inside)
    tl.store(values_ptr + slot, v, mask=inside)


@triton.jit
def add_norm(
    x_ptr,
    delta_ptr,
    weight_ptr,
    normed_ptr,
    sum_ptr,
    eps,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Root-mean-square norm of one row, of x or (ADDS) of x + delta, which is stored too, rounded to
    the tensors' type before it is normed. The grid is (rows,)."""
    at = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, PADDED_SIZE)
    inside = columns < SIZE
    x = tl.load(x_ptr + at + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta_ptr + at + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps) * weight
    tl.store(normed_ptr + at + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def turn(
    qk_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    eps,
    qk_row,
    qk_head,
    DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    """One head of one token, normed (NORMS) and rotated; the grid is (tokens, heads). Pairs are
    (i, i + DIM / 2), and both of a pair turn by the same angle."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, PADDED_HALF)
    inside = half < DIM // 2
    at = qk_ptr + row * qk_row + head * qk_head + half
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        squares = tl.sum(first * first, 0) + tl.sum(second * second, 0)
        shrink = tl.rsqrt(squares / DIM + eps)
        weight = weight_ptr + head * DIM + half
        first *= shrink * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
        second *= shrink * tl.load(weight + DIM // 2, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + row * DIM + half, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row * DIM + half, mask=inside, other=0.0).to(tl.float32)
    out = out_ptr + (row * tl.num_programs(1) + head) * DIM + half
    kind = out_ptr.dtype.element_ty
    tl.store(out, (first * cos - second * sin).to(kind), mask=inside)
    tl.store(out + DIM // 2, (second * cos + first * sin).to(kind), mask=inside)


@triton.jit
def gate(
    gate_up_ptr,
    out_ptr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """silu(gate) * up of one stretch of one row; the grid is (rows, stretches)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < SIZE
    gates = tl.load(gate_up_ptr + row * (2 * SIZE) + columns, mask=inside, other=0.0)
    ups = tl.load(gate_up_ptr + row * (2 * SIZE) + SIZE + columns, mask=inside, other=0.0)
    wide = gates.to(tl.float32)
    out = wide / (1.0 + tl.exp(-wide)) * ups.to(tl.float32)
    tl.store(out_ptr + row * SIZE + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


#: Whether these run in triton's interpreter (TRITON_INTERPRET=1), whose products of bf16 are wrong.
INTERPRETED = not isinstance(decode_partial, triton.JITFunction)
