"""The Triton kernel behind ``tree_kernel``, which launches it and says what its arguments are.

A program has BLOCK tokens of the pack and one head. Every number is the sum of three bfloat16 ones, of which
a row holds the small ones first. Of the nine products of two numbers' pieces six are computed: what the other
three add is below float32's last digit.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _piece(at, piece, row, live, WIDTH: tl.constexpr):
    """Load a piece of rows, [BLOCK, WIDTH], whose first is at ``at``; zeros where none is ``live``."""
    return tl.load((at + piece * row)[:, None] + tl.arange(0, WIDTH)[None, :], mask=live[:, None], other=0.0)


@triton.jit
def _product(a3, a2, a1, b3, b2, b1):
    """Compute the product of two numbers in pieces, from the smallest terms on."""
    found = tl.dot(a1, b3)
    found = tl.dot(a2, b2, found)
    found = tl.dot(a3, b1, found)
    found = tl.dot(a1, b2, found)
    found = tl.dot(a2, b1, found)
    return tl.dot(a1, b1, found)


@triton.jit
def _seen(q3, q2, q1, k, v, columns, live, seen, most, total, found, row, head, factor, WIDTH: tl.constexpr):
    """Attend to keys ``columns`` as well, where they are ``seen`` [queries, keys]."""
    at = columns.to(tl.int64) * (3 * row) + head * WIDTH
    k3, k2, k1 = (
        _piece(k + at, 0, row, live, WIDTH),
        _piece(k + at, 1, row, live, WIDTH),
        _piece(k + at, 2, row, live, WIDTH),
    )
    scores = _product(q3, q2, q1, tl.trans(k3), tl.trans(k2), tl.trans(k1)) * factor
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(most, tl.max(scores, 1))
    shrunk = tl.exp2(most - higher)
    shares = tl.exp2(scores - higher[:, None])
    total = total * shrunk + tl.sum(shares, 1)
    s1 = shares.to(tl.bfloat16)
    rest = shares - s1.to(tl.float32)
    s2 = rest.to(tl.bfloat16)
    s3 = (rest - s2.to(tl.float32)).to(tl.bfloat16)
    v3, v2, v1 = (
        _piece(v + at, 0, row, live, WIDTH),
        _piece(v + at, 1, row, live, WIDTH),
        _piece(v + at, 2, row, live, WIDTH),
    )
    found = found * shrunk[:, None] + _product(s3, s2, s1, v3, v2, v1)
    return higher, total, found


@triton.jit(do_not_specialize=["tokens", "cached", "heads", "group"])  # one build serves every pack and model
def tree_kernel(
    q,
    k,
    v,
    prefix_k,
    prefix_v,
    ends,
    lists,
    blocks,
    out,
    tokens,
    cached,
    heads,
    group,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    rows = tile * BLOCK + tl.arange(0, BLOCK)
    live = rows < tokens
    kept_row = heads // group * WIDTH
    q_at = q + rows.to(tl.int64) * (3 * heads * WIDTH) + head * WIDTH
    q3 = _piece(q_at, 0, heads * WIDTH, live, WIDTH)
    q2 = _piece(q_at, 1, heads * WIDTH, live, WIDTH)
    q1 = _piece(q_at, 2, heads * WIDTH, live, WIDTH)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    found = tl.zeros((BLOCK, WIDTH), tl.float32)
    factor = scale * LOG2E
    for start in range(0, cached, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        there = columns < cached
        most, total, found = _seen(
            q3,
            q2,
            q1,
            prefix_k,
            prefix_v,
            columns,
            there,
            there[None, :],
            most,
            total,
            found,
            kept_row,
            head // group,
            factor,
            WIDTH,
        )
    for place in range(tl.load(lists + tile), tl.load(lists + tile + 1)):
        columns = tl.load(blocks + place) * BLOCK + tl.arange(0, BLOCK)
        there = columns < tokens
        end = tl.load(ends + columns, mask=there, other=0)
        seen = (columns[None, :] <= rows[:, None]) & (rows[:, None] < end[None, :])
        most, total, found = _seen(
            q3,
            q2,
            q1,
            k,
            v,
            columns,
            there,
            seen,
            most,
            total,
            found,
            kept_row,
            head // group,
            factor,
            WIDTH,
        )
    at = out + (rows.to(tl.int64) * heads + head) * WIDTH
    tl.store(at[:, None] + tl.arange(0, WIDTH)[None, :], found / total[:, None], mask=live[:, None])
