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
    out_ptr,
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
    WHOLE: tl.constexpr,
):
    """One split of one row's keys against the query heads of one key head; the grid is (rows, key
    heads, splits).

    The same number of tiles for each split of a row, so that a row's sums depend on its length and on
    the number of splits, never on its neighbours. `scale` holds log2(e). A split without keys stores
    a sum of 0 and no values. WIDE: products in fp32, not in the tensors' type. WHOLE: there is one split,
    whose result is the row's.

    The block of the next tile is loaded a tile ahead, so that loads of keys depend on nothing that is
    loaded beside them and can be under way while a tile is computed.
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
    lanes = tl.arange(0, TILE)
    blocks_ptr = table_ptr + row * table_row
    first = begin + lanes
    block = tl.load(blocks_ptr + first // BLOCK_SIZE, mask=first < end, other=0)
    for start in range(begin, end, TILE):
        slots = start + lanes
        valid = slots < end
        ahead = slots + TILE
        following = tl.load(blocks_ptr + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
        at = block.to(tl.int64) * kv_block + (slots % BLOCK_SIZE) * kv_slot + kv * kv_head
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
        block = following
    at_out = row * (tl.num_programs(1) * GROUP) + heads
    is_out = is_head[:, None] & is_dim[None, :]
    if WHOLE:
        out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        kind = out_ptr.dtype.element_ty
        tl.store(out_ptr + at_out[:, None] * DIM + dims[None, :], out.to(kind), mask=is_out)
    else:
        part = at_out * splits + split
        tl.store(max_ptr + part, best, mask=is_head)
        tl.store(sum_ptr + part, total, mask=is_head)
        tl.store(
            acc_ptr + part[:, None] * DIM + dims[None, :],
            acc,
            mask=is_out & (total != 0.0)[:, None],
        )


@triton.jit(do_not_specialize=["splits"])
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


@triton.jit(do_not_specialize=["stored"])
def turn_store(
    heads_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    blocks_ptr,
    offsets_ptr,
    stored,
    eps,
    heads_row,
    heads_head,
    kv_block,
    kv_slot,
    kv_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    """One head of one token; the grid is (tokens, query, key and value heads). Query and key heads are
    normed (NORMS) and rotated: pairs are (i, i + DIM / 2), and both of a pair turn by the same angle.
    Query heads go to `q_ptr`; key and value heads of the first `stored` tokens into their slots."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    turns = head < HEADS + KV_HEADS
    half = tl.arange(0, PADDED_HALF)
    inside = half < DIM // 2
    at = heads_ptr + row * heads_row + head * heads_head + half
    kind = q_ptr.dtype.element_ty
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + DIM // 2, mask=inside, other=0.0)
    if turns:
        x = first.to(tl.float32)
        y = second.to(tl.float32)
        if NORMS:
            shrink = tl.rsqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / DIM + eps)
            weight = weight_ptr + head * DIM + half
            x *= shrink * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
            y *= shrink * tl.load(weight + DIM // 2, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + row * DIM + half, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + row * DIM + half, mask=inside, other=0.0).to(tl.float32)
        first = (x * cos - y * sin).to(kind)
        second = (y * cos + x * sin).to(kind)
    if head < HEADS:
        out = q_ptr + (row * HEADS + head) * DIM + half
        tl.store(out, first, mask=inside)
        tl.store(out + DIM // 2, second, mask=inside)
    elif row < stored:
        block = tl.load(blocks_ptr + row).to(tl.int64)
        slot = block * kv_block + tl.load(offsets_ptr + row) * kv_slot + half
        if turns:
            out = keys_ptr + slot + (head - HEADS) * kv_head
        else:
            out = values_ptr + slot + (head - HEADS - KV_HEADS) * kv_head
        tl.store(out, first, mask=inside)
        tl.store(out + DIM // 2, second, mask=inside)


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


@triton.jit(do_not_specialize=["size"])
def move(source_ptr, target_ptr, size, TILE: tl.constexpr):
    """A stretch of memory; either side may be page-locked memory of the host. A copy call would queue
    behind the swaps of its direction, a kernel does not."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(target_ptr + at, tl.load(source_ptr + at, mask=at < size), mask=at < size)


#: Whether these run in triton's interpreter (TRITON_INTERPRET=1), whose products of bf16 are wrong.
INTERPRETED = not isinstance(decode_partial, triton.JITFunction)
