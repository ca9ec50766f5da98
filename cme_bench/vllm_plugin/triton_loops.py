"""The expanding kernels for many tokens: a program keeps the latent of its tokens and loops over columns.

Those of ``triton_kernels.py`` wait for y, B and z one after the other, and read z for every block of columns.
Here z is read once a program, and y and B of a block while the one before is computed. Nobody reads y twice,
so it leaves the L1 to B, which the programs of a multiprocessor share.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl
from triton.language.extra.cuda.libdevice import fast_dividef, fast_expf

from cme_bench.vllm_plugin.triton_kernels import _latent


@triton.jit
def _rounded(x, kind: tl.constexpr, FAST: tl.constexpr):
    """Round float32 ``x`` to ``kind``. FAST: to bfloat16 two at once, by the units that are not exp's."""
    if FAST and kind == tl.bfloat16:
        pairs: tl.constexpr = (
            "{.reg .b32 t; cvt.rn.bf16x2.f32 t, $3, $2; shl.b32 $0, t, 16; and.b32 $1, t, 0xffff0000;}"
        )
        x = tl.inline_asm_elementwise(pairs, "=f,=f,f,f", [x], dtype=tl.float32, is_pure=True, pack=2)
    else:
        x = x.to(kind).to(tl.float32)
    return x


@triton.jit
def _silu(x, FAST: tl.constexpr):
    """Compute x sigmoid(x) in float32. FAST: without what only numbers near the least ones need."""
    if FAST:
        x = fast_dividef(x, 1.0 + fast_expf(-x))
    else:
        x *= tl.sigmoid(x)
    return x


@triton.jit(do_not_specialize=["tokens"])
def expand_add_silu_loop(
    ext,
    z,
    logits,
    matrix,
    interaction,
    out,
    tokens,
    d_in,
    half,
    ext_stride,
    z_stride,
    logits_stride,
    matrix_stride,
    z_first,
    logits_first,
    scale,
    floor,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    FAST: tl.constexpr,
):
    """Compute what ``expand_add_silu_kernel`` does, where CHUNK is the whole latent and BLOCK_N divides half.

    Of n programs for the same tokens, each has every n-th block of columns. While one is computed, the next
    one's y (AHEAD 1), or y and B (AHEAD 2), are on their way into registers; what is not, comes by STAGES.
    """
    tl.static_assert(CHUNK == RANK * EXPERTS)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    rows = live[:, None]
    t = t.to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, CHUNK)
    logits_at = logits + logits_first + (t * logits_stride)[:, None]
    z_g = _latent(
        z + z_first, t, z_stride, live, 0, c, logits_at, interaction, scale, floor,
        RANK, EXPERTS, PADDED, SHARED, GATED,
    )  # fmt: skip
    z_u = _latent(
        z + z_first, t, z_stride, live, 1, c, logits_at + EXPERTS, interaction + EXPERTS * EXPERTS, scale,
        floor, RANK, EXPERTS, PADDED, SHARED, GATED,
    )  # fmt: skip
    y_at = ext + t[:, None] * ext_stride + n[None, :]
    b_stride = matrix_stride.to(tl.int64)
    b_at = matrix + n[None, :] * b_stride + d_in + c[:, None]
    out_at = out + t[:, None] * half + n[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    first = tl.program_id(0)
    step = tl.num_programs(0)
    blocks = half // BLOCK_N
    if AHEAD >= 1:
        y_g = tl.load(y_at + first * BLOCK_N, mask=rows, other=0.0, cache_modifier=".cg")
        y_u = tl.load(y_at + half + first * BLOCK_N, mask=rows, other=0.0, cache_modifier=".cg")
    if AHEAD >= 2:
        b_g = tl.load(b_at + first * BLOCK_N * b_stride)
        b_u = tl.load(b_at + (half + first * BLOCK_N) * b_stride + CHUNK)
    for block in tl.range(first, blocks, step, num_stages=STAGES):
        after = tl.minimum(block + step, blocks - 1) * BLOCK_N
        column = block * BLOCK_N
        if AHEAD >= 1:
            more = rows & (block + step < blocks)
            next_y_g = tl.load(y_at + after, mask=more, other=0.0, cache_modifier=".cg")
            next_y_u = tl.load(y_at + half + after, mask=more, other=0.0, cache_modifier=".cg")
        else:
            y_g = tl.load(y_at + column, mask=rows, other=0.0, cache_modifier=".cg")
            y_u = tl.load(y_at + half + column, mask=rows, other=0.0, cache_modifier=".cg")
        if AHEAD >= 2:
            next_b_g = tl.load(b_at + after * b_stride)
            next_b_u = tl.load(b_at + (half + after) * b_stride + CHUNK)
        else:
            b_g = tl.load(b_at + column * b_stride)
            b_u = tl.load(b_at + (half + column) * b_stride + CHUNK)
        g = _rounded(tl.dot(z_g, b_g, y_g.to(tl.float32)), kind, FAST)
        u = _rounded(tl.dot(z_u, b_u, y_u.to(tl.float32)), kind, FAST)
        tl.store(out_at + column, (_silu(g, FAST) * u).to(kind), mask=rows)
        if AHEAD >= 1:
            y_g = next_y_g
            y_u = next_y_u
        if AHEAD >= 2:
            b_g = next_b_g
            b_u = next_b_u


@triton.jit(do_not_specialize=["tokens"])
def expand_add_loop(
    ext,
    z,
    logits,
    matrix,
    interaction,
    out,
    tokens,
    d_in,
    d_out,
    ext_stride,
    z_stride,
    logits_stride,
    matrix_stride,
    z_first,
    logits_first,
    scale,
    floor,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Compute what ``expand_add_kernel`` does for one part that writes all columns; the rest as above."""
    tl.static_assert(CHUNK == RANK * EXPERTS)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    rows = live[:, None]
    t = t.to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, CHUNK)
    own = _latent(
        z + z_first, t, z_stride, live, 0, c, logits + logits_first + (t * logits_stride)[:, None],
        interaction, scale, floor, RANK, EXPERTS, PADDED, SHARED, GATED,
    )  # fmt: skip
    y_at = ext + t[:, None] * ext_stride + n[None, :]
    b_stride = matrix_stride.to(tl.int64)
    b_at = matrix + n[None, :] * b_stride + d_in + c[:, None]
    out_at = out + t[:, None] * d_out + n[None, :]
    first = tl.program_id(0)
    step = tl.num_programs(0)
    blocks = d_out // BLOCK_N
    if AHEAD >= 1:
        y = tl.load(y_at + first * BLOCK_N, mask=rows, other=0.0, cache_modifier=".cg")
    if AHEAD >= 2:
        b = tl.load(b_at + first * BLOCK_N * b_stride)
    for block in tl.range(first, blocks, step, num_stages=STAGES):
        after = tl.minimum(block + step, blocks - 1) * BLOCK_N
        column = block * BLOCK_N
        if AHEAD >= 1:
            next_y = tl.load(
                y_at + after, mask=rows & (block + step < blocks), other=0.0, cache_modifier=".cg"
            )
        else:
            y = tl.load(y_at + column, mask=rows, other=0.0, cache_modifier=".cg")
        if AHEAD >= 2:
            next_b = tl.load(b_at + after * b_stride)
        else:
            b = tl.load(b_at + column * b_stride)
        total = tl.dot(own, b, y.to(tl.float32))
        tl.store(out_at + column, total.to(out.dtype.element_ty), mask=rows)
        if AHEAD >= 1:
            y = next_y
        if AHEAD >= 2:
            b = next_b
