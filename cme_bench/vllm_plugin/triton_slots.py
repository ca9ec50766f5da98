"""The Triton kernels behind ``slot_kernels.py``, which launches them and says what their arguments are.

A program works on one tile: up to BLOCK_T tokens of one slot. Tiles that a step does not have end at once.
Numbers that go with a step's tokens are no reason to compile a kernel anew.
"""
# mypy: ignore-errors
# ruff: noqa: PLR0917

import triton
import triton.language as tl


@triton.jit
def _store_gated(
    z,
    logits,
    gated,
    rows,
    live,
    part,
    chunk,
    interaction,
    settings,
    gated_stride,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write scale * omega_i z_i of the latent's columns [chunk * CHUNK, ...) for every expert that has some.

    ``logits`` [BLOCK_T, PADDED]; ``interaction`` and ``settings`` point to the slot's own. Without a router
    (one expert) the gate is the scale.
    """
    width: tl.constexpr = RANK * EXPERTS
    c = chunk * CHUNK + tl.arange(0, CHUNK)
    at = gated + rows.to(tl.int64)[:, None] * gated_stride + part * width
    scale = tl.load(settings)
    if EXPERTS == 1:
        tl.store(at + c[None, :], (z * scale).to(gated.dtype.element_ty), mask=live[:, None])
    else:
        e = tl.arange(0, PADDED)
        alive = e < tl.load(settings + 2).to(tl.int32)
        masked = tl.where(alive[None, :], logits, float("-inf"))
        powers = tl.exp(masked - tl.max(masked, axis=1)[:, None])
        phi = powers / tl.sum(powers, axis=1)[:, None]
        total = tl.zeros([z.shape[0]], tl.float32)
        for i in tl.static_range(EXPERTS):
            row = tl.load(interaction + i * EXPERTS + e, mask=e < EXPERTS, other=0.0)
            total += tl.sum(phi * row[None, :], axis=1)
        floor = tl.load(settings + 1)
        factor = scale / tl.where(floor > 0.0, tl.maximum(total, floor), 1.0)
        gates = tl.zeros([z.shape[0], CHUNK], tl.float32)
        for i in tl.static_range(EXPERTS):
            row = tl.load(interaction + i * EXPERTS + e, mask=e < EXPERTS, other=0.0)
            share = factor * tl.sum(phi * row[None, :], axis=1)
            if SHARED:
                value = (z * share[:, None]).to(gated.dtype.element_ty)
                tl.store(at + i * RANK + c[None, :], value, mask=live[:, None])
            else:
                gates = tl.where((c // RANK == i)[None, :], share[:, None], gates)
        if not SHARED:
            tl.store(at + c[None, :], (z * gates).to(gated.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["places", "per_split"])
def shrink_kernel(
    x,
    order,
    tiles,
    down,
    router,
    interaction,
    settings,
    gated,
    z_terms,
    logit_terms,
    places,
    d_in,
    x_stride,
    gated_stride,
    per_split,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute z = x A and the router's logits of a tile and a part.

    WHOLE: all of d_in at once; then omega z is written to ``gated`` (places, parts * k r), by the place of a
    token in ``order``. Else terms of z and of the logits, (splits, places, ...), for ``gate_kernel``.
    """
    latent: tl.constexpr = RANK if SHARED else RANK * EXPERTS
    chunks: tl.constexpr = latent // CHUNK
    tile = tiles + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    part = tl.program_id(1) // chunks
    chunk = tl.program_id(1) % chunks
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_T)
    live = rows < tl.load(tile + 2)
    t = tl.load(order + rows, mask=live, other=0).to(tl.int64)
    slot = slot.to(tl.int64)
    c = part * latent + chunk * CHUNK + tl.arange(0, CHUNK)
    e = tl.arange(0, PADDED)
    a_at = down + slot * (PARTS * latent) * d_in + c.to(tl.int64)[None, :] * d_in
    s_at = router + (slot * PARTS + part) * EXPERTS * d_in + e.to(tl.int64)[None, :] * d_in
    x_at = x + t[:, None] * x_stride
    z = tl.zeros([BLOCK_T, CHUNK], tl.float32)
    logits = tl.zeros([BLOCK_T, PADDED], tl.float32)
    start = tl.program_id(2) * per_split
    for at in range(start, min(start + per_split, d_in), BLOCK_K):
        k = at + tl.arange(0, BLOCK_K)
        inside = k < d_in
        xs = tl.load(x_at + k[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        a = tl.load(a_at + k[:, None], mask=inside[:, None], other=0.0)
        z = tl.dot(xs, a, z)
        if EXPERTS > 1:
            s = tl.load(s_at + k[:, None], mask=inside[:, None] & (e < EXPERTS)[None, :], other=0.0)
            logits = tl.dot(xs, s, logits)
    if WHOLE:
        m = interaction + (slot * PARTS + part) * EXPERTS * EXPERTS
        _store_gated(
            z, logits, gated, rows, live, part, chunk, m, settings + 3 * slot, gated_stride,
            RANK, EXPERTS, PADDED, SHARED, CHUNK,
        )  # fmt: skip
    else:
        row = (tl.program_id(2) * places + rows).to(tl.int64)[:, None]
        tl.store(z_terms + row * (PARTS * latent) + c[None, :], z, mask=live[:, None])
        if EXPERTS > 1 and chunk == 0:
            logits_at = logit_terms + row * (PARTS * EXPERTS) + part * EXPERTS + e[None, :]
            tl.store(logits_at, logits, mask=live[:, None] & (e < EXPERTS)[None, :])


@triton.jit(do_not_specialize=["places"])
def gate_kernel(
    tiles,
    z_terms,
    logit_terms,
    interaction,
    settings,
    gated,
    places,
    gated_stride,
    SPLITS: tl.constexpr,
    LOGIT_SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write omega z of a tile and a part from the terms that ``shrink_kernel`` left."""
    latent: tl.constexpr = RANK if SHARED else RANK * EXPERTS
    chunks: tl.constexpr = latent // CHUNK
    tile = tiles + 3 * tl.program_id(0)
    slot = tl.load(tile)
    if slot < 0:
        return
    part = tl.program_id(1) // chunks
    chunk = tl.program_id(1) % chunks
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_T)
    live = rows < tl.load(tile + 2)
    c = part * latent + chunk * CHUNK + tl.arange(0, CHUNK)
    e = tl.arange(0, PADDED)
    z = tl.zeros([BLOCK_T, CHUNK], tl.float32)
    logits = tl.zeros([BLOCK_T, PADDED], tl.float32)
    for split in tl.static_range(SPLITS):
        row = (split * places + rows).to(tl.int64)[:, None]
        z += tl.load(z_terms + row * (PARTS * latent) + c[None, :], mask=live[:, None], other=0.0)
    if EXPERTS > 1:
        for split in tl.static_range(LOGIT_SPLITS):
            row = (split * places + rows).to(tl.int64)[:, None]
            at = logit_terms + row * (PARTS * EXPERTS) + part * EXPERTS + e[None, :]
            logits += tl.load(at, mask=live[:, None] & (e < EXPERTS)[None, :], other=0.0)
    slot = slot.to(tl.int64)
    m = interaction + (slot * PARTS + part) * EXPERTS * EXPERTS
    _store_gated(
        z, logits, gated, rows, live, part, chunk, m, settings + 3 * slot, gated_stride,
        RANK, EXPERTS, PADDED, SHARED, CHUNK,
    )  # fmt: skip


@triton.jit
def expand_add_slots_kernel(
    gated,
    order,
    tiles,
    up,
    part_of_grain,
    y,
    d_out,
    gated_stride,
    y_stride,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute y += (omega z) B of a tile, in place, for the output columns of one part."""
    tile = tiles + 3 * tl.program_id(1)
    slot = tl.load(tile)
    part = tl.load(part_of_grain + tl.program_id(0) * BLOCK_N // GRAIN)
    if slot < 0 or part < 0:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.load(tile + 1) + tl.arange(0, BLOCK_T)
    live = rows < tl.load(tile + 2)
    t = tl.load(order + rows, mask=live, other=0).to(tl.int64)
    at = y + t[:, None] * y_stride + n[None, :]
    mask = live[:, None] & (n < d_out)[None, :]
    acc = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    b_at = up + (slot.to(tl.int64) * d_out + n.to(tl.int64)[None, :]) * WIDTH
    g_at = gated + rows.to(tl.int64)[:, None] * gated_stride + part * WIDTH
    for chunk in tl.static_range(WIDTH // CHUNK):
        c = chunk * CHUNK + tl.arange(0, CHUNK)
        g = tl.load(g_at + c[None, :], mask=live[:, None], other=0.0)
        b = tl.load(b_at + c[:, None], mask=(n < d_out)[None, :], other=0.0)
        acc = tl.dot(g, b, acc)
    tl.store(at, acc.to(y.dtype.element_ty), mask=mask)
