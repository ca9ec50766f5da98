"""The Triton kernels behind ``short_attention``, which launches them and says what their arguments are.

A program has BLOCK tokens of one example and one head; those beyond its end have nothing to do.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _example(starts, blocks):
    """Return the first token of the program's example, its length, and the program's block in it."""
    example = tl.program_id(0) // blocks
    first = tl.load(starts + example)
    return first, tl.load(starts + example + 1) - first, tl.program_id(0) % blocks


@triton.jit
def _tile(pointer, first, rows, length, head, row_stride, head_stride, WIDTH: tl.constexpr):
    """Load tokens ``rows`` of an example and one head, [BLOCK, WIDTH]; zeros beyond its end."""
    at = pointer + (first + rows)[:, None].to(tl.int64) * row_stride + head * head_stride
    return tl.load(at + tl.arange(0, WIDTH)[None, :], mask=(rows < length)[:, None], other=0.0)


@triton.jit
def _put(pointer, value, first, rows, length, head, heads, WIDTH: tl.constexpr):
    """Store what :func:`_tile` loads, of a contiguous [tokens, heads, WIDTH]."""
    at = pointer + ((first + rows)[:, None].to(tl.int64) * heads + head) * WIDTH
    tl.store(
        at + tl.arange(0, WIDTH)[None, :], value.to(pointer.dtype.element_ty), mask=(rows < length)[:, None]
    )


@triton.jit
def _shares(query, key, sums, rows, columns, length, factor):
    """Compute the shares that queries give to keys, [queries, keys]; 0 for later keys."""
    seen = (rows[:, None] >= columns[None, :]) & (rows < length)[:, None]
    scores = tl.dot(query, tl.trans(key)) * factor
    return tl.where(seen, tl.exp2(scores - sums[:, None]), 0.0)


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    starts,
    out,
    sums,
    tokens,
    blocks,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    scale,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first, length, block = _example(starts, blocks)
    head = tl.program_id(1)
    if block * BLOCK < length:
        rows = block * BLOCK + tl.arange(0, BLOCK)
        query = _tile(q, first, rows, length, head, q_row, q_head, WIDTH)
        most = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        found = tl.zeros((BLOCK, WIDTH), tl.float32)
        factor = scale * LOG2E
        for other in range(0, block + 1):
            columns = other * BLOCK + tl.arange(0, BLOCK)
            key = _tile(k, first, columns, length, head // GROUP, k_row, k_head, WIDTH)
            scores = tl.dot(query, tl.trans(key)) * factor
            scores = tl.where(rows[:, None] >= columns[None, :], scores, float("-inf"))
            higher = tl.maximum(most, tl.max(scores, 1))
            shrunk = tl.exp2(most - higher)
            shares = tl.exp2(scores - higher[:, None])
            total = total * shrunk + tl.sum(shares, 1)
            value = _tile(v, first, columns, length, head // GROUP, v_row, v_head, WIDTH)
            found = found * shrunk[:, None] + tl.dot(shares.to(value.dtype), value)
            most = higher
        _put(out, found / total[:, None], first, rows, length, head, tl.num_programs(1), WIDTH)
        at = sums + head.to(tl.int64) * tokens + first + rows
        tl.store(at, most + tl.log2(total), mask=rows < length)


@triton.jit
def query_kernel(
    q,
    k,
    v,
    starts,
    out,
    sums,
    grad,
    to_q,
    inner,
    tokens,
    blocks,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    scale,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradient of queries, and ``inner``: of each query the product of output and gradient."""
    first, length, block = _example(starts, blocks)
    head = tl.program_id(1)
    if block * BLOCK < length:
        heads = tl.num_programs(1)
        rows = block * BLOCK + tl.arange(0, BLOCK)
        query = _tile(q, first, rows, length, head, q_row, q_head, WIDTH)
        outer = _tile(grad, first, rows, length, head, heads * WIDTH, WIDTH, WIDTH)
        own = _tile(out, first, rows, length, head, heads * WIDTH, WIDTH, WIDTH)
        product = tl.sum(own.to(tl.float32) * outer.to(tl.float32), 1)
        place = head.to(tl.int64) * tokens + first + rows
        tl.store(inner + place, product, mask=rows < length)
        log_sums = tl.load(sums + place, mask=rows < length, other=0.0)
        found = tl.zeros((BLOCK, WIDTH), tl.float32)
        for other in range(0, block + 1):
            columns = other * BLOCK + tl.arange(0, BLOCK)
            key = _tile(k, first, columns, length, head // GROUP, k_row, k_head, WIDTH)
            value = _tile(v, first, columns, length, head // GROUP, v_row, v_head, WIDTH)
            shares = _shares(query, key, log_sums, rows, columns, length, scale * LOG2E)
            to_shares = tl.dot(outer, tl.trans(value))
            to_scores = shares * (to_shares - product[:, None])
            found += tl.dot(to_scores.to(key.dtype), key)
        _put(to_q, found * scale, first, rows, length, head, heads, WIDTH)


@triton.jit
def key_kernel(
    q,
    k,
    v,
    starts,
    sums,
    grad,
    inner,
    to_k,
    to_v,
    tokens,
    blocks,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    scale,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradients of keys and values, from the queries of the GROUP heads that see them."""
    first, length, block = _example(starts, blocks)
    kept_head = tl.program_id(1)
    if block * BLOCK < length:
        heads = tl.num_programs(1) * GROUP
        columns = block * BLOCK + tl.arange(0, BLOCK)
        key = _tile(k, first, columns, length, kept_head, k_row, k_head, WIDTH)
        value = _tile(v, first, columns, length, kept_head, v_row, v_head, WIDTH)
        of_key = tl.zeros((BLOCK, WIDTH), tl.float32)
        of_value = tl.zeros((BLOCK, WIDTH), tl.float32)
        for member in range(0, GROUP):
            head = kept_head * GROUP + member
            for other in range(block, tl.cdiv(length, BLOCK)):
                rows = other * BLOCK + tl.arange(0, BLOCK)
                place = head.to(tl.int64) * tokens + first + rows
                query = _tile(q, first, rows, length, head, q_row, q_head, WIDTH)
                outer = _tile(grad, first, rows, length, head, heads * WIDTH, WIDTH, WIDTH)
                log_sums = tl.load(sums + place, mask=rows < length, other=0.0)
                product = tl.load(inner + place, mask=rows < length, other=0.0)
                shares = _shares(query, key, log_sums, rows, columns, length, scale * LOG2E)
                of_value += tl.dot(tl.trans(shares.to(outer.dtype)), outer)
                to_shares = tl.dot(outer, tl.trans(value))
                to_scores = shares * (to_shares - product[:, None])
                of_key += tl.dot(tl.trans(to_scores.to(query.dtype)), query)
        kept = tl.num_programs(1)
        _put(to_k, of_key * scale, first, columns, length, kept_head, kept, WIDTH)
        _put(to_v, of_value, first, columns, length, kept_head, kept, WIDTH)
