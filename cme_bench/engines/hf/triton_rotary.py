"""The Triton kernel behind ``quick_rotary``, which launches it and says what its arguments are."""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl


@triton.jit
def _turn(x, out, cos, sin, at, row, step, column, live, size, HEADS: tl.constexpr):
    """Turn the heads of one token, whose numbers are at ``x``, one column by its partner half a head on."""
    head = tl.arange(0, HEADS)[:, None]
    for first in range(0, size, HEADS):
        here = (first + head < size) & live[None, :]
        low = x + (first + head) * step + column[None, :]
        one = tl.load(low, mask=here, other=0.0)
        two = tl.load(low + row, mask=here, other=0.0)
        there = out + at + (first + head) * 2 * row + column[None, :]
        half = cos + row
        other = sin + row
        cos1 = tl.load(cos + column, mask=live, other=0.0)[None, :]
        cos2 = tl.load(half + column, mask=live, other=0.0)[None, :]
        sin1 = tl.load(sin + column, mask=live, other=0.0)[None, :]
        sin2 = tl.load(other + column, mask=live, other=0.0)[None, :]
        tl.store(there, one * cos1 + -two * sin1, mask=here)
        tl.store(there + row, two * cos2 + one * sin2, mask=here)


@triton.jit(do_not_specialize=["tokens", "query_row", "key_row", "place"])  # one build serves every pack
def rotary_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    tokens,
    query_row,
    query_head,
    query_token,
    key_row,
    key_head,
    key_token,
    place,
    heads,
    key_heads,
    half,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row, token = at // tokens, at % tokens
    column = tl.arange(0, HALF)
    live = column < half
    cos += row * place + token * 2 * half
    sin += row * place + token * 2 * half
    query += row * query_row + token * query_token
    key += row * key_row + token * key_token
    _turn(query, query_out, cos, sin, at * heads * 2 * half, half, query_head, column, live, heads, HEADS)
    _turn(key, key_out, cos, sin, at * key_heads * 2 * half, half, key_head, column, live, key_heads, HEADS)
