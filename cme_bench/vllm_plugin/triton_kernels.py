"""The Triton kernels behind ``kernels.py``, which launches them and says what their arguments are.

The number of tokens is no reason to compile one anew: steps of a running engine have any.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917, RET505

import triton
import triton.language as tl


@triton.jit
def _gates(
    logits_at,
    interaction,
    live,
    columns,
    scale,
    floor,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Compute scale * omega of the expert that each of ``columns`` [C] of the gated latent belongs to:
    [BLOCK_T, C].

    ``logits_at`` [BLOCK_T, 1] points to the first logit of every token; PADDED is EXPERTS rounded up to a
    power of two. Without a router (one expert) the gate is the scale.
    """
    if EXPERTS == 1:
        return tl.where(live[:, None] & (columns >= 0)[None, :], scale, 0.0)
    e = tl.arange(0, PADDED)
    real = e < EXPERTS
    logits = tl.load(logits_at + e[None, :], mask=live[:, None] & real[None, :], other=0.0).to(tl.float32)
    logits = tl.where(real[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    phi = powers / tl.sum(powers, axis=1)[:, None]
    gates = tl.zeros([logits_at.shape[0], columns.shape[0]], tl.float32)
    total = tl.zeros([logits_at.shape[0]], tl.float32)
    for i in tl.static_range(EXPERTS):
        row = tl.load(interaction + i * EXPERTS + e, mask=real, other=0.0)
        omega = tl.sum(phi * row[None, :], axis=1)
        total += omega
        gates = tl.where((columns // RANK == i)[None, :], omega[:, None], gates)
    if floor > 0.0:
        gates = gates / tl.maximum(total, floor)[:, None]
    return gates * scale


@triton.jit
def _latent(
    z,
    t,
    z_stride,
    live,
    part,
    columns,
    logits_at,
    interaction,
    scale,
    floor,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
):
    """Load ``columns`` of a part's gated latent, [BLOCK_T, C]. GATED: ``z`` has it for every part; else it
    has the latent of every part, which is gated here."""
    at = z + t.to(tl.int64)[:, None] * z_stride
    if GATED:
        first = part * (RANK * EXPERTS)
        return tl.load(at + first + columns[None, :], mask=live[:, None], other=0.0)
    else:
        first = part * (RANK if SHARED else RANK * EXPERTS)
        own = columns % RANK if SHARED else columns
        latent = tl.load(at + first + own[None, :], mask=live[:, None], other=0.0)
        gates = _gates(logits_at, interaction, live, columns, scale, floor, RANK, EXPERTS, PADDED)
        return (latent * gates).to(latent.dtype)


@triton.jit(do_not_specialize=["tokens"])
def expand_add_kernel(
    ext,
    z,
    logits,
    matrix,
    interaction,
    part_of_grain,
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
    GRAIN: tl.constexpr,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute out = y + sum_i (omega_i z_i) B_i, where rows of ``ext`` begin with y, those of ``z`` from
    ``z_first`` on are what ``_latent`` takes, and those of ``logits`` from ``logits_first`` on the logits.

    EARLY: it begins before the kernel that computes those has ended, and loads of B what it can meanwhile.
    """
    width: tl.constexpr = RANK * EXPERTS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    row = t.to(tl.int64) * ext_stride
    tile = live[:, None] & (n < d_out)[None, :]
    part = tl.load(part_of_grain + tl.program_id(0) * BLOCK_N // GRAIN)
    if EARLY:
        at = matrix + d_in + tl.maximum(part, 0) * width + tl.arange(0, CHUNK)[:, None]
        b_first = tl.load(at + n[None, :].to(tl.int64) * matrix_stride, mask=(n < d_out)[None, :], other=0.0)
        tl.extra.cuda.gdc_wait()
    acc = tl.load(ext + row[:, None] + n[None, :], mask=tile, other=0.0).to(tl.float32)
    if part >= 0:
        logits_at = logits + logits_first + part * EXPERTS + (t.to(tl.int64) * logits_stride)[:, None]
        for chunk in tl.static_range(width // CHUNK):
            c = chunk * CHUNK + tl.arange(0, CHUNK)
            if EARLY and chunk == 0:
                b = b_first
            else:
                b_at = matrix + n[None, :].to(tl.int64) * matrix_stride + d_in + part * width + c[:, None]
                b = tl.load(b_at, mask=(n < d_out)[None, :], other=0.0)
            m = interaction + part * EXPERTS * EXPERTS
            own = _latent(
                z + z_first, t, z_stride, live, part, c, logits_at, m, scale, floor,
                RANK, EXPERTS, PADDED, SHARED, GATED,
            )  # fmt: skip
            acc = tl.dot(own, b, acc)
    at = out + t.to(tl.int64)[:, None] * d_out + n[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=tile)


@triton.jit(do_not_specialize=["tokens"])
def expand_add_silu_kernel(
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
    EARLY: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute out = silu(g) * u, where [g | u] is what ``expand_add_kernel`` gives for a layer of two parts.

    g and u are rounded to the model's dtype before, as that kernel would store them. EARLY: as there.
    """
    width: tl.constexpr = RANK * EXPERTS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    row = t.to(tl.int64) * ext_stride
    tile = live[:, None] & (n < half)[None, :]
    if EARLY:
        at = matrix + d_in + tl.arange(0, CHUNK)[:, None]
        b_first = tl.load(at + n[None, :].to(tl.int64) * matrix_stride, mask=(n < half)[None, :], other=0.0)
        tl.extra.cuda.gdc_wait()
    g = tl.load(ext + row[:, None] + n[None, :], mask=tile, other=0.0).to(tl.float32)
    u = tl.load(ext + row[:, None] + half + n[None, :], mask=tile, other=0.0).to(tl.float32)
    for part in tl.static_range(2):
        logits_at = logits + logits_first + part * EXPERTS + (t.to(tl.int64) * logits_stride)[:, None]
        m = interaction + part * EXPERTS * EXPERTS
        for chunk in tl.static_range(width // CHUNK):
            c = chunk * CHUNK + tl.arange(0, CHUNK)
            if EARLY and part == 0 and chunk == 0:
                b = b_first
            else:
                b_row = (part * half + n).to(tl.int64) * matrix_stride
                b_at = matrix + b_row[None, :] + d_in + part * width + c[:, None]
                b = tl.load(b_at, mask=(n < half)[None, :], other=0.0)
            own = _latent(
                z + z_first, t, z_stride, live, part, c, logits_at, m, scale, floor,
                RANK, EXPERTS, PADDED, SHARED, GATED,
            )  # fmt: skip
            if part == 0:
                g = tl.dot(own, b, g)
            else:
                u = tl.dot(own, b, u)
    kind = out.dtype.element_ty
    g = g.to(kind).to(tl.float32)
    u = u.to(kind).to(tl.float32)
    at = out + t.to(tl.int64)[:, None] * half + n[None, :]
    tl.store(at, (g * tl.sigmoid(g) * u).to(kind), mask=tile)


@triton.jit(do_not_specialize=["tokens"])
def widen_kernel(
    x,
    ext,
    logits,
    interaction,
    wide,
    tokens,
    d_in,
    ext_stride,
    logits_stride,
    wide_stride,
    z_first,
    logits_first,
    scale,
    floor,
    copies,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute wide = [x | omega_i z_i of every part and expert], where rows of ``ext`` have z of every part
    from ``z_first`` on, and those of ``logits`` the logits from ``logits_first`` on."""
    width: tl.constexpr = RANK * EXPERTS
    latent: tl.constexpr = RANK if SHARED else RANK * EXPERTS
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    t = t.to(tl.int64)
    block = tl.program_id(0)
    if block < copies:
        d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < d_in)[None, :]
        values = tl.load(x + t[:, None] * d_in + d[None, :], mask=mask)
        tl.store(wide + t[:, None] * wide_stride + d[None, :], values, mask=mask)
    else:
        part = (block - copies) // (width // CHUNK)
        c = (block - copies) % (width // CHUNK) * CHUNK + tl.arange(0, CHUNK)
        row = t * ext_stride
        zc = c % RANK if SHARED else c
        z = tl.load(ext + z_first + part * latent + row[:, None] + zc[None, :], mask=live[:, None], other=0.0)
        logits_at = logits + logits_first + part * EXPERTS + (t * logits_stride)[:, None]
        m = interaction + part * EXPERTS * EXPERTS
        gates = _gates(logits_at, m, live, c, scale, floor, RANK, EXPERTS, PADDED)
        to = wide + t[:, None] * wide_stride + d_in + part * width + c[None, :]
        tl.store(to, (z * gates).to(z.dtype), mask=live[:, None])
