"""The Triton kernel behind ``tree_kernel`` whose factors are float16, of states in float32 or 16 bits.

A program has BLOCK tokens of the pack and one head. States are rounded as they are loaded; scores and sums
are float32.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(65504.0)


@triton.jit
def _halves(at, live, WIDTH: tl.constexpr):
    """Load rows [BLOCK, WIDTH] whose first numbers are at ``at``; zeros where none is ``live``."""
    found = tl.load(at[:, None] + tl.arange(0, WIDTH)[None, :], mask=live[:, None], other=0.0)
    if found.dtype != tl.float16:  # no number stays none
        found = found.to(tl.float32)
        found = tl.where(found > LARGEST, LARGEST, tl.where(found < -LARGEST, -LARGEST, found)).to(tl.float16)
    return found


@triton.jit
def _seen(q, k, v, live, seen, most, total, found, factor, WIDTH: tl.constexpr):
    """Attend to the keys at ``k`` as well, where they are ``seen`` [queries, keys]."""
    scores = tl.dot(q, tl.trans(_halves(k, live, WIDTH))) * factor
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(most, tl.max(scores, 1))
    shrunk = tl.exp2(most - higher)
    shares = tl.exp2(scores - higher[:, None])
    total = total * shrunk + tl.sum(shares, 1)
    found = tl.dot(shares.to(tl.float16), _halves(v, live, WIDTH), found * shrunk[:, None])
    return higher, total, found


@triton.jit(do_not_specialize=["tokens", "cached", "group"])  # one build serves every pack and model
def half_tree_kernel(
    q,
    k,
    v,
    prefix_k,
    prefix_v,
    ends,
    lists,
    blocks,
    out,
    q_head,
    q_token,
    k_head,
    k_token,
    v_head,
    v_token,
    prefix_k_head,
    prefix_k_token,
    prefix_v_head,
    prefix_v_token,
    tokens,
    cached,
    group,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    rows = tile * BLOCK + tl.arange(0, BLOCK)
    live = rows < tokens
    q = _halves(q + head * q_head + rows.to(tl.int64) * q_token, live, WIDTH)
    kept = head // group
    k += kept * k_head
    v += kept * v_head
    prefix_k += kept * prefix_k_head
    prefix_v += kept * prefix_v_head
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    found = tl.zeros((BLOCK, WIDTH), tl.float32)
    factor = scale * LOG2E
    for start in range(0, cached, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        there = columns < cached
        at = columns.to(tl.int64)
        keys, values = prefix_k + at * prefix_k_token, prefix_v + at * prefix_v_token
        most, total, found = _seen(q, keys, values, there, there[None, :], most, total, found, factor, WIDTH)
    for place in range(tl.load(lists + tile), tl.load(lists + tile + 1)):
        columns = tl.load(blocks + place) * BLOCK + tl.arange(0, BLOCK)
        there = columns < tokens
        at = columns.to(tl.int64)
        end = tl.load(ends + columns, mask=there, other=0)
        seen = (columns[None, :] <= rows[:, None]) & (rows[:, None] < end[None, :])
        most, total, found = _seen(
            q, k + at * k_token, v + at * v_token, there, seen, most, total, found, factor, WIDTH
        )
    at = out + (rows.to(tl.int64) * tl.num_programs(1) + head) * WIDTH
    tl.store(at[:, None] + tl.arange(0, WIDTH)[None, :], found / total[:, None], mask=live[:, None])
